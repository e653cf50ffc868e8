//! A call's beginning and its end, the same for all paths: who asks gets a transaction id, the headers that
//! OpenWhisk's clients expect, and errors of one shape.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, EXPECT,
    ORIGIN,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter};
use bytes::Bytes;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::body::{self, Intake};
use super::error::ApiError;
use super::query::Query;

/// What a handler comes back with.
pub(super) type Answer = Result<Response, ApiError>;

/// Whose namespace `_` is, and who calls, while nobody authenticates.
pub(super) const GUEST: &str = "guest";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;
const ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderValue = HeaderValue::from_static("GET, DELETE, POST, PUT, HEAD");
const HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent, X-Request-ID");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What all calls share.
#[derive(Debug)]
pub(super) struct Desk {
    /// This run's part of the transaction ids it makes.
    run: u64,
    calls: AtomicU64,
    /// Refuse what pages of other sites send. A browser names such a page in `Origin`; commands and
    /// OpenWhisk's clients send none.
    local_pages_only: bool,
    closing: CancellationToken,
}

/// A router's state that has a [`Desk`].
pub(super) trait HasDesk: Clone + Send + Sync + 'static {
    fn desk(&self) -> &Desk;
}

/// One call, with its path's parameters decoded and its body not read yet.
#[derive(Debug)]
pub(super) struct Asked {
    transaction: HeaderValue,
    path: Result<RawPathParams, RawPathParamsRejection>,
    parts: Parts,
    body: Body,
}

impl Desk {
    pub(super) fn new(local_pages_only: bool) -> Self {
        let (_, run) = uuid::Uuid::new_v4().as_u64_pair();
        Self { run, calls: AtomicU64::new(0), local_pages_only, closing: CancellationToken::new() }
    }

    /// Cancelled when the server stops: streams that would go on for ever end then.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// The caller's own, if it is one; else a new one of 32 hex digits.
    fn transaction(&self, headers: &HeaderMap) -> HeaderValue {
        let fits = |id: &&HeaderValue| {
            let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
            (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(plain)
        };
        if let Some(id) = headers.get(REQUEST_ID).filter(fits) {
            return id.clone();
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_maybe_shared(Bytes::from(format!("{:016x}{call:016x}", self.run)))
            .unwrap_or(const { HeaderValue::from_static("unknown") })
    }

    fn check_origin(&self, asked: &Parts) -> Result<(), ApiError> {
        let Some(origin) = asked.headers.get(ORIGIN).filter(|_| self.local_pages_only) else {
            return Ok(());
        };
        // A preflight asks only what is possible.
        if asked.method == Method::OPTIONS || is_local(origin) {
            return Ok(());
        }
        Err(ApiError::ForeignPage { origin: String::from_utf8_lossy(origin.as_bytes()).into_owned() })
    }
}

impl<S: HasDesk> FromRequest<S> for Asked {
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let (mut parts, body) = request.into_parts();
        let transaction = state.desk().transaction(&parts.headers);
        let path = RawPathParams::from_request_parts(&mut parts, state).await;
        Ok(Self { transaction, path, parts, body })
    }
}

impl Asked {
    pub(super) fn transaction(&self) -> &str {
        text(&self.transaction)
    }

    /// That part of the path, as the route names it.
    pub(super) fn path(&self, part: &'static str) -> Result<&str, ApiError> {
        let params = self.path.as_ref().map_err(|e| ApiError::BadPath { reason: e.body_text() })?;
        let missing = || ApiError::BadPath { reason: format!("it has no {part}") };
        params.iter().find(|(name, _)| *name == part).map(|(_, value)| value).ok_or_else(missing)
    }

    pub(super) fn namespace(&self) -> Result<&str, ApiError> {
        let namespace = self.path("namespace")?;
        Ok(if namespace == "_" { GUEST } else { namespace })
    }

    pub(super) fn query(&self) -> Query<'_> {
        Query::new(self.parts.uri.query().unwrap_or_default())
    }

    /// How long the body is going to be, when that was told.
    pub(super) fn announced_bytes(&self) -> Option<u64> {
        axum::body::HttpBody::size_hint(&self.body).exact()
    }

    /// The whole body; empty if there is none. Once.
    pub(super) async fn read(&mut self, intake: &Intake) -> Result<Bytes, ApiError> {
        let asks_first = self.parts.headers.contains_key(EXPECT);
        body::read(std::mem::take(&mut self.body), asks_first, intake).await
    }
}

/// Routes those methods to a function, between the beginning and the end that all calls have.
pub(super) fn on<S, F, Fut>(methods: MethodFilter, handle: F) -> MethodRouter<S>
where
    S: HasDesk,
    F: Fn(S, Asked) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    axum::routing::on(methods, async move |State(state): State<S>, asked: Asked| {
        let transaction = asked.transaction.clone();
        let answer = match state.desk().check_origin(&asked.parts) {
            Ok(()) => handle(state, asked).await,
            Err(refused) => Err(refused),
        };
        finish(&transaction, answer)
    })
}

/// The fallback for paths.
pub(super) async fn no_such_path<S: HasDesk>(
    State(state): State<S>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let unknown = || Err(ApiError::UnknownPath { path: uri.path().to_owned() });
    finish(
        &state.desk().transaction(&headers),
        if method == Method::OPTIONS { Ok(empty(StatusCode::OK)) } else { unknown() },
    )
}

/// The fallback for methods. The router adds `Allow`.
pub(super) async fn no_such_method<S: HasDesk>(
    State(state): State<S>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let path = uri.path().to_owned();
    let answer = match method {
        Method::OPTIONS => Ok(empty(StatusCode::OK)),
        method => Err(ApiError::WrongMethod { method: method.to_string(), path }),
    };
    finish(&state.desk().transaction(&headers), answer)
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    json_sized(status, value, 256)
}

/// The same, with a guess of its length.
pub(super) fn json_sized(status: StatusCode, value: &impl Serialize, about_bytes: usize) -> Answer {
    let mut body = Vec::with_capacity(about_bytes);
    serde_json::to_writer(&mut body, value).map_err(ApiError::Unwritable)?;
    Ok(with_body(status, JSON, body))
}

pub(super) fn with_body(status: StatusCode, content_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn finish(transaction: &HeaderValue, answer: Answer) -> Response {
    let mut response = answer.unwrap_or_else(|error| {
        // Being busy or on the way out is told to the caller, and no fault here.
        if error.status().is_server_error() && error.status() != StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!(transaction = text(transaction), status = error.status().as_u16(), %error, "call refused");
        }
        error.response(text(transaction))
    });
    let headers = response.headers_mut();
    headers.reserve(4);
    headers.insert(REQUEST_ID, transaction.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY_ORIGIN);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    response
}

/// Checked when it was taken or made.
fn text(transaction: &HeaderValue) -> &str {
    transaction.to_str().unwrap_or_default()
}

/// Whether a page comes from this host.
fn is_local(origin: &HeaderValue) -> bool {
    let Some(uri) = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok()) else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
pub(super) mod tests;
