//! What one case does. A plan is plain data, so that a failure shrinks to the few operations that matter.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::setup::ACTIONS;

/// How the world of a case is set up.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Feeds the network's and the engine's whims.
    pub seed: u64,
    pub nodes: usize,
    /// Clock rates in parts per million off the true one, at most ρ either way; repeated over the nodes.
    pub rates: [i64; 3],
    /// The longest that an owner holds a Reserve.
    pub wait_ms: u64,
    /// All object to every intent that they hear of.
    pub stubborn: bool,
    /// Nothing is lost, late or broken.
    pub calm: bool,
}

impl Setting {
    pub fn calm(seed: u64) -> Self {
        Self { seed, nodes: 3, rates: [0; 3], wait_ms: 1_000, stubborn: false, calm: true }
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub setting: Setting,
    pub ops: Vec<Op>,
}

/// How the body of an activation fares in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Answer,
    /// Longer than the action's time-out.
    TooLong,
    /// The connection breaks.
    Lost,
    /// The first container does not take it.
    NeverStartsOnce,
}

#[derive(Debug, Clone)]
pub enum Op {
    Invoke {
        node: usize,
        action: usize,
        large: bool,
        service_ms: u64,
        fate: Fate,
    },
    Cancel {
        nth: usize,
    },
    Advance {
        ms: u64,
    },
    Restart {
        node: usize,
        down_ms: u64,
    },
    Stall {
        node: usize,
        ms: u64,
    },
    Cut {
        a: usize,
        b: usize,
        ms: u64,
    },
    /// Gossip at `observer` takes `peer` for dead.
    Suspect {
        observer: usize,
        peer: usize,
    },
    /// Gossip delivers what was true of the peer's life before.
    StaleGossip {
        observer: usize,
        peer: usize,
    },
    Kill {
        node: usize,
        nth: usize,
    },
    Intent {
        node: usize,
        nth: usize,
        pause: bool,
        force: bool,
    },
    /// An operator objects to an intent that the node heard of.
    VetoHeard {
        node: usize,
    },
    /// A veto that names a wrong round, epoch or container.
    VetoAstray {
        from: usize,
        node: usize,
        nth: usize,
        how: u8,
    },
    Release {
        node: usize,
        nth: usize,
    },
    /// A release of a lease that another holds.
    ReleaseAstray {
        from: usize,
        node: usize,
    },
    /// A peer from outside takes a lease, then runs and releases with a fence that was never granted.
    Stranger {
        node: usize,
        action: usize,
    },
    Update {
        node: usize,
        action: usize,
    },
    Drain {
        node: usize,
        force: bool,
    },
}

/// The same cases each time, so that a change is judged by what it changes; PROPTEST_CASES asks for so many others.
pub fn config() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 4_000, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 256, rng_seed: RngSeed::Fixed(1), ..config },
    }
}

pub fn plans() -> impl Strategy<Value = Plan> {
    let rate = prop_oneof![Just(-10_000), Just(0), Just(10_000), -10_000..=10_000i64];
    let nodes = prop_oneof![4 => Just(3usize), 1 => Just(4usize)];
    let setting = (any::<u64>(), nodes, [rate.clone(), rate.clone(), rate], prop::bool::weighted(0.2))
        .prop_map(|(seed, nodes, rates, stubborn)| Setting { seed, nodes, rates, wait_ms: 200, stubborn, calm: false });
    (setting, prop::collection::vec(op(), 10..120)).prop_map(|(setting, ops)| Plan { setting, ops })
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..4usize;
    let nth = 0..6usize;
    let fate = prop_oneof![
        12 => Just(Fate::Answer),
        1 => Just(Fate::TooLong),
        1 => Just(Fate::Lost),
        1 => Just(Fate::NeverStartsOnce),
    ];
    let service = prop_oneof![4 => 1..20u64, 2 => 20..200u64, 1 => 200..380u64];
    prop_oneof![
        20 => (node.clone(), 0..ACTIONS, any::<bool>(), service, fate)
            .prop_map(|(node, action, large, service_ms, fate)| Op::Invoke { node, action, large, service_ms, fate }),
        16 => prop_oneof![3 => 0..30u64, 3 => 30..300u64, 1 => 300..1500u64].prop_map(|ms| Op::Advance { ms }),
        1 => nth.clone().prop_map(|nth| Op::Cancel { nth }),
        2 => (node.clone(), prop_oneof![0..4u64, 0..400u64]).prop_map(|(node, down_ms)| Op::Restart { node, down_ms }),
        2 => (node.clone(), 1..900u64).prop_map(|(node, ms)| Op::Stall { node, ms }),
        1 => (node.clone(), node.clone(), 1..800u64).prop_map(|(a, b, ms)| Op::Cut { a, b, ms }),
        1 => (node.clone(), node.clone()).prop_map(|(observer, peer)| Op::Suspect { observer, peer }),
        1 => (node.clone(), node.clone()).prop_map(|(observer, peer)| Op::StaleGossip { observer, peer }),
        1 => (node.clone(), nth.clone()).prop_map(|(node, nth)| Op::Kill { node, nth }),
        2 => (node.clone(), nth.clone(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(node, nth, pause, force)| Op::Intent { node, nth, pause, force }),
        2 => node.clone().prop_map(|node| Op::VetoHeard { node }),
        2 => (node.clone(), node.clone(), nth.clone(), 0..4u8)
            .prop_map(|(from, node, nth, how)| Op::VetoAstray { from, node, nth, how }),
        1 => (node.clone(), nth).prop_map(|(node, nth)| Op::Release { node, nth }),
        1 => (node.clone(), node.clone()).prop_map(|(from, node)| Op::ReleaseAstray { from, node }),
        1 => (node.clone(), 0..ACTIONS).prop_map(|(node, action)| Op::Stranger { node, action }),
        1 => (node.clone(), 0..ACTIONS).prop_map(|(node, action)| Op::Update { node, action }),
        1 => (node, any::<bool>()).prop_map(|(node, force)| Op::Drain { node, force }),
    ]
}
