//! Gossip: who is in the mesh, and slowly changing facts about each node, on chitchat 0.11.
//!
//! A node publishes strings under a few fixed keys with [`Gossip::set`] and hears [`GossipEvent`]s of the
//! others. It promises convergence, not delivery: of values that follow each other quickly a peer may see only
//! the last. Keys are overwritten, never deleted ('gone' is a value). What arrives is a hint, nothing more.
//!
//! Who owns what: [`Gossip`] is the caller's handle; `driver` is the one task that runs chitchat and its
//! restarts; `transport` stands between chitchat and [`Datagrams`] and drops what would harm (`wire`, `roster`);
//! `view` turns chitchat's state into events; `own` holds this node's keys; `seeds` the addresses to join by.
//!
//! **Epochs.** chitchat's generation is `epoch << 12 | incarnation`: peers order by it and read the epoch from
//! it, and chitchat can be started anew under one epoch, up to 4,095 times, without regressing. Per node id the
//! highest generation that was ever live counts, and nothing of an older one is told after it (G2).
//!
//! **Size.** One gossip domain holds at most 600 nodes (fewer with long ids): each message carries a digest
//! of all of them in one datagram. The digest alarm rises at 45 KB; beyond the bound, unknown nodes are left out of
//! what is read, and counted.
//!
//! **Trust.** Datagrams are not authenticated yet. What is malformed or would break chitchat is dropped, but a
//! plausible lie about another node is believed; see `wire`.

mod counters;
mod driver;
mod own;
mod roster;
mod seeds;
#[cfg(test)]
mod tests;
mod transport;
mod udp;
mod view;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chitchat::ChitchatId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use counters::{DropReason, GossipCounters, GossipStats};
pub use transport::{DatagramSocket, Datagrams};
pub use udp::UdpDatagrams;

use driver::{Driver, Farewell};
use own::OwnKeys;
use roster::Roster;
use seeds::SeedTable;
use transport::Wiring;

/// The key under which a node tells its state; [`Gossip::leave`] sets it to [`STATE_LEFT`].
pub const STATE_KEY: &str = "st";
pub const STATE_LEFT: &str = "left";

pub const MAX_KEY_BYTES: usize = 64;
pub const MAX_VALUE_BYTES: usize = 1024;
/// Keys of one node.
pub const MAX_KEYS: usize = 256;
pub const MAX_NODE_ID_BYTES: usize = 64;
/// Nodes in one gossip domain, dead ones that are not forgotten yet included.
pub const MAX_NODES: usize = 600;
pub const DIGEST_ALARM_BYTES: usize = 45_000;
/// Leaves room for news beside the digest in one datagram.
const DIGEST_MAX_BYTES: usize = 56_000;
const MAX_SEEDS: usize = 64;

const INCARNATION_BITS: u32 = 12;
const MAX_INCARNATION: u64 = (1 << INCARNATION_BITS) - 1;
/// As wall clock in microseconds: until the year 2112.
const MAX_EPOCH: u64 = (1 << (64 - INCARNATION_BITS)) - 1;

#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Nodes of another cluster are not heard.
    pub cluster: String,
    /// Short and stable: it stands in every digest.
    pub node_id: String,
    /// Rises at every start of the agent; below 2^52.
    pub epoch: u64,
    pub listen: SocketAddr,
    /// Where peers reach this node: not `0.0.0.0`, not port 0.
    pub advertise: SocketAddr,
    /// `host:port` of nodes to join by; names are resolved again and again.
    pub seeds: Vec<String>,
    /// Where peers were in an earlier life of this node.
    pub earlier_peers: Vec<SocketAddr>,
    /// Between two rounds. A death is seen after about twelve of them.
    pub interval: Duration,
    /// After this long a dead node is forgotten.
    pub dead_node_grace: Duration,
}

impl GossipConfig {
    /// The defaults: 250 ms between rounds, dead nodes forgotten after ten minutes, no seeds.
    pub fn new(cluster: impl Into<String>, node_id: impl Into<String>, epoch: u64, listen: SocketAddr) -> Self {
        Self {
            cluster: cluster.into(),
            node_id: node_id.into(),
            epoch,
            listen,
            advertise: listen,
            seeds: Vec::new(),
            earlier_peers: Vec::new(),
            interval: Duration::from_millis(250),
            dead_node_grace: Duration::from_secs(600),
        }
    }
}

/// What changed in the mesh. Events of one node come in order; an entry always follows its `PeerUp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// A peer is live. With a higher epoch than before it replaces the older one, without a `PeerDown`.
    /// All its entries follow.
    PeerUp { node_id: String, epoch: u64, advertise: SocketAddr },
    /// A peer has been silent for too long.
    PeerDown { node_id: String, epoch: u64 },
    /// The latest value of a key. May be told again unchanged.
    Entry { node_id: String, epoch: u64, key: String, value: String },
    /// Another live agent uses this node's id. Told once for each such agent.
    Twin { node_id: String, epoch: u64, advertise: SocketAddr },
}

#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    #[error("gossip can't run with {field} `{value}`: {hint}")]
    Config { field: &'static str, value: String, hint: &'static str },
    #[error("gossip can't open {listen} (UDP): {source}; check that the address is this machine's and the port free")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("gossip key `{key}` is not 1 to {MAX_KEY_BYTES} printable ASCII characters without spaces")]
    Key { key: String },
    #[error(
        "the value for gossip key `{key}` has {bytes} bytes; at most {MAX_VALUE_BYTES} are gossiped, fetch larger ones by gRPC"
    )]
    Value { key: String, bytes: usize },
    #[error("gossip key `{key}` would be one too many (at most {MAX_KEYS} a node); reuse a key")]
    TooManyKeys { key: String },
    #[error("gossip takes no more keys: this node has left the mesh")]
    Closed,
}

/// A running gossip. Dropping it stops it; [`Gossip::shutdown`] also waits until the port is free.
#[derive(Debug)]
pub struct Gossip {
    shared: Arc<Shared>,
    interval: Duration,
    farewells: mpsc::Sender<Farewell>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Gossip {
    /// Opens the socket and starts gossiping. `events` may be full at any time: what is not told yet is kept,
    /// the latest value of each key.
    pub async fn start(
        config: GossipConfig,
        datagrams: Arc<dyn Datagrams>,
        events: mpsc::Sender<GossipEvent>,
    ) -> Result<Self, GossipError> {
        check(&config)?;
        let shared = Arc::new(Shared::new(&config));
        let (farewells, farewell_requests) = mpsc::channel(1);
        let interval = config.interval;
        let listen = config.listen;
        let driver = Driver::new(shared.clone(), config, datagrams, events, farewell_requests)
            .await
            .map_err(|source| GossipError::Listen { listen, source })?;
        shared.set_healthy(true);
        let task = Mutex::new(Some(tokio::spawn(driver.run())));
        Ok(Self { shared, interval, farewells, task })
    }

    /// Publishes `value` under `key`. Only notes it down: the gossip task passes on the latest value.
    pub fn set(&self, key: &str, value: &str) -> Result<(), GossipError> {
        self.shared.own.set(key, value)
    }

    pub fn counters(&self) -> &GossipCounters {
        &self.shared.wiring.counters
    }

    /// Seeds that never answered, as they were given.
    pub fn joining(&self) -> Vec<String> {
        self.shared.wiring.with_seeds(|seeds| seeds.joining())
    }

    /// Whether gossip runs at this moment; alone in the mesh is healthy too.
    pub fn healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// How often gossip died and was started again.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// Tells the mesh that this node leaves, directly to a few peers. Returns when they have it, at the latest
    /// after two intervals. No more keys are taken; gossip runs on until [`Gossip::shutdown`].
    pub async fn leave(&self) {
        self.shared.own.close(STATE_KEY, STATE_LEFT);
        let (answer, answered) = oneshot::channel();
        let farewell = async {
            // An error means that the task is gone: nobody can be told.
            self.farewells.send(Farewell(answer)).await.ok()?;
            let enough = answered.await.ok()?;
            loop {
                let ack_sent = self.shared.wiring.ack_sent.notified();
                if self.counters().sent_acks() >= enough {
                    return Some(());
                }
                ack_sent.await;
            }
        };
        if timeout(2 * self.interval, farewell).await.is_err() {
            tracing::debug!("not all peers asked for news before this node left");
        }
    }

    /// Stops gossiping and frees the port. Peers see this node die unless it left before.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What the handle and the gossip task share.
#[derive(Debug)]
struct Shared {
    wiring: Arc<Wiring>,
    own: OwnKeys,
    healthy: AtomicBool,
    restarts: AtomicU64,
    stop: CancellationToken,
}

impl Shared {
    fn new(config: &GossipConfig) -> Self {
        Self {
            wiring: Arc::new(Wiring {
                cluster: config.cluster.clone(),
                counters: GossipCounters::default(),
                roster: Mutex::new(Roster::default()),
                seeds: Mutex::new(SeedTable::new(config)),
                ack_sent: Notify::new(),
            }),
            own: OwnKeys::default(),
            healthy: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            stop: CancellationToken::new(),
        }
    }

    fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }
}

fn generation(epoch: u64, incarnation: u64) -> u64 {
    epoch << INCARNATION_BITS | incarnation
}

fn epoch_of(id: &ChitchatId) -> u64 {
    id.generation_id >> INCARNATION_BITS
}

fn check(config: &GossipConfig) -> Result<(), GossipError> {
    let refuse = |field, value: String, hint| Err(GossipError::Config { field, value, hint });
    if config.cluster.is_empty() || config.cluster.len() > 255 {
        return refuse("cluster", config.cluster.clone(), "name it with 1 to 255 bytes");
    }
    if !wire::is_name(&config.node_id) || config.node_id.len() > MAX_NODE_ID_BYTES {
        let hint = "use 1 to 64 printable ASCII characters without spaces, better few";
        return refuse("node_id", config.node_id.clone(), hint);
    }
    if config.epoch > MAX_EPOCH {
        return refuse("epoch", config.epoch.to_string(), "it must stay below 2^52; is the clock right?");
    }
    if !wire::is_usable(config.advertise.ip()) || config.advertise.port() == 0 {
        let hint = "peers can't reach that; give an address and port that they can";
        return refuse("advertise", config.advertise.to_string(), hint);
    }
    if config.seeds.len() > MAX_SEEDS {
        return refuse("seeds", config.seeds.len().to_string(), "give at most 64; a few are enough");
    }
    let port = |seed: &str| seed.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if let Some(seed) = config.seeds.iter().find(|seed| port(seed).is_none_or(|port| port == 0)) {
        return refuse("seed", seed.clone(), "give it as host:port, e.g. 10.0.0.5:7411");
    }
    if config.interval < Duration::from_millis(10) || config.interval > Duration::from_secs(60) {
        return refuse("interval", format!("{:?}", config.interval), "use 10 ms to 60 s");
    }
    if config.dead_node_grace < 40 * config.interval {
        return refuse(
            "dead_node_grace",
            format!("{:?}", config.dead_node_grace),
            "use at least 40 intervals, better 10 min",
        );
    }
    Ok(())
}
