//! Why a call is refused: one enum, its statuses in one place, one shape on the wire.

use std::time::Duration;

use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;

use super::asked::{empty, json};
use crate::invocation::InvokeError;
use crate::registry::RegistryError;
use crate::registry::action::UnknownKind;
use crate::store::{CodeError, StoreError};
use crate::{ActionError, OperatorError};

/// What it asks of a caller to whom nobody can say more.
const RETRY_AFTER_DRAIN: Duration = Duration::from_secs(5);
const RETRY_AFTER_BUSY: Duration = Duration::from_secs(1);
/// What came from outside may be quoted in an error, but not at any length.
const MAX_MESSAGE_CHARS: usize = 2_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("there is no `{path}` here: `GET /` names the API's paths")]
    UnknownPath { path: String },
    #[error("{method} does not apply to `{path}`: the header `Allow` tells what does")]
    WrongMethod { method: String, path: String },
    #[error("the path can't be understood: {reason}")]
    BadPath { reason: String },
    #[error(
        "a page of `{origin}` called, and only pages of this host may while users don't authenticate: call from a program, which sends no `Origin`"
    )]
    ForeignPage { origin: String },
    #[error("`{package}/{name}` is in a package, and packages don't exist here: use the action's name alone")]
    InPackage { package: String, name: String },
    #[error("query parameter `{name}` is `{value}`: give {expected}")]
    BadQuery { name: &'static str, value: String, expected: String },
    #[error("query parameters `count` and `docs` exclude each other: leave one out")]
    CountWithDocs,
    #[error("{what} can't be understood: {source}")]
    BadJson { what: &'static str, source: serde_json::Error },
    #[error("{what} must be UTF-8, and byte {at} is not: send JSON in UTF-8")]
    NotUtf8 { what: &'static str, at: usize },
    #[error("exec.code is not base64 ({source}), as exec.binary says: encode it, or send text with exec.binary false")]
    NotBase64 { source: base64::DecodeError },
    #[error("delAnnotations is not supported: delete the action and create it again without them")]
    DelAnnotations,
    #[error(transparent)]
    UnknownKind(#[from] UnknownKind),
    #[error("{what} has {}{bytes} bytes, and {limit} are allowed: {advice}", if *.more { "more than " } else { "" })]
    TooLarge { what: &'static str, bytes: u64, more: bool, limit: u64, advice: &'static str },
    #[error("{what} did not arrive: {received} bytes came, then nothing for {} ms; send it again", after.as_millis())]
    BodyLate { what: &'static str, received: u64, after: Duration },
    #[error("{what} broke off after {received} bytes: {cause}")]
    BodyBroken { what: &'static str, received: u64, cause: String },
    #[error("other actions with large code are being taken in: try again in a moment")]
    UploadsBusy,
    #[error(
        "activation `{id}` is not known here: it may still run, or another node took it; `activations` lists those of this node"
    )]
    NoActivation { id: String },
    #[error("`{id}` is no activation id: it has 32 digits of 0-9 and a-f")]
    BadActivationId { id: String },
    #[error("action `{namespace}/{name}` does not exist: check the name; one just made at another node takes a moment")]
    NoAction { namespace: String, name: String },
    #[error(
        "the code of `{namespace}/{name}` is at no node that can be reached: try again later, or create the action again"
    )]
    CodeUnavailable { namespace: String, name: String },
    #[error("not ready: {}", .0.join("; "))]
    NotReady(Vec<String>),
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error(transparent)]
    Action(#[from] ActionError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the answer can't be written: {0}")]
    Unwritable(serde_json::Error),
    #[error("the work for this call ended without an outcome: see the node's log")]
    Vanished,
}

/// OpenWhisk's: with one field missing, its command line says that the connection failed.
#[derive(Debug, Serialize)]
struct Body<'a> {
    error: &'a str,
    code: &'a str,
    /// Why it isn't ready, for `/readyz` only.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    not_ready: &'a [String],
}

impl ApiError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath { .. }
            | Self::InPackage { .. }
            | Self::NoActivation { .. }
            | Self::NoAction { .. }
            | Self::Invoke(InvokeError::NotFound { .. } | InvokeError::Deleted { .. }) => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::ForeignPage { .. } => StatusCode::FORBIDDEN,
            Self::BadPath { .. }
            | Self::BadQuery { .. }
            | Self::CountWithDocs
            | Self::BadJson { .. }
            | Self::NotUtf8 { .. }
            | Self::NotBase64 { .. }
            | Self::DelAnnotations
            | Self::UnknownKind(_)
            | Self::BodyBroken { .. }
            | Self::BadActivationId { .. } => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyLate { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Invoke(InvokeError::QueueFull { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Invoke(
                InvokeError::NoCapacity { .. }
                | InvokeError::Draining
                | InvokeError::NotKept { .. }
                | InvokeError::NotPromised { .. },
            )
            | Self::UploadsBusy
            | Self::CodeUnavailable { .. }
            | Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            // Nobody is there to read it.
            Self::Invoke(InvokeError::Cancelled) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Action(error) => action_status(error),
            Self::Operator(error) => operator_status(error),
            Self::Store(_) | Self::Unwritable(_) | Self::Vanished => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn response(&self, transaction: &str) -> Response {
        let message = shortened(self.to_string());
        let not_ready: &[String] = if let Self::NotReady(reasons) = self { reasons } else { &[] };
        let body = Body { error: &message, code: transaction, not_ready };
        let mut response = json(self.status(), &body).unwrap_or_else(|_| empty(self.status()));
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        // The rest of the body, which may still come, is not going to be read.
        if matches!(self, Self::TooLarge { .. } | Self::BodyLate { .. } | Self::UploadsBusy | Self::ForeignPage { .. })
        {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Invoke(InvokeError::QueueFull { retry_after, .. } | InvokeError::NoCapacity { retry_after, .. }) => {
                Some(*retry_after)
            }
            Self::Invoke(InvokeError::Draining) => Some(RETRY_AFTER_DRAIN),
            Self::UploadsBusy | Self::Invoke(InvokeError::NotKept { .. }) => Some(RETRY_AFTER_BUSY),
            _ => None,
        }
    }
}

fn action_status(error: &ActionError) -> StatusCode {
    match error {
        ActionError::Registry(error) => registry_status(error),
        ActionError::Code(CodeError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        ActionError::Code(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ActionError::Unsupported(_) => StatusCode::BAD_REQUEST,
        ActionError::GoingDown => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn registry_status(error: &RegistryError) -> StatusCode {
    match error {
        RegistryError::Conflict { .. } | RegistryError::RevisionsExhausted { .. } => StatusCode::CONFLICT,
        RegistryError::NotFound { .. } => StatusCode::NOT_FOUND,
        RegistryError::BadName { .. }
        | RegistryError::OutOfRange { .. }
        | RegistryError::NotConcurrent { .. }
        | RegistryError::KindMissing
        | RegistryError::CodeMissing { .. }
        | RegistryError::ImageAndKind { .. }
        | RegistryError::BadImage { .. }
        | RegistryError::BadCodeHash { .. }
        | RegistryError::UnknownBuiltin { .. }
        | RegistryError::MainTooLong { .. }
        | RegistryError::BadAnnotation { .. } => StatusCode::BAD_REQUEST,
        RegistryError::CodeTooLarge { .. } | RegistryError::MetadataTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        RegistryError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        RegistryError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn operator_status(error: &OperatorError) -> StatusCode {
    match error {
        OperatorError::BadId(_) => StatusCode::BAD_REQUEST,
        OperatorError::NotFound(_) => StatusCode::NOT_FOUND,
        OperatorError::Conflict(_) => StatusCode::CONFLICT,
        OperatorError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        OperatorError::Forbidden(_) => StatusCode::FORBIDDEN,
    }
}

fn shortened(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Rounded up: an earlier retry would be refused again.
fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}
