//! One simulated host: a node of production code on simulated parts, in one life after another.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs, io, iter, process};

use embermesh_node::blocking::Blocking;
use embermesh_node::clock::Clock;
use embermesh_node::config::{ByteSize, EngineSection, GossipSection, ListenSection, NodeConfig, NodeSection};
use embermesh_node::data_dir::DataDir;
use embermesh_node::{Node, Parts};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::engine::SimulatedEngine;
use super::net::{SimulatedDatagrams, SimulatedNet};
use super::plan::{NodeSetting, Setting};
use super::random::Random;
use super::store::SimulatedStore;
use super::witness::Witness;

const MESH_PORT: u16 = 7411;
const CLUSTER: &str = "simulation";
/// A node that can't start tries again, so often.
const MOST_STARTS: u32 = 100;
const NEXT_START: Duration = Duration::from_millis(500);
/// Jobs that wait for their host's next turn.
const MOST_JOBS: usize = 1024;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) engine: SimulatedEngine,
    pub(super) air: SimulatedDatagrams,
    config: NodeConfig,
    setting: NodeSetting,
    witness: Arc<Witness>,
    state: Mutex<State>,
    stop: Notify,
}

#[derive(Debug)]
struct State {
    store: Arc<SimulatedStore>,
    running: Option<Running>,
    /// Data folders so far.
    folders: u32,
    random: Random,
}

#[derive(Debug)]
struct Running {
    node: Node,
    clock: Clock,
    jobs: mpsc::Sender<Job>,
}

pub(super) type Job = Box<dyn FnOnce(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Host {
    /// `folder` is this host's own; nodes join by the first one.
    pub(super) fn new(
        number: usize,
        address: IpAddr,
        folder: PathBuf,
        seed: u64,
        setting: &Setting,
        witness: Arc<Witness>,
    ) -> Arc<Self> {
        let (name, first) = (name_of(number), name_of(0));
        let mut random = Random::new(seed, &name);
        let engine = SimulatedEngine::new(setting.adopts, Random::new(random.next(), "engine"), witness.clone());
        let own = setting.nodes[number];
        let config = NodeConfig {
            join: if name == first { Vec::new() } else { vec![format!("{first}:{MESH_PORT}")] },
            node: NodeSection {
                id: name.clone(),
                data_dir: folder,
                cluster: CLUSTER.to_owned(),
                ..NodeSection::default()
            },
            listen: ListenSection {
                mesh: SocketAddr::from(([0, 0, 0, 0], MESH_PORT)),
                advertise: Some(SocketAddr::new(address, MESH_PORT)),
                insecure: true,
                ..ListenSection::default()
            },
            engine: EngineSection { memory: Some(ByteSize::mib(own.memory_mb)), ..EngineSection::default() },
            gossip: GossipSection { interval: setting.gossip },
            protocol: setting.protocol.clone(),
            ..NodeConfig::default()
        };
        let air = SimulatedDatagrams::new(Random::new(random.next(), "air"), witness.clone());
        let store = SimulatedStore::new(Random::new(random.next(), "disk"));
        let state = State { store, running: None, folders: 0, random };
        let (state, stop) = (Mutex::new(state), Notify::new());
        Arc::new(Self { name, engine, air, config, setting: own, witness, state, stop })
    }

    /// What the host does: lives of its node until one ends on purpose.
    pub(super) async fn run(self: Arc<Self>) -> turmoil::Result {
        for _ in 0..MOST_STARTS {
            match self.start().await {
                Ok((node, jobs)) => {
                    self.serve(node, jobs).await;
                    return Ok(());
                }
                Err(error) => self.witness.say(&format!("{} can't start: {error}", self.name)),
            }
            sleep(NEXT_START).await;
        }
        Err(format!("{} did not start in {MOST_STARTS} tries", self.name).into())
    }

    async fn start(&self) -> Result<(Node, mpsc::Receiver<Job>), Box<dyn std::error::Error>> {
        let clock = Clock::with_drift(self.setting.drift_ppm).with_wall_off(self.setting.wall_off_us());
        let (store, folder) = {
            let state = self.state();
            (state.store.clone(), self.config.node.data_dir.join(state.folders.to_string()))
        };
        fs::create_dir_all(&folder)?;
        let config = NodeConfig {
            node: NodeSection { data_dir: folder.clone(), ..self.config.node.clone() },
            ..self.config.clone()
        };
        config.validate()?;
        let locks = self.config.node.data_dir.join("locks");
        let data_dir = DataDir::open_with(&folder, &config.node.id, &config.node.cluster, &[locks])?;
        let parts = Parts {
            engine: Arc::new(self.engine.clone()),
            store,
            net: Arc::new(SimulatedNet),
            datagrams: Arc::new(self.air.clone()),
            clock: clock.clone(),
            data_dir,
            faults: None,
            blocking: Blocking::Inline,
            history: Some(self.witness.clone()),
        };
        let node = Node::start(config, parts).await?;
        let (jobs, queue) = mpsc::channel(MOST_JOBS);
        self.state().running = Some(Running { node: node.clone(), clock, jobs });
        Ok((node, queue))
    }

    /// Until somebody tells the node to go, or it goes by itself.
    async fn serve(&self, node: Node, mut jobs: mpsc::Receiver<Job>) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.notified() => break,
                why = node.left() => {
                    self.witness.say(&format!("{} goes: {why:?}", self.name));
                    break;
                }
                job = jobs.recv() => match job {
                    Some(job) => drop(tokio::spawn(job(node.clone()))),
                    None => break,
                },
            }
        }
        node.shutdown().await;
        self.witness.say(&format!("{} is down", self.name));
        self.state().running = None;
    }

    /// The software ends without a word, perhaps with what it wrote last, or with all it ever wrote.
    pub(super) fn crashed(&self, loses: Loses) {
        let mut state = self.state();
        state.running = None;
        self.engine.agent_died();
        match loses {
            Loses::Nothing => {}
            Loses::LastWrites => state.store.lose_unsynced(),
            Loses::Everything => {
                state.store = SimulatedStore::new(Random::new(state.random.next(), "disk"));
                state.folders += 1;
                self.engine.clear();
            }
        }
    }

    /// Lets go of the node: what a host's end has to wait for.
    pub(super) fn forget_node(&self) {
        let running = self.state().running.take();
        drop(running);
    }

    /// Ends the node as a service manager does.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Its process is stopped, or goes on: the clock jumps by what passed meanwhile.
    pub(super) fn set_paused(&self, paused: bool) {
        if let Some(running) = &self.state().running {
            running.clock.stand_still(paused);
            running.node.clock_changed();
        }
    }

    pub(super) fn store(&self) -> Arc<SimulatedStore> {
        self.state().store.clone()
    }

    pub(super) fn node(&self) -> Option<Node> {
        self.state().running.as_ref().map(|running| running.node.clone())
    }

    /// Has it done on this host; false if nobody is there to do it.
    pub(super) fn send(&self, job: Job) -> bool {
        self.state().running.as_ref().is_some_and(|running| running.jobs.try_send(job).is_ok())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `n1` is the first.
pub fn name_of(number: usize) -> String {
    format!("n{}", number + 1)
}

/// What a crash takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loses {
    Nothing,
    LastWrites,
    Everything,
}

/// A folder for the data of all hosts of a simulation, gone with it. Its name is not drawn: here all that is drawn is the
/// seed's, so that all processes would try the same names, and one that found several taken would play otherwise.
pub(super) fn folder() -> io::Result<tempfile::TempDir> {
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let name = || {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        format!("embermesh-simulation-{}-{number}", process::id())
    };
    // Some may be left of a process that was killed.
    let is_free = |name: &String| !env::temp_dir().join(name).exists();
    let name = iter::repeat_with(name).find(is_free).unwrap_or_default();
    tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir()
}
