//! `invoke`: runs an action, waits for its activation and shows the record or the result.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::activation::{self, Record};
use super::error::HintOn;
use super::{CommandError, Exit, action};
use crate::cli::values;
use crate::cli::{Format, InvokeArgs};
use crate::client::{Answer, Client, ClientError};
use crate::output::{Output, human_duration};

/// The longest that a node keeps a blocking call open.
const MAX_BLOCKING: Duration = Duration::from_secs(60);
/// The most parameters that a node takes, and room for how they are written.
const MAX_PARAMETER_BYTES: u64 = 2 << 20;
const FIRST_POLL: Duration = Duration::from_millis(100);
const SLOWEST_POLL: Duration = Duration::from_secs(2);

pub(super) async fn run(client: &Client, args: InvokeArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let parameters = parameters(&args)?;
    let path = action::path(&args.name);
    if args.no_wait {
        let path = format!("{path}?blocking=false");
        let answer = client.post(&path, &parameters).await;
        let answer = answer.hint_on(StatusCode::NOT_FOUND, action::no_action_hint)?;
        let accepted: Accepted = answer.parse()?;
        output.answer(&answer.body, || {
            format!("accepted {}; its outcome: embermesh activation get {0}", accepted.activation_id)
        })?;
        return Ok(Exit::Ok);
    }

    let until = Instant::now() + args.deadline;
    let blocking = args.deadline.min(MAX_BLOCKING);
    let path = format!("{path}?blocking=true&result=false&timeout={}", blocking.as_millis().max(1));
    let answer = client.send(Method::POST, &path, Some(&parameters), blocking + client.deadline()).await?;
    match outcome(answer).hint_on(StatusCode::NOT_FOUND, action::no_action_hint)? {
        Outcome::Ended(record, body) => show(&args, &record, &body, output),
        Outcome::Running(id) => {
            // Whoever interrupts the waiting can still ask for it.
            output.remark(&format!("activation {id} goes on; waiting for it to end"));
            if let Some((record, body)) = poll(client, &id, until).await? {
                return show(&args, &record, &body, output);
            }
            let waited = human_duration(args.deadline);
            output.remark(&format!("error: activation {id} has not ended within {waited}"));
            output.remark(&format!("hint: it goes on; ask later with `embermesh activation get {id}`"));
            Ok(Exit::Unavailable)
        }
    }
}

#[derive(Debug, Deserialize)]
struct Accepted {
    #[serde(rename = "activationId")]
    activation_id: String,
}

#[derive(Debug)]
enum Outcome {
    Ended(Box<Record>, Bytes),
    Running(String),
}

/// A record comes with 200, or with 502 and 500 when the activation failed; so do plain errors.
fn outcome(answer: Answer) -> Result<Outcome, ClientError> {
    match answer.status.as_u16() {
        202 => Ok(Outcome::Running(answer.parse::<Accepted>()?.activation_id)),
        200 => Ok(Outcome::Ended(Box::new(answer.parse()?), answer.body)),
        500 | 502 => match answer.parse::<Record>() {
            Ok(record) => Ok(Outcome::Ended(Box::new(record), answer.body)),
            Err(_) => Err(answer.into_error()),
        },
        _ => Err(answer.into_error()),
    }
}

/// Asks for the record until it is there or the time is over. There is none while the activation runs.
async fn poll(client: &Client, id: &str, until: Instant) -> Result<Option<(Record, Bytes)>, CommandError> {
    let mut pause = FIRST_POLL;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(SLOWEST_POLL);
        match client.get(&activation::path(id)).await {
            Ok(answer) => return Ok(Some((answer.parse()?, answer.body))),
            Err(e) if e.status() == Some(StatusCode::NOT_FOUND) => {}
            Err(e) if matches!(e.status().map(|s| s.as_u16()), Some(429 | 503)) => {}
            Err(e) => {
                let hint = format!("activation {id} may go on; ask later with `embermesh activation get {id}`");
                return Err(CommandError::Hinted(e, hint));
            }
        }
    }
}

fn show(args: &InvokeArgs, record: &Record, body: &Bytes, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    if args.result {
        output.line(&activation::result_text(record.response.result.as_ref())?)?;
    } else {
        output.answer(body, || activation::record_details(record))?;
    }
    if record.response.success {
        return Ok(Exit::Ok);
    }
    let id = &record.activation_id;
    if args.result || output.format == Format::Json {
        output.remark(&format!("error: activation {id} failed: {}", record.response.status));
    }
    output.remark(&format!("hint: `embermesh activation logs {id}` shows what it wrote"));
    Ok(Exit::Failure)
}

/// The file's parameters, then those of the command line over them.
fn parameters(args: &InvokeArgs) -> Result<Map<String, Value>, CommandError> {
    let mut parameters = match &args.param_file {
        Some(file) => parameter_file(file)?,
        None => Map::new(),
    };
    parameters.extend(values::pairs(&args.param));
    Ok(parameters)
}

fn parameter_file(file: &Path) -> Result<Map<String, Value>, CommandError> {
    let shown = file.display();
    let failed = |e: std::io::Error| CommandError::Input(format!("`{shown}` can't be read: {e}"));
    let source: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(failed)?),
    };
    let mut bytes = Vec::new();
    source.take(MAX_PARAMETER_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_PARAMETER_BYTES {
        return Err(CommandError::Input(format!("`{shown}` is larger than parameters may be, 1 MB")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| CommandError::Input(format!("`{shown}` does not hold parameters as a JSON object: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn args(param: &[&str], param_file: Option<&Path>) -> InvokeArgs {
        InvokeArgs {
            name: "hello".parse().unwrap(),
            param: param.iter().map(ToString::to_string).collect(),
            param_file: param_file.map(Path::to_owned),
            result: false,
            no_wait: false,
            deadline: Duration::from_secs(1),
        }
    }

    #[test]
    fn parameters_of_the_command_line_go_before_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        std::fs::write(&file, r#"{"a": 1, "b": [2]}"#).unwrap();
        let merged = parameters(&args(&["a", "text", "c", "-1"], Some(&file))).unwrap();
        assert_eq!(Value::from(merged), json!({"a": "text", "b": [2], "c": -1}));
        assert_eq!(parameters(&args(&[], None)).unwrap().len(), 0);
    }

    #[test]
    fn a_parameter_file_that_is_no_object_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        for content in ["[1]", "{\"a\":", ""] {
            std::fs::write(&file, content).unwrap();
            let error = parameters(&args(&[], Some(&file))).unwrap_err();
            assert!(error.to_string().contains("p.json") && error.to_string().contains("JSON object"), "{error}");
        }
        let missing = parameters(&args(&[], Some(&folder.path().join("q.json")))).unwrap_err();
        assert!(missing.to_string().contains("q.json"), "{missing}");
    }
}
