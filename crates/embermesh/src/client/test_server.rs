//! A tiny HTTP server for tests of the client and the commands: answers what the test says, and keeps
//! what it was asked.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{BaseUrl, Client};

/// What the server was asked: `METHOD /path?query` and the body.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) body: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Json(u16, String),
    /// With a `Retry-After` in seconds.
    Later(u16, String, u64),
    /// As server-sent events, in these pieces; then the stream ends.
    Events(Vec<&'static str>),
    /// The same, but the stream stays open.
    OpenEvents(Vec<&'static str>),
    /// Never.
    Hang,
}

/// Ends with the test.
#[derive(Debug)]
pub(crate) struct TestServer {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl TestServer {
    /// `answer` gets `METHOD /path?query` and how many requests there were before.
    pub(crate) async fn start(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), asked.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                let service = service_fn(move |request| respond(request, answer.clone(), seen.clone()));
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                connections.spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Self { url, asked, _tasks: tasks }
    }

    /// A server that gives every request the same answer.
    pub(crate) async fn saying(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::start(move |_, _| Reply::Json(status, body.clone())).await
    }

    pub(crate) fn client(&self, deadline: Duration) -> Client {
        Client::new(self.url.parse::<BaseUrl>().unwrap(), deadline)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Arc<impl Fn(&str, usize) -> Reply>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let before = {
        let mut asked = asked.lock().unwrap();
        asked.push(Asked { line: line.clone(), body: serde_json::from_slice(&body).unwrap_or(Value::Null) });
        asked.len() - 1
    };
    let response = Response::builder();
    Ok(match answer(&line, before) {
        Reply::Json(status, body) => response.status(status).body(Full::new(Bytes::from(body)).boxed()),
        Reply::Later(status, body, seconds) => {
            response.status(status).header("retry-after", seconds).body(Full::new(Bytes::from(body)).boxed())
        }
        Reply::Events(pieces) => {
            let body = BodyExt::boxed(StreamBody::new(stream::iter(frames(pieces))));
            response.header("content-type", "text/event-stream").body(body)
        }
        Reply::OpenEvents(pieces) => {
            let body = BodyExt::boxed(StreamBody::new(stream::iter(frames(pieces)).chain(stream::pending())));
            response.header("content-type", "text/event-stream").body(body)
        }
        Reply::Hang => std::future::pending().await,
    }
    .unwrap())
}

fn frames(pieces: Vec<&'static str>) -> Vec<Result<Frame<Bytes>, Infallible>> {
    pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect()
}
