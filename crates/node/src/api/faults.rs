//! `/mesh/v1/faults`: faults made on purpose, at agents started with `--enable-fault-injection`.

use axum::http::StatusCode;

use super::Shared;
use super::asked::{Answer, Asked, empty, json};
use super::body::{self, Intake};
use crate::views::FaultsRequest;

const MAX_BODY_BYTES: u64 = 64 << 10;

pub(super) async fn shown(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &front.node.faults_shown()?)
}

/// Changes what the request names and leaves the rest as it is.
pub(super) async fn change(front: Shared, mut asked: Asked) -> Answer {
    let intake = Intake::new("the request", MAX_BODY_BYTES, "send the fields that are asked for only");
    let bytes = asked.read(&intake).await?;
    let request: FaultsRequest = body::parse("the request", &bytes)?;
    front.node.change_faults(request)?;
    json(StatusCode::OK, &front.node.faults_shown()?)
}

pub(super) async fn heal(front: Shared, _asked: Asked) -> Answer {
    front.node.heal_faults()?;
    Ok(empty(StatusCode::NO_CONTENT))
}
