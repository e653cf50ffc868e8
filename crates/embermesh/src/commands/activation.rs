//! `activation get|list|logs|result`, and how an activation is shown.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::error::HintOn;
use super::{CommandError, Exit};
use crate::cli::ActivationCommand;
use crate::cli::action::ActivationListArgs;
use crate::client::{Answer, Client, encoded};
use crate::output::{Output, details, human_ms, pretty, table, utc};

/// Longest result in a record's table; `activation result` shows all of it.
const MAX_RESULT_CHARS: usize = 300;

pub(super) async fn run(
    client: &Client,
    command: ActivationCommand,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    match command {
        ActivationCommand::Get(args) => {
            let answer = fetch(client, &path(&args.activation_id)).await?;
            let record: Record = answer.parse()?;
            output.answer(&answer.body, || record_details(&record))?;
        }
        ActivationCommand::List(args) => list(client, &args, output).await?,
        ActivationCommand::Logs(args) => {
            let answer = fetch(client, &format!("{}/logs", path(&args.activation_id))).await?;
            let logs: Logs = answer.parse()?;
            if logs.logs.is_empty() {
                output.remark("the activation wrote nothing");
            }
            output.answer_lines(&answer.body, &logs.logs)?;
        }
        ActivationCommand::Result(args) => {
            let answer = fetch(client, &format!("{}/result", path(&args.activation_id))).await?;
            let response: Response = answer.parse()?;
            let text = result_text(response.result.as_ref())?;
            output.answer(&answer.body, || text)?;
        }
    }
    Ok(Exit::Ok)
}

/// Where the API has an activation.
pub(super) fn path(id: &str) -> String {
    format!("/api/v1/namespaces/_/activations/{id}")
}

/// The result as JSON on lines of its own.
pub(super) fn result_text(result: Option<&Value>) -> Result<String, CommandError> {
    let text =
        serde_json::to_string(&result).map_err(|e| CommandError::Input(format!("the result is no JSON: {e}")))?;
    Ok(pretty(&text))
}

async fn fetch(client: &Client, path: &str) -> Result<Answer, CommandError> {
    client.get(path).await.hint_on(StatusCode::NOT_FOUND, || {
        "it may still run, or another node may have taken it: records are kept where the call came in; `embermesh \
         activation list` shows those of this node"
            .to_owned()
    })
}

async fn list(client: &Client, args: &ActivationListArgs, output: &mut Output<'_>) -> Result<(), CommandError> {
    let mut path = format!("/api/v1/namespaces/_/activations?limit={}&skip={}", args.page.limit, args.page.skip);
    if let Some(name) = &args.name {
        path.push_str(&format!("&name={}", encoded(name)));
    }
    let answer = client.get(&path).await?;
    let summaries: Vec<Summary> = answer.parse()?;
    output.answer(&answer.body, || summaries_table(&summaries))?;
    if summaries.is_empty() {
        output.remark("there are no activations to list");
    }
    Ok(())
}

/// OpenWhisk's activation record, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    #[serde(rename = "activationId")]
    pub(super) activation_id: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    start: u64,
    #[serde(default)]
    duration: Option<u64>,
    #[serde(default)]
    logs: Vec<String>,
    #[serde(default)]
    annotations: Vec<KeyValue>,
    pub(super) response: Response,
}

#[derive(Debug, Deserialize)]
pub(super) struct Response {
    pub(super) status: String,
    #[serde(default)]
    pub(super) success: bool,
    #[serde(default)]
    pub(super) result: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: Value,
}

#[derive(Debug, Deserialize)]
struct Logs {
    logs: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Summary {
    #[serde(rename = "activationId")]
    activation_id: String,
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    start: u64,
    #[serde(default)]
    duration: Option<u64>,
    #[serde(default, rename = "statusCode")]
    status_code: Option<u8>,
    #[serde(default)]
    annotations: Vec<KeyValue>,
}

/// Annotations that say nothing of this one activation, or have a line of their own.
const NOT_SHOWN: [&str; 6] = ["limits", "path", "kind", "timeout", "initTime", "waitTime"];

pub(super) fn record_details(record: &Record) -> String {
    let mut rows = vec![
        ("activation", record.activation_id.clone()),
        ("action", format!("{}/{} ({})", record.namespace, record.name, record.version)),
        ("status", record.response.status.clone()),
        ("began", utc(record.start)),
        ("duration", record.duration.map_or_else(|| "-".to_owned(), human_ms)),
        ("start", start(&record.annotations, record.response.status != NEVER_RAN)),
    ];
    if let Some(wait_ms) = number(&record.annotations, "waitTime") {
        rows.push(("waited", human_ms(wait_ms)));
    }
    for key in ["served", "node"] {
        if let Some(annotation) = record.annotations.iter().find(|a| a.key == key) {
            rows.push((key, plain(&annotation.value)));
        }
    }
    let shown = |key: &str| key == "served" || key == "node" || NOT_SHOWN.contains(&key);
    let others = record.annotations.iter().filter(|a| !shown(&a.key));
    let others: Vec<String> = others.map(|a| format!("{}={}", a.key, plain(&a.value))).collect();
    if !others.is_empty() {
        rows.push(("annotations", others.join(" ")));
    }
    // Lines join the record after the answer: none yet is not none.
    if !record.logs.is_empty() {
        rows.push(("log lines", record.logs.len().to_string()));
    }
    rows.push(("result", shortened(&record.response.result.clone().unwrap_or_default().to_string())));
    details(rows)
}

fn summaries_table(summaries: &[Summary]) -> String {
    table(
        &["ACTIVATION", "ACTION", "VERSION", "STATUS", "START", "DURATION", "BEGAN"],
        summaries.iter().map(|s| {
            vec![
                s.activation_id.clone(),
                s.name.clone(),
                s.version.clone(),
                s.status_code.map_or("-", status_words).to_owned(),
                start(&s.annotations, s.status_code != Some(3)),
                s.duration.map_or_else(|| "-".to_owned(), human_ms),
                utc(s.start),
            ]
        }),
    )
}

/// The status of an activation that found no container, or of which nobody knows whether it did.
const NEVER_RAN: &str = "whisk internal error";

fn status_words(code: u8) -> &'static str {
    match code {
        0 => "success",
        1 => "application error",
        2 => "action developer error",
        3 => NEVER_RAN,
        _ => "unknown",
    }
}

/// Only a cold start has an initialisation.
fn start(annotations: &[KeyValue], ran: bool) -> String {
    match number(annotations, "initTime") {
        Some(init_ms) => format!("cold, init {}", human_ms(init_ms)),
        None if ran => "warm".to_owned(),
        None => "-".to_owned(),
    }
}

fn number(annotations: &[KeyValue], key: &str) -> Option<u64> {
    annotations.iter().find(|a| a.key == key)?.value.as_u64()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_RESULT_CHARS) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
