//! The contract's two calls, apart from how they arrive and from what carries them out.
//!
//! `Server` owns the order of things (one `/init`, then so many `/run`s at a time); a `Target` does the work:
//! a handler in this process, or another process behind the proxy.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::contract::{EPOCH_HEADER, InitRequest, RunRequest};
use crate::gate::{Gate, Refusal};
use crate::lines::{ActivationLog, Lines};

pub(crate) type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What runs the action.
pub(crate) trait Target: Send + Sync + 'static {
    /// Called at most once, before any run. The error is shown to the user.
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>>;

    /// One run. Ends its log (on every way out) before it returns.
    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer>;

    /// An agent of that epoch takes over; `None` if this process's own count of runs is all there is to tell.
    fn adopt(&self, _epoch: u64) -> Task<'_, Option<Answer>> {
        Box::pin(async { None })
    }
}

/// One run's request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) request: RunRequest<'a>,
    /// The request as it came.
    pub(crate) body: &'a [u8],
    /// The calling agent's, if it told.
    pub(crate) epoch: Option<u64>,
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
    /// The highest of an agent that adopted this container.
    epoch: AtomicU64,
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
        Arc::new(Self { gate, epoch: AtomicU64::new(0), lines, target })
    }

    #[cfg(test)]
    pub(crate) async fn init(&self, body: Bytes) -> Answer {
        self.init_by(None, body).await
    }

    #[cfg(test)]
    pub(crate) async fn run(&self, body: Bytes) -> Answer {
        self.run_by(None, body).await
    }

    /// `epoch`: the calling agent's, if it told.
    pub(crate) async fn init_by(&self, epoch: Option<u64>, body: Bytes) -> Answer {
        if let Err(outdated) = self.check(epoch) {
            return outdated;
        }
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

    pub(crate) async fn adopt(&self, epoch: Option<u64>) -> Answer {
        let Some(epoch) = epoch else {
            return Answer::error(400, format!("/adopt needs the header {EPOCH_HEADER} with the agent's epoch"));
        };
        // First the epoch, then the count: a run that begins meanwhile is in one or sees the other.
        let before = self.epoch.fetch_max(epoch, Ordering::SeqCst);
        if before > epoch {
            return outdated(epoch, before);
        }
        // One that was never ready is of no use to anybody.
        let running = match self.gate.running_if_ready() {
            Ok(running) => running,
            Err(refusal) => return refusal.into(),
        };
        match self.target.adopt(epoch).await {
            Some(answer) => answer,
            None => Answer::new(200, serde_json::json!({ "running": running }).to_string()),
        }
    }

    fn check(&self, epoch: Option<u64>) -> Result<(), Answer> {
        let known = self.epoch.load(Ordering::SeqCst);
        match epoch {
            Some(epoch) if epoch < known => Err(outdated(epoch, known)),
            _ => Ok(()),
        }
    }

    /// `epoch`: the calling agent's, if it told.
    pub(crate) async fn run_by(&self, epoch: Option<u64>, body: Bytes) -> Answer {
        let request = match RunRequest::parse(&body) {
            Ok(request) => request,
            Err(e) => return Answer::error(400, format!("the body of /run is not what it should be: {e}")),
        };
        let _permit = match self.gate.begin_run() {
            Ok(permit) => permit,
            Err(refusal) => return refusal.into(),
        };
        if let Err(outdated) = self.check(epoch) {
            return outdated;
        }
        let log = Arc::new(ActivationLog::new(self.lines.clone(), request.activation_id.as_str()));
        self.target.run(Call { request, body: &body, epoch, log }).await
    }
}

fn outdated(epoch: u64, known: u64) -> Answer {
    Answer::error(409, format!("epoch {epoch} is over: an agent of epoch {known} has adopted this container"))
}
