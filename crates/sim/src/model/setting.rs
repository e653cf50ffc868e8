//! The configurations. Each is small enough to be looked at completely, and says what it has to reach: one that did
//! not reach it proves nothing.

use std::sync::Arc;

use embermesh_core::{ActionId, ActionSpec, Config, NodeId, Revision};

/// One configuration. The first node owns the containers; the others have no room for any.
#[derive(Debug, Clone)]
pub struct Setting {
    pub name: &'static str,
    pub nodes: usize,
    /// Actions, each with one container of its own.
    pub containers: usize,
    pub slots: u32,
    /// How many activations each node accepts, at moments of its choice.
    pub invokes: [u8; 3],
    /// Bodies follow on the lease instead of travelling with the Reserve.
    pub large: bool,
    pub idempotent: bool,
    /// Clock rates in parts per million off the true one.
    pub rates: [i64; 3],
    /// Peers object to every intent that they hear of.
    pub stubborn: bool,
    /// How many deadlines may pass before a message arrives, a call of the engine ends, and a run ends.
    pub delays: Delays,
    /// Gossip may show what is new at any moment; otherwise whenever time goes on.
    pub slow_gossip: bool,
    pub faults: Faults,
    /// No state is spared that tells nothing new: see `fewer`.
    pub whole: bool,
    pub expects: &'static [Seen],
}

#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub message: u8,
    pub engine: u8,
    pub run: u8,
}

/// How many of each kind may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A message is lost. If it is a request or an answer, its caller hears that the call failed.
    pub lose: u8,
    /// A message arrives twice.
    pub repeat: u8,
    /// Any node goes down, and comes back in a new epoch.
    pub crash: u8,
    /// A node is not woken by a deadline, until something else reaches it.
    pub stall: u8,
    /// A run's connection breaks, it is over its time-out, or its body never reaches the container.
    pub run: u8,
    /// An operator opens an intent, used or not.
    pub operator: u8,
    /// Gossip shows a node in its epoch before.
    pub stale: u8,
}

/// What a configuration may have to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Seen {
    Grant,
    Denied,
    HeldRun,
    Renewed,
    /// After its holder would have stopped using it, before its owner would have taken it back.
    RenewedLate,
    Expired,
    TwoHolders,
    RunOutlivesLease,
    Committed,
    Vetoed,
    GrantInWindow,
    LateRound,
    LastWord,
    GrantRepeated,
    RunJoined,
    FenceRefused,
    OldEpochRefused,
    RestartWithLease,
    Indeterminate,
    NotBegun,
    Removed,
}

impl Seen {
    pub(super) fn bit(self) -> u32 {
        1 << self as u8
    }
}

const CALM: Faults = Faults { lose: 0, repeat: 0, crash: 0, stall: 0, run: 0, operator: 0, stale: 0 };

const BASE: Setting = Setting {
    name: "",
    nodes: 3,
    containers: 1,
    slots: 1,
    invokes: [0, 1, 1],
    large: false,
    idempotent: false,
    rates: [0; 3],
    stubborn: false,
    delays: Delays { message: 1, engine: 1, run: 1 },
    slow_gossip: false,
    faults: CALM,
    whole: false,
    expects: &[],
};

impl Setting {
    /// What every change has to pass: less than a minute together, the longest last.
    pub fn small() -> Vec<Setting> {
        use Seen::*;
        let one = Setting { nodes: 2, invokes: [0, 1, 0], ..BASE };
        vec![
            Setting {
                name: "one peer, one activation",
                expects: &[Grant, Expired, Committed, GrantInWindow, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, a message lost",
                faults: Faults { lose: 1, ..CALM },
                expects: &[GrantRepeated, RunJoined, Expired, Committed, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, two messages lost",
                faults: Faults { lose: 2, ..CALM },
                expects: &[GrantRepeated, RunJoined, Indeterminate],
                ..one.clone()
            },
            Setting {
                name: "one peer, two slots, a message twice",
                slots: 2,
                faults: Faults { repeat: 1, ..CALM },
                expects: &[GrantRepeated, RunJoined, Committed, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, a node goes down",
                faults: Faults { crash: 1, ..CALM },
                expects: &[RestartWithLease, OldEpochRefused, Indeterminate, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, its idempotent activation, an owner that goes down",
                idempotent: true,
                delays: Delays { message: 1, engine: 0, run: 1 },
                faults: Faults { crash: 1, stale: 1, ..CALM },
                expects: &[RestartWithLease, OldEpochRefused, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, a node that sleeps through a deadline",
                faults: Faults { stall: 1, ..CALM },
                expects: &[LateRound, Committed, Expired, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, an operator's intent",
                faults: Faults { operator: 1, ..CALM },
                expects: &[Grant, GrantInWindow, Committed, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer that objects to everything",
                stubborn: true,
                delays: Delays { message: 2, ..BASE.delays },
                expects: &[Vetoed, LastWord, Committed, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, a run that fails",
                faults: Faults { run: 1, ..CALM },
                expects: &[NotBegun, Grant, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, clocks at different rates, concurrency two, a run in flight at expiry",
                slots: 2,
                rates: [10_000, -10_000, 0],
                delays: Delays { message: 1, engine: 0, run: 5 },
                expects: &[RunOutlivesLease, Expired, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, two activations",
                invokes: [0, 2, 0],
                delays: Delays { message: 1, engine: 0, run: 1 },
                expects: &[Grant, HeldRun, Renewed, RenewedLate, Expired, Committed, GrantInWindow, Removed],
                ..one.clone()
            },
            Setting {
                name: "one peer, body on the lease, a message twice, slow messages",
                large: true,
                delays: Delays { message: 2, ..BASE.delays },
                faults: Faults { repeat: 1, ..CALM },
                expects: &[HeldRun, Renewed, Expired, GrantRepeated, RunJoined, FenceRefused],
                ..one
            },
            Setting {
                name: "two peers at once, two slots",
                slots: 2,
                delays: Delays { message: 1, engine: 0, run: 0 },
                expects: &[Grant, TwoHolders, Expired, Committed, Removed],
                ..BASE
            },
        ]
    }

    /// Two peers, with one slot and with two, and one fault of each kind; or two containers. Messages, engine and runs are
    /// so quick that no deadline passes meanwhile unless a fault makes it. What every change has to pass as well.
    pub fn prompt() -> Vec<Setting> {
        use Seen::*;
        let prompt = Delays { message: 0, engine: 0, run: 0 };
        let two = |name, slots, faults, expects| Setting { name, slots, faults, expects, delays: prompt, ..BASE };
        let lose = Faults { lose: 1, ..CALM };
        let repeat = Faults { repeat: 1, ..CALM };
        let crash = Faults { crash: 1, ..CALM };
        let stall = Faults { stall: 1, ..CALM };
        let operator = Faults { operator: 1, ..CALM };
        let run = Faults { run: 1, ..CALM };
        // Only who went down has a life before.
        let stale = Faults { crash: 1, stale: 1, ..CALM };
        let stubborn = |setting| Setting { stubborn: true, ..setting };
        let rates = |setting| Setting { rates: [10_000, -10_000, 0], ..setting };
        let large = |setting| Setting { large: true, ..setting };
        vec![
            two("two prompt peers, one slot", 1, CALM, &[Grant, Denied, HeldRun, Renewed, Expired, Committed, Removed]),
            two("two prompt peers, two slots", 2, CALM, &[TwoHolders, HeldRun, Renewed, Expired, Committed, Removed]),
            two(
                "two prompt peers, one slot, a message lost",
                1,
                lose,
                &[Denied, GrantRepeated, RunJoined, Vetoed, LastWord, Committed],
            ),
            two(
                "two prompt peers, two slots, a message lost",
                2,
                lose,
                &[TwoHolders, GrantRepeated, RunJoined, Vetoed, LastWord, Committed],
            ),
            two("two prompt peers, one slot, a message twice", 1, repeat, &[Denied, GrantRepeated, RunJoined]),
            two("two prompt peers, two slots, a message twice", 2, repeat, &[TwoHolders, GrantRepeated, RunJoined]),
            two(
                "two prompt peers, one slot, a node goes down",
                1,
                crash,
                &[Denied, RestartWithLease, OldEpochRefused, Indeterminate],
            ),
            two(
                "two prompt peers, two slots, a node goes down",
                2,
                crash,
                &[TwoHolders, RestartWithLease, OldEpochRefused, Indeterminate],
            ),
            two("two prompt peers, one slot, a deadline slept through", 1, stall, &[Denied, LateRound, Vetoed]),
            two(
                "two prompt peers, two slots, a deadline slept through",
                2,
                stall,
                &[TwoHolders, LateRound, Vetoed, RunOutlivesLease],
            ),
            two("two prompt peers, one slot, an operator's intent", 1, operator, &[Denied, GrantInWindow, Vetoed]),
            two("two prompt peers, two slots, an operator's intent", 2, operator, &[TwoHolders, GrantInWindow, Vetoed]),
            two("two prompt peers, one slot, a run that fails", 1, run, &[Denied, NotBegun]),
            two("two prompt peers, two slots, a run that fails", 2, run, &[TwoHolders, NotBegun, RunOutlivesLease]),
            two(
                "two prompt peers, one slot, a life that is over shown again",
                1,
                stale,
                &[Denied, RestartWithLease, OldEpochRefused],
            ),
            two(
                "two prompt peers, two slots, a life that is over shown again",
                2,
                stale,
                &[TwoHolders, RestartWithLease, OldEpochRefused],
            ),
            rates(two("two prompt peers, one slot, clocks at different rates", 1, CALM, &[Denied, Expired, Removed])),
            rates(two("two prompt peers, two slots, clocks at different rates", 2, CALM, &[TwoHolders, Expired])),
            stubborn(two(
                "two prompt peers that object to everything, one slot",
                1,
                CALM,
                &[Vetoed, LastWord, Removed],
            )),
            stubborn(two(
                "two prompt peers that object to everything, two slots",
                2,
                CALM,
                &[TwoHolders, Vetoed, LastWord, Removed],
            )),
            large(two(
                "two prompt peers, two slots, bodies on the lease, a message twice",
                2,
                repeat,
                &[TwoHolders, HeldRun, GrantRepeated, RunJoined],
            )),
            Setting {
                name: "two prompt peers, two containers",
                containers: 2,
                delays: prompt,
                expects: &[Grant, TwoHolders, Expired, Removed],
                ..BASE
            },
        ]
    }

    /// What is looked at by hand, in an hour at most.
    pub fn large() -> Vec<Setting> {
        use Seen::*;
        let quick = Delays { message: 1, engine: 0, run: 1 };
        // No deadline passes while something runs: with one, a fault among two peers takes too long.
        let brief = Delays { run: 0, ..quick };
        let two = |name, slots, faults, expects| Setting { name, slots, faults, expects, delays: brief, ..BASE };
        vec![
            Setting {
                name: "two peers, one slot",
                expects: &[Grant, Denied, Expired, Committed, GrantInWindow, Removed],
                ..BASE
            },
            Setting {
                name: "two peers, two slots",
                slots: 2,
                expects: &[Grant, TwoHolders, Expired, Committed, GrantInWindow, Removed],
                ..BASE
            },
            Setting {
                name: "one peer, two activations, slow messages, a message lost",
                nodes: 2,
                invokes: [0, 2, 0],
                delays: Delays { message: 2, engine: 0, run: 0 },
                faults: Faults { lose: 1, ..CALM },
                expects: &[HeldRun, Renewed, FenceRefused, RunJoined, Removed],
                ..BASE
            },
            Setting {
                name: "one peer, two activations, slow gossip, clocks at different rates",
                nodes: 2,
                invokes: [0, 2, 0],
                rates: [-10_000, 10_000, 0],
                slow_gossip: true,
                delays: quick,
                expects: &[HeldRun, Renewed, Expired, Removed],
                ..BASE
            },
            Setting {
                name: "the owner's own activation and a peer's",
                nodes: 2,
                invokes: [1, 1, 0],
                faults: Faults { repeat: 1, ..CALM },
                delays: quick,
                expects: &[Grant, Denied, Expired, Removed],
                ..BASE
            },
            two(
                "two peers, one slot, a message lost",
                1,
                Faults { lose: 1, ..CALM },
                &[Denied, GrantRepeated, RunJoined, FenceRefused],
            ),
            two("two peers, two slots, a message twice", 2, Faults { repeat: 1, ..CALM }, &[TwoHolders, GrantRepeated]),
            two("two peers, two slots, a node goes down", 2, Faults { crash: 1, ..CALM }, &[RestartWithLease]),
            two("two peers, one slot, a deadline slept through", 1, Faults { stall: 1, ..CALM }, &[LateRound]),
            two("two peers, one slot, an operator's intent", 1, Faults { operator: 1, ..CALM }, &[GrantInWindow]),
            two("two peers, two slots, a run that fails", 2, Faults { run: 1, ..CALM }, &[NotBegun]),
        ]
    }

    pub(super) fn spec(&self, n: usize) -> Arc<ActionSpec> {
        Arc::new(ActionSpec {
            action: ActionId::new("red", ["a", "b"][n % 2]),
            revision: Revision { counter: 1, node: NodeId::new("n0") },
            concurrency: self.slots,
            memory_mb: 256,
            timeout_us: 20_000,
            idempotent: self.idempotent,
            image: "image".into(),
        })
    }

    /// Shrunk, with margins as tight as they may be.
    pub(super) fn config(&self, host: usize) -> Config {
        Config {
            ttl_us: 10_000,
            margin_us: 100,
            grace_us: 110,
            max_lease_age_us: 15_000,
            window_us: 3_000,
            urgent_window_us: 500,
            max_hold_us: 4_000,
            pause_grace_us: 4_000,
            concurrent_grace_us: 4_000,
            idle_timeout_us: 6_000,
            gossip_interval_us: 1_000,
            max_wait_us: 2_000,
            max_memory_wait_us: 5_000,
            max_queue_wait_us: 15_000,
            memory_mb: if host == 0 { 256 * self.containers as u64 } else { 0 },
            small_body_bytes: 1_000,
            answers_per_holder: 8,
            advert_interval_us: 0,
            decide_interval_us: 16_000,
            ..Config::default()
        }
    }
}
