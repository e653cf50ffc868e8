//! A small HTTP/1.1 client of a node's API: JSON in and out, each call with a deadline, each failure with
//! its cause. It knows no command and prints nothing.

pub(crate) mod error;
mod sse;
#[cfg(test)]
pub(crate) mod test_server;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

pub(crate) use error::ClientError;
pub(crate) use sse::EventStream;

pub(crate) const DEFAULT_API: &str = "http://127.0.0.1:3233";

/// Longest time to wait for a TCP connection; a node that is there takes one at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that stays silent is probed, so that a watcher learns of a host that is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A connection that was idle for longer is not used again. Far below the 75 s after which an agent closes it, maybe in
/// the moment in which a call arrives: and one that has been stopped for a while is late with closing.
const KEPT_IDLE: Duration = Duration::from_secs(10);
/// The largest answer: an action with 48 MB of code in base64, and some room.
const MAX_ANSWER_BYTES: usize = 80 << 20;

/// Talks to one node. Connections are kept and used again; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: BaseUrl,
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    deadline: Duration,
}

impl Client {
    /// `deadline` bounds each call from connecting to the answer's last byte, unless the call brings its own.
    pub(crate) fn new(base: BaseUrl, deadline: Duration) -> Self {
        Self::keeping(base, deadline, KEPT_IDLE)
    }

    /// One whose connections may be idle for so long.
    fn keeping(base: BaseUrl, deadline: Duration, idle: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle)
            .build(connector);
        Self { base, http, deadline }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// `GET path`; a status of 400 or more is an error.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.send(Method::GET, path, None::<&()>, self.deadline).await?.ok()
    }

    /// `POST path`; a status of 400 or more is an error.
    pub(crate) async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<Answer, ClientError> {
        self.send(Method::POST, path, Some(body), self.deadline).await?.ok()
    }

    /// Any call, with a deadline of its own; the answer may have any status.
    pub(crate) async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        deadline: Duration,
    ) -> Result<Answer, ClientError> {
        let request = self.request(method, path, body, "application/json")?;
        let call = async {
            let response = self.http.request(request).await.map_err(|e| self.call_failed(e))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = self.read(response).await?;
            Ok(Answer { status, retry_after: retry_after(&headers), body })
        };
        timeout(deadline, call).await.unwrap_or_else(|_| Err(self.too_late(deadline)))
    }

    /// `GET path` as a stream of server-sent events. The deadline is for its beginning alone: events come
    /// when something happens.
    pub(crate) async fn events(&self, path: &str) -> Result<EventStream, ClientError> {
        let request = self.request(Method::GET, path, None::<&()>, "text/event-stream")?;
        let call = async {
            let response = self.http.request(request).await.map_err(|e| self.call_failed(e))?;
            let (status, headers) = (response.status(), response.headers().clone());
            if status.is_client_error() || status.is_server_error() {
                let body = self.read(response).await?;
                return Err(ClientError::from_answer(status, retry_after(&headers), &body));
            }
            let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
            if !kind.starts_with("text/event-stream") {
                let detail = format!("expected text/event-stream, got `{kind}`");
                return Err(ClientError::Malformed { base: self.base.to_string(), detail });
            }
            Ok(EventStream::new(self.base.to_string(), response.into_body()))
        };
        timeout(self.deadline, call).await.unwrap_or_else(|_| Err(self.too_late(self.deadline)))
    }

    fn request<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        accept: &str,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let not_sent = |e: &dyn fmt::Display| ClientError::NotSent(format!("{method} {path} can't be written: {e}"));
        let mut builder =
            Request::builder().method(method.clone()).uri(format!("{}{path}", self.base)).header(ACCEPT, accept);
        let body = match body {
            Some(body) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(|e| not_sent(&e))?)
            }
            None => Bytes::new(),
        };
        builder.body(Full::new(body)).map_err(|e| not_sent(&e))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) => Err(ClientError::from_body(&self.base.to_string(), e.as_ref(), MAX_ANSWER_BYTES)),
        }
    }

    fn call_failed(&self, error: legacy::Error) -> ClientError {
        ClientError::from_call(&self.base.to_string(), &error)
    }

    fn too_late(&self, deadline: Duration) -> ClientError {
        ClientError::Deadline { base: self.base.to_string(), after: deadline }
    }
}

/// What a node answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// From `Retry-After`, when it came in seconds.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Turns a status of 400 or more into the error it means.
    pub(crate) fn ok(self) -> Result<Self, ClientError> {
        if self.status.is_client_error() || self.status.is_server_error() { Err(self.into_error()) } else { Ok(self) }
    }

    pub(crate) fn into_error(self) -> ClientError {
        ClientError::from_answer(self.status, self.retry_after, &self.body)
    }

    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body)
            .map_err(|e| ClientError::Malformed { base: String::new(), detail: format!("not the JSON expected: {e}") })
    }
}

/// Where a node's API is: `http://HOST:PORT`, with or without a path, never with a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl(String);

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no API address ({why}): write e.g. {DEFAULT_API}");
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.parse().map_err(|e: hyper::http::uri::InvalidUri| wrong(&e.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("https is not supported yet")),
            _ => return Err(wrong("it must begin with http://")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        let port = uri.authority().and_then(|a| a.as_str().rsplit_once(':')).filter(|(_, port)| !port.ends_with(']'));
        if port.is_some() && uri.port_u16().is_none() {
            return Err(wrong("its port is no number up to 65535"));
        }
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        Ok(Self(full.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes text as one segment of a path or one value of a query.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
