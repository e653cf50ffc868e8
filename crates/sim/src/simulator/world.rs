//! A mesh of simulated hosts, stepped from outside: whoever plays looks at the nodes between two steps, sends them work
//! as jobs that run on their own host, and breaks what is between them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use embermesh_core::{Node as Core, Time};
use embermesh_node::Node;
use embermesh_node::views::Member;
use tempfile::TempDir;
use turmoil::Sim;

use super::engine::SimulatedEngine;
use super::host::{self, Host, Job, Loses, name_of};
use super::host_calls;
use super::net::Weather;
use super::plan::Setting;
use super::witness::Witness;

/// Real time that one step of the simulation may take at most.
const STUCK: Duration = Duration::from_secs(30);

pub struct World {
    sim: Sim<'static>,
    hosts: Vec<Arc<Host>>,
    links: BTreeMap<(usize, usize), Link>,
    paused: Vec<bool>,
    witness: Arc<Witness>,
    seed: u64,
    steps: Arc<AtomicU64>,
    _folder: TempDir,
}

/// What is wrong between two hosts, by how many faults: they may overlap.
#[derive(Debug, Default, Clone, Copy)]
struct Link {
    held: u32,
    /// From the lower number to the higher, and back.
    cut: [u32; 2],
}

/// What a job will have brought.
#[derive(Debug)]
pub struct Pending<T>(Arc<Mutex<Option<T>>>);

/// Why a wait ended without what it waited for.
pub type Missed = String;

impl World {
    /// Starts nodes that all join the first one. On the thread that is to step them.
    pub fn start(seed: u64, setting: &Setting, keeps_trace: bool) -> io::Result<Self> {
        note_panics();
        let folder = host::folder()?;
        let witness = Witness::new(keeps_trace);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .simulation_duration(Duration::from_secs(24 * 3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(setting.latency_ms))
            .tcp_capacity(4096)
            .udp_capacity(4096)
            .build();
        let mut hosts = Vec::new();
        for number in 0..setting.nodes.len() {
            let name = name_of(number);
            let own = folder.path().join(&name);
            let host = Host::new(number, sim.lookup(name.as_str()), own, seed, setting, witness.clone());
            hosts.push(host.clone());
            sim.host(name, move || host.clone().run());
        }
        let steps = Arc::new(AtomicU64::new(0));
        watch(steps.clone(), seed);
        let (paused, links) = (vec![false; hosts.len()], BTreeMap::new());
        Ok(Self { sim, hosts, links, paused, witness, seed, steps, _folder: folder })
    }

    pub fn witness(&self) -> &Arc<Witness> {
        &self.witness
    }

    /// Since the simulation began.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// A millisecond of all hosts and what is between them.
    pub fn step(&mut self) -> Result<(), Missed> {
        let now = self.sim.elapsed();
        host_calls::set_elapsed(now);
        self.witness.set_now(now);
        for host in &self.hosts {
            host.engine.advance(now);
        }
        self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
        self.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(panic) = PANIC.take() {
            return Err(format!("a task of a node panicked: {panic}"));
        }
        self.witness.wrongs().map_or(Ok(()), Err)
    }

    /// Steps until the condition holds; how long that took.
    pub fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<Duration, Missed> {
        let began = self.elapsed();
        while !holds(self) {
            if self.elapsed() - began > within {
                return Err(format!("seed {}: not within {within:?}: {what}\n{}", self.seed, self.describe()));
            }
            self.step()?;
        }
        Ok(self.elapsed() - began)
    }

    /// Lets a promised time pass.
    pub fn pass(&mut self, time: Duration) -> Result<(), Missed> {
        let end = self.elapsed() + time;
        while self.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    /// Has a job done on the node's own host, if the node is up.
    pub fn begin<T, F>(&self, node: usize, job: impl FnOnce(Node) -> F + Send + 'static) -> Option<Pending<T>>
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
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            })
        });
        self.hosts[node].send(job).then_some(Pending(brought))
    }

    pub fn end<T>(&mut self, what: &str, within: Duration, pending: Option<Pending<T>>) -> Result<T, Missed> {
        let Some(pending) = pending else { return Err(format!("{what}: the node is down")) };
        let mut brought = None;
        self.until(what, within, |_| {
            brought = pending.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            brought.is_some()
        })?;
        brought.ok_or_else(|| what.to_owned())
    }

    pub fn node(&self, node: usize) -> Option<Node> {
        self.hosts[node].node()
    }

    pub fn engine(&self, node: usize) -> &SimulatedEngine {
        &self.hosts[node].engine
    }

    pub(super) fn host(&self, node: usize) -> &Host {
        &self.hosts[node]
    }

    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|node| self.hosts[*node].node().is_some()).collect()
    }

    pub(super) fn is_paused(&self, node: usize) -> bool {
        self.paused[node]
    }

    /// What one sends to the other is lost, or arrives again. Each cut needs its own mending.
    pub fn cut(&mut self, from: usize, to: usize, cut: bool) {
        let way = usize::from(from > to);
        self.change_link(from, to, |link| count(&mut link.cut[way], cut));
    }

    /// Nothing between the two arrives, until all of it does.
    pub fn hold(&mut self, a: usize, b: usize, held: bool) {
        self.change_link(a, b, |link| count(&mut link.held, held));
    }

    fn change_link(&mut self, a: usize, b: usize, change: impl FnOnce(&mut Link)) {
        if a == b {
            return;
        }
        let (low, high) = (a.min(b), a.max(b));
        let link = self.links.entry((low, high)).or_default();
        change(link);
        let (name_low, name_high) = (name_of(low), name_of(high));
        // Held ones come before what is cut from now on: turmoil knows one state for a link.
        self.sim.release(name_low.as_str(), name_high.as_str());
        if link.held > 0 {
            self.sim.hold(name_low.as_str(), name_high.as_str());
            return;
        }
        if link.cut[0] > 0 {
            self.sim.partition_oneway(name_low.as_str(), name_high.as_str());
        }
        if link.cut[1] > 0 {
            self.sim.partition_oneway(name_high.as_str(), name_low.as_str());
        }
    }

    /// Nothing passes between one host and all others any more, or it does again.
    pub fn isolate(&mut self, node: usize, cut: bool) {
        for other in (0..self.hosts.len()).filter(|other| *other != node) {
            self.cut(node, other, cut);
            self.cut(other, node, cut);
        }
    }

    pub(super) fn set_latency(&self, a: usize, b: usize, longest: Duration) {
        self.sim.set_link_max_message_latency(name_of(a), name_of(b), longest);
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        for host in &self.hosts {
            host.air.set(weather);
        }
    }

    /// Whether the node's gossip has no socket that works.
    pub fn break_gossip(&self, node: usize, broken: bool) {
        self.hosts[node].air.break_down(broken);
    }

    /// Whether nothing more can be written on the node's disk.
    pub fn fill_disk(&self, node: usize, full: bool) {
        self.hosts[node].store().set_full(full);
    }

    /// The process is stopped, as by SIGSTOP, as far as this can be played: nothing it says arrives, it hears nothing,
    /// and its clock stands still and then jumps.
    pub(super) fn pause(&mut self, node: usize, paused: bool) {
        if self.paused[node] == paused {
            return;
        }
        self.paused[node] = paused;
        self.hosts[node].set_paused(paused);
        for other in (0..self.hosts.len()).filter(|other| *other != node) {
            self.hold(node, other, paused);
        }
    }

    /// The host's software ends without a word.
    pub fn crash(&mut self, node: usize, loses: Loses) {
        self.pause(node, false);
        if loses == Loses::Everything {
            self.witness.forget_promises_of(node);
        }
        self.witness.give_up(|_, at| at == node);
        self.hosts[node].forget_node();
        self.sim.crash(name_of(node));
        self.hosts[node].crashed(loses);
    }

    /// The host's software begins again.
    pub fn restart(&mut self, node: usize) {
        self.witness.give_up(|_, at| at == node);
        self.hosts[node].forget_node();
        self.sim.bounce(name_of(node));
    }

    /// The cores of all nodes that are up and not paused, each with what its clock shows.
    pub(super) fn cores(&self) -> Vec<(Core, Time)> {
        let up = (0..self.hosts.len()).filter(|node| !self.paused[*node]);
        // From outside a host's runtime its clock seems to be a step behind.
        let of = |core: &Core, now: Time| (core.clone(), now.max(core.now()));
        up.filter_map(|node| Some(self.hosts[node].node()?.look(of))).collect()
    }

    /// Whether every running node sees exactly these nodes as live, and all see them alike.
    pub fn agree_on_live(&self, live: &[usize]) -> bool {
        let views: Vec<Vec<Member>> = self.running().into_iter().map(|node| self.live_seen_by(node)).collect();
        let names: Vec<String> = live.iter().map(|node| name_of(*node)).collect();
        views.iter().all(|view| view.iter().map(|m| &m.node_id).eq(&names))
            && views.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// How that node sees another: `live`, `dead`…
    pub fn state_seen_by(&self, node: usize, other: usize) -> Option<String> {
        let members = self.node(node)?.members().members;
        members.into_iter().find(|m| m.node_id == name_of(other)).map(|m| m.state)
    }

    /// Live members without what differs by who looks.
    fn live_seen_by(&self, node: usize) -> Vec<Member> {
        let members = self.node(node).map(|node| node.members().members).unwrap_or_default();
        let live = members.into_iter().filter(|m| m.state == "live");
        live.map(|m| Member { rtt_us: 0, is_self: false, ..m }).collect()
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("at {:?}\n", self.elapsed());
        for node in self.running() {
            let (name, Some(node)) = (name_of(node), self.node(node)) else { continue };
            for member in node.members().members {
                text += &format!("{name} sees {} as {} at {}\n", member.node_id, member.state, member.mesh_addr);
            }
            text += &format!("{name} {:?}\n{name} {:?}\n", node.leases(), node.status());
        }
        text
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.seed).field("elapsed", &self.elapsed()).finish_non_exhaustive()
    }
}

impl Drop for World {
    /// Nodes first, then their hosts: nothing may be left that a host's end has to wait for.
    fn drop(&mut self) {
        self.hosts.iter().for_each(|host| host.forget_node());
    }
}

fn count(faults: &mut u32, more: bool) {
    *faults = if more { *faults + 1 } else { faults.saturating_sub(1) };
}

/// A task that spins stops simulated time, and every deadline with it: only real time shows that.
fn watch(steps: Arc<AtomicU64>, seed: u64) {
    thread::spawn(move || {
        let mut seen = u64::MAX;
        // The other handle is the world's.
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
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic in a spawned task ends nothing but that task: it has to be noted to be seen.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
            before(info);
        }));
    });
}
