//! HTTP/1.1 to what runs in a container, over its Unix socket or TCP: the same for every engine.
//!
//! This is the innermost hop of a warm activation. A connection is driven by the task that uses it: no
//! task of its own, so no wake-up across threads between a request and its answer. A connection whose
//! caller goes away half-way goes with it; only one whose answer was read to its end is used again.
//!
//! What callers rely on is the distinction in [`CallError`]: whether a request may have arrived.

use std::fmt;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{TrySendError, http1};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Reply;

/// Between two attempts to connect to a socket that is not there yet.
const CONNECT_RETRY: Duration = Duration::from_millis(5);
/// Between two attempts to connect to a socket whose backlog is full.
const BACKLOG_RETRY: Duration = Duration::from_millis(1);
/// Longest path that fits a socket address with its closing zero byte.
const MAX_SOCKET_PATH: usize = 107;
const LOG_LINES: &str = "x-embermesh-log-lines";
const SOCKET: &str = "x-embermesh-socket";
const EPOCH: &str = "x-embermesh-epoch";

/// What to do while nothing accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connecting {
    Once,
    UntilTimeout,
}

/// An answer, with what its headers said.
#[derive(Debug, Clone)]
pub struct Answer {
    pub reply: Reply,
    /// A socket that the container asks to be called at from now on.
    pub socket: Option<PathBuf>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request certainly did not leave.
    #[error("no connection: {0}")]
    NotSent(String),
    /// It left, wholly or in part, and no answer came.
    #[error("the connection was lost before the answer was complete: {0}")]
    Lost(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

/// Where a container serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// Calls one container; keeps a bounded number of idle connections, the last used first.
pub struct Client {
    state: Mutex<State>,
    /// The agent's, told with each call: a container that a newer agent has adopted takes none of an older one.
    epoch: Option<HeaderValue>,
    max_idle: usize,
    max_answer_bytes: usize,
}

struct State {
    address: Arc<Address>,
    idle: Vec<Connection>,
    open: bool,
}

impl Client {
    /// For what will serve at `address`; it need not exist yet.
    pub fn new(address: Address, max_idle: usize, max_answer_bytes: usize) -> Self {
        let state = State { address: Arc::new(address), idle: Vec::new(), open: true };
        Self { state: Mutex::new(state), epoch: None, max_idle, max_answer_bytes }
    }

    /// The same, telling the agent's epoch with each call.
    pub fn of_epoch(self, epoch: u64) -> Self {
        Self { epoch: Some(HeaderValue::from(epoch)), ..self }
    }

    /// Opens a connection for the first call to use; the error says why nothing accepts one.
    pub async fn warm_up(&self) -> io::Result<()> {
        let address = self.lock().address.clone();
        let connection = Connection::open(&address).await?;
        self.check_in(connection, &address);
        Ok(())
    }

    /// From now on calls go to `address`.
    pub fn redirect(&self, address: Address) {
        let mut state = self.lock();
        state.idle.clear();
        state.address = Arc::new(address);
    }

    /// Closes what is idle and keeps nothing from now on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.idle.clear();
    }

    /// Sends `body` to `path` once. Dropping the future closes the connection it used, nothing else.
    pub async fn post(
        &self,
        path: &'static str,
        body: Bytes,
        timeout: Duration,
        connecting: Connecting,
    ) -> Result<Answer, CallError> {
        match tokio::time::timeout(timeout, self.exchange(path, body, connecting)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Timeout(timeout)),
        }
    }

    async fn exchange(&self, path: &'static str, body: Bytes, connecting: Connecting) -> Result<Answer, CallError> {
        let mut request = request(path, body);
        if let Some(epoch) = &self.epoch {
            request.headers_mut().insert(EPOCH, epoch.clone());
        }
        // Each failed pass used up an idle connection, so that this ends with a fresh one.
        loop {
            let (address, idle) = self.check_out();
            let fresh = idle.is_none();
            let mut connection = match idle {
                Some(connection) => connection,
                None => connect(&address, connecting).await?,
            };
            match connection.exchange(request, self.max_answer_bytes).await {
                Ok(answer) => {
                    self.check_in(connection, &address);
                    return Ok(answer);
                }
                Err(Failure::Unsent(_, returned)) if !fresh => request = *returned,
                Err(Failure::Unsent(why, _)) => return Err(CallError::NotSent(why)),
                Err(Failure::Call(error)) => return Err(error),
            }
        }
    }

    fn check_out(&self) -> (Arc<Address>, Option<Connection>) {
        let mut state = self.lock();
        while let Some(mut connection) = state.idle.pop() {
            if connection.is_usable() {
                return (state.address.clone(), Some(connection));
            }
        }
        (state.address.clone(), None)
    }

    fn check_in(&self, mut connection: Connection, address: &Arc<Address>) {
        let usable = connection.is_usable();
        let mut state = self.lock();
        if usable && state.open && state.idle.len() < self.max_idle && Arc::ptr_eq(address, &state.address) {
            state.idle.push(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Client").field("address", &state.address).field("idle", &state.idle.len()).finish()
    }
}

/// What a connection runs on.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

type Stream = Box<dyn Wire>;

impl Wire for UnixStream {}
impl Wire for TcpStream {}

async fn open_stream(address: &Address) -> io::Result<Stream> {
    Ok(match address {
        Address::Unix(path) => Box::new(open_unix(path).await?),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

/// A path that is too long for a socket address is reached through its folder.
async fn open_unix(path: &Path) -> io::Result<UnixStream> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.as_os_str().len() > MAX_SOCKET_PATH => {
            let folder = File::open(parent)?;
            let through = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
            UnixStream::connect(through).await
        }
        _ => UnixStream::connect(path).await,
    }
}

async fn connect(address: &Address, connecting: Connecting) -> Result<Connection, CallError> {
    loop {
        let error = match Connection::open(address).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        match error.kind() {
            // The backlog is full: nothing was sent, and it empties as fast as the container accepts.
            io::ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_RETRY).await,
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable
                if connecting == Connecting::UntilTimeout =>
            {
                tokio::time::sleep(CONNECT_RETRY).await;
            }
            _ => return Err(CallError::NotSent(format!("{address}: {error}"))),
        }
    }
}

type Payload = Full<Bytes>;

struct Connection {
    sender: http1::SendRequest<Payload>,
    driver: Pin<Box<http1::Connection<TokioIo<Stream>, Payload>>>,
}

enum Failure {
    Unsent(String, Box<Request<Payload>>),
    Call(CallError),
}

impl Connection {
    async fn open(address: &Address) -> io::Result<Self> {
        let stream = open_stream(address).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Box::pin(driver) })
    }

    /// Whether another request can be sent. It also takes the last user's task off the connection.
    fn is_usable(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut nobody).is_pending() && self.sender.is_ready()
    }

    async fn exchange(&mut self, request: Request<Payload>, limit: usize) -> Result<Answer, Failure> {
        // A connection that was opened just now wants one poll before it takes a request.
        if !self.is_usable() {
            return Err(Failure::Unsent("it was closed at once".to_owned(), Box::new(request)));
        }
        let sent = self.sender.try_send_request(request);
        let mut answer =
            pin!(async move { read(sent.await.map_err(unsent_or_lost)?, limit).await.map_err(Failure::Call) });
        let driver = &mut self.driver;
        poll_fn(|context| {
            if let Poll::Ready(outcome) = answer.as_mut().poll(context) {
                return Poll::Ready(outcome);
            }
            let ended = driver.as_mut().poll(context);
            // Either the driver has just handed over (a part of) the answer, or it never will.
            match (answer.as_mut().poll(context), ended) {
                (Poll::Ready(outcome), _) => Poll::Ready(outcome),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                (Poll::Pending, Poll::Ready(ended)) => {
                    let why = ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
                    Poll::Ready(Err(Failure::Call(CallError::Lost(why))))
                }
            }
        })
        .await
    }
}

fn unsent_or_lost(mut error: TrySendError<Request<Payload>>) -> Failure {
    match error.take_message() {
        Some(request) => Failure::Unsent(error.error().to_string(), Box::new(request)),
        None => Failure::Call(CallError::Lost(error.error().to_string())),
    }
}

fn request(path: &'static str, body: Bytes) -> Request<Payload> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

async fn read(response: Response<Incoming>, limit: usize) -> Result<Answer, CallError> {
    let (head, body) = response.into_parts();
    if body.size_hint().lower() > limit as u64 {
        return Err(CallError::TooLarge { limit });
    }
    let body = Limited::new(body, limit).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() { CallError::TooLarge { limit } } else { CallError::Lost(error.to_string()) }
    })?;
    let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    Ok(Answer {
        socket: text(SOCKET).map(PathBuf::from),
        reply: Reply {
            status: head.status.as_u16(),
            log_lines: text(LOG_LINES).and_then(|lines| lines.parse().ok()),
            body: body.to_bytes(),
        },
    })
}

#[cfg(test)]
mod tests;
