//! Makes the scenario's faults at their times and ends them. What goes wrong with links, clocks and the process engine is
//! told to the agents whenever it changes, as a whole: one that was killed or stopped meanwhile is told when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use embermesh_node::faults::Direction;
use embermesh_node::views::{FaultsRequest, LinkFaultView};
use hyper::Method;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use super::dice::Dice;
use super::evidence::Made;
use super::relay::Relay;
use super::scenario::{Fault, How, Kind, Span, Way};
use crate::local_mesh::LocalMesh;

const PATH: &str = "/mesh/v1/faults";
/// For an agent to take its faults, and for a container to be there.
const TAKES: Duration = Duration::from_secs(2);
/// How often agents that are not what they should be are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
static PIECE: [u8; 1 << 16] = [0x5a; 1 << 16];

pub(super) struct Nemesis {
    began: Instant,
    faults: Vec<Fault>,
    active: BTreeMap<usize, Active>,
    nodes: Vec<NodeState>,
    /// With Docker one for each node.
    relays: Vec<Relay>,
    /// Faults that have ended, and kills whose node is not back yet.
    made: Vec<Made>,
    dice: Dice,
    astray: Vec<String>,
}

/// A fault that is on now.
#[derive(Default)]
struct Active {
    from_ms: u64,
    says: String,
    failed: Option<String>,
    /// Agents that were told of it and made it; of a fault that agents make.
    taken: BTreeSet<usize>,
    held: Vec<Held>,
    ballast: Vec<PathBuf>,
}

/// A process that holds an agent stopped; when its standard input closes, the agent goes on.
struct Held {
    child: Child,
    stdin: Option<ChildStdin>,
}

#[derive(Default)]
struct NodeState {
    id: String,
    /// Of its mesh port: by that it can be named to one that has not heard of it yet.
    address: String,
    /// What it was told last, and what it is to be told.
    told: Option<FaultsRequest>,
    down: bool,
    stopped: bool,
    /// It was started again and has not served yet: which entry of `made` ends then.
    comes_back: Option<usize>,
}

impl Nemesis {
    /// `nodes`: each with the address of its mesh port.
    pub(super) fn new(
        began: Instant,
        faults: Vec<Fault>,
        nodes: Vec<(String, String)>,
        relays: Vec<Relay>,
        seed: u64,
    ) -> Self {
        let state = |(id, address)| NodeState { id, address, ..NodeState::default() };
        let nodes = nodes.into_iter().map(state).collect();
        let (active, made, astray) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { began, faults, active, nodes, relays, made, dice: Dice::new(seed ^ 0xc0ffee), astray }
    }

    /// Does all of it, and returns when the last fault has ended. `tell` gets a line for each.
    pub(super) async fn rage(&mut self, mesh: &mut LocalMesh, tell: &(impl Fn(&str) + Sync)) {
        let mut moments: Vec<(Span, bool, usize)> = Vec::new();
        for (n, fault) in self.faults.iter().enumerate() {
            moments.extend([(fault.at, true, n), (fault.ends(), false, n)]);
        }
        // At one moment what ends comes before what begins.
        moments.sort();
        for (at, begins, n) in moments {
            while self.began.elapsed() < at.0 {
                let left = at.0.saturating_sub(self.began.elapsed());
                tokio::time::sleep(left.min(LOOK_EVERY)).await;
                self.look(mesh).await;
            }
            if begins {
                self.begin(mesh, n, tell).await
            } else {
                self.end(mesh, n, tell).await
            }
            self.look(mesh).await;
        }
    }

    /// Whether all agents are up and know that nothing is to go wrong with them any more.
    pub(super) async fn is_over(&mut self, mesh: &mut LocalMesh) -> bool {
        self.look(mesh).await;
        self.active.is_empty() && self.nodes.iter().all(|n| !n.down && n.comes_back.is_none() && n.told.is_none())
    }

    /// Every fault, in the order in which they ended; and agents that were not where they should be.
    pub(super) fn into_made(mut self) -> (Vec<Made>, Vec<String>) {
        self.made.sort_by_key(|made| made.from_ms);
        (self.made, self.astray)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn begin(&mut self, mesh: &mut LocalMesh, n: usize, tell: &impl Fn(&str)) {
        let fault = self.faults[n].clone();
        let mut active = Active { from_ms: self.now_ms(), says: fault.to_string(), ..Active::default() };
        let begun = self.make(mesh, &fault, &mut active).await;
        active.failed = begun.err().map(|error| format!("{error:#}"));
        match &active.failed {
            None => tell(&active.says),
            Some(why) => tell(&format!("{}: it could not be made: {why}", active.says)),
        }
        self.active.insert(n, active);
    }

    async fn make(&mut self, mesh: &mut LocalMesh, fault: &Fault, active: &mut Active) -> anyhow::Result<()> {
        for at in self.places(&fault.nodes) {
            match fault.kind {
                Kind::Kill => {
                    self.nodes[at].down = true;
                    mesh.kill(at).await?;
                }
                Kind::Stop => {
                    let pid = mesh.nodes[at].pid().context("the agent is not there")?;
                    active.held.push(hold(pid)?);
                    self.nodes[at].stopped = true;
                }
                Kind::Disk => {
                    let ballast = mesh.nodes[at].data_dir.join("ballast");
                    active.ballast.push(ballast.clone());
                    tokio::task::spawn_blocking(move || fill(&ballast)).await??;
                }
                Kind::Engine => match fault.how.unwrap_or(How::Stall) {
                    How::Stall => _ = self.relays.get(at).map(|relay| relay.stand_still(true)),
                    how => {
                        let what = disturb_container(&mesh.cluster, how, &mut self.dice).await?;
                        active.says = format!("{}: {what}", active.says);
                    }
                },
                Kind::Partition | Kind::Delay | Kind::Loss | Kind::Clock => {}
            }
        }
        Ok(())
    }

    async fn end(&mut self, mesh: &mut LocalMesh, n: usize, tell: &impl Fn(&str)) {
        let Some(active) = self.active.remove(&n) else { return };
        let fault = self.faults[n].clone();
        let Active { from_ms, mut says, mut failed, taken, held, ballast } = active;
        let missed = (0..self.nodes.len()).filter(|at| !taken.contains(at) && self.makes(*at, &fault));
        let missed: Vec<&str> = missed.map(|at| self.nodes[at].id.as_str()).collect();
        if !missed.is_empty() {
            let said = format!("{} did not make it", missed.join(", "));
            match taken.is_empty() {
                true => _ = failed.get_or_insert(said),
                false => says = format!("{says}: {said}"),
            }
        }
        for held in held {
            held.let_go().await;
        }
        for ballast in ballast {
            if let Err(error) = std::fs::remove_file(&ballast) {
                failed.get_or_insert(format!("the disk could not be made free: {error}"));
            }
        }
        for at in self.places(&fault.nodes) {
            match fault.kind {
                Kind::Kill => {
                    if let Err(error) = mesh.start_agent(at) {
                        failed.get_or_insert(format!("{error:#}"));
                    }
                    let node = &mut self.nodes[at];
                    (node.down, node.comes_back, node.told) = (false, Some(self.made.len()), None);
                }
                Kind::Stop => self.nodes[at].stopped = false,
                Kind::Engine if fault.stalls_engine() => {
                    let still = self.active.keys().any(|n| self.stalls_engine_of(&self.faults[*n], at));
                    if let Some(relay) = self.relays.get(at) {
                        says = format!("{says}: {} bytes had to wait", relay.stand_still(still));
                    }
                }
                _ => {}
            }
        }
        tell(&format!("over: {}", fault.kind.name()));
        let to_ms = self.now_ms();
        self.made.push(Made { kind: fault.kind, nodes: fault.nodes, says, from_ms, to_ms, failed });
    }

    /// Tells agents what is to go wrong with them now, and sees whether they are there.
    async fn look(&mut self, mesh: &mut LocalMesh) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].down || self.nodes[at].stopped {
                continue;
            }
            if let Ok(Some(status)) = mesh.nodes[at].ended() {
                let id = self.nodes[at].id.clone();
                self.astray.push(format!("{id} ended by itself at {} ms: {status}", self.now_ms()));
                // What comes after is to be judged as well.
                mesh.start_agent(at).ok();
                self.nodes[at].told = None;
                continue;
            }
            let wanted = self.wanted(at);
            let nothing = wanted == whole(&wanted);
            let known = match &self.nodes[at].told {
                Some(told) => *told == wanted,
                None => nothing && self.nodes[at].comes_back.is_none(),
            };
            if known {
                self.has_taken(at);
                continue;
            }
            let taken = mesh.nodes[at].client.send(Method::POST, PATH, Some(&wanted), TAKES).await;
            if taken.and_then(|answer| answer.ok()).is_ok() {
                let now = self.now_ms();
                self.has_taken(at);
                let node = &mut self.nodes[at];
                node.told = (!nothing).then_some(wanted);
                if let Some(made) = node.comes_back.take() {
                    self.made[made].to_ms = now;
                }
            }
        }
    }

    /// An agent makes now what it was told to: everything that is on.
    fn has_taken(&mut self, at: usize) {
        let mut active = std::mem::take(&mut self.active);
        for (n, fault) in &mut active {
            if self.makes(at, &self.faults[*n]) {
                fault.taken.insert(at);
            }
        }
        self.active = active;
    }

    /// Whether an agent has to make a fault, or a part of it; none has one that is made from outside.
    fn makes(&self, at: usize, fault: &Fault) -> bool {
        let me = &self.nodes[at].id;
        match fault.kind {
            Kind::Clock => fault.nodes.contains(me),
            Kind::Engine => self.relays.is_empty() && self.stalls_engine_of(fault, at),
            kind => self.nodes.iter().any(|peer| {
                self.carries(fault, me, &peer.id) || (kind == Kind::Partition && self.carries(fault, &peer.id, me))
            }),
        }
    }

    /// What is to go wrong at a node now: every link is named, so that what is over is whole again.
    fn wanted(&self, at: usize) -> FaultsRequest {
        let me = &self.nodes[at].id;
        let others = self.nodes.iter().filter(|node| node.id != *me);
        let mut links: BTreeMap<&str, LinkFaultView> = others
            .map(|node| {
                let (send, receive) = (Direction::default(), Direction::default());
                (node.id.as_str(), LinkFaultView { peer: node.address.clone(), send, receive })
            })
            .collect();
        let (mut stalled, mut ppm) = (false, 0);
        for fault in self.active.keys().map(|n| &self.faults[*n]) {
            let here = fault.nodes.contains(me);
            match fault.kind {
                // Docker's socket stands still outside of them.
                Kind::Engine if self.relays.is_empty() => stalled |= here && fault.stalls_engine(),
                Kind::Clock if here => ppm = fault.ppm.unwrap_or(0),
                _ => {}
            }
            for (peer, link) in &mut links {
                if self.carries(fault, me, peer) {
                    worsen(&mut link.send, fault);
                }
                if self.carries(fault, peer, me) {
                    // What comes late or twice is its sender's doing.
                    link.receive.cut |= fault.kind == Kind::Partition;
                }
            }
        }
        FaultsRequest {
            links: links.into_values().collect(),
            engine_stalled: Some(stalled),
            clock_drift_ppm: Some(ppm),
        }
    }

    /// Whether what one node sends to another suffers from a fault.
    fn carries(&self, fault: &Fault, sender: &str, receiver: &str) -> bool {
        if !fault.kind.is_of_links() {
            return false;
        }
        let inside = |id: &str| fault.nodes.iter().any(|node| node == id);
        let outside = |id: &str| {
            if fault.from.is_empty() { !inside(id) } else { fault.from.iter().any(|node| node == id) }
        };
        let way = fault.way.unwrap_or(Way::Both);
        (way != Way::Receive && inside(sender) && outside(receiver))
            || (way != Way::Send && outside(sender) && inside(receiver))
    }

    fn stalls_engine_of(&self, fault: &Fault, at: usize) -> bool {
        fault.stalls_engine() && fault.nodes.contains(&self.nodes[at].id)
    }

    fn places(&self, ids: &[String]) -> Vec<usize> {
        let place = |id: &String| self.nodes.iter().position(|node| node.id == *id);
        ids.iter().filter_map(place).collect()
    }
}

impl Fault {
    fn stalls_engine(&self) -> bool {
        self.kind == Kind::Engine && self.how.unwrap_or(How::Stall) == How::Stall
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.nodes.join(", ");
        let ends = if self.from.is_empty() { "all others".to_owned() } else { self.from.join(", ") };
        let links = match self.way.unwrap_or(Way::Both) {
            Way::Both => format!("between {nodes} and {ends}"),
            Way::Send => format!("from {nodes} to {ends}"),
            Way::Receive => format!("from {ends} to {nodes}"),
        };
        let share = |share: Option<f64>| (share.unwrap_or(0.0) * 100.0).round();
        match self.kind {
            Kind::Kill => write!(f, "kill {nodes}"),
            Kind::Stop => write!(f, "stop {nodes}"),
            Kind::Partition => write!(f, "cut what goes {links}"),
            Kind::Delay => write!(f, "delay what goes {links} by {}", self.delay.unwrap_or(Span::ms(0))),
            Kind::Loss => {
                write!(f, "lose {} % of gossip {links}, {} % comes twice", share(self.loss), share(self.duplicate))
            }
            Kind::Engine => match self.how.unwrap_or(How::Stall) {
                How::Stall => write!(f, "stall the engine of {nodes}"),
                How::Kill => write!(f, "kill a container"),
                How::Pause => write!(f, "pause a container"),
            },
            Kind::Clock => write!(f, "clock of {nodes} runs {:+} ppm", self.ppm.unwrap_or(0)),
            Kind::Disk => write!(f, "fill the disk of {nodes}"),
        }?;
        write!(f, " for {}", self.lasts)
    }
}

/// The same links without faults.
fn whole(request: &FaultsRequest) -> FaultsRequest {
    let links = request.links.iter().map(|link| LinkFaultView {
        peer: link.peer.clone(),
        send: Direction::default(),
        receive: Direction::default(),
    });
    FaultsRequest { links: links.collect(), engine_stalled: Some(false), clock_drift_ppm: Some(0) }
}

fn worsen(direction: &mut Direction, fault: &Fault) {
    direction.cut |= fault.kind == Kind::Partition;
    direction.delay_ms = direction.delay_ms.max(fault.delay.map_or(0, Span::as_ms));
    direction.loss = direction.loss.max(fault.loss.unwrap_or(0.0));
    direction.duplicate = direction.duplicate.max(fault.duplicate.unwrap_or(0.0));
}

/// Stops a process until what is returned lets it go, or this process ends, however it does.
fn hold(pid: u32) -> anyhow::Result<Held> {
    let mut command = Command::new("/proc/self/exe");
    command.args([super::HOLD, &pid.to_string()]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    let mut child = command.spawn().context("nothing can be started to stop the agent with")?;
    let stdin = child.stdin.take();
    Ok(Held { child, stdin })
}

impl Held {
    async fn let_go(mut self) {
        self.stdin.take();
        self.child.wait().await.ok();
    }
}

/// Takes all room that there is.
fn fill(path: &std::path::Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path).context("the disk can't be filled")?;
    loop {
        match file.write_all(&PIECE) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("the disk can't be filled"),
        }
    }
}

/// Kills or pauses one of the mesh's containers behind its agent's back.
async fn disturb_container(cluster: &str, how: How, dice: &mut Dice) -> anyhow::Result<String> {
    let filter = format!("label=embermesh.cluster={cluster}");
    let began = Instant::now();
    loop {
        let listed = docker(&["ps", "-q", "--filter", &filter, "--filter", "status=running"]).await?;
        let ids: Vec<&str> = listed.split_whitespace().collect();
        let failed = match dice.pick(&ids) {
            Some(id) => match docker(&[if how == How::Kill { "kill" } else { "pause" }, id]).await {
                Ok(_) => return Ok((*id).to_owned()),
                Err(error) => error,
            },
            None => anyhow!("there was none"),
        };
        // Between two calls all of them may be paused, or this one was by its agent just now.
        if began.elapsed() >= TAKES {
            return Err(failed);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn docker(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await.context("`docker` does not answer")?;
    let output = output.context("`docker` can't be run")?;
    if !output.status.success() {
        bail!("`docker {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::scenario::Scenario;
    use super::*;
    use crate::client::Client;
    use crate::client::test_server::TestServer;
    use crate::local_mesh::Setup;

    /// A nemesis with these faults on.
    fn with(faults: &str) -> Nemesis {
        let scenario = Scenario::parse(&format!("duration = '60s'\n[mesh]\nnodes = 3\n{faults}")).unwrap();
        let nodes = scenario.node_ids().into_iter().map(|id| (id.clone(), id)).collect();
        let mut nemesis = Nemesis::new(Instant::now(), scenario.faults.clone(), nodes, Vec::new(), 1);
        nemesis.active = (0..scenario.faults.len()).map(|n| (n, Active::default())).collect();
        nemesis
    }

    fn link(of: &FaultsRequest, peer: &str) -> (Direction, Direction) {
        let link = of.links.iter().find(|link| link.peer == peer).unwrap();
        (link.send, link.receive)
    }

    #[tokio::test]
    async fn a_link_is_cut_one_way_by_both_of_its_ends() {
        let nemesis = with("[[faults]]\nkind='partition'\nat='1s'\nfor='2s'\nnodes=['n1']\nfrom=['n2']\nway='send'");
        let cut = Direction { cut: true, ..Direction::default() };
        assert_eq!(link(&nemesis.wanted(0), "n2"), (cut, Direction::default()));
        assert_eq!(link(&nemesis.wanted(1), "n1"), (Direction::default(), cut));
        assert_eq!(nemesis.wanted(2), whole(&nemesis.wanted(2)));
    }

    #[tokio::test]
    async fn a_fault_that_no_agent_took_was_not_made_and_one_that_some_took_says_who_did_not() {
        let mut nemesis = with(
            "[[faults]]\nkind='clock'\nat='1s'\nfor='2s'\nnodes=['n1']\nppm=70
             [[faults]]\nkind='engine'\nat='1s'\nfor='2s'\nnodes=['n2']
             [[faults]]\nkind='delay'\nat='1s'\nfor='2s'\nnodes=['n1']\nfrom=['n2']\ndelay='50ms'\nway='send'
             [[faults]]\nkind='partition'\nat='1s'\nfor='2s'\nnodes=['n1']\nfrom=['n2']\nway='send'
             [[faults]]\nkind='loss'\nat='1s'\nfor='2s'\nnodes=['n3']\nloss=0.5
             [[faults]]\nkind='delay'\nat='1s'\nfor='2s'\nnodes=['n2']\ndelay='5ms'",
        );
        let server = TestServer::saying(200, "{}").await;
        let setup = Setup { name: "nemesis-test", nodes: 3, memory: "1GiB".to_owned(), ..Setup::default() };
        let mut mesh = LocalMesh::new(setup).await.unwrap();
        // Only n2 is there and takes what it is told.
        mesh.nodes[1].client = Client::new(server.url.parse().unwrap(), TAKES);
        nemesis.look(&mut mesh).await;
        for n in 0..nemesis.faults.len() {
            nemesis.end(&mut mesh, n, &|_| {}).await;
        }
        let failed: Vec<_> = nemesis.made.iter().map(|made| made.failed.as_deref()).collect();
        let n1 = Some("n1 did not make it");
        assert_eq!(failed, [n1, None, n1, None, None, None], "{:?}", nemesis.made);
        let says: Vec<&str> = nemesis.made.iter().filter_map(|made| made.says.split(": ").nth(1)).collect();
        assert_eq!(says, ["n1 did not make it", "n1, n3 did not make it", "n1, n3 did not make it"]);
    }

    #[tokio::test]
    async fn faults_of_one_link_add_up_and_those_of_a_node_stay_there() {
        let nemesis = with(
            "[[faults]]\nkind='delay'\nat='1s'\nfor='2s'\nnodes=['n1']\ndelay='50ms'
             [[faults]]\nkind='loss'\nat='1s'\nfor='2s'\nnodes=['n3']\nloss=0.5
             [[faults]]\nkind='engine'\nat='1s'\nfor='2s'\nnodes=['n2']
             [[faults]]\nkind='clock'\nat='1s'\nfor='2s'\nnodes=['n2']\nppm=-70",
        );
        let worse = Direction { delay_ms: 50, loss: 0.5, ..Direction::default() };
        assert_eq!(link(&nemesis.wanted(0), "n3"), (worse, Direction::default()));
        assert_eq!(link(&nemesis.wanted(2), "n1"), (worse, Direction::default()));
        assert_eq!(link(&nemesis.wanted(0), "n2").0, Direction { delay_ms: 50, ..Direction::default() });
        let second = nemesis.wanted(1);
        assert_eq!((second.engine_stalled, second.clock_drift_ppm), (Some(true), Some(-70)));
        assert_eq!(nemesis.wanted(0).engine_stalled, Some(false));
    }
}
