//! A running node: what it is made of, how it starts and how it ends. What it does is in the files beside this
//! one, each an `impl Node` of its own subject.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use embermesh_core::history::{Record, What};
use embermesh_core::output::{DrainEnd, Event};
use embermesh_core::{ActionId, ActionSpec, ContainerId, Epoch, NodeId, Revision, Time};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::barred::Barred;
use crate::blocking::Blocking;
use crate::claim::{self, Taken};
use crate::clock::Clock;
use crate::config::{LimitsSection, NodeConfig};
use crate::containers::Engine;
use crate::data_dir::{DataDir, DataDirError};
use crate::driver::Driver;
use crate::facts::Slots;
use crate::faults::Faults;
use crate::gossip::{Datagrams, Gossip, GossipConfig, GossipError};
use crate::history::{HistoryError, HistoryFile, HistorySink};
use crate::logbook::LogBook;
use crate::metrics::Metrics;
use crate::net::Net;
use crate::owned::OwnedTable;
use crate::peers::{About, Peers};
use crate::registry::action::ActionEntry;
use crate::registry::{Registry, RegistryLimits};
use crate::rejoin::kept_peers;
use crate::rpc::server::RunsForPeers;
use crate::store::journal::JournalOptions;
use crate::store::{CodeError, CodeStore, Journal, RecordWriter, Store, StoreError, WriterOptions};
use crate::views;

/// Events that a slow watcher may lag behind.
const EVENT_BACKLOG: usize = 1024;
const GOSSIP_EVENT_BACKLOG: usize = 1024;
/// How often slowly changing facts are looked at.
const FACTS_EVERY: Duration = Duration::from_millis(500);
const MOST_SPECS: usize = 10_000;

/// A running node; clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    id: NodeId,
    epoch: Epoch,
    config: NodeConfig,
    instance: String,
    memory_mb: u64,
    mesh: SocketAddr,
    api: SocketAddr,
    started: Instant,
    driver: Driver,
    history: Option<Arc<dyn HistorySink>>,
    engine: Arc<dyn Engine>,
    registry: Registry,
    codes: CodeStore,
    records: RecordWriter,
    journal: Journal,
    peers: Peers,
    gossip: OnceLock<Gossip>,
    logbook: Arc<LogBook>,
    owned: OwnedTable,
    runs_for_peers: RunsForPeers,
    specs: Specs,
    slots: Slots,
    metrics: Metrics,
    events: broadcast::Sender<Arc<views::Event>>,
    core_events: broadcast::Sender<Event>,
    drained: watch::Sender<Option<DrainEnd>>,
    /// Somebody asked the node to go: why.
    leaving: watch::Sender<Option<Leaving>>,
    /// It goes down: what is owed and waits is the next start's.
    stopping: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
    data_dir: DataDir,
    faults: Option<Arc<Faults>>,
    blocking: Blocking,
}

/// Why a node goes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaving {
    /// An operator said so.
    Asked,
    /// A newer agent answers for this node's id: this one must not go on.
    Replaced { by_epoch: u64, at: SocketAddr },
}

/// What a node is made of beside its configuration: production's parts, or a simulation's.
pub struct Parts {
    pub engine: Arc<dyn Engine>,
    pub store: Arc<dyn Store>,
    pub net: Arc<dyn Net>,
    pub datagrams: Arc<dyn Datagrams>,
    pub clock: Clock,
    pub data_dir: DataDir,
    /// Whether faults can be made on purpose; the clock is then the one that they bend.
    pub faults: Option<Arc<Faults>>,
    pub blocking: Blocking,
    /// Who is told the node's history; without, the file that is configured is.
    pub history: Option<Arc<dyn HistorySink>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("engine", &self.engine.name()).finish_non_exhaustive()
    }
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Taken(#[from] Taken),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Code(#[from] CodeError),
    #[error(transparent)]
    Gossip(#[from] GossipError),
    #[error("{what} can't listen on {at}; is another agent running there? give another address")]
    Listen { what: &'static str, at: SocketAddr, source: std::io::Error },
    #[error("the protocol's numbers contradict one another: {0}")]
    Protocol(#[from] embermesh_core::config::ConfigError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("a background task could not be started: {0}")]
    Task(#[from] std::io::Error),
}

impl Node {
    /// Starts a node: listens, joins the mesh, and serves until [`Node::shutdown`].
    pub async fn start(config: NodeConfig, parts: Parts) -> Result<Self, StartError> {
        let protocol = Arc::new(config.core());
        protocol.validate()?;
        let Parts { mut engine, store, mut net, mut datagrams, clock, data_dir, faults, blocking, history } = parts;
        if let Some(faults) = &faults {
            (engine, net, datagrams) = (faults.engine(engine), faults.net(net), faults.datagrams(datagrams));
        }
        net = Arc::new(Barred::new(net, engine.clone()));
        datagrams = Arc::new(Barred::new(datagrams, engine.clone()));
        let listen = |what, at| move |source| StartError::Listen { what, at, source };
        let mesh_listener =
            net.listen(config.listen.mesh).await.map_err(listen("the mesh port (TCP)", config.listen.mesh))?;
        let api_listener = net.listen_api(config.listen.api).await.map_err(listen("the API", config.listen.api))?;
        let api = api_listener.as_ref().map_or(Ok(config.listen.api), TcpListener::local_addr)?;
        let known = claim::ask(&config, &net, datagrams.as_ref()).await?;
        let epoch = Epoch(data_dir.next_epoch(clock.wall_us(), known)?);
        let id = NodeId::new(&config.node.id);
        let registry =
            Registry::load(store.clone(), config.node.id.clone(), epoch.0, RegistryLimits::from(&config.limits))?;
        let codes = CodeStore::with_limit(data_dir.code_dir(), config.limits.code_max.bytes())?;
        let retention = crate::store::Retention {
            max_age: config.store.retention_age,
            max_bytes: config.store.retention_bytes.bytes(),
        };
        let writing = WriterOptions { blocking, ..WriterOptions::new(retention) };
        let records = RecordWriter::start(store.clone(), writing)?;
        let (journal, owed) = Journal::start(store, JournalOptions { blocking, ..JournalOptions::default() })?;
        let mut core = embermesh_core::Node::new(id.clone(), epoch, protocol.clone(), epoch.0);
        let history = match (history, &config.node.history) {
            (Some(told), _) => Some(told),
            (None, Some(path)) => Some(Arc::new(HistoryFile::open(path, &id, &clock)?) as Arc<dyn HistorySink>),
            (None, None) => None,
        };
        if history.is_some() {
            core = core.with_history();
        }
        let inner = Inner {
            epoch,
            instance: data_dir.instance().to_string(),
            memory_mb: protocol.memory_mb,
            mesh: config.listen.advertise.unwrap_or(config.listen.mesh),
            api,
            started: Instant::now(),
            driver: Driver::new(core, clock),
            history,
            engine,
            registry,
            codes,
            records,
            journal,
            peers: Peers::new(net, &config.node.cluster),
            gossip: OnceLock::new(),
            logbook: Arc::default(),
            owned: OwnedTable::default(),
            runs_for_peers: RunsForPeers::default(),
            specs: Specs::default(),
            slots: Slots::default(),
            metrics: Metrics::new(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            core_events: broadcast::channel(EVENT_BACKLOG).0,
            drained: watch::channel(None).0,
            leaving: watch::channel(None).0,
            stopping: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            data_dir,
            faults,
            blocking,
            id,
            config,
        };
        let node = Self(Arc::new(inner));
        // Before anybody can call: what is owed counts against the bounds.
        node.take_up(&owed);
        node.until_stopped(node.clone().run_timer());
        node.until_stopped(node.clone().watch_engine());
        node.adopt_found().await;
        node.serve(mesh_listener, api_listener);
        node.join_mesh(datagrams).await?;
        node.recover(owed);
        Ok(node)
    }

    fn serve(&self, mesh: Box<dyn crate::net::Listener>, api: Option<TcpListener>) {
        let stop = self.0.stop.clone();
        let node = self.clone();
        let ended = stop.clone().cancelled_owned();
        self.0.tasks.spawn(async move {
            if let Err(error) = crate::rpc::server::serve(node, mesh, ended).await {
                tracing::error!(%error, "the mesh port is no longer served");
            }
        });
        if let Some(api) = api {
            let node = self.clone();
            let ended = stop.clone().cancelled_owned();
            self.0.tasks.spawn(async move {
                if let Err(error) = crate::api::serve(api, node, ended).await {
                    tracing::error!(%error, "the API is no longer served");
                }
            });
        }
        let node = self.clone();
        self.until_stopped(async move {
            loop {
                tokio::time::sleep(FACTS_EVERY).await;
                node.publish_facts();
                node.exchange_where_due();
            }
        });
        self.track(self.clone().keep_peers());
    }

    async fn join_mesh(&self, datagrams: Arc<dyn Datagrams>) -> Result<(), StartError> {
        let config = &self.0.config;
        let gossip = GossipConfig {
            advertise: self.0.mesh,
            seeds: config.join.clone(),
            earlier_peers: kept_peers(&self.data_dir()),
            interval: config.gossip.interval,
            ..GossipConfig::new(config.node.cluster.clone(), config.node.id.clone(), self.0.epoch.0, config.listen.mesh)
        };
        let (sender, mut events) = mpsc::channel(GOSSIP_EVENT_BACKLOG);
        let gossip = Gossip::start(gossip, datagrams, sender).await?;
        self.0.gossip.set(gossip).ok();
        self.publish_about(&About {
            instance: self.0.instance.clone(),
            api: self.0.api.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            memory_mb: self.0.memory_mb,
            zone: config.node.zone.clone(),
        });
        self.publish_facts();
        let node = self.clone();
        self.until_stopped(async move {
            while let Some(event) = events.recv().await {
                node.on_gossip(event);
            }
        });
        Ok(())
    }

    /// A task that the node's end waits for. It has to look at `stopped` wherever it waits for long.
    pub(crate) fn track(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Waits until the node goes down.
    pub(crate) async fn stopped(&self) {
        self.0.stop.cancelled().await;
    }

    fn until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Waits until somebody asks the node to go: `leave`, or a newer agent with the same id.
    pub async fn left(&self) -> Leaving {
        let mut leaving = self.0.leaving.subscribe();
        match leaving.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or(Leaving::Asked),
            Err(_) => Leaving::Asked,
        }
    }

    /// Ends the node: drains for as long as configured, tells the mesh, ends all containers, writes what is
    /// still to be written. A node that nobody told to leave hands its containers over to its next life, if its
    /// engine can.
    pub async fn shutdown(&self) {
        self.0.journal.promise_no_more();
        self.0.stopping.store(true, Ordering::Relaxed);
        if let Some(faults) = &self.0.faults {
            // A node that ends waits for nothing that was made to fail.
            faults.heal();
        }
        let deadline = self.0.config.protocol.drain_deadline;
        let hands_over = self.0.engine.hands_over() && self.0.leaving.borrow().is_none();
        if hands_over {
            self.hand_over(deadline).await;
        } else {
            self.stop_work(deadline).await;
        }
        if let Some(gossip) = self.0.gossip.get() {
            gossip.leave().await;
            gossip.shutdown().await;
        }
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.0.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        if matches!(*self.0.leaving.borrow(), Some(Leaving::Asked)) {
            self.forget_kept_peers();
        }
        if hands_over {
            self.0.engine.hand_over(&self.idle_for_next_life()).await;
        } else {
            self.0.engine.shutdown().await;
        }
        let settled = self.0.journal.close(Duration::from_secs(10)).await;
        let node = self.clone();
        let written = self.0.blocking.run(move || node.0.records.close(Duration::from_secs(10)));
        if !matches!(written.await, Ok(true)) || !settled {
            tracing::warn!("not all activation records could be written");
        }
        match self.0.journal.owed() {
            0 => {}
            owed => {
                tracing::warn!(owed, "accepted activations have not ended: the next start on this data folder goes on")
            }
        }
    }

    pub fn id(&self) -> &NodeId {
        &self.0.id
    }

    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    pub fn api_addr(&self) -> SocketAddr {
        self.0.api
    }

    pub fn mesh_addr(&self) -> SocketAddr {
        self.0.mesh
    }

    pub fn config(&self) -> &NodeConfig {
        &self.0.config
    }

    pub fn limits(&self) -> &LimitsSection {
        &self.0.config.limits
    }

    pub fn data_dir(&self) -> PathBuf {
        self.0.data_dir.path().to_path_buf()
    }

    /// What happens on this node, from now on.
    pub fn events(&self) -> broadcast::Receiver<Arc<views::Event>> {
        self.0.events.subscribe()
    }

    pub(crate) fn core_events(&self) -> broadcast::Receiver<Event> {
        self.0.core_events.subscribe()
    }

    pub(crate) fn publish_event(&self, event: Event) {
        self.0.metrics.event(&event);
        if self.0.core_events.receiver_count() > 0 {
            self.0.core_events.send(event.clone()).ok();
        }
        if self.0.events.receiver_count() > 0 {
            self.0.events.send(Arc::new(self.event_view(event))).ok();
        }
    }

    pub(crate) fn drain_ended(&self, end: DrainEnd) {
        self.0.drained.send_replace(Some(end));
    }

    pub(crate) fn drained(&self) -> watch::Receiver<Option<DrainEnd>> {
        self.0.drained.subscribe()
    }

    pub(crate) fn go(&self, why: Leaving) {
        self.0.leaving.send_if_modified(|leaving| {
            let first = leaving.is_none();
            leaving.get_or_insert(why);
            first
        });
    }

    /// Another agent uses this node's id. The lower epoch stops serving.
    pub(crate) fn on_twin(&self, node_id: &str, epoch: u64, at: SocketAddr) {
        if epoch > self.0.epoch.0 {
            tracing::error!(node = node_id, %at, "a newer agent answers for this node's id: this one stops");
            self.go(Leaving::Replaced { by_epoch: epoch, at });
        } else {
            tracing::warn!(node = node_id, %at, "an older agent still answers for this node's id");
        }
    }

    pub(crate) fn container_id(&self, number: u64) -> ContainerId {
        ContainerId { owner: self.0.id.clone(), epoch: self.0.epoch, number }
    }

    pub(crate) fn gossip<T>(
        &self,
        with: impl FnOnce(&Gossip) -> Result<T, GossipError>,
    ) -> Result<Option<T>, GossipError> {
        self.0.gossip.get().map(with).transpose()
    }

    pub(crate) fn gossip_handle(&self) -> Option<&Gossip> {
        self.0.gossip.get()
    }

    /// A look at the core and what its clock shows, for those who judge it; nothing may be decided on it.
    pub fn look<T>(&self, with: impl FnOnce(&embermesh_core::Node, Time) -> T) -> T {
        let now = self.0.driver.clock.now();
        self.0.driver.look(|core| with(core, now))
    }

    /// What the timer sleeps until is no longer right: whoever bends the node's clock says so.
    pub fn clock_changed(&self) {
        self.0.driver.clock_changed();
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.0.driver
    }

    pub(crate) fn write_history(&self, record: &Record) {
        if let Some(history) = &self.0.history {
            history.write(record);
        }
    }

    /// Unix time in milliseconds, by this node's clock.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.0.driver.clock.wall_ms()
    }

    pub(crate) fn blocking_work(&self) -> Blocking {
        self.0.blocking
    }

    /// What happens beside the core's steps.
    pub(crate) fn tell_history(&self, what: What) {
        if let Some(history) = &self.0.history {
            let (at, node, epoch) = (self.driver().clock.now(), self.0.id.clone(), self.0.epoch);
            history.write(&Record { at, node, epoch, step: 0, what });
        }
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.0.engine.as_ref()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn codes(&self) -> &CodeStore {
        &self.0.codes
    }

    pub(crate) fn records(&self) -> &RecordWriter {
        &self.0.records
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.0.peers
    }

    pub(crate) fn logbook(&self) -> &Arc<LogBook> {
        &self.0.logbook
    }

    pub(crate) fn owned(&self) -> &OwnedTable {
        &self.0.owned
    }

    pub(crate) fn runs_for_peers(&self) -> &RunsForPeers {
        &self.0.runs_for_peers
    }

    pub(crate) fn specs(&self) -> &Specs {
        &self.0.specs
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.0.slots
    }

    pub(crate) fn faults(&self) -> Option<&Arc<Faults>> {
        self.0.faults.as_ref()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn memory_mb(&self) -> u64 {
        self.0.memory_mb
    }

    pub(crate) fn instance(&self) -> &str {
        &self.0.instance
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Most bytes of an activation's parameters and of its result.
    pub(crate) fn payload_bytes(&self) -> usize {
        usize::try_from(self.0.config.limits.payload_max.bytes()).unwrap_or(usize::MAX)
    }
}

/// The core's view of each revision, made once: the path of a warm activation asks for it. Kept by where the
/// registry's entry lies, which stays taken as long as it is kept here.
#[derive(Debug, Default)]
pub(crate) struct Specs(RwLock<HashMap<usize, Known>>);

type Known = (Arc<ActionEntry>, Arc<ActionSpec>);

impl Specs {
    pub(crate) fn get(&self, entry: &Arc<ActionEntry>) -> Arc<ActionSpec> {
        let key = Arc::as_ptr(entry).addr();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).map(|(_, spec)| spec.clone());
        known.unwrap_or_else(|| {
            let spec = Arc::new(ActionSpec {
                action: ActionId::new(&entry.namespace, &entry.name),
                revision: Revision { counter: entry.revision.counter, node: NodeId::new(&entry.revision.node_id) },
                concurrency: entry.limits.concurrency,
                memory_mb: entry.limits.memory,
                timeout_us: entry.limits.timeout.saturating_mul(1000),
                idempotent: entry.idempotent(),
                image: entry.image.as_deref().unwrap_or(entry.kind.as_str()).into(),
            });
            let mut specs = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if specs.len() >= MOST_SPECS {
                specs.clear();
            }
            specs.insert(key, (entry.clone(), spec.clone()));
            spec
        })
    }
}

impl NodeConfig {
    /// The core's numbers.
    pub(crate) fn core(&self) -> embermesh_core::Config {
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let protocol = &self.protocol;
        embermesh_core::Config {
            ttl_us: us(protocol.ttl),
            margin_us: us(protocol.margin),
            grace_us: us(protocol.grace),
            clock_rate_ppm: (protocol.clock_rate_bound * 1e6) as u64,
            max_lease_age_us: us(protocol.max_lease_age),
            window_us: us(protocol.window),
            urgent_window_us: us(protocol.urgent_window),
            max_hold_us: us(protocol.max_hold),
            pause_grace_us: us(protocol.pause_grace),
            concurrent_grace_us: us(protocol.concurrent_grace),
            idle_timeout_us: us(protocol.idle_timeout),
            gossip_interval_us: us(self.gossip.interval),
            queue_per_action: protocol.queue_per_action as usize,
            queue_bytes: protocol.queue_bytes.bytes(),
            max_wait_us: us(protocol.wait),
            max_memory_wait_us: us(protocol.max_memory_wait),
            memory_mb: self.engine.memory_or_share().as_mb(),
            parallel_starts: self.engine.parallel_starts as usize,
            ..embermesh_core::Config::default()
        }
    }
}
