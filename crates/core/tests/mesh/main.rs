//! The protocol under fire: nodes over a network that loses, repeats, delays and reorders, with clocks that run
//! at different rates, nodes that start again and owners that stall. After each step of each node every invariant
//! is looked at by its name.
//!
//! | file | what it plays |
//! | --- | --- |
//! | `plan` | what a case does, and how cases are drawn |
//! | `setup` | the numbers, the actions, a policy |
//! | `world` | time, clocks, hosts and the order of events |
//! | `network` | calls between nodes: the half of the driver that sends and answers |
//! | `gossip` | membership, facts and adverts, late and sometimes stale |
//! | `engine` | containers and the runs in them |
//! | `ledger` | what the checkers remember |
//! | `steps`, `states`, `ends` | the invariants: on a step, on a state, and when all is quiet |

#![allow(clippy::unwrap_used)]

mod ends;
mod engine;
mod gossip;
mod ledger;
mod network;
mod plan;
mod setup;
mod states;
mod steps;
mod world;

use std::hash::Hash;

use embermesh_core::Node;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::plan::{Plan, Setting};
use crate::world::World;

fn run(plan: &Plan) -> World {
    let mut world = World::new(&plan.setting);
    for op in &plan.ops {
        world.apply(op);
        if world.violation.is_some() {
            return world;
        }
    }
    world.heal();
    world.check_ends();
    world
}

proptest! {
    #![proptest_config(plan::config())]

    #[test]
    fn every_invariant_holds_over_an_unreliable_network(plan in plan::plans()) {
        let world = run(&plan);
        prop_assert!(world.violation.is_none(), "{}", world.violation.unwrap_or_default());
    }
}

/// Runs that prove nothing must not pass for proof: each way of being served, refused and ended occurs.
#[test]
fn the_cases_reach_every_part_of_the_protocol() {
    let mut seen = std::collections::BTreeMap::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..80 {
        let plan = plan::plans().new_tree(&mut runner).unwrap().current();
        let world = run(&plan);
        assert_eq!(world.violation, None);
        for (what, times) in world.ledger.seen {
            *seen.entry(what).or_insert(0) += times;
        }
    }
    let expected = [
        "answered here",
        "answered by a peer",
        "withdrawn",
        "refused",
        "indeterminate",
        "grant",
        "grant with a run",
        "the same grant again",
        "denied",
        "run on a held lease",
        "run joined",
        "run refused",
        "lease expired",
        "lease released",
        "recall",
        "veto counted",
        "veto ignored",
        "round Committed",
        "round Vetoed",
        "round Used",
        "round Late",
        "urgent",
        "home asked",
        "container died",
        "restart",
        "over its time-out",
        "never started",
    ];
    let missing: Vec<_> = expected.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}; happened: {seen:?}");
}

#[test]
fn ten_nodes_that_want_the_same_action_at_once_make_about_one_cold_start() {
    let mut world = World::new(&Setting { nodes: 10, ..Setting::calm(7) });
    world.apply(&plan::Op::Advance { ms: 1_000 });
    for node in 0..10 {
        world.apply(&plan::Op::Invoke { node, action: 0, large: false, service_ms: 2, fate: plan::Fate::Answer });
    }
    world.heal();
    world.check_ends();
    assert_eq!(world.violation, None);
    let times = |what: &str| world.ledger.seen.get(what).copied().unwrap_or(0);
    assert_eq!(times("answered here") + times("answered by a peer"), 10, "{:?}", world.ledger.seen);
    assert!((1..=2).contains(&times("start")), "{:?}", world.ledger.seen);
}

/// A model checker holds nodes as values.
#[test]
fn a_node_is_a_value_that_can_be_copied_compared_and_hashed() {
    fn value<T: Clone + Eq + Hash + Send + Sync>() {}
    value::<Node>();
}
