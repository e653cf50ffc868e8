//! `pause` and `remove` by hand, `veto`, `release`.

use std::time::Duration;

use embermesh_node::views::{IntentOutcome, IntentRequest, VetoRequest};
use hyper::{Method, StatusCode};

use super::error::HintOn;
use super::{CommandError, Exit, mesh};
use crate::cli::{Format, ReleaseArgs, VetoArgs};
use crate::client::{Answer, Client, encoded};
use crate::output::{Output, details, human_duration};

/// A window is a second by default; after it the engine has its turn, and a removal under way its runs.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(60);

/// `pause` or `remove`: opens an intent and shows how it ended.
pub(super) async fn open(
    client: &Client,
    kind: &str,
    container_id: &str,
    force: bool,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    let path = format!("/mesh/v1/containers/{}/{kind}", encoded(container_id));
    let body = IntentRequest { force };
    let deadline = OUTCOME_TIMEOUT + client.deadline();
    let answer = client.send(Method::POST, &path, Some(&body), deadline).await?;
    let outcome = match (answer.status, answer.parse::<IntentOutcome>()) {
        // A 409 is either how the intent ended or why there could be none.
        (StatusCode::OK | StatusCode::CONFLICT, Ok(outcome)) => outcome,
        (_, parsed) => {
            answer.clone().ok().hint_on(StatusCode::NOT_FOUND, || {
                "`embermesh containers --all-nodes` shows them; only its owner can pause or remove a container: ask \
                 that node, with --api"
                    .to_owned()
            })?;
            parsed?
        }
    };
    output.answer(&answer.body, || outcome_details(&outcome))?;
    let done = matches!(outcome.outcome.as_str(), "committed" | "retired");
    Ok(if done { Exit::Ok } else { Exit::Conflict })
}

pub(super) async fn veto(client: &Client, args: &VetoArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let path = format!("/mesh/v1/intents/{}/veto", encoded(&args.intent_id));
    let hold_ms = args.hold.map(|hold| u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
    let answer = client.post(&path, &VetoRequest { hold_ms }).await;
    let answer = answer.hint_on(StatusCode::NOT_FOUND, || {
        "`embermesh intents` shows the open ones; each stays open for its window only".to_owned()
    })?;
    let hold = args.hold.map_or_else(|| "as long as the mesh allows".to_owned(), human_duration);
    confirm(&answer, output, || format!("vetoed intent {}, to hold for {hold}", args.intent_id))
}

pub(super) async fn release(
    client: &Client,
    args: &ReleaseArgs,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    let path = format!("/mesh/v1/leases/{}/release", encoded(&args.lease_id));
    let answer = client.send(Method::POST, &path, None::<&()>, client.deadline()).await?.ok();
    let answer = answer.hint_on(StatusCode::NOT_FOUND, || {
        "`embermesh leases` shows them; a lease that nobody uses ends by itself after some seconds".to_owned()
    })?;
    confirm(&answer, output, || format!("released lease {}", args.lease_id))
}

/// Says that it is done. An empty answer has no JSON to show.
pub(super) fn confirm(
    answer: &Answer,
    output: &mut Output<'_>,
    text: impl FnOnce() -> String,
) -> Result<Exit, CommandError> {
    if output.format == Format::Table || !answer.body.is_empty() {
        output.answer(&answer.body, text)?;
    }
    Ok(Exit::Ok)
}

fn outcome_details(outcome: &IntentOutcome) -> String {
    let mut rows = vec![("container", outcome.container_id.clone())];
    if !outcome.intent_id.is_empty() {
        rows.push(("intent", outcome.intent_id.clone()));
    }
    rows.push(("kind", outcome.kind.clone()));
    rows.push(("outcome", outcome.outcome.clone()));
    if !outcome.reason.is_empty() {
        rows.push(("reason", outcome.reason.clone()));
    }
    rows.push(("vetoes", mesh::veto_list(&outcome.vetoes)));
    details(rows)
}
