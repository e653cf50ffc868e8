//! Makes the planned faults, ends them, and sees that each has bitten: one that has not is told as failed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::json;

use crate::containers::{self, Container};
use crate::ground::Ground;
use crate::packets::{Harm, Packets};
use crate::plan::{Fault, What};
use crate::support::Agent;
use crate::support::agent::BINARY;
use crate::support::network::mesh_addr;
use crate::traffic::Traffic;
use crate::{NODES, dice::Dice};

/// How often what is on now is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For an agent that may not be back to tell how it is, and for one that is there.
const ASKED: Duration = Duration::from_millis(500);
const TELLS: Duration = Duration::from_secs(10);
/// Calls with a large body that a node with a full disk may have room for.
const MOST_BURDENS: usize = 12;
static PIECE: [u8; 1 << 16] = [0x5a; 1 << 16];

pub(crate) struct Nemesis<'a> {
    pub(crate) ground: &'a mut Ground,
    traffic: &'a Traffic,
    packets: Packets,
    /// Where each node writes its history.
    histories: PathBuf,
    active: BTreeMap<usize, (u64, Doing)>,
    /// Nodes that were started again and don't serve yet: the epoch of their life before, and their entry of `made`.
    returning: BTreeMap<usize, (u64, usize)>,
    made: Vec<Made>,
    dice: Dice,
    pub(crate) astray: Vec<String>,
}

/// One fault as it was made, as the reports of `embermesh chaos run` tell it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Made {
    pub(crate) kind: &'static str,
    nodes: Vec<String>,
    pub(crate) says: String,
    from_ms: u64,
    to_ms: u64,
    /// Why it was not made, or has not bitten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// A fault that is on, with what has been seen of it.
enum Doing {
    Links,
    Stopped { hold: Hold, seen: u32 },
    Killed { epoch: u64 },
    Full { ballast: PathBuf, refused: bool },
    Drifting,
    Stalled,
    Container(Container),
    Failed(String),
}

/// A process that holds another one stopped, which goes on when this one's standard input closes.
pub(crate) struct Hold {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl<'a> Nemesis<'a> {
    pub(crate) fn new(
        ground: &'a mut Ground,
        traffic: &'a Traffic,
        packets: Packets,
        histories: PathBuf,
        seed: u64,
    ) -> Self {
        let (active, returning, made, astray) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), Vec::new());
        let dice = Dice::new(seed ^ 0x00c0_ffee);
        Self { ground, traffic, packets, histories, active, returning, made, dice, astray }
    }

    /// Does all of it; returns when the last fault has ended. Who was killed last may not be back.
    pub(crate) fn rage(&mut self, faults: &[Fault]) {
        let both = |(n, fault): (usize, &Fault)| [(fault.from_ms, true, n), (fault.to_ms, false, n)];
        let mut moments: Vec<(u64, bool, usize)> = faults.iter().enumerate().flat_map(both).collect();
        // At one moment what ends comes before what begins.
        moments.sort_unstable();
        for (at_ms, begins, n) in moments {
            while self.traffic.now_ms() < at_ms {
                let left = Duration::from_millis(at_ms.saturating_sub(self.traffic.now_ms()));
                thread::sleep(left.min(LOOK_EVERY));
                self.look(faults);
            }
            if begins {
                self.begin(n, &faults[n]);
            } else {
                self.end(n, &faults[n]);
            }
        }
        self.packets.expect_served();
    }

    /// Whether everybody that was killed is back.
    pub(crate) fn is_over(&mut self) -> bool {
        self.look(&[]);
        self.returning.is_empty()
    }

    /// Every fault, by when it began; and agents that ended by themselves. The queues are closed.
    pub(crate) fn into_made(self) -> (Vec<Made>, Vec<String>) {
        let mut made = self.made;
        made.sort_by_key(|made| made.from_ms);
        (made, self.astray)
    }

    fn begin(&mut self, n: usize, fault: &Fault) {
        let from_ms = self.traffic.now_ms();
        let doing = self.make(n, fault).unwrap_or_else(Doing::Failed);
        eprintln!("{:>7.1}s  {fault}", from_ms as f64 / 1000.0);
        self.active.insert(n, (from_ms, doing));
    }

    fn make(&mut self, n: usize, fault: &Fault) -> Result<Doing, String> {
        let at = fault.nodes[0];
        let links = fault.links();
        let Self { ground, packets, dice, .. } = self;
        let network = &ground.network;
        match fault.what {
            What::Cut => network.cut(n, &links),
            What::Delay(by) => packets.worsen(network, n, Harm::Delay(by), &links),
            What::Lose(share) => packets.worsen(network, n, Harm::Lose(share), &links),
            What::Reorder(share) => packets.worsen(network, n, Harm::Reorder(share), &links),
            What::Stop => return Ok(Doing::Stopped { hold: Hold::of(ground.mesh[at].pid()), seen: 0 }),
            What::Kill => {
                let epoch = self.epoch(at, TELLS).ok_or("it did not tell its epoch before")?;
                self.ground.mesh.agent(at).kill();
                return Ok(Doing::Killed { epoch });
            }
            What::Drift(ppm) => {
                drift(&ground.mesh[at], ppm)?;
                return Ok(Doing::Drifting);
            }
            What::Fill => {
                let ballast = ground.mesh[at].data_dir().join("ballast");
                fill(&ballast)?;
                // Its store may have some room of its own.
                let refused = (0..MOST_BURDENS).any(|_| self.traffic.burdens(at - 1));
                return Ok(Doing::Full { ballast, refused });
            }
            What::StallEngine => {
                ground.relays[at - 1].stall();
                return Ok(Doing::Stalled);
            }
            What::KillContainer => return containers::kill_one(ground, dice).map(Doing::Container),
            What::PauseContainer => return containers::pause_one(ground, dice).map(Doing::Container),
        }
        Ok(Doing::Links)
    }

    fn end(&mut self, n: usize, fault: &Fault) {
        let Some((from_ms, doing)) = self.active.remove(&n) else { return };
        let mut nodes = fault.nodes.clone();
        if let Doing::Container(container) = &doing {
            nodes = vec![container.owner];
        }
        let bitten = self.unmake(n, fault, doing, from_ms);
        let to_ms = self.traffic.now_ms();
        let (says, failed) = match bitten {
            Ok(seen) => (format!("{fault}: {seen}"), None),
            Err(why) => (fault.to_string(), Some(why)),
        };
        let failure = failed.as_ref().map(|why| format!(": FAILED, {why}")).unwrap_or_default();
        eprintln!("{:>7.1}s  over: {says}{failure}", to_ms as f64 / 1000.0);
        let nodes = nodes.iter().map(|n| format!("n{n}")).collect();
        self.made.push(Made { kind: fault.kind(), nodes, says, from_ms, to_ms, failed });
    }

    /// Ends it: what was seen of it, or why nothing was.
    fn unmake(&mut self, n: usize, fault: &Fault, doing: Doing, from_ms: u64) -> Result<String, String> {
        let at = fault.nodes[0];
        match doing {
            Doing::Failed(why) => Err(why),
            Doing::Links => self.mend_links(n, fault.what),
            Doing::Stopped { hold, seen } => {
                hold.let_go();
                if seen == 0 { Err("it was never seen stopped".to_owned()) } else { Ok("it stood still".to_owned()) }
            }
            Doing::Killed { epoch } => {
                let agent = self.ground.mesh.agent(at);
                // It finds others, whoever of them is there.
                agent.settings.join = (1..=NODES).filter(|n| *n != at).map(mesh_addr).collect();
                *agent = agent.settings.clone().spawn();
                self.returning.insert(at, (epoch, self.made.len()));
                Ok("it is started again".to_owned())
            }
            Doing::Full { ballast, refused } => {
                fs::remove_file(&ballast).map_err(|error| error.to_string())?;
                match refused {
                    true => Ok("a large call could not be promised".to_owned()),
                    false => Err(format!("the node found room for {MOST_BURDENS} large calls")),
                }
            }
            Doing::Drifting => {
                drift(&self.ground.mesh[at], 0)?;
                let What::Drift(ppm) = fault.what else { return Err("it has no rate".to_owned()) };
                self.drifted(at, from_ms, ppm)
            }
            Doing::Stalled => match self.ground.relays[at - 1].go_on() {
                0 => Err("nothing was said to the engine meanwhile".to_owned()),
                bytes => Ok(format!("{bytes} bytes had to wait")),
            },
            Doing::Container(container) => container.go_on(),
        }
    }

    fn mend_links(&mut self, n: usize, what: What) -> Result<String, String> {
        let network = &self.ground.network;
        let (count, seen) = match what {
            What::Cut => {
                let dropped = network.lift(n);
                (dropped, format!("{dropped} packets dropped"))
            }
            _ => {
                let harmed = self.packets.mend(network, n);
                match what {
                    What::Delay(_) => (harmed.delayed, format!("{} packets delayed", harmed.delayed)),
                    What::Lose(_) => (harmed.lost, format!("{} of {} packets lost", harmed.lost, harmed.seen)),
                    _ => (
                        harmed.overtaken,
                        format!("{} of {} packets came after later ones", harmed.overtaken, harmed.seen),
                    ),
                }
            }
        };
        if count == 0 { Err(format!("no packet suffered: {seen}")) } else { Ok(seen) }
    }

    /// How fast its clock ran by its own history.
    fn drifted(&self, at: usize, from_ms: u64, ppm: i64) -> Result<String, String> {
        let history = fs::read_to_string(self.histories.join(format!("n{at}.history"))).unwrap();
        let since = self.traffic.began_unix_us() + from_ms * 1_000;
        let until = self.traffic.began_unix_us() + self.traffic.now_ms() * 1_000;
        let ties = history.lines().filter(|line| line.contains("\"embermesh_history\"")).filter_map(|line| {
            let tie: serde_json::Value = serde_json::from_str(line).ok()?;
            Some((tie["wall_us"].as_u64()?, tie["at"].as_u64()?))
        });
        // Its first moments may be those before.
        let within: Vec<(u64, u64)> = ties.filter(|(wall, _)| (since + 100_000..until).contains(wall)).collect();
        let (Some(first), Some(last)) = (within.first(), within.last()) else {
            return Err("it wrote no history meanwhile".to_owned());
        };
        let (wall, own) = ((last.0 - first.0) as f64, (last.1 - first.1) as f64);
        let seen = ((own / wall - 1.0) * 1e6).round();
        let told = format!("it ran {seen:+} ppm by its history");
        // The two clocks are read within some microseconds of each other.
        if (seen - ppm as f64).abs() < ppm.abs() as f64 / 4.0 { Ok(told) } else { Err(told) }
    }

    /// Looks at what is on, and at who is back or gone.
    fn look(&mut self, faults: &[Fault]) {
        for (n, (_, doing)) in &mut self.active {
            match doing {
                Doing::Stopped { seen, .. } => {
                    let pid = self.ground.mesh[faults[*n].nodes[0]].pid();
                    *seen += u32::from(state(pid) == Some('T'));
                }
                Doing::Container(container) => container.look(),
                _ => {}
            }
        }
        let back: Vec<usize> = self.returning.keys().copied().filter(|at| self.is_back(*at)).collect();
        for at in back {
            if let Some((_, made)) = self.returning.remove(&at) {
                self.made[made].to_ms = self.traffic.now_ms();
            }
        }
        for at in 1..=NODES {
            let killed = self.active.iter().any(|(n, (_, doing))| {
                matches!(doing, Doing::Killed { .. }) && faults.get(*n).is_some_and(|fault| fault.nodes == [at])
            });
            let agent = self.ground.mesh.agent(at);
            if !killed && !agent.runs() {
                self.astray.push(format!("n{at} ended by itself at {} ms", self.traffic.now_ms()));
                // What comes after is to be judged as well.
                *agent = agent.settings.clone().spawn();
            }
        }
    }

    fn is_back(&self, at: usize) -> bool {
        let (before, _) = self.returning[&at];
        let answer = self.ground.mesh[at].try_call_within(ASKED, "GET", "/readyz", b"");
        answer.is_ok_and(|answer| answer.status == 200) && self.epoch(at, ASKED).is_some_and(|epoch| epoch > before)
    }

    fn epoch(&self, at: usize, patience: Duration) -> Option<u64> {
        let answer = self.ground.mesh[at].try_call_within(patience, "GET", "/mesh/v1/status", b"").ok()?;
        answer.json()["epoch"].as_u64()
    }
}

impl Hold {
    pub(crate) fn of(pid: i32) -> Self {
        let mut command = Command::new(BINARY);
        let mut child = command.args(["__hold", &pid.to_string()]).stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    pub(crate) fn let_go(mut self) {
        self.release();
    }

    fn release(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

/// As in `/proc/PID/stat`: `T` is stopped.
pub(crate) fn state(pid: i32) -> Option<char> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit(") ").next()?.chars().next()
}

/// Has an agent's clock run fast or slow.
fn drift(agent: &Agent, ppm: i64) -> Result<(), String> {
    let change = json!({"clock_drift_ppm": ppm}).to_string();
    match agent.try_call_within(TELLS, "POST", "/mesh/v1/faults", change.as_bytes()) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("a drift of {ppm} ppm was not taken: {answer}")),
        Err(error) => Err(format!("a drift of {ppm} ppm was not taken: {error}")),
    }
}

/// Takes all room that there is.
fn fill(path: &Path) -> Result<(), String> {
    let mut file = File::create(path).map_err(|error| error.to_string())?;
    loop {
        match file.write_all(&PIECE) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(format!("the disk can't be filled: {error}")),
        }
    }
}

/// Ends a process that is not a child of this one.
pub(crate) fn end(pid: i32) -> bool {
    kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
}
