//! Nodes of production code on simulated hosts, and the test's hand on them.
//!
//! The test stands outside: it steps the simulation until what it waits for is true or a simulated deadline has
//! passed, looks at the nodes between two steps, and sends them work as jobs that run on their own host.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::Duration;

use embermesh_node::clock::Clock;
use embermesh_node::config::{ByteSize, EngineSection, ListenSection, NodeConfig, NodeSection};
use embermesh_node::data_dir::DataDir;
use embermesh_node::store::RedbStore;
use embermesh_node::views::Member;
use embermesh_node::{Node, Parts};
use tempfile::TempDir;
use tokio::sync::mpsc;
use turmoil::Sim;

use crate::engine::EchoEngine;
use crate::net::{SimulatedDatagrams, SimulatedNet};

const MESH_PORT: u16 = 7411;
/// Clock rates differ within the bound that nodes promise each other (1 %).
const DRIFTS_PPM: [i64; 3] = [4_000, -4_000, 0];
/// Real time that one step of the simulation may take at most.
const STUCK: Duration = Duration::from_secs(30);

pub(crate) struct Mesh {
    sim: Sim<'static>,
    hosts: BTreeMap<&'static str, Arc<Host>>,
    seed: u64,
    steps: Arc<AtomicU64>,
}

struct Host {
    config: NodeConfig,
    drift_ppm: i64,
    engine: EchoEngine,
    running: Mutex<Option<Running>>,
    _folder: TempDir,
}

struct Running {
    node: Node,
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What a job will have brought.
pub(crate) struct Pending<T>(Arc<Mutex<Option<T>>>);

impl Mesh {
    /// Starts nodes that all join the first one.
    pub(crate) fn start(names: [&'static str; 3], seed: u64) -> Self {
        count_panics();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            // The HTTP API listens on a real loopback port.
            .enable_tokio_io()
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(4))
            .tcp_capacity(4096)
            .udp_capacity(4096)
            .build();
        let cluster = new_cluster();
        let mut hosts = BTreeMap::new();
        for (name, drift_ppm) in names.into_iter().zip(DRIFTS_PPM) {
            let folder = tempfile::tempdir().unwrap();
            let address = SocketAddr::new(sim.lookup(name), MESH_PORT);
            let config = config(name, names[0], &cluster, address, &folder);
            let host = Arc::new(Host {
                config,
                drift_ppm,
                engine: EchoEngine::default(),
                running: Mutex::default(),
                _folder: folder,
            });
            hosts.insert(name, host.clone());
            sim.host(name, move || run(host.clone()));
        }
        let steps = Arc::new(AtomicU64::new(0));
        watch(steps.clone(), seed);
        Self { sim, hosts, seed, steps }
    }

    /// Steps until the condition holds; how long that took.
    pub(crate) fn until(&mut self, what: &str, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let began = self.sim.elapsed();
        while !holds(self) {
            let waited = self.sim.elapsed() - began;
            assert!(waited <= within, "seed {}: not within {within:?}: {what}\n{}", self.seed, self.describe());
            self.step();
        }
        self.sim.elapsed() - began
    }

    /// Lets a promised time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    /// Since the simulation began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Has a job done on the node's own host.
    pub(crate) fn begin<T, F>(&self, name: &str, job: impl FnOnce(Node) -> F + Send + 'static) -> Pending<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let brought = Arc::new(Mutex::new(None));
        let result = brought.clone();
        let job: Job = Box::new(move |node| {
            let job = job(node);
            Box::pin(async move {
                let value = job.await;
                *result.lock().unwrap() = Some(value);
            })
        });
        let running = self.hosts[name].running.lock().unwrap();
        assert!(running.as_ref().unwrap().jobs.try_send(job).is_ok(), "{name} takes no more jobs");
        Pending(brought)
    }

    pub(crate) fn end<T>(&mut self, what: &str, within: Duration, pending: Pending<T>) -> T {
        let mut brought = None;
        self.until(what, within, |_| {
            brought = pending.0.lock().unwrap().take();
            brought.is_some()
        });
        brought.unwrap()
    }

    /// Nothing passes between one host and all others any more.
    pub(crate) fn cut_off(&self, name: &str) {
        for other in self.hosts.keys().filter(|other| **other != name) {
            self.sim.partition(name, *other);
        }
    }

    pub(crate) fn repair(&self, name: &str) {
        for other in self.hosts.keys().filter(|other| **other != name) {
            self.sim.repair(name, *other);
        }
    }

    /// The host's software ends without a word.
    pub(crate) fn crash(&mut self, name: &str) {
        self.sim.crash(name);
        self.hosts[name].running.lock().unwrap().take();
    }

    pub(crate) fn running(&self) -> Vec<&'static str> {
        self.hosts.iter().filter(|(_, host)| host.running.lock().unwrap().is_some()).map(|(name, _)| *name).collect()
    }

    pub(crate) fn node(&self, name: &str) -> Node {
        self.hosts[name].running.lock().unwrap().as_ref().unwrap().node.clone()
    }

    pub(crate) fn engine(&self, name: &str) -> &EchoEngine {
        &self.hosts[name].engine
    }

    /// Whether every running node sees exactly these nodes as live, and all see them alike.
    pub(crate) fn agree_on_live(&self, live: &[&str]) -> bool {
        let running = self.running();
        let views: Vec<Vec<Member>> = running.iter().map(|name| self.live_seen_by(name)).collect();
        views.iter().all(|view| view.iter().map(|m| m.node_id.as_str()).eq(live.iter().copied()))
            && views.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// How that node sees another: `live`, `dead`…
    pub(crate) fn state_seen_by(&self, name: &str, other: &str) -> Option<String> {
        self.node(name).members().members.into_iter().find(|m| m.node_id == other).map(|m| m.state)
    }

    /// Live members without what differs by who looks.
    fn live_seen_by(&self, name: &str) -> Vec<Member> {
        let members = self.node(name).members().members.into_iter().filter(|m| m.state == "live");
        members.map(|m| Member { rtt_us: 0, is_self: false, ..m }).collect()
    }

    fn step(&mut self) {
        self.sim.step().unwrap();
        self.steps.fetch_add(1, Ordering::Relaxed);
        assert_eq!(PANICS.get(), 0, "seed {}: a task of a node panicked", self.seed);
        for (name, host) in &self.hosts {
            assert_eq!(host.engine.wrongs(), Vec::<String>::new(), "seed {}: at {name}", self.seed);
        }
    }

    /// What each node has told of itself keeps every invariant. Each by itself: simulated clocks have no wall.
    fn judge(&self) {
        for (name, host) in &self.hosts {
            let path = host.config.node.history.clone().unwrap();
            if path.exists() {
                let judgement = embermesh_node::history::judge(&[path]).unwrap();
                let violation = judgement.violation.map(|v| v.to_string()).unwrap_or_default();
                assert!(violation.is_empty(), "seed {}: the history of {name}: {violation}", self.seed);
                assert!(judgement.records > 0, "seed {}: {name} told nothing", self.seed);
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("at {:?}\n", self.sim.elapsed());
        for name in self.running() {
            let node = self.node(name);
            for member in node.members().members {
                text += &format!("{name} sees {} as {} at {}\n", member.node_id, member.state, member.mesh_addr);
            }
            text += &format!("{name} {:?}\n{name} {:?}\n", node.leases(), node.status());
        }
        text
    }
}

impl Drop for Mesh {
    /// Nodes first, then their hosts: nothing may be left that a host's end has to wait for.
    fn drop(&mut self) {
        for host in self.hosts.values() {
            host.running.lock().unwrap().take();
        }
        if !thread::panicking() {
            self.judge();
        }
    }
}

/// What a host does: one node, and what the test sends it.
async fn run(host: Arc<Host>) -> turmoil::Result {
    let config = host.config.clone();
    let parts = Parts {
        engine: Arc::new(host.engine.clone()),
        store: Arc::new(RedbStore::in_memory()?),
        net: Arc::new(SimulatedNet),
        datagrams: Arc::new(SimulatedDatagrams),
        clock: Clock::with_drift(host.drift_ppm),
        data_dir: DataDir::open(&config.node.data_dir, &config.node.id, &config.node.cluster)?,
        faults: None,
    };
    let node = Node::start(config, parts).await?;
    let (sender, mut jobs) = mpsc::channel::<Job>(64);
    *host.running.lock().unwrap() = Some(Running { node: node.clone(), jobs: sender });
    while let Some(job) = jobs.recv().await {
        tokio::spawn(job(node.clone()));
    }
    Ok(())
}

fn config(name: &str, first: &str, cluster: &str, address: SocketAddr, folder: &TempDir) -> NodeConfig {
    let config = NodeConfig {
        join: if name == first { Vec::new() } else { vec![format!("{first}:{MESH_PORT}")] },
        node: NodeSection {
            id: name.to_owned(),
            data_dir: folder.path().to_owned(),
            cluster: cluster.to_owned(),
            history: Some(folder.path().join("history")),
            ..NodeSection::default()
        },
        listen: ListenSection {
            mesh: SocketAddr::from(([0, 0, 0, 0], MESH_PORT)),
            advertise: Some(address),
            api: SocketAddr::from(([127, 0, 0, 1], 0)),
            insecure: true,
        },
        engine: EngineSection { memory: Some(ByteSize::mib(2048)), ..EngineSection::default() },
        ..NodeConfig::default()
    };
    config.validate().unwrap();
    config
}

/// A node's id may run once on a host within a cluster, whichever test it is of.
fn new_cluster() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("simulation-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A task that spins stops simulated time, and every deadline with it: only real time shows that.
fn watch(steps: Arc<AtomicU64>, seed: u64) {
    thread::spawn(move || {
        let mut seen = u64::MAX;
        // The other handle is the mesh's.
        while Arc::strong_count(&steps) > 1 {
            let now = steps.load(Ordering::Relaxed);
            if now == seen {
                // Past the test harness, which keeps what tests print until they end.
                let _ = writeln!(io::stderr(), "seed {seed}: no step in {STUCK:?}: a task spins without waiting");
                std::process::abort();
            }
            seen = now;
            thread::sleep(STUCK);
        }
    });
}

thread_local! {
    /// On this thread: a simulation's hosts all run on the one that steps it.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// A panic in a spawned task ends nothing but that task: it has to be counted to be seen.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}
