//! `/mesh/v1`: what the node sees, and what its operator does by hand.

use std::time::Duration;

use axum::http::StatusCode;
use embermesh_core::output::IntentKind;
use serde::de::DeserializeOwned;

use super::Shared;
use super::asked::{Answer, Asked, empty, json};
use super::body::{self, Intake};
use super::error::ApiError;
use crate::detached::Detached;
use crate::views::{DrainRequest, IntentOutcome, IntentRequest, LeaveRequest, VetoRequest};

const MAX_BODY_BYTES: u64 = 64 << 10;

pub(super) async fn members(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &front.node.members())
}

pub(super) async fn containers(front: Shared, asked: Asked) -> Answer {
    let all_nodes = asked.query().flag("all_nodes", false)?;
    json(StatusCode::OK, &front.node.containers(all_nodes).await)
}

pub(super) async fn leases(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &front.node.leases())
}

pub(super) async fn intents(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &front.node.intents())
}

pub(super) async fn status(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &front.node.status())
}

pub(super) async fn pause(front: Shared, asked: Asked) -> Answer {
    open_intent(front, asked, IntentKind::Pause).await
}

pub(super) async fn remove(front: Shared, asked: Asked) -> Answer {
    open_intent(front, asked, IntentKind::Remove).await
}

pub(super) async fn veto(front: Shared, mut asked: Asked) -> Answer {
    let request: VetoRequest = body(&mut asked).await?;
    front.node.veto(asked.path("id")?, request.hold_ms.map(Duration::from_millis)).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn release(front: Shared, mut asked: Asked) -> Answer {
    nothing(&mut asked).await?;
    front.node.release(asked.path("id")?).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn drain(front: Shared, mut asked: Asked) -> Answer {
    let request: DrainRequest = body(&mut asked).await?;
    let deadline = request.deadline_ms.map(Duration::from_millis);
    let node = front.node.clone();
    // It goes on when nobody waits for it any more.
    let outcome = Detached::new(async move { node.drain(deadline, request.force).await }).await?;
    json(if outcome.drained { StatusCode::OK } else { StatusCode::CONFLICT }, &outcome)
}

pub(super) async fn leave(front: Shared, mut asked: Asked) -> Answer {
    let request: LeaveRequest = body(&mut asked).await?;
    front.node.leave(request.force);
    Ok(empty(StatusCode::ACCEPTED))
}

async fn open_intent(front: Shared, mut asked: Asked, kind: IntentKind) -> Answer {
    let request: IntentRequest = body(&mut asked).await?;
    let (node, id) = (front.node.clone(), asked.path("id")?.to_owned());
    let outcome = Detached::new(async move { node.open_intent(&id, kind, request.force).await }).await?;
    json(intent_status(&outcome), &outcome)
}

fn intent_status(outcome: &IntentOutcome) -> StatusCode {
    match outcome.outcome.as_str() {
        "committed" | "retired" => StatusCode::OK,
        _ => StatusCode::CONFLICT,
    }
}

/// What needs no fields may still come with a body: left unread, it would cost the client its connection.
async fn nothing(asked: &mut Asked) -> Result<(), ApiError> {
    #[derive(Default, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    body::<Nothing>(asked).await.map(|_| ())
}

/// None means that nothing special is asked for.
async fn body<T: DeserializeOwned + Default>(asked: &mut Asked) -> Result<T, ApiError> {
    let bytes =
        asked.read(&Intake::new("the request", MAX_BODY_BYTES, "send the fields that are asked for only")).await?;
    if bytes.is_empty() { Ok(T::default()) } else { body::parse("the request", &bytes) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_an_intent_that_was_carried_out_is_ok() {
        for (outcome, status) in [("committed", 200), ("retired", 200), ("vetoed", 409), ("cancelled", 409)] {
            let outcome = IntentOutcome {
                intent_id: "n1-7-1-r1".to_owned(),
                container_id: "n1-7-1".to_owned(),
                kind: "remove".to_owned(),
                outcome: outcome.to_owned(),
                reason: String::new(),
                vetoes: Vec::new(),
            };
            assert_eq!(intent_status(&outcome).as_u16(), status);
        }
    }

    #[test]
    fn a_misspelt_field_is_an_error_that_names_it() {
        let error = body::parse::<DrainRequest>("the request", br#"{"dead_line_ms": 5}"#).unwrap_err();
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert!(error.to_string().contains("dead_line_ms"), "{error}");
    }
}
