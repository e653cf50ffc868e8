//! Containers: the seam to whatever runs them, and the engines behind it.
//!
//! The driver owns every decision; an engine only does what it is told and reports what it saw.

mod call;
pub mod docker;
mod folder;
pub mod http;
mod last_lines;
pub mod logs;
pub mod process;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use logs::LogSink;

/// What an engine needs to know to start a container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// `node-epoch-n`, unique for ever; also the name of its folder.
    pub id: Arc<str>,
    pub namespace: String,
    pub action: String,
    /// `counter@node`.
    pub revision: String,
    pub runtime: Runtime,
    /// The image that the action names, of `Runtime::Image`.
    pub image: Option<String>,
    pub memory_mb: u64,
    /// Most activations that run in it at once.
    pub concurrency: u32,
    /// Where lines that the container writes go.
    pub logs: Arc<dyn LogSink>,
}

/// What serves the action contract inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Example actions that ship in the binary; `main` names one.
    Builtin,
    /// An executable made with the SDK, which serves the contract itself.
    Native,
    /// An executable that speaks ActionLoop on stdin and fd 3; one activation at a time.
    ActionLoop,
    /// Python 3 source.
    Python,
    /// Node.js source.
    NodeJs,
    /// Whatever the image that the action names serves on port 8080.
    Image,
}

impl Runtime {
    /// As the proxy's command line has it.
    fn argument(self) -> &'static str {
        match self {
            Runtime::Builtin => "builtin",
            Runtime::Native => "native",
            Runtime::ActionLoop => "actionloop",
            Runtime::Python => "python",
            Runtime::NodeJs => "nodejs",
            Runtime::Image => "image",
        }
    }
}

/// The container's answer to `/init` or `/run`.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    /// Lines that the activation wrote on stdout and stderr, if the runtime counts them.
    pub log_lines: Option<u32>,
}

/// Runs containers. Each call may be slow, fail, or fail without it being known what happened.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// As shown by `status`: `process`, `docker`.
    fn name(&self) -> &'static str;

    /// Whether this host can run that runtime (e.g. has its interpreter); the error says what is missing.
    fn supports(&self, runtime: Runtime, concurrency: u32) -> Result<(), EngineError>;

    /// Creates and starts the container. Returns when its socket accepts connections.
    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError>;

    /// `POST /init`, sent once (connecting is retried until `timeout`).
    async fn init(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError>;

    /// `POST /run`, sent once. Dropping the future leaves the run in the container: only its end or
    /// the container's ends it.
    async fn run(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError>;

    async fn pause(&self, id: &str) -> Result<(), EngineError>;

    async fn resume(&self, id: &str) -> Result<(), EngineError>;

    /// Ends the container with everything in it. Removing one that is gone is a success.
    async fn remove(&self, id: &str) -> Result<(), EngineError>;

    /// Whether somebody who calls this node from there is one of its containers. None is answered: their code may not
    /// do what the node's peers and users may.
    fn bars(&self, _from: IpAddr) -> bool {
        false
    }

    /// Why the engine can't be asked for anything at the moment; what runs may well run on.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Takes the stream of what happened by itself; at most once, later calls get `None`.
    fn events(&self) -> Option<tokio::sync::mpsc::Receiver<EngineEvent>>;

    /// Ends every container of this engine; called once, at shutdown.
    async fn shutdown(&self);

    /// Whether containers can stay when the agent ends, for its next life to adopt.
    fn hands_over(&self) -> bool {
        false
    }

    /// Ends this engine's part and leaves all its containers; `idle` are the ids of those in which nothing runs.
    /// Called once, instead of `shutdown`.
    async fn hand_over(&self, _idle: &[String]) {
        self.shutdown().await;
    }

    /// Containers of earlier lives of this agent; asked once, before anything is started. Each is then adopted or
    /// discarded.
    async fn found(&self) -> Result<Vec<Found>, EngineError> {
        Ok(Vec::new())
    }

    /// Takes one over under the id of `spec`: from here on it answers to that, and refuses calls of earlier lives.
    /// Returns how many of their runs are still in it.
    async fn adopt(&self, found: &Found, _spec: ContainerSpec) -> Result<u32, EngineError> {
        Err(EngineError::Unknown(found.id.clone()))
    }

    /// How many runs of earlier lives are still in an adopted container.
    async fn runs_left(&self, id: &str) -> Result<u32, EngineError> {
        Err(EngineError::Unknown(id.to_owned()))
    }

    /// Ends one that is not adopted.
    async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        Err(EngineError::Unknown(found.id.clone()))
    }
}

/// A container of an earlier life of this agent.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its id in that life.
    pub id: String,
    pub namespace: String,
    pub action: String,
    /// `counter@node`.
    pub revision: String,
    pub paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// The container ended and nobody asked for it.
    Died { id: String, reason: String },
}

/// Why an engine call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("container {0} is not known to the engine")]
    Unknown(String),
    /// It certainly did not happen.
    #[error("{0}")]
    Refused(String),
    /// It certainly did not happen, since others are in front of it.
    #[error("{0}")]
    Busy(String),
    /// What was asked for may or may not have happened.
    #[error("{0}")]
    Indeterminate(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The container ended before or during the call.
    #[error("the container ended: {0}")]
    Died(String),
    /// The answer was larger than allowed, in bytes.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
}
