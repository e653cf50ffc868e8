//! `…/actions`: making, changing, showing, listing and deleting them.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Shared;
use super::action_json::{self, Action};
use super::asked::{Answer, Asked, json, json_sized};
use super::body::Intake;
use super::error::ApiError;
use crate::detached::Detached;
use crate::registry::MAX_METADATA_BYTES;
use crate::registry::action::ActionEntry;

/// Beside the code: parameters, annotations and what is around them.
const SLACK_BYTES: u64 = MAX_METADATA_BYTES as u64 + (1 << 20);
/// From here on encoding and decoding take long enough to keep other calls waiting.
const LARGE_BYTES: usize = 256 << 10;
/// From here on only few are taken in at a time.
const LARGE_UPLOAD_BYTES: u64 = 4 << 20;
/// The longest to wait for a turn.
const UPLOAD_WAIT: Duration = Duration::from_secs(30);

pub(super) async fn list(front: Shared, asked: Asked) -> Answer {
    let (namespace, query) = (asked.namespace()?, asked.query());
    let page = query.page()?;
    if query.flag("count", false)? {
        return json(StatusCode::OK, &json!({ "actions": front.node.action_count(namespace) }));
    }
    let entries = front.node.actions(namespace, page.skip, page.limit);
    let actions: Vec<Action<'_>> = entries.iter().map(|entry| action_json::summary(entry)).collect();
    json_sized(StatusCode::OK, &actions, 512 * actions.len())
}

pub(super) async fn get(front: Shared, asked: Asked) -> Answer {
    let with_code = asked.query().flag("code", true)?;
    let entry = find(&front, asked.namespace()?, asked.path("name")?).await?;
    if !with_code || entry.code_hash.is_none() {
        return json(StatusCode::OK, &action_json::whole(&entry, None));
    }
    let Some(code) = front.node.code(&entry).await else {
        return Err(ApiError::CodeUnavailable { namespace: entry.namespace.clone(), name: entry.name.clone() });
    };
    let large = code.len() >= LARGE_BYTES;
    apart_if(large, move || {
        let about_bytes = code.len() / 3 * 4 + 1024;
        json_sized(StatusCode::OK, &action_json::whole(&entry, Some(&code)), about_bytes)
    })
    .await
}

pub(super) async fn put(front: Shared, mut asked: Asked) -> Answer {
    let overwrite = asked.query().flag("overwrite", false)?;
    let (namespace, name) = (asked.namespace()?.to_owned(), asked.path("name")?.to_owned());
    // A body that doesn't tell its length counts as large.
    let large = asked.announced_bytes().is_none_or(|bytes| bytes >= LARGE_UPLOAD_BYTES);
    let _turn = match large {
        true => Some(timeout(UPLOAD_WAIT, front.uploads.acquire()).await.map_err(|_| ApiError::UploadsBusy)?),
        false => None,
    };
    let body = asked.read(&intake(&front)).await?;
    let (change, code) = apart_if(body.len() >= LARGE_BYTES, move || action_json::parse(&body)).await?;
    let node = front.node.clone();
    // A client that hangs up must not leave half a change.
    let put = async move { node.put_action(&namespace, &name, change, code, overwrite).await };
    let entry = Detached::new(put).await?;
    json(StatusCode::OK, &action_json::whole(&entry, None))
}

pub(super) async fn delete(front: Shared, asked: Asked) -> Answer {
    let (namespace, name) = (asked.namespace()?.to_owned(), asked.path("name")?.to_owned());
    let node = front.node.clone();
    let entry = Detached::new(async move { node.delete_action(&namespace, &name).await }).await?;
    json(StatusCode::OK, &action_json::whole(&entry, None))
}

pub(super) async fn in_package(_front: Shared, asked: Asked) -> Answer {
    Err(ApiError::InPackage { package: asked.path("package")?.to_owned(), name: asked.path("name")?.to_owned() })
}

async fn find(front: &Shared, namespace: &str, name: &str) -> Result<Arc<ActionEntry>, ApiError> {
    let missing = || ApiError::NoAction { namespace: namespace.to_owned(), name: name.to_owned() };
    front.node.find_action(namespace, name).await.ok_or_else(missing)
}

fn intake(front: &Shared) -> Intake {
    let code_max_bytes = front.node.limits().code_max.bytes();
    let max_bytes = code_max_bytes.saturating_mul(4) / 3 + SLACK_BYTES;
    Intake::new("the action", max_bytes, "leave out of its code what it doesn't need at run time")
}

/// Work that takes long enough to hold up other calls goes to a thread of its own.
async fn apart_if<T: Send + 'static>(
    long: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if long { spawn_blocking(work).await.unwrap_or(Err(ApiError::Vanished)) } else { work() }
}
