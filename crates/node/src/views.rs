//! What a node shows of itself: the JSON shapes of `/mesh/v1`, shared by the server and the command line.
//!
//! These are stable: a field is added, never renamed or given another unit. Times ending in `_ms` are
//! durations counted by the answering node, except `at_ms` (Unix time, milliseconds).

use serde::{Deserialize, Serialize};

use crate::faults::Direction;

/// `GET /mesh/v1/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node_id: String,
    /// UUID made with the data folder.
    pub instance: String,
    /// Rises at every start.
    pub epoch: u64,
    /// `host:port` of gossip (UDP) and gRPC (TCP).
    pub mesh_addr: String,
    /// `host:port` of the HTTP API, empty when the node tells none.
    pub api_addr: String,
    /// `live`, `draining`, `left` or `dead`.
    pub state: String,
    /// The peer's Embermesh version.
    pub version: String,
    pub memory_mb: u64,
    /// Smoothed gRPC round trip from the answering node; 0 until measured and for itself.
    pub rtt_us: u64,
    /// Whether this is the node that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
}

/// `GET /mesh/v1/containers[?all_nodes=true]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containers {
    pub containers: Vec<Container>,
    /// Peers that did not answer in time (only with `all_nodes`).
    #[serde(default)]
    pub unreachable: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub container_id: String,
    /// The owner.
    pub node_id: String,
    pub namespace: String,
    pub action: String,
    /// `counter@node`.
    pub revision: String,
    /// `starting`, `initializing`, `warm`, `pausing`, `paused`, `resuming`, `retiring`, `removing`, `failed`.
    pub state: String,
    pub slots: u32,
    /// Runs in flight, on leases and off.
    pub busy: u32,
    /// Slots that peers hold by lease.
    pub leased: u32,
    pub idle_ms: u64,
    pub memory_mb: u64,
    /// Runs started in it since it began.
    pub runs: u64,
    /// The open intent's id, if there is one.
    pub intent: Option<String>,
}

/// `GET /mesh/v1/leases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// Leases that this node holds at peers.
    pub held: Vec<Lease>,
    /// Leases that this node granted to peers.
    pub granted: Vec<Lease>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The fence: `owner-epoch-Lcounter`.
    pub lease_id: String,
    pub owner: String,
    pub holder: String,
    pub container_id: String,
    pub namespace: String,
    pub action: String,
    pub slots: u32,
    pub busy: u32,
    /// Until the answering node stops using it (held) or takes the slots back (granted).
    pub expires_in_ms: u64,
}

/// `GET /mesh/v1/intents`: the node's own and those it heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intents {
    pub intents: Vec<Intent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// `container_id-rN`, N being the round.
    pub intent_id: String,
    pub owner: String,
    pub container_id: String,
    pub namespace: String,
    pub action: String,
    /// `pause` or `remove`.
    pub kind: String,
    pub urgent: bool,
    pub round: u32,
    pub closes_in_ms: u64,
    /// Vetoes that the owner has counted in this round.
    pub vetoes: Vec<VetoView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VetoView {
    pub peer: String,
    pub hold_ms: u64,
}

/// Answer to `POST /mesh/v1/containers/{id}/pause` and `…/remove` (200 when `committed` or `retired`, else 409).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentOutcome {
    pub intent_id: String,
    pub container_id: String,
    pub kind: String,
    /// `committed`, `vetoed`, `cancelled` or `retired` (`--force`: removed without asking).
    pub outcome: String,
    /// In words, e.g. `n2 vetoed for 12000 ms`.
    pub reason: String,
    pub vetoes: Vec<VetoView>,
}

/// `GET /mesh/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node_id: String,
    pub instance: String,
    pub epoch: u64,
    pub version: String,
    pub cluster: String,
    pub engine: String,
    pub mesh_addr: String,
    pub api_addr: String,
    pub uptime_ms: u64,
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready: Vec<String>,
    pub draining: bool,
    /// Whether this agent was started with `--enable-fault-injection`.
    #[serde(default)]
    pub fault_injection: bool,
    pub peers_live: u32,
    /// Seeds given with `--join` that have not answered yet.
    pub joining: Vec<String>,
    pub containers: u32,
    pub memory_mb: u64,
    pub memory_used_mb: u64,
    pub queued: u64,
    pub running: u64,
    /// Activations that were accepted with a 202 and have not ended.
    #[serde(default)]
    pub owed: u64,
    pub actions: u64,
    pub gossip_bytes_sent: u64,
    pub gossip_bytes_received: u64,
    pub gossip_dropped: u64,
    pub gossip_restarts: u64,
    /// Counters since start: activations by how served, and what the protocol did.
    pub served: Served,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub local: u64,
    pub leased: u64,
    pub resumed: u64,
    pub cold: u64,
    pub refused: u64,
    pub cold_starts: u64,
    pub leases_granted: u64,
    pub leases_denied: u64,
    pub leases_expired: u64,
    pub intents_committed: u64,
    pub intents_vetoed: u64,
    pub intents_cancelled: u64,
}

/// Body of `POST /mesh/v1/drain`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// How long to wait for runs to end; the configured default when absent.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Kill what is left at the deadline.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /mesh/v1/leave`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Leave although accepted activations have not ended: they are left in the data folder.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `POST /mesh/v1/drain`: 200 when empty, 409 when something is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainOutcome {
    pub drained: bool,
    /// Container ids still there at the deadline.
    pub left: Vec<String>,
    /// Calls of this node that still ran at peers.
    #[serde(default)]
    pub at_peers: u32,
    /// Activations that nobody waits for and that had no record yet, those at peers included.
    #[serde(default)]
    pub owed: u32,
    /// Runs that were ended at the deadline, by `force`.
    #[serde(default)]
    pub killed: u32,
    /// Activations that nobody waits for and that were ended before they had begun, by `force`.
    #[serde(default)]
    pub given_up: u32,
}

/// Body of `POST /mesh/v1/containers/{id}/pause|remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentRequest {
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /mesh/v1/intents/{id}/veto`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VetoRequest {
    /// How long the container should be kept; the most allowed when absent.
    #[serde(default)]
    pub hold_ms: Option<u64>,
}

/// One event of `GET /mesh/v1/events` (server-sent events, `data:` holds this as JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at_ms: u64,
    pub node_id: String,
    /// e.g. `container_started`, `lease_granted`, `intent_opened`, `veto_received`, `intent_committed`, `peer_up`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// `GET /mesh/v1/faults`: what was made to go wrong at this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultsView {
    pub links: Vec<LinkFaultView>,
    pub engine_stalled: bool,
    /// Parts per million that the node's clock runs fast.
    pub clock_drift_ppm: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFaultView {
    /// A node id, or a mesh address `ip:port`.
    pub peer: String,
    #[serde(default)]
    pub send: Direction,
    #[serde(default)]
    pub receive: Direction,
}

/// `POST /mesh/v1/faults`: what is not named stays as it is; a link without faults is whole again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultsRequest {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkFaultView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_stalled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_drift_ppm: Option<i64>,
}
