//! A node's configuration: one typed value, nested by subsystem, each default where its key stands.
//!
//! Precedence: flag > environment > file > default. The caller applies flags by setting fields after
//! [`NodeConfig::load`], then calls [`NodeConfig::validate`]. The file is TOML with one section a
//! subsystem; the environment has `EMBERMESH_<SECTION>_<KEY>` for each key (`EMBERMESH_JOIN`, with commas,
//! for the list at the top). Durations are written `5s`, sizes `512MiB`. Unknown keys are errors.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod host;
mod keys;
mod load;
mod validate;
mod values;

pub use keys::nearest;
pub use load::ConfigError;
pub use values::ByteSize;

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// `host:port` of the mesh port of nodes to join; none for the first node of a mesh.
    pub join: Vec<String>,
    pub node: NodeSection,
    pub listen: ListenSection,
    pub engine: EngineSection,
    pub docker: DockerSection,
    pub protocol: ProtocolSection,
    pub gossip: GossipSection,
    pub limits: LimitsSection,
    pub store: StoreSection,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// Short and stable: up to 32 of `a-z`, `0-9` and `-`. No default.
    pub id: String,
    /// Identity, actions, code and activation records; created when missing. No default.
    pub data_dir: PathBuf,
    /// Nodes of another cluster's name are ignored. Default `embermesh`.
    pub cluster: String,
    /// Where the node stands, as other nodes are told. Default empty.
    pub zone: String,
    /// Threads that carry activations and messages. Default: half of the host's cores
    /// ([`NodeSection::threads_or_share`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// A file for the node's history, to be judged by the protocol's invariants. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<PathBuf>,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSection {
    /// Gossip (UDP) and gRPC (TCP). Default `127.0.0.1:7411`.
    #[serde(with = "values::socket_addr")]
    pub mesh: SocketAddr,
    /// HTTP/JSON. Default `127.0.0.1:3233`.
    #[serde(with = "values::socket_addr")]
    pub api: SocketAddr,
    /// The mesh address that peers are told, where it differs from `mesh`. Default none.
    #[serde(with = "values::socket_addr_option", skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Allows binding to other addresses than loopback while peers and users don't authenticate. Default false.
    pub insecure: bool,
}

/// What runs containers, and with how much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// Default `process`.
    pub kind: EngineKind,
    /// For all containers together. Default: three quarters of the host's memory ([`EngineSection::memory_or_share`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Containers that start at the same time. Default 4.
    pub parallel_starts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Containers are processes of this host; nothing else has to be installed.
    Process,
    /// Containers are this host's Docker engine's.
    Docker,
}

/// The Docker engine, where `engine.kind` is `docker`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerSection {
    /// Its Unix socket. Default `/var/run/docker.sock`.
    pub socket: PathBuf,
    /// When images are fetched from a registry. Default `missing`.
    pub pull: PullPolicy,
    /// The longest that pulling an image may take. Default `10m`.
    #[serde(with = "values::duration")]
    pub pull_timeout: Duration,
    /// From its start until a container accepts connections. Default `30s`.
    #[serde(with = "values::duration")]
    pub start_timeout: Duration,
    /// The bridge for images that actions name; made when missing. Default `embermesh`.
    pub network: String,
    /// Most processes in one container. Default 256.
    pub pids: u32,
    pub images: ImagesSection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// When the engine does not have it.
    Missing,
    Never,
    /// Before each start.
    Always,
}

/// Images with our runtime in them, for each family of kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesSection {
    /// For `builtin`, `native` and `actionloop`. Default none: made of the running executable, without a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<String>,
    /// Default `embermesh-python`.
    pub python: String,
    /// Default `embermesh-nodejs`.
    pub nodejs: String,
}

/// The protocol's times and bounds; docs/protocol.md says what each is for. All nodes of a mesh should agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProtocolSection {
    /// A lease without a run ends after this. Default `5s`.
    #[serde(with = "values::duration")]
    pub ttl: Duration,
    /// A holder stops using a lease this long before its ttl. Default `100ms`.
    #[serde(with = "values::duration")]
    pub margin: Duration,
    /// An owner accepts runs on a lease this long after its ttl. Default `200ms`.
    #[serde(with = "values::duration")]
    pub grace: Duration,
    /// ρ: clocks run at most this share faster or slower than real time. Default 0.01.
    pub clock_rate_bound: f64,
    /// A lease older than this is not renewed. Default `30s`.
    #[serde(with = "values::duration")]
    pub max_lease_age: Duration,
    /// An intent is open for vetoes this long. Default `1s`.
    #[serde(with = "values::duration")]
    pub window: Duration,
    /// The same when another start needs the memory. Default `100ms`.
    #[serde(with = "values::duration")]
    pub urgent_window: Duration,
    /// The longest a veto can hold a container. Default `30s`.
    #[serde(with = "values::duration")]
    pub max_hold: Duration,
    /// Idle for this long, a container is proposed for a pause. Default `10s`.
    #[serde(with = "values::duration")]
    pub pause_grace: Duration,
    /// The same for containers whose action allows concurrency. Default `60s`.
    #[serde(with = "values::duration")]
    pub concurrent_grace: Duration,
    /// Paused for this long, a container is proposed for removal. Default `10m`.
    #[serde(with = "values::duration")]
    pub idle_timeout: Duration,
    /// Activations that wait for one action. Default 1000.
    pub queue_per_action: u32,
    /// Bodies of all that wait at this node. Default `100MiB`.
    pub queue_bytes: ByteSize,
    /// The longest an owner holds a reservation that it can't grant yet. Default `1s`.
    #[serde(with = "values::duration")]
    pub wait: Duration,
    /// The longest an activation waits for memory before it is refused. Default `10s`.
    #[serde(with = "values::duration")]
    pub max_memory_wait: Duration,
    /// How long a drain waits for runs to end. Default `30s`.
    #[serde(with = "values::duration")]
    pub drain_deadline: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GossipSection {
    /// Between two rounds of gossip. Default `250ms`.
    #[serde(with = "values::duration")]
    pub interval: Duration,
}

/// What users may ask for. OpenWhisk's units and defaults; its megabyte has 1,048,576 bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// An action's memory, at least, in megabytes. Default 128.
    pub memory_min_mb: u64,
    /// An action's memory, at most, in megabytes. Default 512.
    pub memory_max_mb: u64,
    /// An action's time-out, at most. Default `5m`.
    #[serde(with = "values::duration")]
    pub timeout_max: Duration,
    /// Activations at once in one container, at most. Default 500.
    pub concurrency_max: u32,
    /// An action's code. Default `48MiB`.
    pub code_max: ByteSize,
    /// Parameters and result of an activation. Default `1MiB`.
    pub payload_max: ByteSize,
    /// Actions, deleted ones counted, that the registry holds. Default 100000.
    pub actions_max: u32,
}

/// How much of the past is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Activation records older than this are removed. Default `7d`.
    #[serde(with = "values::duration")]
    pub retention_age: Duration,
    /// Of activation records, the oldest beyond this are removed. Default `1GiB`.
    pub retention_bytes: ByteSize,
}

impl NodeSection {
    /// The threads that were set, else half of the cores that this host lets us use: the other half is the actions'.
    pub fn threads_or_share(&self) -> usize {
        self.threads.unwrap_or_else(|| (host::cores() / 2).max(1))
    }
}

impl EngineSection {
    /// The memory for containers: what was set, else three quarters of what this host lets us use.
    pub fn memory_or_share(&self) -> ByteSize {
        self.memory.unwrap_or_else(|| ByteSize(host::memory_bytes() / 4 * 3))
    }
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            id: String::new(),
            data_dir: PathBuf::new(),
            cluster: "embermesh".to_owned(),
            zone: String::new(),
            threads: None,
            history: None,
        }
    }
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            mesh: SocketAddr::from(([127, 0, 0, 1], 7411)),
            api: SocketAddr::from(([127, 0, 0, 1], 3233)),
            advertise: None,
            insecure: false,
        }
    }
}

impl Default for EngineSection {
    fn default() -> Self {
        Self { kind: EngineKind::Process, memory: None, parallel_starts: 4 }
    }
}

impl Default for DockerSection {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            pull: PullPolicy::Missing,
            pull_timeout: Duration::from_secs(600),
            start_timeout: Duration::from_secs(30),
            network: "embermesh".to_owned(),
            pids: 256,
            images: ImagesSection::default(),
        }
    }
}

impl Default for ImagesSection {
    fn default() -> Self {
        Self { native: None, python: "embermesh-python".to_owned(), nodejs: "embermesh-nodejs".to_owned() }
    }
}

impl Default for ProtocolSection {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(5),
            margin: Duration::from_millis(100),
            grace: Duration::from_millis(200),
            clock_rate_bound: 0.01,
            max_lease_age: Duration::from_secs(30),
            window: Duration::from_secs(1),
            urgent_window: Duration::from_millis(100),
            max_hold: Duration::from_secs(30),
            pause_grace: Duration::from_secs(10),
            concurrent_grace: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            queue_per_action: 1000,
            queue_bytes: ByteSize::mib(100),
            wait: Duration::from_secs(1),
            max_memory_wait: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
        }
    }
}

impl Default for GossipSection {
    fn default() -> Self {
        Self { interval: Duration::from_millis(250) }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            memory_min_mb: 128,
            memory_max_mb: 512,
            timeout_max: Duration::from_secs(300),
            concurrency_max: 500,
            code_max: ByteSize::mib(48),
            payload_max: ByteSize::mib(1),
            actions_max: 100_000,
        }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { retention_age: Duration::from_secs(7 * 24 * 3600), retention_bytes: ByteSize::mib(1024) }
    }
}

#[cfg(test)]
mod tests;
