//! One state of the model, and what makes two of them the same.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use embermesh_core::estimates::Estimates;
use embermesh_core::history::{Glance, Judge, Record, Violation, What};
use embermesh_core::output::{Advert, IntentEnd, Output, RunAnswer, RunRefusal};
use embermesh_core::policy::{GreedyDual, VetoPolicy, VetoView};
use embermesh_core::{ActionHash, ActionSpec, Epoch, Input, Node, NodeId, RequestId, RunId, Time};

use super::fewer::{Asks, Fewer};
use super::network::{Flying, PeerRun};
use super::part::Part;
use super::setting::{Delays, Faults, Seen, Setting};

/// Where true time begins: long after the moment zero, which stands for never.
const BEGINNING: u64 = 1_000_000_000;
/// A state that is not at rest by then never will be.
const HORIZON: u64 = BEGINNING + 20_000_000;

#[derive(Debug, Clone)]
pub struct State {
    pub(super) now: u64,
    pub(super) hosts: Vec<Part<Host>>,
    pub(super) flying: Vec<Flying>,
    pub(super) faults: Faults,
    pub(super) invokes: [u8; 3],
    pub(super) invoked: [u8; 3],
    pub(super) asks: [Asks; 3],
    pub(super) fewer: Fewer,
    pub(super) large: bool,
    pub(super) slow_gossip: bool,
    pub(super) delays: Delays,
    pub(super) specs: Arc<[Arc<ActionSpec>]>,
    pub(super) judge: Part<Judge>,
    violation: Option<Violation>,
    /// What the last move reached.
    seen: u32,
}

/// A machine with one node on it, through all its lives.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) epoch: Epoch,
    /// None while it is down.
    pub(super) node: Option<Node>,
    rate_ppm: i64,
    blank: Blank,
    /// Calls of the engine that have not ended, with how many deadlines have passed since.
    pub(super) ops: BTreeMap<(u64, Op), u8>,
    /// Calls of peers whose answer is to come.
    pub(super) parked: BTreeSet<RequestId>,
    pub(super) runs: BTreeMap<RunId, PeerRun>,
    pub(super) shows: BTreeMap<ActionHash, Advert>,
    /// What gossip has shown it of each other host.
    pub(super) sees: BTreeMap<usize, Facts>,
}

impl Host {
    pub(super) fn capacity_mb(&self) -> u64 {
        self.blank.config.memory_mb
    }

    pub(super) fn stubborn(&self) -> bool {
        self.blank.stubborn
    }
}

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) epoch: Epoch,
    pub(super) up: bool,
    pub(super) room_mb: u64,
    pub(super) adverts: BTreeMap<ActionHash, Advert>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Op {
    Start,
    Pause,
    Resume,
    Remove,
    Run(RunId),
}

/// What each life of a node begins with.
#[derive(Debug, Clone)]
struct Blank {
    config: Arc<embermesh_core::Config>,
    stubborn: bool,
}

/// Objects to everything for as long as it may.
#[derive(Debug)]
struct Stubborn;

impl VetoPolicy for Stubborn {
    fn hold(&self, view: &VetoView) -> Option<u64> {
        Some(view.max_hold_us)
    }
}

impl State {
    /// All nodes are up and know each other, and each container is warm and was used once.
    pub(super) fn first(setting: &Setting) -> Self {
        let host = |n: usize| Host {
            id: NodeId::new(["n0", "n1", "n2"][n]),
            epoch: Epoch(1),
            node: None,
            rate_ppm: setting.rates[n],
            blank: Blank { config: Arc::new(setting.config(n)), stubborn: setting.stubborn && n > 0 },
            ops: BTreeMap::new(),
            parked: BTreeSet::new(),
            runs: BTreeMap::new(),
            shows: BTreeMap::new(),
            sees: BTreeMap::new(),
        };
        let mut state = Self {
            now: BEGINNING,
            hosts: (0..setting.nodes).map(|n| Part::new(host(n))).collect(),
            flying: Vec::new(),
            faults: setting.faults,
            invokes: [0; 3],
            invoked: [0; 3],
            asks: [Asks::Still; 3],
            fewer: Fewer::of(setting),
            large: setting.large,
            slow_gossip: setting.slow_gossip,
            delays: setting.delays,
            specs: (0..setting.containers).map(|n| setting.spec(n)).collect(),
            judge: Part::new(Judge::default()),
            violation: None,
            seen: 0,
        };
        for n in 0..setting.nodes {
            state.up(n);
        }
        for action in 0..setting.containers {
            state.invokes = [1, 0, 0];
            state.invoke(0, action);
            while let Some((container, op)) = state.hosts[0].ops.keys().next().copied() {
                state.engine(0, container, op, embermesh_core::input::RunEnd::Answered);
            }
        }
        for to in 0..setting.nodes {
            for from in (0..setting.nodes).filter(|from| *from != to) {
                state.pull(to, from);
            }
        }
        state.invokes = setting.invokes;
        state.seen = 0;
        state.settle();
        state
    }

    /// After each move: what is over is dropped, and what has changed is hashed.
    pub(super) fn settle(&mut self) {
        self.forget_what_is_over();
        for host in 0..self.hosts.len() {
            let clock = self.clock(host);
            self.hosts[host].settle(clock);
        }
        self.judge.settle(Time(self.now));
    }

    pub(super) fn up(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        here.epoch = Epoch(here.epoch.0 + 1);
        let mut node = Node::new(here.id.clone(), here.epoch, here.blank.config.clone(), 7)
            .with_estimates(Estimates::frozen().assuming_start("image", 1_500))
            .with_history();
        if here.blank.stubborn {
            node = node.with_policies(Arc::new(Stubborn), Arc::new(GreedyDual));
        }
        here.epoch = node.epoch();
        here.node = Some(node);
        self.step(host, Input::Tick);
    }

    /// One step of a node, looked at from all sides.
    pub(super) fn step(&mut self, host: usize, input: Input) {
        let compared = matches!(input, Input::VetoReceived { .. } | Input::ReleaseReceived { .. });
        if compared {
            // What is due fires first, so that the step itself can be compared.
            self.step(host, Input::Tick);
        }
        let clock = self.clock(host);
        let races = self.races_expiry(host, &input);
        if self.violation.is_some() || self.hosts[host].node.is_none() {
            return;
        }
        let before = compared.then(|| self.hosts[host].share());
        let Some(node) = &mut self.hosts[host].node else { return };
        let mut outputs = Vec::new();
        let handled = catch_unwind(AssertUnwindSafe(|| node.handle(clock, input.clone(), &mut outputs)));
        if let Err(panic) = handled {
            let what = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".to_owned());
            return self.violated("the core's own assertions", what);
        }
        for output in &outputs {
            if let Output::History(record) = output {
                self.note_record(&record.what);
                if races && matches!(&record.what, What::RunBegan { lease: Some(lease), .. } if lease.renewed) {
                    self.reached(Seen::RenewedLate);
                }
                if let Err(violation) = self.judge.observe(record) {
                    self.violation = Some(violation);
                    return;
                }
            }
            self.note_output(output);
        }
        let before = before.as_ref().and_then(|host| host.node.as_ref());
        let step = before.and_then(|before| Some((before, &input, self.hosts[host].node.as_ref()?)));
        if let Err(violation) = self.judge.look(&self.glance(step)) {
            self.violation = Some(violation);
            return;
        }
        self.carry_out(host, outputs);
    }

    /// What a container sees, which no step of its node tells.
    pub(super) fn tell(&mut self, host: usize, what: What) {
        let here = &self.hosts[host];
        let record = Record { at: self.clock(host), node: here.id.clone(), epoch: here.epoch, step: 0, what };
        if let Err(violation) = self.judge.observe(&record) {
            self.violation.get_or_insert(violation);
        }
    }

    /// What does not hold here, if anything.
    pub(super) fn verdict(&self) -> Option<Violation> {
        if let Some(violation) = &self.violation {
            return Some(violation.clone());
        }
        if self.now > HORIZON {
            let what = "things go on for ever".to_owned();
            return Some(Violation { invariant: "the mesh comes to rest", what, story: Vec::new() });
        }
        if self.is_quiet() {
            return self.judge.at_rest(&self.glance(None)).err();
        }
        let mut moves = Vec::new();
        self.moves(&mut moves);
        moves.is_empty().then(|| {
            let what = "something is under way, and nothing can happen any more".to_owned();
            Violation { invariant: "the mesh comes to rest", what, story: Vec::new() }
        })
    }

    /// Nothing is on its way and nobody waits for anything.
    pub(super) fn is_quiet(&self) -> bool {
        let quiet = |host: &Part<Host>| {
            host.ops.is_empty() && host.node.as_ref().is_some_and(|node| node.next_deadline().is_none())
        };
        self.flying.is_empty() && self.hosts.iter().all(quiet) && self.pulls().next().is_none()
    }

    pub(super) fn violated(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what, story: Vec::new() });
    }

    pub(super) fn is_over(&self) -> bool {
        self.violation.is_some()
    }

    fn glance<'a>(&'a self, step: Option<(&'a Node, &'a Input, &'a Node)>) -> Glance<'a> {
        let up = (0..self.hosts.len()).filter_map(|host| Some((self.hosts[host].node.as_ref()?, self.clock(host))));
        Glance { nodes: up.collect(), step }
    }

    /// The host's clock now.
    pub(super) fn clock(&self, host: usize) -> Time {
        let gained = i128::from(self.now) * i128::from(self.hosts[host].rate_ppm) / 1_000_000;
        Time((i128::from(self.now) + gained) as u64)
    }

    /// When the node's next deadline comes, by the true time.
    pub(super) fn wake_at(&self, host: usize) -> Option<u64> {
        let here = &self.hosts[host];
        let deadline = i128::from(here.node.as_ref()?.next_deadline()?.0);
        let rate = 1_000_000 + i128::from(here.rate_ppm);
        let mut at = (deadline * 1_000_000 / rate) as u64;
        let clock = |at: u64| i128::from(at) + i128::from(at) * i128::from(here.rate_ppm) / 1_000_000;
        while clock(at) < deadline {
            at += 1;
        }
        Some(at.max(self.now))
    }

    pub(super) fn reached(&mut self, what: Seen) {
        self.seen |= what.bit();
    }

    pub(super) fn take_seen(&mut self) -> u32 {
        std::mem::take(&mut self.seen)
    }

    fn note_record(&mut self, what: &What) {
        let reached = match what {
            What::Granted { request, .. } => {
                let mut granted = self.hosts[0].node.iter().flat_map(Node::granted_leases);
                let two = granted.any(|lease| lease.holder != request.holder);
                drop(granted);
                if two {
                    self.reached(Seen::TwoHolders);
                }
                Seen::Grant
            }
            What::GrantRepeated { .. } => Seen::GrantRepeated,
            What::RunBegan { lease: Some(lease), .. } if lease.renewed => Seen::Renewed,
            What::RunJoined { .. } => Seen::RunJoined,
            What::RunEnded { end: embermesh_core::input::RunEnd::NeverStarted, .. } => Seen::NotBegun,
            What::Expired { container, .. } => {
                let node = self.hosts[0].node.as_ref();
                let there = node.and_then(|n| n.containers().find(|c| c.id.number == *container));
                if there.is_some_and(|c| !c.container.runs().is_empty()) {
                    self.reached(Seen::RunOutlivesLease);
                }
                Seen::Expired
            }
            What::Opened { last_word: true, .. } => Seen::LastWord,
            What::Closed { end, .. } => match end {
                IntentEnd::Committed => Seen::Committed,
                IntentEnd::Vetoed { .. } => Seen::Vetoed,
                IntentEnd::Used => Seen::GrantInWindow,
                IntentEnd::Late => Seen::LateRound,
                IntentEnd::Overtaken => return,
            },
            What::Gone { .. } => Seen::Removed,
            _ => return,
        };
        self.reached(reached);
    }

    /// Whether this is a run on a lease that its holder would not use any more: it races against the expiry.
    fn races_expiry(&self, host: usize, input: &Input) -> bool {
        let Input::RunReceived { fence, .. } = input else { return false };
        let config = &self.hosts[host].blank.config;
        let mut granted = self.hosts[host].node.iter().flat_map(Node::granted_leases);
        granted.any(|l| l.fence == *fence && l.expires_in_us <= config.margin_us + config.grace_us)
    }

    fn note_output(&mut self, output: &Output) {
        let reached = match output {
            Output::AnswerReserve { answer: embermesh_core::output::ReserveAnswer::Denied { denial, .. }, .. } => {
                if *denial == embermesh_core::output::Denial::WrongEpoch {
                    self.reached(Seen::OldEpochRefused);
                }
                Seen::Denied
            }
            Output::AnswerRun { answer: RunAnswer::Accepted { .. }, .. } => Seen::HeldRun,
            Output::AnswerRun { answer: RunAnswer::Refused(refusal), .. } => match refusal {
                RunRefusal::WrongEpoch => Seen::OldEpochRefused,
                RunRefusal::UnknownLease | RunRefusal::UnknownContainer => Seen::FenceRefused,
                _ => return,
            },
            Output::Indeterminate { .. } => Seen::Indeterminate,
            _ => return,
        };
        self.reached(reached);
    }
}

/// Two states are the same if the same can become of them: moments count relative to now.
impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for host in &self.hosts {
            host.print().hash(state);
        }
        self.judge.print().hash(state);
        for flying in &self.flying {
            (flying.key, flying.lag).hash(state);
        }
        self.faults.hash(state);
        self.invokes.hash(state);
        self.violation.is_some().hash(state);
    }
}

impl Hash for Host {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.node.hash(state);
        self.epoch.hash(state);
        self.ops.hash(state);
        self.parked.hash(state);
        self.runs.hash(state);
        self.shows.hash(state);
        self.sees.hash(state);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        use std::hash::DefaultHasher;
        let hash = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}
