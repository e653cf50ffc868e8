//! `drain` and `leave`: taking a node out of service.

use std::time::Duration;

use embermesh_node::views::{DrainOutcome, DrainRequest, LeaveRequest};
use hyper::{Method, StatusCode};

use super::intent::confirm;
use super::{CommandError, Exit};
use crate::cli::DrainArgs;
use crate::client::Client;
use crate::output::{Output, details};

/// How long to wait for a node that drains by its own deadline: longer than any run may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15 * 60);

pub(super) async fn drain(client: &Client, args: &DrainArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let deadline_ms = args.deadline.map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX));
    let body = DrainRequest { deadline_ms, force: args.force };
    let deadline = args.deadline.unwrap_or(DRAIN_TIMEOUT).saturating_add(client.deadline());
    let answer = client.send(Method::POST, "/mesh/v1/drain", Some(&body), deadline).await?;
    // A 409 is either what is left or why there can be no drain.
    let outcome = match answer.parse::<DrainOutcome>() {
        Ok(outcome) if matches!(answer.status, StatusCode::OK | StatusCode::CONFLICT) => outcome,
        _ => answer.clone().ok()?.parse()?,
    };
    output.answer(&answer.body, || outcome_details(&outcome, args.force))?;
    if outcome.drained {
        return Ok(Exit::Ok);
    }
    output.remark(match args.force {
        true => "hint: what runs at peers goes on, and what is owed ends with it; ask again",
        false => "hint: the node goes on draining; ask again, or end what is left with --force",
    });
    Ok(Exit::Unavailable)
}

pub(super) async fn leave(client: &Client, force: bool, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let body = LeaveRequest { force };
    let answer = client.send(Method::POST, "/mesh/v1/leave", Some(&body), client.deadline()).await?.ok()?;
    confirm(&answer, output, || "the node leaves the mesh; its agent ends once it is empty".to_owned())
}

fn outcome_details(outcome: &DrainOutcome, force: bool) -> String {
    let left = if outcome.left.is_empty() { "-".to_owned() } else { outcome.left.join(", ") };
    let mut told = vec![
        ("drained", if outcome.drained { "yes" } else { "no" }.to_owned()),
        ("left", left),
        ("calls at peers", outcome.at_peers.to_string()),
        ("owed", outcome.owed.to_string()),
    ];
    if force {
        told.extend([("killed", outcome.killed.to_string()), ("given up", outcome.given_up.to_string())]);
    }
    details(told)
}
