//! What is to go wrong, and when: made of a seed, all sorts in turns. The same seed makes the same faults at the same
//! moments.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::NODES;
use crate::dice::Dice;

/// Calm before the first fault: containers get warm, and leases are made.
const CALM_MS: u64 = 4_000;
/// Calm after the last.
const REST_MS: u64 = 1_000;
const LASTS_MS: [u64; 2] = [1_500, 4_500];
/// A stopped node has to outlast its leases, of 1 s.
const STOPPED_MS: [u64; 2] = [2_000, 4_500];
/// From the beginning of one fault to that of the next.
const GAP_MS: [u64; 2] = [900, 2_500];
/// A node that was killed serves again in that time.
const COMES_BACK_MS: u64 = 3_000;
/// Clocks stay within what the mesh promises to bear, and drift so much that it can be seen.
const DRIFT_PPM: [u64; 2] = [3_000, 10_000];
/// Tries to find a place for a fault before another one is made.
const TRIES: usize = 50;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) what: What,
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
    /// Whose it is; for those of containers whoever has one.
    pub(crate) nodes: Vec<usize>,
    /// The other ends of links.
    pub(crate) peers: Vec<usize>,
    pub(crate) way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    /// Packets are dropped.
    Cut,
    /// Packets come late.
    Delay(Duration),
    /// A share of the packets is lost.
    Lose(f64),
    /// A share of the packets is overtaken by others.
    Reorder(f64),
    /// SIGSTOP.
    Stop,
    /// SIGKILL, and a new start.
    Kill,
    /// A clock that runs fast by so many parts per million.
    Drift(i64),
    /// No room on the disk.
    Fill,
    KillContainer,
    PauseContainer,
    /// The engine's socket stands still.
    StallEngine,
}

/// As seen from the nodes of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    Send,
    Receive,
}

/// Sorts of faults, of which each turn has every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    CutBothWays,
    CutOneWay,
    Delay,
    Lose,
    Reorder,
    Stop,
    Kill,
    Drift,
    Fill,
    KillContainer,
    PauseContainer,
    StallEngine,
}

impl Sort {
    const ALL: [Self; 12] = [
        Self::CutBothWays,
        Self::CutOneWay,
        Self::Delay,
        Self::Lose,
        Self::Reorder,
        Self::Stop,
        Self::Kill,
        Self::Drift,
        Self::Fill,
        Self::KillContainer,
        Self::PauseContainer,
        Self::StallEngine,
    ];
}

/// Faults for a run of so long, by when they begin. Only Docker has a socket that can stand still.
pub(crate) fn plan(seed: u64, length: Duration, docker: bool) -> Vec<Fault> {
    let mut dice = Dice::new(seed);
    let last_end = u64::try_from(length.as_millis()).unwrap().saturating_sub(REST_MS);
    let sorts: Vec<Sort> = Sort::ALL.into_iter().filter(|sort| docker || *sort != Sort::StallEngine).collect();
    // Each sort once, with two more moments for what finds no place in its turn.
    let room = last_end.saturating_sub(CALM_MS + LASTS_MS[1]);
    let gap = (room / (sorts.len() as u64 + 2)).clamp(GAP_MS[0], GAP_MS[1]);
    let (mut faults, mut deck, mut at) = (Vec::new(), Vec::new(), CALM_MS);
    while at + LASTS_MS[1] <= last_end {
        if deck.is_empty() {
            deck.clone_from(&sorts);
            dice.shuffle(&mut deck);
        }
        let Some(sort) = deck.pop() else { break };
        match (0..TRIES).map(|_| fault(&mut dice, sort, at)).find(|new| fits(&faults, new)) {
            Some(found) => faults.push(found),
            // Later in this turn.
            None if !deck.is_empty() => deck.insert(deck.len() - 1, sort),
            None => deck.push(sort),
        }
        at += gap - dice.between(0, gap / 4);
    }
    faults
}

fn fault(dice: &mut Dice, sort: Sort, from_ms: u64) -> Fault {
    let mut all: Vec<usize> = (1..=NODES).collect();
    dice.shuffle(&mut all);
    let several = if sort == Sort::CutBothWays { dice.between(1, 2) as usize } else { 1 };
    let (nodes, others) = all.split_at(several);
    // Sometimes one link only.
    let peers = if dice.share() < 0.3 { others[..1].to_vec() } else { others.to_vec() };
    let one_way = if dice.share() < 0.5 { Way::Send } else { Way::Receive };
    let any_way = if dice.share() < 0.5 { Way::Both } else { one_way };
    let (what, way) = match sort {
        Sort::CutBothWays => (What::Cut, Way::Both),
        Sort::CutOneWay => (What::Cut, one_way),
        Sort::Delay => (What::Delay(Duration::from_millis(dice.between(20, 400))), any_way),
        Sort::Lose => (What::Lose(dice.between(20, 60) as f64 / 100.0), any_way),
        Sort::Reorder => (What::Reorder(dice.between(25, 50) as f64 / 100.0), any_way),
        Sort::Stop => (What::Stop, Way::Both),
        Sort::Kill => (What::Kill, Way::Both),
        Sort::Drift => {
            let ppm = dice.between(DRIFT_PPM[0], DRIFT_PPM[1]) as i64;
            (What::Drift(if dice.share() < 0.5 { ppm } else { -ppm }), Way::Both)
        }
        Sort::Fill => (What::Fill, Way::Both),
        Sort::KillContainer => (What::KillContainer, Way::Both),
        Sort::PauseContainer => (What::PauseContainer, Way::Both),
        Sort::StallEngine => (What::StallEngine, Way::Both),
    };
    let lasts = if what == What::Stop { STOPPED_MS } else { LASTS_MS };
    let to_ms = from_ms + dice.between(lasts[0], lasts[1]);
    let peers = if what.is_of_links() { peers } else { Vec::new() };
    Fault { what, from_ms, to_ms, nodes: nodes.to_vec(), peers, way }
}

/// Whether every one of them can still be seen to bite.
fn fits(faults: &[Fault], new: &Fault) -> bool {
    faults.iter().all(|old| !old.meets(new) || !old.excludes(new))
}

impl What {
    pub(crate) fn is_of_links(self) -> bool {
        matches!(self, Self::Cut | Self::Delay(_) | Self::Lose(_) | Self::Reorder(_))
    }

    /// It takes its node away from the mesh.
    fn takes_away(self) -> bool {
        matches!(self, Self::Stop | Self::Kill)
    }

    fn is_of_a_container(self) -> bool {
        matches!(self, Self::KillContainer | Self::PauseContainer)
    }
}

impl Fault {
    fn meets(&self, new: &Self) -> bool {
        let gone = |fault: &Self| fault.to_ms + if fault.what.takes_away() { COMES_BACK_MS } else { 0 };
        self.from_ms < gone(new) && new.from_ms < gone(self)
    }

    fn excludes(&self, new: &Self) -> bool {
        let (old_links, new_links) = (self.what.is_of_links(), new.what.is_of_links());
        if self.what.is_of_a_container() || new.what.is_of_a_container() {
            return false;
        }
        if old_links && new_links {
            // What one drops the other never sees.
            let within = |inner: &Self, outer: &Self| {
                outer.what == What::Cut && inner.links().iter().all(|link| outer.links().contains(link))
            };
            return within(self, new) || within(new, self);
        }
        if old_links || new_links {
            // Who is away sends nothing that could be harmed.
            let (links, other) = if old_links { (self, new) } else { (new, self) };
            let ends = |n: &usize| links.nodes.contains(n) || links.peers == [*n];
            return other.what.takes_away() && other.nodes.iter().any(ends);
        }
        self.nodes == new.nodes
    }

    /// Sender and receiver of each link that suffers.
    pub(crate) fn links(&self) -> Vec<(usize, usize)> {
        let pairs = self.nodes.iter().flat_map(|node| self.peers.iter().map(move |peer| (*node, *peer)));
        let both = pairs.flat_map(|(node, peer)| match self.way {
            Way::Both => vec![(node, peer), (peer, node)],
            Way::Send => vec![(node, peer)],
            Way::Receive => vec![(peer, node)],
        });
        both.collect()
    }

    /// As the reports of `embermesh chaos run` call its kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self.what {
            What::Cut => "partition",
            What::Delay(_) | What::Reorder(_) => "delay",
            What::Lose(_) => "loss",
            What::Stop => "stop",
            What::Kill => "kill",
            What::Drift(_) => "clock",
            What::Fill => "disk",
            What::KillContainer | What::PauseContainer | What::StallEngine => "engine",
        }
    }

    /// As an entry of a scenario, as near as one comes.
    pub(crate) fn in_scenario(&self) -> Value {
        let id = |n: &usize| format!("n{n}");
        let mut entry = json!({
            "kind": self.kind(),
            "at": format!("{}ms", self.from_ms),
            "for": format!("{}ms", self.to_ms - self.from_ms),
            "nodes": self.nodes.iter().map(id).collect::<Vec<_>>(),
        });
        if self.what.is_of_links() {
            entry["from"] = self.peers.iter().map(id).collect();
            let way = format!("{:?}", self.way).to_lowercase();
            entry["way"] = way.into();
        }
        match self.what {
            What::Delay(delay) => entry["delay"] = format!("{}ms", delay.as_millis()).into(),
            What::Reorder(_) => entry["delay"] = format!("{}ms", crate::packets::HELD_MS[1]).into(),
            What::Lose(share) => entry["loss"] = share.into(),
            What::Drift(ppm) => entry["ppm"] = ppm.into(),
            What::KillContainer => entry["how"] = "kill".into(),
            What::PauseContainer => entry["how"] = "pause".into(),
            What::StallEngine => entry["how"] = "stall".into(),
            What::Cut | What::Stop | What::Kill | What::Fill => {}
        }
        entry
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[usize]| all.iter().map(|n| format!("n{n}")).collect::<Vec<_>>().join(", ");
        let (nodes, peers) = (list(&self.nodes), list(&self.peers));
        let links = match self.way {
            Way::Both => format!("between {nodes} and {peers}"),
            Way::Send => format!("from {nodes} to {peers}"),
            Way::Receive => format!("from {peers} to {nodes}"),
        };
        let percent = |share: f64| (share * 100.0).round();
        match self.what {
            What::Cut => write!(f, "drop all packets {links}"),
            What::Delay(delay) => write!(f, "delay packets {links} by {} ms", delay.as_millis()),
            What::Lose(share) => write!(f, "lose {} % of the packets {links}", percent(share)),
            What::Reorder(share) => write!(f, "hold {} % of the packets {links} back, one by one", percent(share)),
            What::Stop => write!(f, "SIGSTOP {nodes}"),
            What::Kill => write!(f, "SIGKILL {nodes}, and start it again"),
            What::Drift(ppm) => write!(f, "clock of {nodes} runs {ppm:+} ppm"),
            What::Fill => write!(f, "fill the disk of {nodes}"),
            What::KillContainer => write!(f, "kill a container"),
            What::PauseContainer => write!(f, "pause a container"),
            What::StallEngine => write!(f, "the engine's socket of {nodes} stands still"),
        }
    }
}

#[test]
fn every_seed_makes_each_sort_of_fault_and_the_same_seed_the_same_ones() {
    for (seed, docker) in (0..200).flat_map(|seed| [(seed, false), (seed, true)]) {
        let faults = plan(seed, Duration::from_secs(45), docker);
        assert_eq!(faults, plan(seed, Duration::from_secs(45), docker));
        assert_ne!(faults, plan(seed + 1, Duration::from_secs(45), docker));
        let sorts = Sort::ALL.len() - usize::from(!docker);
        let of_links = |fault: &Fault| fault.what == What::Cut && fault.way != Way::Both;
        let sorts_made = faults.iter().map(|fault| (std::mem::discriminant(&fault.what), of_links(fault)));
        let sorts_made = sorts_made.collect::<std::collections::HashSet<_>>().len();
        assert_eq!(sorts_made, sorts, "seed {seed}: {faults:#?}");
        assert!(faults.iter().all(|fault| fault.to_ms <= 44_000), "seed {seed}");
    }
}
