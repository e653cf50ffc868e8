//! The HTTP/2 connection to a peer, made at the first call and again when it has broken.
//!
//! Written on h2 itself, since this is the middle hop of every activation on a lease. A call's head and its message
//! leave in one write, so that the peer wakes up once for both; the task that calls is the one that takes the answer.
//! (tonic's channel opens the stream first and sends the message when that is through: two writes and three tasks.)

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, RecvStream};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::time::{sleep, timeout};
use tonic::codegen::{Service, http};

use crate::net::{Net, Stream};

const CONNECT: Duration = Duration::from_secs(2);
/// A connection whose other side has gone without a word ends after these two.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// Connections that a call may find broken.
const MOST_TRIES: u32 = 3;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Calls one peer. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Shared>);

struct Shared {
    net: Arc<dyn Net>,
    to: SocketAddr,
    made: Mutex<Made>,
    /// Whoever finds no connection makes one; the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Made {
    open: Option<Open>,
    count: u64,
    failed: u64,
    last_failure: String,
}

#[derive(Clone)]
struct Open {
    number: u64,
    sender: SendRequest<Bytes>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request certainly did not leave.
    #[error("no connection to {to}: {why}")]
    NotSent { to: SocketAddr, why: String },
    #[error(transparent)]
    Lost(#[from] h2::Error),
    #[error("the request can't be read: {0}")]
    Request(tonic::Status),
}

impl Channel {
    pub(crate) fn new(net: Arc<dyn Net>, to: SocketAddr) -> Self {
        Self(Arc::new(Shared { net, to, made: Mutex::default(), connecting: tokio::sync::Mutex::default() }))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("to", &self.0.to).field("open", &self.0.lock().open.is_some()).finish()
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
            let (head, body) = request.into_parts();
            // Peers are asked with one message; read here, it can go out with the head.
            let message = body.collect().await.map_err(CallError::Request)?.to_bytes();
            let response = shared.send(http::Request::from_parts(head, ()), message).await?;
            Ok(response.map(Answer))
        })
    }
}

impl Shared {
    async fn send(
        self: &Arc<Self>,
        head: http::Request<()>,
        message: Bytes,
    ) -> Result<http::Response<RecvStream>, CallError> {
        let mut tries = 1;
        let (answer, mut stream) = loop {
            let (open, is_new) = self.connection().await?;
            let number = open.number;
            let begun = match open.sender.ready().await {
                Ok(mut sender) => sender.send_request(head.clone(), false),
                Err(error) => Err(error),
            };
            match begun {
                Ok(begun) => break begun,
                // Nothing was sent on it. One that was there before is replaced; a new one's end is final.
                Err(error) => {
                    self.forget(number);
                    if is_new || tries == MOST_TRIES {
                        return Err(self.not_sent(&error));
                    }
                    tries += 1;
                }
            }
        };
        stream.send_data(message, true)?;
        Ok(answer.await?)
    }

    /// The connection, and whether it was made for this call.
    async fn connection(self: &Arc<Self>) -> Result<(Open, bool), CallError> {
        let (open, failed_before) = self.current();
        if let Some(open) = open {
            return Ok((open, false));
        }
        let _one = self.connecting.lock().await;
        let (open, failed) = self.current();
        if let Some(open) = open {
            return Ok((open, false));
        }
        if failed > failed_before {
            // Whoever waited has seen a try fail: no queue of tries, each with its own time-out.
            return Err(self.not_sent(&self.lock().last_failure));
        }
        let connected = timeout(CONNECT, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(format!("it does not answer within {CONNECT:?}")));
        let mut made = self.lock();
        let (sender, connection) = match connected {
            Ok(connected) => connected,
            Err(why) => {
                made.failed += 1;
                made.last_failure.clone_from(&why);
                return Err(self.not_sent(&why));
            }
        };
        made.count += 1;
        let open = Open { number: made.count, sender };
        made.open = Some(open.clone());
        drop(made);
        tokio::spawn(drive(connection, Arc::downgrade(self), open.number));
        Ok((open, true))
    }

    async fn connect(&self) -> Result<(SendRequest<Bytes>, Connection<Box<dyn Stream>, Bytes>), String> {
        let stream = self.net.connect(self.to).await.map_err(|e| e.to_string())?;
        let mut http2 = h2::client::Builder::new();
        http2.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        http2.enable_push(false);
        http2.handshake(stream).await.map_err(|e| e.to_string())
    }

    /// The connection, and how many tries to make one have failed.
    fn current(&self) -> (Option<Open>, u64) {
        let made = self.lock();
        (made.open.clone(), made.failed)
    }

    fn forget(&self, number: u64) {
        let mut made = self.lock();
        if made.open.as_ref().is_some_and(|open| open.number == number) {
            made.open = None;
        }
    }

    fn not_sent(&self, why: &dyn fmt::Display) -> CallError {
        CallError::NotSent { to: self.to, why: why.to_string() }
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves the connection's bytes until it ends, by itself, by the other side's silence, or since nobody calls on it.
async fn drive(mut connection: Connection<Box<dyn Stream>, Bytes>, of: Weak<Shared>, number: u64) {
    let pings = connection.ping_pong();
    let silence = async move {
        let Some(mut pings) = pings else { return std::future::pending().await };
        loop {
            sleep(PING_EVERY).await;
            if !matches!(timeout(PING_PATIENCE, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        ended = connection => if let Err(error) = ended { tracing::debug!(%error, "a connection to a peer has broken") },
        () = silence => tracing::debug!("a connection to a peer has fallen silent"),
    }
    if let Some(shared) = of.upgrade() {
        shared.forget(number);
    }
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
