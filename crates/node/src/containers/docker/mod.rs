//! The `docker` engine: containers are Docker's, over its API on a Unix socket of this host.
//!
//! ```text
//! agent ── dockerd ── container
//!   ├ own runtimes: no network; a folder of the agent's data folder with a Unix socket in it
//!   └ images that actions name: TCP 8080 on a bridge whose containers can't reach each other
//! ```
//!
//! - `engine`: the [`Engine`](super::Engine); owns the table of containers.
//! - `container`: one container: its start, its calls, pause and resume, its end.
//! - `spec`: what the engine is asked for: limits, rights, mounts, command.
//! - `adoption`: containers of earlier lives of the agent: found, taken over, discarded, left behind.
//! - `labels`: which containers are this agent's. Nothing else is ever touched.
//! - `images`, `bundle`: where images come from; the one made of the running executable.
//! - `network`, `subnet`: the bridge, and whose addresses are on it.
//! - `monitor`: events, pings and listings: what happened without us having asked for it.
//! - `yardstick`: what a bare start costs.
//! - `api`: the calls, each with its deadline, and what their failures mean.
//!
//! Runs never go through the engine: they go on while it hangs or is restarted.

mod adoption;
mod api;
mod bundle;
mod container;
mod engine;
mod images;
mod labels;
mod monitor;
mod network;
mod spec;
mod subnet;
mod yardstick;

use std::path::PathBuf;
use std::time::Duration;

pub use bundle::{executable_archive, executable_digest};
pub use engine::{DockerEngine, remove_cluster};
pub use yardstick::Yardstick;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct DockerEngineConfig {
    /// The engine's Unix socket.
    pub socket: PathBuf,
    /// The program that images made here have as `/embermesh`; `/proc/self/exe` is fine, another must link
    /// the same libraries.
    pub binary: PathBuf,
    /// Holds a folder for each container. Made if missing; folders without a container are removed at start.
    pub root: PathBuf,
    pub cluster: String,
    pub node_id: String,
    /// The data folder's: containers labelled with it are this agent's.
    pub instance: String,
    /// Where actions find this node's HTTP API.
    pub api_url: String,
    pub images: Images,
    pub pull: Pull,
    /// The longest that pulling an image may take.
    pub pull_timeout: Duration,
    /// Containers that are made at a time: of several, no start that waits for an image has the last one for
    /// more than 2 s.
    pub parallel_starts: usize,
    /// From its start until a container accepts connections.
    pub start_timeout: Duration,
    /// The bridge of containers of images that actions name.
    pub network: String,
    /// Most processes in one container.
    pub max_processes: u64,
    /// Most open files of one process.
    pub max_files: u64,
}

impl DockerEngineConfig {
    pub fn new(
        binary: impl Into<PathBuf>,
        root: impl Into<PathBuf>,
        instance: impl Into<String>,
        cluster: impl Into<String>,
        node_id: impl Into<String>,
        api_url: impl Into<String>,
    ) -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            binary: binary.into(),
            root: root.into(),
            cluster: cluster.into(),
            node_id: node_id.into(),
            instance: instance.into(),
            api_url: api_url.into(),
            images: Images::default(),
            pull: Pull::Missing,
            pull_timeout: Duration::from_secs(600),
            parallel_starts: 4,
            start_timeout: Duration::from_secs(30),
            network: "embermesh".to_owned(),
            max_processes: 256,
            max_files: 1024,
        }
    }
}

/// Images with an Embermesh runtime in them: `/embermesh`, and the interpreter.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// For built-in, native and ActionLoop actions. None: made of the running executable.
    pub native: Option<String>,
    pub python: String,
    pub nodejs: String,
}

/// When images are fetched from a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// When the engine does not have it.
    Missing,
    Never,
    /// Before each start.
    Always,
}
