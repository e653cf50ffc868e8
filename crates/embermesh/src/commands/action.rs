//! `action create|update|get|list|delete`.

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::HintOn;
use super::{CommandError, Exit, code};
use crate::cli::action::{ActionArgs, CreateArgs, ListArgs, SettingsArgs, UpdateArgs};
use crate::cli::values::{self, ActionName};
use crate::cli::{ActionCommand, Format};
use crate::client::{Answer, Client, encoded};
use crate::output::{Output, details, human_ms, table, utc};

pub(super) async fn run(
    client: &Client,
    command: ActionCommand,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    match command {
        ActionCommand::Create(args) => create(client, &args, output).await,
        ActionCommand::Update(args) => update(client, &args, output).await,
        ActionCommand::Get(args) => get(client, &args, output).await,
        ActionCommand::List(args) => list(client, &args, output).await,
        ActionCommand::Delete(args) => delete(client, &args, output).await,
    }
}

/// Where the API has an action.
pub(super) fn path(name: &ActionName) -> String {
    format!("/api/v1/namespaces/{}/actions/{}", encoded(&name.namespace), encoded(&name.name))
}

/// What to try when there is no such action.
pub(super) fn no_action_hint() -> String {
    "`embermesh action list` shows the actions; one created a moment ago at another node may take a second to be \
     known here"
        .to_owned()
}

async fn create(client: &Client, args: &CreateArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let settings = &args.settings;
    let mut body = body(settings);
    body.insert("exec".to_owned(), exec(args.file.as_deref(), settings)?);
    let answer = put(client, &args.name, false, &body)
        .await
        .hint_on(StatusCode::CONFLICT, || format!("`embermesh action update {}` changes it", args.name))?;
    show(&answer, "created", output)
}

fn exec(file: Option<&str>, settings: &SettingsArgs) -> Result<Value, CommandError> {
    let (kind, main) = (settings.kind.as_deref(), settings.main.as_deref());
    match (&settings.image, file) {
        (Some(image), file) => code::image_exec(image, file, main),
        (None, Some(file)) => code::exec(file, kind, main),
        (None, None) => Err(CommandError::Usage("give a FILE with the action's code, or an --image".to_owned())),
    }
}

async fn update(client: &Client, args: &UpdateArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let settings = &args.settings;
    let mut body = body(settings);
    match &args.file {
        Some(file) => {
            body.insert("exec".to_owned(), exec(Some(file), settings)?);
        }
        None if settings.kind.is_some() || settings.main.is_some() || settings.image.is_some() => {
            let answer = client.get(&format!("{}?code=true", path(&args.name))).await;
            let mut action: Value = answer.hint_on(StatusCode::NOT_FOUND, no_action_hint)?.parse()?;
            let mut exec = action["exec"].take();
            let kind = settings.kind.clone().or(settings.image.as_ref().map(|_| code::BLACKBOX.to_owned()));
            for (key, value) in [("kind", &kind), ("main", &settings.main), ("image", &settings.image)] {
                if let (Some(value), Some(exec)) = (value, exec.as_object_mut()) {
                    exec.insert(key.to_owned(), value.clone().into());
                }
            }
            body.insert("exec".to_owned(), exec);
        }
        None if body.is_empty() => {
            return Err(CommandError::Usage(format!(
                "nothing to update in {}: give a FILE or an option, see `embermesh action update --help`",
                args.name
            )));
        }
        // Overwriting would create an action that does not exist; this one would have no code.
        None => {
            let answer = client.get(&format!("{}?code=false", path(&args.name))).await;
            answer.hint_on(StatusCode::NOT_FOUND, no_action_hint)?;
        }
    }
    let answer = put(client, &args.name, true, &body).await?;
    show(&answer, "updated", output)
}

async fn get(client: &Client, args: &ActionArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.get(&format!("{}?code=false", path(&args.name))).await;
    let answer = answer.hint_on(StatusCode::NOT_FOUND, no_action_hint)?;
    let action: Action = answer.parse()?;
    output.answer(&answer.body, || action_details(&action))?;
    Ok(Exit::Ok)
}

async fn list(client: &Client, args: &ListArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let path = format!("/api/v1/namespaces/_/actions?limit={}&skip={}", args.limit, args.skip);
    let answer = client.get(&path).await?;
    let actions: Vec<Action> = answer.parse()?;
    output.answer(&answer.body, || actions_table(&actions))?;
    if actions.is_empty() {
        output.remark("there are no actions; `embermesh action create NAME FILE` makes one");
    }
    Ok(Exit::Ok)
}

async fn delete(client: &Client, args: &ActionArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.send(Method::DELETE, &path(&args.name), None::<&()>, client.deadline()).await?.ok();
    let answer = answer.hint_on(StatusCode::NOT_FOUND, no_action_hint)?;
    if output.format == Format::Table || !answer.body.is_empty() {
        output.answer(&answer.body, || format!("deleted action {}", args.name))?;
    }
    Ok(Exit::Ok)
}

async fn put(
    client: &Client,
    name: &ActionName,
    overwrite: bool,
    body: &Map<String, Value>,
) -> Result<Answer, CommandError> {
    let path = format!("{}?overwrite={overwrite}", path(name));
    Ok(client.send(Method::PUT, &path, Some(body), client.deadline()).await?.ok()?)
}

/// What the settings say of an action, without its code.
fn body(settings: &SettingsArgs) -> Map<String, Value> {
    let limits: Map<String, Value> = [
        ("concurrency", settings.concurrency.map(u64::from)),
        ("memory", settings.memory),
        ("timeout", settings.timeout),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?.into())))
    .collect();
    let mut body = Map::new();
    if !limits.is_empty() {
        body.insert("limits".to_owned(), limits.into());
    }
    for (name, flat) in [("parameters", &settings.param), ("annotations", &settings.annotation)] {
        let pairs: Vec<Value> =
            values::pairs(flat).into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        if !pairs.is_empty() {
            body.insert(name.to_owned(), pairs.into());
        }
    }
    body
}

fn show(answer: &Answer, done: &str, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let action: Action = answer.parse()?;
    output.answer(&answer.body, || {
        format!("{done} action {}/{} ({}, version {})", action.namespace, action.name, action.kind(), action.version)
    })?;
    Ok(Exit::Ok)
}

/// OpenWhisk's record of an action, as far as it is shown. Summaries have their kind as an annotation.
#[derive(Debug, Deserialize)]
struct Action {
    namespace: String,
    name: String,
    version: String,
    #[serde(default)]
    exec: Exec,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    parameters: Vec<KeyValue>,
    #[serde(default)]
    annotations: Vec<KeyValue>,
    #[serde(default)]
    updated: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exec {
    kind: String,
    main: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    memory: u64,
    timeout: u64,
    concurrency: u32,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: Value,
}

impl Action {
    fn kind(&self) -> &str {
        let annotated = self.annotations.iter().find(|a| a.key == "exec").and_then(|a| a.value.as_str());
        if self.exec.kind.is_empty() { annotated.unwrap_or("-") } else { &self.exec.kind }
    }
}

fn actions_table(actions: &[Action]) -> String {
    table(
        &["ACTION", "KIND", "VERSION", "CONCURRENCY", "MEMORY", "TIMEOUT", "UPDATED"],
        actions.iter().map(|a| {
            vec![
                format!("{}/{}", a.namespace, a.name),
                a.kind().to_owned(),
                a.version.clone(),
                a.limits.concurrency.to_string(),
                format!("{} MB", a.limits.memory),
                human_ms(a.limits.timeout),
                utc(a.updated),
            ]
        }),
    )
}

fn action_details(action: &Action) -> String {
    let all = |pairs: &[KeyValue]| {
        let pairs: Vec<String> = pairs.iter().map(|p| format!("{}={}", p.key, p.value)).collect();
        if pairs.is_empty() { "-".to_owned() } else { pairs.join(" ") }
    };
    details([
        ("action", format!("{}/{}", action.namespace, action.name)),
        ("version", action.version.clone()),
        ("kind", action.kind().to_owned()),
        ("main", if action.exec.main.is_empty() { "-".to_owned() } else { action.exec.main.clone() }),
        ("concurrency", action.limits.concurrency.to_string()),
        ("memory", format!("{} MB", action.limits.memory)),
        ("timeout", human_ms(action.limits.timeout)),
        ("parameters", all(&action.parameters)),
        ("annotations", all(&action.annotations)),
        ("updated", utc(action.updated)),
    ])
}
