//! The HTTP/2 connection to a peer, made at the first call and again when it has broken.
//!
//! Written on h2 itself, since this is the middle hop of every activation on a lease. A call's head and its message
//! leave in one write as a rule, so that the peer wakes up once for both; the task that calls is the one that takes the
//! answer. (tonic's channel opens the stream first and sends the message when that is through: two writes, three tasks.)
//!
//! What callers rely on is the distinction in [`CallError`]: whether the peer may have taken the request. One that it
//! provably has not taken, on a connection that was there before, is made again on a new one.

mod drive;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::codegen::http::HeaderValue;
use tonic::codegen::{Service, http};

use super::cluster;
use crate::net::Net;
use drive::{Heard, drive};

/// The shortest time that a run is waited for is longer: whoever gives up by then has a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Connections that a call may find broken.
const MOST_TRIES: u32 = 3;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Calls at once before the peer has told its own limit; more wait for one to end.
const STREAMS_AT_FIRST: usize = 100;
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Calls one peer. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Shared>);

struct Shared {
    net: Arc<dyn Net>,
    to: SocketAddr,
    /// This node's, said with each call.
    cluster: HeaderValue,
    link: Mutex<Link>,
}

#[derive(Default)]
enum Link {
    #[default]
    None,
    /// By a task of its own: a caller that gives up takes nothing from the others who wait for it.
    Connecting(watch::Receiver<Option<Connected>>),
    Open(Open),
}

type Connected = Result<Open, Arc<str>>;

#[derive(Clone)]
struct Open {
    sender: SendRequest<Bytes>,
    /// Which connection it is.
    heard: Arc<Heard>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The peer certainly has not taken the request.
    #[error("not sent to {to}: {why}")]
    NotSent { to: SocketAddr, why: String },
    #[error(transparent)]
    Lost(#[from] h2::Error),
}

impl Channel {
    pub(crate) fn new(net: Arc<dyn Net>, to: SocketAddr, cluster: HeaderValue) -> Self {
        Self(Arc::new(Shared { net, to, cluster, link: Mutex::default() }))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = matches!(*self.0.lock(), Link::Open(_));
        f.debug_struct("Channel").field("to", &self.0.to).field("open", &open).finish()
    }
}

impl Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Answer>;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            head.headers.insert(cluster::HEADER, shared.cluster.clone());
            // Peers are asked with one message; read here, it can go out with the head.
            let message = body.collect().await.map_err(|status| shared.not_sent(&status))?.to_bytes();
            let response = shared.call(http::Request::from_parts(head, ()), message).await?;
            Ok(response.map(Answer))
        })
    }
}

/// How one try ended that brought no answer.
enum Failure {
    NotTaken(h2::Error),
    Lost(h2::Error),
}

impl Shared {
    async fn call(
        self: &Arc<Self>,
        head: http::Request<()>,
        message: Bytes,
    ) -> Result<http::Response<RecvStream>, CallError> {
        let mut tries = 1;
        loop {
            let (open, is_new) = self.connection().await?;
            let heard = open.heard.clone();
            match try_on(open, head.clone(), message.clone()).await {
                Ok(response) => return Ok(response),
                Err(Failure::Lost(error)) => return Err(CallError::Lost(error)),
                Err(Failure::NotTaken(error)) => {
                    self.forget(&heard);
                    if is_new || tries == MOST_TRIES {
                        return Err(self.not_sent(&error));
                    }
                    tries += 1;
                }
            }
        }
    }

    /// The connection, and whether it was made for this call.
    async fn connection(self: &Arc<Self>) -> Result<(Open, bool), CallError> {
        let mut connected = {
            let mut link = self.lock();
            match &*link {
                Link::Open(open) => return Ok((open.clone(), false)),
                Link::Connecting(connected) => connected.clone(),
                Link::None => {
                    let (tell, connected) = watch::channel(None);
                    *link = Link::Connecting(connected.clone());
                    tokio::spawn(self.clone().connect(tell));
                    connected
                }
            }
        };
        let connected = connected.wait_for(Option::is_some).await.map(|connected| connected.clone());
        match connected {
            Ok(Some(Ok(open))) => Ok((open, true)),
            Ok(Some(Err(why))) => Err(self.not_sent(&why)),
            // Only a runtime that ends drops the task before it has told.
            Ok(None) | Err(_) => Err(self.not_sent(&"this node goes down")),
        }
    }

    async fn connect(self: Arc<Self>, tell: watch::Sender<Option<Connected>>) {
        let connected = async {
            let heard = Arc::new(Heard::default());
            let stream = self.net.connect(self.to).await.map_err(|e| e.to_string())?;
            let (sender, connection) = h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_max_send_streams(STREAMS_AT_FIRST)
                .max_header_list_size(MAX_HEADER_BYTES)
                .enable_push(false)
                .handshake(heard.listen_to(stream))
                .await
                .map_err(|e| e.to_string())?;
            Ok((Open { sender, heard }, connection))
        };
        let connected = timeout(CONNECT, connected).await;
        let connected = connected.unwrap_or_else(|_| Err(format!("it does not answer within {CONNECT:?}")));
        let told = match connected {
            Ok((open, connection)) => {
                *self.lock() = Link::Open(open.clone());
                tokio::spawn(drive(connection, open.heard.clone(), Arc::downgrade(&self)));
                Ok(open)
            }
            Err(why) => {
                *self.lock() = Link::None;
                Err(why.into())
            }
        };
        tell.send_replace(Some(told));
    }

    /// That connection is of no more use.
    fn forget(&self, heard: &Arc<Heard>) {
        let mut link = self.lock();
        if matches!(&*link, Link::Open(open) if Arc::ptr_eq(&open.heard, heard)) {
            *link = Link::None;
        }
    }

    fn not_sent(&self, why: &dyn fmt::Display) -> CallError {
        CallError::NotSent { to: self.to, why: why.to_string() }
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn try_on(open: Open, head: http::Request<()>, message: Bytes) -> Result<http::Response<RecvStream>, Failure> {
    let mut sender = open.sender.ready().await.map_err(Failure::NotTaken)?;
    let (answer, mut stream) = sender.send_request(head, false).map_err(Failure::NotTaken)?;
    // Without its end no peer takes it: should this fail, dropping the stream resets it.
    stream.send_data(message, true).map_err(Failure::NotTaken)?;
    answer.await.map_err(|error| match was_refused(&error) {
        true => Failure::NotTaken(error),
        false => Failure::Lost(error),
    })
}

/// Whether the peer said that it has not looked at this stream: it was going away before the stream began, or it
/// refused it. HTTP/2 promises that such a request may be made again.
fn was_refused(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// The body of an answer.
pub(crate) struct Answer(RecvStream);

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(context)) {
            let data = data?;
            self.0.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.0.poll_trailers(context))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
