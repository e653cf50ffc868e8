//! The example that writes down in a file when it ran: for those who want to know it whatever became of the answer.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{Place, number, proof};
use crate::Context;
use crate::sdk::{ActionError, Outcome};

/// Notes `begin`, sleeps for `ms`, notes `end`: a JSON object a line, with `n` as it was given. Without `file` it only
/// answers.
pub(super) async fn note(place: &Place, context: &Context, params: &Value) -> Result<Outcome, ActionError> {
    let file = params.get("file").and_then(Value::as_str);
    let n = params.get("n").cloned().unwrap_or_default();
    let line = |event: &str| {
        let mut line = proof(place, context);
        line.insert("n".to_owned(), n.clone());
        line.insert("event".to_owned(), event.into());
        line.insert("at_us".to_owned(), now_us().into());
        line
    };
    let begin = line("begin");
    if let Some(file) = file {
        append(file, &begin).map_err(|error| ActionError::failed(format!("{file} can't be written: {error}")))?;
    }
    tokio::time::sleep(Duration::from_millis(number(params, "ms", 0))).await;
    if let Some(file) = file {
        append(file, &line("end")).map_err(|error| ActionError::failed(format!("{file} can't be written: {error}")))?;
    }
    Ok(Outcome::Result(Value::Object(begin)))
}

/// In one write: lines of several containers don't mix.
fn append(file: &str, line: &Map<String, Value>) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    OpenOptions::new().append(true).create(true).open(file)?.write_all(&text)
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}
