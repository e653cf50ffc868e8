//! The `process` engine: containers are processes of this host, without Docker or anything else installed.
//!
//! ```text
//! agent ── supervisor ── proxy ── interpreter or executable
//!   └ the write end of a pipe that is stdin of supervisor and proxy
//! ```
//!
//! - `engine`: the [`Engine`](super::Engine); owns the table of containers and their events.
//! - `container`: one container as the agent sees it: its life, its calls, its end.
//! - `launch`: starts its supervisor.
//! - `supervisor`: the program between agent and container; owns namespace, limits, and the end of it all.
//! - `members`, `freeze`: which processes are in a container; stopping, continuing, killing them.
//! - `memory`: ends containers that use more than they may.
//! - `interpreters`: where Python and Node.js are.
//!
//! Nothing outlives the agent: when the pipe closes, however that went, the supervisor ends the container
//! and the proxy exits by itself. What the host does not allow is told by [`Isolation`].

mod container;
mod engine;
mod freeze;
mod interpreters;
mod launch;
mod members;
mod memory;
pub mod supervisor;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use engine::ProcessEngine;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct ProcessEngineConfig {
    /// The program that is run again as supervisor and proxy (`__supervise`, `__container`). It is opened
    /// once, so that replacing the file changes nothing for this agent; `/proc/self/exe` is fine.
    pub binary: PathBuf,
    /// Holds a folder for each container. Made if missing; what is in it is removed at start.
    pub root: PathBuf,
    pub node_id: String,
    /// Where actions find this node's HTTP API.
    pub api_url: String,
    /// Most processes in one container.
    pub max_processes: u64,
    /// Most open files of one process.
    pub max_files: u64,
    /// The strongest isolation to use; weaker ones are taken when the host refuses it.
    pub isolation: Isolation,
}

impl ProcessEngineConfig {
    pub fn new(
        binary: impl Into<PathBuf>,
        root: impl Into<PathBuf>,
        node_id: impl Into<String>,
        api_url: impl Into<String>,
    ) -> Self {
        Self {
            binary: binary.into(),
            root: root.into(),
            node_id: node_id.into(),
            api_url: api_url.into(),
            max_processes: 256,
            max_files: 1024,
            isolation: Isolation::PidNamespace,
        }
    }
}

/// What keeps the processes of one container together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// A PID namespace: nothing can leave it, and the kernel ends all of it with its first process.
    PidNamespace,
    /// The same, inside a user namespace of its own: where the agent isn't privileged.
    UserAndPidNamespace,
    /// The supervisor's descendants, found by walking them: orphans come back to it, so that it ends
    /// daemons too. The limit: if the supervisor itself is killed from outside, processes that left its
    /// session stay behind.
    ProcessGroup,
}

impl Isolation {
    /// From the strongest.
    pub const ALL: [Isolation; 3] = [Isolation::PidNamespace, Isolation::UserAndPidNamespace, Isolation::ProcessGroup];

    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::PidNamespace => "pid-namespace",
            Isolation::UserAndPidNamespace => "user-and-pid-namespace",
            Isolation::ProcessGroup => "process-group",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Isolation::ALL.into_iter().find(|isolation| isolation.as_str() == text);
        found.ok_or_else(|| {
            format!("unknown isolation `{text}`: use pid-namespace, user-and-pid-namespace or process-group")
        })
    }
}
