//! The gossip task: runs chitchat, starts it again when it dies, publishes own keys, tells what changed.
//!
//! ```text
//!            chitchat's task ended, panicked            back-off is over
//!   Running ------------------------------------> Down -----------------> Running, next incarnation
//! ```
//!
//! A restart under the same generation would regress: peers hold this node's keys with versions above those of
//! a fresh start, would not take the new ones, and send the old ones back. So each start of chitchat inside one
//! agent is a new generation, made of the agent's epoch and a count (see [`super::generation`]); the peers'
//! views recognise the epoch and notice nothing but the keys being told again.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::transport::{Datagrams, Seam};
use super::view::View;
use super::{DIGEST_ALARM_BYTES, GossipConfig, GossipEvent, MAX_INCARNATION, Shared, generation};

const PHI: f64 = 16.0;
const WINDOW: usize = 100;
/// Pauses between heartbeats longer than this many intervals are no measure of the usual pause.
const MAX_PAUSE_INTERVALS: u32 = 40;
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);
/// A chitchat that ran this long was healthy: the next restart is quick again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
const WARN_EVERY: Duration = Duration::from_secs(10);
const ROSTER_REFRESH: Duration = Duration::from_secs(1);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Peers that are told directly of a departure, or greeted after a restart.
const DIRECT_PEERS: usize = 5;

/// Asks the task to pass the last keys on; it answers with the number of Acks that will have done so.
pub(super) struct Farewell(pub(super) oneshot::Sender<u64>);

pub(super) struct Driver {
    shared: Arc<Shared>,
    config: GossipConfig,
    datagrams: Arc<dyn Datagrams>,
    engine: Engine,
    view: View,
    events: mpsc::Sender<GossipEvent>,
    farewells: mpsc::Receiver<Farewell>,
    incarnation: u64,
    back_off: Duration,
    /// Peers to greet until they show up in a chitchat that was started anew.
    lost: Vec<std::net::SocketAddr>,
    next_round: Instant,
    next_refresh: Instant,
    next_warning: Instant,
    warned_drops: u64,
    _resolver: AbortOnDropHandle<()>,
}

enum Engine {
    Running(Running),
    /// `None`: the generations of this epoch are used up; only a restart of the agent helps.
    Down(Option<Instant>),
}

struct Running {
    handle: ChitchatHandle,
    chitchat: Arc<Mutex<Chitchat>>,
    ended: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>,
    since: Instant,
}

impl Driver {
    /// Opens the socket and starts chitchat for the first time.
    pub(super) async fn new(
        shared: Arc<Shared>,
        config: GossipConfig,
        datagrams: Arc<dyn Datagrams>,
        events: mpsc::Sender<GossipEvent>,
        farewells: mpsc::Receiver<Farewell>,
    ) -> io::Result<Self> {
        let running = launch(&shared, &config, &datagrams, 0).await?;
        let resolver = super::seeds::resolve_names(datagrams.clone(), shared.wiring.clone());
        let now = Instant::now();
        Ok(Self {
            view: View::new(chitchat_id(&config, 0), config.interval),
            engine: Engine::Running(running),
            events,
            farewells,
            incarnation: 0,
            back_off: FIRST_BACK_OFF,
            lost: Vec::new(),
            next_round: now,
            next_refresh: now,
            next_warning: now + WARN_EVERY,
            warned_drops: 0,
            _resolver: AbortOnDropHandle::new(tokio::spawn(resolver)),
            shared,
            config,
            datagrams,
        })
    }

    /// Until the node is told to stop. Never waits for the consumer of events.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let events = self.events.clone();
        // Also when this task itself should panic.
        let _unhealthy_at_the_end = Unhealthy(shared.clone());
        let mut look = interval((self.config.interval / 5).clamp(MIN_LOOK, MAX_LOOK));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => break,
                end = self.engine.turn() => self.turn_over(end).await,
                _ = look.tick() => self.look().await,
                () = shared.own.changed.notified() => self.publish().await,
                Some(farewell) = self.farewells.recv() => self.say_farewell(farewell).await,
                permit = events.reserve(), if self.view.has_events() && !events.is_closed() => {
                    if let (Ok(permit), Some(event)) = (permit, self.view.next_event()) {
                        permit.send(event);
                    }
                    self.tell();
                }
            }
        }
        if let Engine::Running(running) = self.engine {
            let _ = timeout(SHUTDOWN_TIMEOUT, running.handle.shutdown()).await;
        }
    }

    async fn turn_over(&mut self, end: Option<anyhow::Result<()>>) {
        match end {
            Some(end) => {
                let cause = end.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
                self.went_down(&cause);
            }
            None => self.start_again().await,
        }
    }

    fn went_down(&mut self, cause: &str) {
        self.shared.set_healthy(false);
        if let Engine::Running(running) = &self.engine
            && running.since.elapsed() >= HEALTHY_AFTER
        {
            self.back_off = FIRST_BACK_OFF;
        }
        let retry_in = self.back_off;
        self.back_off = (2 * self.back_off).min(MAX_BACK_OFF);
        self.engine = Engine::Down(Some(Instant::now() + retry_in));
        tracing::error!(cause, retry_in_ms = retry_in.as_millis() as u64, "gossip is down; it starts again by itself");
    }

    async fn start_again(&mut self) {
        if self.incarnation >= MAX_INCARNATION {
            self.engine = Engine::Down(None);
            tracing::error!(restarts = self.incarnation, "gossip failed too often; restart the agent");
            return;
        }
        self.incarnation += 1;
        match launch(&self.shared, &self.config, &self.datagrams, self.incarnation).await {
            Ok(running) => {
                self.engine = Engine::Running(running);
                self.lost = self.view.addresses().collect();
                self.shared.count_restart();
                self.shared.set_healthy(true);
                tracing::warn!(restarts = self.incarnation, "gossip runs again");
            }
            Err(error) => self.went_down(&error.to_string()),
        }
    }

    /// One look at what chitchat knows, and what is due with it.
    async fn look(&mut self) {
        let Engine::Running(running) = &self.engine else {
            return;
        };
        let now = Instant::now();
        {
            let chitchat = running.chitchat.lock().await;
            let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
            let nodes = chitchat.node_states();
            self.view.observe(now, nodes.iter(), &live);
            let counted = self.shared.wiring.with_roster(|roster| roster.len());
            if now >= self.next_refresh || counted != nodes.len() {
                self.next_refresh = now + ROSTER_REFRESH;
                self.shared.wiring.with_roster(|roster| roster.refresh(nodes.keys(), now));
            }
        }
        self.tell();
        if now >= self.next_round {
            self.next_round = now + self.config.interval;
            self.greet(now);
            self.measure(now);
        }
    }

    /// Greets seeds that are not among the live, and after a restart the peers of before.
    fn greet(&mut self, now: Instant) {
        let Engine::Running(running) = &self.engine else {
            return;
        };
        let live: HashSet<_> = self.view.addresses().collect();
        let greetings = self.shared.wiring.with_seeds(|seeds| {
            for address in &live {
                seeds.heard(*address);
            }
            seeds.greetings(&live)
        });
        let left = self.lost.len().saturating_sub(DIRECT_PEERS);
        let lost = self.lost.split_off(left);
        for address in greetings.into_iter().chain(lost) {
            // Fails only when the task is gone, which `turn` notices.
            let _ = running.handle.gossip(address);
        }
        if let Some(silent) = self.shared.wiring.with_seeds(|seeds| seeds.warning(now)) {
            tracing::warn!(
                seeds = silent,
                "seeds to join by do not answer; trying on. Check address, port (UDP), firewall and cluster name"
            );
        }
    }

    fn measure(&mut self, now: Instant) {
        let counters = &self.shared.wiring.counters;
        let (nodes, digest_bytes) = self.shared.wiring.with_roster(|roster| (roster.len(), roster.digest_bytes()));
        let alarm = digest_bytes > DIGEST_ALARM_BYTES;
        counters.sized(nodes, digest_bytes, alarm);
        let stats = counters.snapshot();
        let new_drops = stats.dropped_total() - self.warned_drops;
        if now < self.next_warning || (!alarm && new_drops == 0) {
            return;
        }
        self.next_warning = now + WARN_EVERY;
        if alarm {
            tracing::warn!(
                nodes,
                digest_bytes,
                refused = stats.refused_nodes,
                "the mesh outgrows one gossip domain: every message carries all nodes; split it into cells"
            );
        }
        if new_drops > 0 {
            self.warned_drops = stats.dropped_total();
            tracing::warn!(new_drops, by_reason = ?by_reason(&stats), "gossip datagrams dropped");
        }
    }

    /// Hands chitchat the own keys that changed.
    async fn publish(&mut self) {
        // While it is down they stay in the map: the next start takes all of them.
        let Engine::Running(running) = &self.engine else {
            return;
        };
        let mut chitchat = running.chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in self.shared.own.take_changes() {
            state.set(key, value);
        }
    }

    async fn say_farewell(&mut self, farewell: Farewell) {
        self.publish().await;
        let acks = self.shared.wiring.counters.sent_acks();
        let Engine::Running(running) = &self.engine else {
            return;
        };
        let peers = self.view.addresses().take(DIRECT_PEERS);
        let greeted = peers.filter(|address| running.handle.gossip(*address).is_ok()).count();
        let _ = farewell.0.send(acks + greeted as u64);
    }

    /// Passes on as many events as there is room for.
    fn tell(&mut self) {
        while self.view.has_events() {
            let Ok(permit) = self.events.try_reserve() else {
                return;
            };
            let Some(event) = self.view.next_event() else {
                return;
            };
            permit.send(event);
        }
    }
}

const MIN_LOOK: Duration = Duration::from_millis(5);
const MAX_LOOK: Duration = Duration::from_millis(50);

impl Engine {
    /// The end of chitchat's task, or `None` when it is time to start it again.
    async fn turn(&mut self) -> Option<anyhow::Result<()>> {
        match self {
            Self::Running(running) => Some((&mut running.ended).await),
            Self::Down(Some(retry_at)) => {
                sleep_until(*retry_at).await;
                None
            }
            Self::Down(None) => std::future::pending().await,
        }
    }
}

struct Unhealthy(Arc<Shared>);

impl Drop for Unhealthy {
    fn drop(&mut self) {
        self.0.set_healthy(false);
    }
}

async fn launch(
    shared: &Shared,
    config: &GossipConfig,
    datagrams: &Arc<dyn Datagrams>,
    incarnation: u64,
) -> io::Result<Running> {
    let id = chitchat_id(config, incarnation);
    let seam = Seam::new(datagrams.clone(), shared.wiring.clone(), &id);
    let chitchat_config = ChitchatConfig {
        chitchat_id: id.clone(),
        cluster_id: config.cluster.clone(),
        gossip_interval: config.interval,
        listen_addr: config.listen,
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig::new(
            PHI,
            WINDOW,
            MAX_PAUSE_INTERVALS * config.interval,
            config.interval,
            config.dead_node_grace,
        ),
        // Never reached: no key is ever deleted.
        marked_for_deletion_grace_period: config.dead_node_grace,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let handle = spawn_chitchat(chitchat_config, shared.own.take_all(), &seam)
        .await
        .map_err(|error| error.downcast::<io::Error>().unwrap_or_else(io::Error::other))?;
    let now = Instant::now();
    shared.wiring.with_roster(|roster| roster.refresh(std::iter::once(&id), now));
    Ok(Running { chitchat: handle.chitchat(), ended: Box::pin(handle.termination_watcher()), handle, since: now })
}

fn chitchat_id(config: &GossipConfig, incarnation: u64) -> ChitchatId {
    ChitchatId::new(config.node_id.as_str(), generation(config.epoch, incarnation), config.advertise)
}

fn by_reason(stats: &super::GossipStats) -> Vec<(&'static str, u64)> {
    super::DropReason::ALL
        .into_iter()
        .map(|reason| (reason.name(), stats.dropped_by(reason)))
        .filter(|(_, count)| *count > 0)
        .collect()
}
