//! What probes and Prometheus ask.

use axum::http::{HeaderValue, StatusCode};
use serde_json::json;

use super::Shared;
use super::asked::{Answer, Asked, json, with_body};
use super::error::ApiError;

const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// It answers, so it lives.
pub(super) async fn livez(_front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &json!({ "live": true }))
}

/// Whether calls should be sent here.
pub(super) async fn readyz(front: Shared, _asked: Asked) -> Answer {
    let not_ready = front.node.not_ready();
    if not_ready.is_empty() {
        return json(StatusCode::OK, &json!({ "ready": true, "not_ready": not_ready }));
    }
    Err(ApiError::NotReady(not_ready))
}

pub(super) async fn metrics(front: Shared, _asked: Asked) -> Answer {
    Ok(with_body(StatusCode::OK, PROMETHEUS, front.node.render_metrics()))
}
