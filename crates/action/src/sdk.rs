//! The SDK: serves a handler in this process.
//!
//! A single-threaded runtime by default, since a container is one of many on its host: a handler that
//! computes for long should hand that to `tokio::task::spawn_blocking`, or ask for more threads
//! ([`ServeOptions::worker_threads`]), or its container's other runs wait for it.

mod handler;

use std::env;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::contract::{
    ALLOW_CONCURRENT_VARIABLE, CONCURRENCY_VARIABLE, CONTAINER_VARIABLE, PORT_VARIABLE, SOCKET_VARIABLE,
    WATCH_STDIN_VARIABLE,
};
use crate::gate::Gate;
use crate::http::{self, Listener};
use crate::lines::Lines;
use crate::server::Server;
use crate::{Context, proxy};

pub(crate) use handler::{Handler, HandlerTarget, Outcome, too_large};

const DEFAULT_PORT: u16 = 8080;
/// Threads for `spawn_blocking`: enough to keep a small host busy, few enough for a small container.
const MAX_BLOCKING_THREADS: usize = 4;

/// Serves `handler` as this process's action until the process is told to end. The whole of an action's `main`.
///
/// Where and how follows the environment ([`ServeOptions::from_env`]).
pub fn serve<H, F>(handler: H) -> ExitCode
where
    H: Fn(Context, Value) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, ActionError>> + Send + 'static,
{
    match ServeOptions::from_env().and_then(|options| serve_with(options, handler)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// As [`serve`], with options of your own. Builds the runtime; returns when a SIGTERM comes.
pub fn serve_with<H, F>(options: ServeOptions, handler: H) -> Result<(), ServeError>
where
    H: Fn(Context, Value) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, ActionError>> + Send + 'static,
{
    let mut builder = match options.worker_threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime =
        builder.enable_all().max_blocking_threads(MAX_BLOCKING_THREADS).build().map_err(ServeError::Runtime)?;
    let outcome = runtime.block_on(serve_in(options, handler));
    // A handler that still blocks a thread must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// As [`serve_with`], inside a tokio runtime that is already there.
pub async fn serve_in<H, F>(options: ServeOptions, handler: H) -> Result<(), ServeError>
where
    H: Fn(Context, Value) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Value, ActionError>> + Send + 'static,
{
    let lines = Arc::new(Lines::stdio(options.framed_logs).map_err(ServeError::Output)?);
    let gate = Gate::new(options.concurrency.unwrap_or(u32::MAX));
    let target = HandlerTarget::new(handler::from_fn(handler), gate.clone());
    let server = Server::new(gate, lines, Box::new(target));
    let listener = match &options.endpoint {
        Endpoint::Unix(path) => Listener::unix(path),
        Endpoint::Tcp(address) => Listener::tcp(*address).await,
    };
    let listener = listener.map_err(|source| ServeError::Bind { endpoint: options.endpoint.clone(), source })?;
    let mut terminated = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    if options.watch_stdin {
        proxy::exit_with_stdin(proxy::ChildPid::default()).map_err(ServeError::Runtime)?;
    }
    tokio::select! {
        never = http::serve(listener, server) => match never {},
        _ = terminated.recv() => Ok(()),
    }
}

/// Where and how an action is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    pub endpoint: Endpoint,
    /// The most runs at a time; further ones are answered 403. `None` for no bound.
    pub concurrency: Option<u32>,
    /// Threads that run handlers. 0 or 1 is a single-threaded runtime.
    pub worker_threads: usize,
    /// Whether log lines carry their activation's id, as agents want it.
    pub framed_logs: bool,
    /// End when stdin does: set by whoever holds its other end.
    pub watch_stdin: bool,
}

impl ServeOptions {
    /// One run at a time on `endpoint`, a single thread, plain log lines.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, concurrency: Some(1), worker_threads: 1, framed_logs: false, watch_stdin: false }
    }

    /// `EMBERMESH_ACTION_SOCKET`, or else `0.0.0.0` and `EMBERMESH_ACTION_PORT` (8080); one run at a time unless
    /// `__OW_ALLOW_CONCURRENT` is `true`, then `EMBERMESH_ACTION_CONCURRENCY` of them, or any number.
    pub fn from_env() -> Result<Self, ServeError> {
        let endpoint = match env::var_os(SOCKET_VARIABLE) {
            Some(path) if !path.is_empty() => Endpoint::Unix(path.into()),
            _ => {
                let port = number(PORT_VARIABLE)?.unwrap_or(DEFAULT_PORT);
                Endpoint::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
            }
        };
        let concurrent = env::var(ALLOW_CONCURRENT_VARIABLE).is_ok_and(|value| value == "true");
        Ok(Self {
            endpoint,
            concurrency: if concurrent { number(CONCURRENCY_VARIABLE)? } else { Some(1) },
            worker_threads: 1,
            framed_logs: env::var_os(CONTAINER_VARIABLE).is_some(),
            watch_stdin: env::var(WATCH_STDIN_VARIABLE).is_ok_and(|value| value == "1"),
        })
    }

    /// Runs handlers on so many threads.
    #[must_use]
    pub fn worker_threads(mut self, threads: usize) -> Self {
        self.worker_threads = threads;
        self
    }
}

/// What an action listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Why an action could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "cannot listen on {endpoint}: {source}; give another one by {SOCKET_VARIABLE} (at most 106 bytes) or {PORT_VARIABLE}"
    )]
    Bind { endpoint: Endpoint, source: io::Error },
    #[error("{variable} is {value:?}, which is not a number it could be: set a smaller one or unset it")]
    Number { variable: &'static str, value: String },
    #[error("stdout or stderr cannot be written: {0}; start the action with both open")]
    Output(io::Error),
    #[error("the asynchronous runtime could not be started: {0}; the process may have run out of threads or files")]
    Runtime(io::Error),
}

/// Why a handler gives no result.
#[derive(Debug, Clone, PartialEq)]
pub enum ActionError {
    /// The handler failed: a developer error, answered with 502.
    Failed(String),
    /// The action's own kind of failure: its result is `{"error": …}` and the run counts as an application error.
    Application(Value),
}

impl ActionError {
    /// The handler failed because of `reason`.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }

    /// An application error.
    pub fn application(error: impl Into<Value>) -> Self {
        Self::Application(error.into())
    }
}

/// Lets a handler use `?` on whatever fails. (For its sake this type is no `std::error::Error` itself.)
impl<E: std::error::Error> From<E> for ActionError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message.push_str(": ");
            message.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::Failed(message)
    }
}

impl fmt::Display for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason),
            Self::Application(error) => write!(f, "{error}"),
        }
    }
}

fn number<T: std::str::FromStr>(variable: &'static str) -> Result<Option<T>, ServeError> {
    match env::var(variable) {
        Ok(value) if !value.is_empty() => value.parse().map(Some).map_err(|_| ServeError::Number { variable, value }),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
