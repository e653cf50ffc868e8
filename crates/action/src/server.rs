//! The contract's two calls, apart from how they arrive and from what carries them out.
//!
//! `Server` owns the order of things (one `/init`, then so many `/run`s at a time); a `Target` does the work:
//! a handler in this process, or another process behind the proxy.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::contract::{InitRequest, RunRequest};
use crate::gate::{Gate, Refusal};
use crate::lines::{ActivationLog, Lines};

pub(crate) type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What runs the action.
pub(crate) trait Target: Send + Sync + 'static {
    /// Called at most once, before any run. The error is shown to the user.
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>>;

    /// One run. Ends its log (on every way out) before it returns.
    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer>;
}

/// One run's request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) request: RunRequest<'a>,
    /// The request as it came.
    pub(crate) body: &'a [u8],
    pub(crate) log: Arc<ActivationLog>,
}

/// A successful initialisation.
#[derive(Debug, Default)]
pub(crate) struct Initialised {
    /// The socket that serves this action from now on, if not this one.
    pub(crate) socket: Option<String>,
}

/// What goes back over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    pub(crate) log_lines: Option<u32>,
    pub(crate) socket: Option<String>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), log_lines: None, socket: None }
    }

    pub(crate) fn error(status: u16, message: impl fmt::Display) -> Self {
        Self::new(status, serde_json::json!({ "error": message.to_string() }).to_string())
    }

    pub(crate) fn with_lines(mut self, lines: u32) -> Self {
        self.log_lines = Some(lines);
        self
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::error(refusal.status, refusal.message)
    }
}

pub(crate) struct Server {
    pub(crate) gate: Arc<Gate>,
    lines: Arc<Lines>,
    target: Box<dyn Target>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("gate", &self.gate).field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl Server {
    pub(crate) fn new(gate: Arc<Gate>, lines: Arc<Lines>, target: Box<dyn Target>) -> Arc<Self> {
        Arc::new(Self { gate, lines, target })
    }

    pub(crate) async fn init(&self, body: Bytes) -> Answer {
        let init = match InitRequest::parse(&body) {
            Ok(init) => init,
            Err(e) => return Answer::error(400, format!("the body of /init is not what it should be: {e}")),
        };
        let permit = match self.gate.begin_init() {
            Ok(permit) => permit,
            Err(refusal) => return refusal.into(),
        };
        match self.target.init(&init).await {
            Ok(initialised) => {
                permit.settle(&Ok(()));
                Answer { socket: initialised.socket, ..Answer::new(200, &br#"{"ok":true}"#[..]) }
            }
            Err(reason) => {
                let answer = Answer::error(502, format!("initialisation failed: {reason}"));
                permit.settle(&Err(reason));
                answer
            }
        }
    }

    pub(crate) async fn run(&self, body: Bytes) -> Answer {
        let request = match RunRequest::parse(&body) {
            Ok(request) => request,
            Err(e) => return Answer::error(400, format!("the body of /run is not what it should be: {e}")),
        };
        let _permit = match self.gate.begin_run() {
            Ok(permit) => permit,
            Err(refusal) => return refusal.into(),
        };
        let log = Arc::new(ActivationLog::new(self.lines.clone(), request.activation_id.as_str()));
        self.target.run(Call { request, body: &body, log }).await
    }
}
