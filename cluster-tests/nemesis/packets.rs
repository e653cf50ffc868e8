//! Packets between nodes: dropped by the kernel, or queued for this process (NFQUEUE), which delays, loses and reorders
//! them as they are.
//!
//! Each fault has a chain of its own at each receiver, which counts what it caught. Drops stand before queues: a packet
//! that comes out of a queue is seen by no further rule. Should this process end, queued packets pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{self, Write as _};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use nix::sched::{CloneFlags, setns};

use crate::NODES;
use crate::dice::Dice;
use crate::support::Network;
use crate::support::network::host;

/// How long a packet is held back that others are to overtake.
pub(crate) const HELD_MS: [u64; 2] = [5, 60];
const QUEUE: u16 = 5;
/// How exactly packets are held back.
const TICK: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(100);
const DROP: &str = "DROP";
/// Where packets arrive before a program of the node gets them.
const ENTRANCE: &str = "INPUT";

/// What becomes of packets that are queued.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Harm {
    Delay(Duration),
    Lose(f64),
    Reorder(f64),
}

/// What a fault did to packets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Harmed {
    pub(crate) seen: u64,
    pub(crate) delayed: u64,
    pub(crate) lost: u64,
    pub(crate) overtaken: u64,
}

/// Serves a queue in each node's namespace, until it is dropped.
#[derive(Debug)]
pub(crate) struct Packets {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    faults: BTreeMap<usize, Fault>,
    stopped: bool,
}

#[derive(Debug)]
struct Fault {
    harm: Harm,
    /// Sender and receiver.
    links: Vec<(usize, usize)>,
    harmed: Harmed,
}

impl Packets {
    /// An error where this kernel has no such queues.
    pub(crate) fn serve(network: &Network, seed: u64) -> io::Result<Self> {
        let at = |n: usize| At::new(n, network.holder(n), seed);
        let mut nodes: Vec<At> = (1..=NODES).map(at).collect::<io::Result<_>>()?;
        let shared: Arc<Shared> = Arc::default();
        let watched = shared.clone();
        let thread = thread::spawn(move || {
            loop {
                let mut now = watched.now.lock().unwrap();
                // A queue does not tell when it has something: it is looked at while packets may come.
                let idle = now.faults.is_empty() && nodes.iter().all(|at| at.held.is_empty());
                now = watched.changed.wait_timeout(now, if idle { IDLE } else { TICK }).unwrap().0;
                if now.stopped {
                    return Ok(());
                }
                for at in &mut nodes {
                    at.look(&mut now.faults)?;
                }
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sends the packets of these links through the queues.
    pub(crate) fn worsen(&self, network: &Network, fault: usize, harm: Harm, links: &[(usize, usize)]) {
        let new = Fault { harm, links: links.to_vec(), harmed: Harmed::default() };
        self.shared.now.lock().unwrap().faults.insert(fault, new);
        self.shared.changed.notify_all();
        network.lay(fault, links, &format!("NFQUEUE --queue-num {QUEUE} --queue-bypass"));
    }

    /// What is held back by then comes when it is due.
    pub(crate) fn mend(&self, network: &Network, fault: usize) -> Harmed {
        network.lift(fault);
        let fault = self.shared.now.lock().unwrap().faults.remove(&fault);
        fault.map_or_else(Harmed::default, |fault| fault.harmed)
    }

    /// Fails unless the queues are served.
    #[track_caller]
    pub(crate) fn expect_served(&mut self) {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            panic!("queues are not served any more: {:?}", self.thread.take().map(JoinHandle::join));
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.shared.now.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || matches!(ended, Ok(Ok(()))), "the queues were not served: {ended:?}");
        }
    }
}

impl Network {
    /// Drops the packets of these links.
    pub(crate) fn cut(&self, fault: usize, links: &[(usize, usize)]) {
        self.lay(fault, links, DROP);
    }

    /// Puts a chain before each receiver, with a rule for each sender.
    fn lay(&self, fault: usize, links: &[(usize, usize)], target: &str) {
        for receiver in links.iter().map(|(_, receiver)| *receiver).collect::<BTreeSet<_>>() {
            let senders = links.iter().filter(|(_, to)| *to == receiver).map(|(from, _)| *from);
            let rules: String = senders.map(|from| format!("-A F{fault} -s {} -j {target}\n", host(from))).collect();
            let place = if target == DROP { "-I" } else { "-A" };
            self.change_rules(receiver, &format!(":F{fault} - [0:0]\n{rules}{place} {ENTRANCE} -j F{fault}\n"));
        }
    }

    /// Takes a fault's chains away again: how many packets their rules caught.
    pub(crate) fn lift(&self, fault: usize) -> u64 {
        let mut caught = 0;
        for n in 1..=NODES {
            let listed = self.command(n, &format!("iptables -w 5 -nvxL F{fault}")).stderr(Stdio::null()).output();
            let listed = listed.unwrap();
            if listed.status.success() {
                caught += String::from_utf8_lossy(&listed.stdout).lines().skip(2).filter_map(packets).sum::<u64>();
                self.change_rules(n, &format!("-D {ENTRANCE} -j F{fault}\n-F F{fault}\n-X F{fault}\n"));
            }
        }
        caught
    }

    /// Every rule and chain that is there, beside the kernel's own.
    pub(crate) fn rules(&self, n: usize) -> Vec<String> {
        let listed = self.command(n, "iptables -w 5 -S").output().unwrap();
        assert!(listed.status.success(), "the rules of n{n} can't be listed");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        text.lines().filter(|line| !line.starts_with("-P ")).map(str::to_owned).collect()
    }

    fn change_rules(&self, n: usize, lines: &str) {
        let mut command = self.command(n, "iptables-restore --noflush --wait 5");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        write!(child.stdin.take().unwrap(), "*filter\n{lines}COMMIT\n").unwrap();
        assert!(child.wait().unwrap().success(), "rules at n{n}:\n{lines}");
    }
}

/// Of a line of `iptables -nvxL`.
fn packets(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}

/// Opens the queue of a namespace; by a thread of its own, since it has to go there.
fn queue(holder: u32) -> io::Result<Queue> {
    let opened = thread::spawn(move || {
        setns(File::open(format!("/proc/{holder}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
        let mut queue = Queue::open()?;
        queue.bind(QUEUE)?;
        // One that overflows lets packets pass.
        queue.set_fail_open(QUEUE, true)?;
        queue.set_nonblocking(true);
        Ok(queue)
    });
    opened.join().unwrap()
}

/// What arrives at one node.
struct At {
    receiver: usize,
    queue: Queue,
    held: BinaryHeap<Held>,
    dice: Dice,
    /// Packets so far.
    arrived: u64,
    /// The last of each sender that was let pass.
    passed: BTreeMap<usize, u64>,
}

/// A packet that is held back; the first to go is the greatest.
struct Held {
    due: Reverse<(Instant, u64)>,
    sender: usize,
    message: Message,
}

impl At {
    fn new(n: usize, holder: u32, seed: u64) -> io::Result<Self> {
        let (queue, dice) = (queue(holder)?, Dice::new(seed ^ n as u64));
        Ok(Self { receiver: n, queue, held: BinaryHeap::new(), dice, arrived: 0, passed: BTreeMap::new() })
    }

    /// Takes what has come, and lets go what is due.
    fn look(&mut self, faults: &mut BTreeMap<usize, Fault>) -> io::Result<()> {
        loop {
            match self.queue.recv() {
                Ok(message) => self.on_packet(message, faults)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let now = Instant::now();
        while self.held.peek().is_some_and(|held| held.due.0.0 <= now) {
            let Some(Held { due: Reverse((_, number)), sender, message }) = self.held.pop() else { break };
            self.passes(sender, number, faults);
            decide(&mut self.queue, message, Verdict::Accept)?;
        }
        Ok(())
    }

    fn on_packet(&mut self, message: Message, faults: &mut BTreeMap<usize, Fault>) -> io::Result<()> {
        self.arrived += 1;
        let sender = sender(message.get_payload());
        match self.delay(sender, faults) {
            Some(delay) => {
                let due = Reverse((Instant::now() + delay, self.arrived));
                self.held.push(Held { due, sender, message });
                Ok(())
            }
            None => decide(&mut self.queue, message, Verdict::Drop),
        }
    }

    /// How long a packet is held back; none if it is lost.
    fn delay(&mut self, sender: usize, faults: &mut BTreeMap<usize, Fault>) -> Option<Duration> {
        let (mut delay, mut lost) = (Duration::ZERO, false);
        for fault in faults.values_mut().filter(|fault| fault.links.contains(&(sender, self.receiver))) {
            fault.harmed.seen += 1;
            match fault.harm {
                Harm::Delay(by) => {
                    fault.harmed.delayed += 1;
                    delay += by;
                }
                Harm::Lose(share) if self.dice.share() < share => {
                    fault.harmed.lost += 1;
                    lost = true;
                }
                Harm::Reorder(share) if self.dice.share() < share => {
                    delay += Duration::from_millis(self.dice.between(HELD_MS[0], HELD_MS[1]));
                }
                Harm::Lose(_) | Harm::Reorder(_) => {}
            }
        }
        (!lost).then_some(delay)
    }

    /// Sees whether another of the same sender has overtaken it.
    fn passes(&mut self, sender: usize, number: u64, faults: &mut BTreeMap<usize, Fault>) {
        let last = self.passed.entry(sender).or_default();
        if number > *last {
            *last = number;
            return;
        }
        for fault in faults.values_mut() {
            if matches!(fault.harm, Harm::Reorder(_)) && fault.links.contains(&(sender, self.receiver)) {
                fault.harmed.overtaken += 1;
            }
        }
    }
}

fn decide(queue: &mut Queue, mut message: Message, verdict: Verdict) -> io::Result<()> {
    message.set_verdict(verdict);
    match queue.verdict(message) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The kernel has forgotten the packet meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The node that an IPv4 packet is from; 0 for none.
fn sender(packet: &[u8]) -> usize {
    match packet.get(12..16) {
        Some([10, 9, 0, n]) => usize::from(*n),
        _ => 0,
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
