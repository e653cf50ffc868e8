//! Ring 1: the property test of the protocol.
#![allow(clippy::unwrap_used)]

use std::hash::Hash;

use embermesh_core::Node;
use embermesh_sim::mesh::plan::{self, Fate, Op, Plan, Setting};
use embermesh_sim::mesh::run;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

proptest! {
    #![proptest_config(plan::config())]

    #[test]
    fn every_invariant_holds_over_an_unreliable_network(plan in plan::plans()) {
        let violation = run(&plan).violation;
        prop_assert!(violation.is_none(), "{}", violation.unwrap());
    }
}

/// Runs that prove nothing must not pass for proof: each way of being served, refused and ended occurs.
#[test]
fn the_cases_reach_every_part_of_the_protocol() {
    let mut seen = std::collections::BTreeMap::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..80 {
        let plan = plan::plans().new_tree(&mut runner).unwrap().current();
        let outcome = run(&plan);
        assert_eq!(outcome.violation, None);
        for (what, times) in outcome.seen {
            *seen.entry(what).or_insert(0) += times;
        }
    }
    let expected = [
        "answered here",
        "answered by a peer",
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
        "withdrawn",
    ];
    let missing: Vec<_> = expected.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}; happened: {seen:?}");
}

#[test]
fn ten_nodes_that_want_the_same_action_at_once_make_about_one_cold_start() {
    let invoke = |node| Op::Invoke { node, action: 0, large: false, service_ms: 2, fate: Fate::Answer };
    let ops = std::iter::once(Op::Advance { ms: 1_000 }).chain((0..10).map(invoke)).collect();
    let outcome = run(&Plan { setting: Setting { nodes: 10, ..Setting::calm(7) }, ops });
    assert_eq!(outcome.violation, None);
    let times = |what: &str| outcome.seen.get(what).copied().unwrap_or(0);
    assert_eq!(times("answered here") + times("answered by a peer"), 10, "{:?}", outcome.seen);
    assert!((1..=2).contains(&times("start")), "{:?}", outcome.seen);
}

/// A model checker holds nodes as values.
#[test]
fn a_node_is_a_value_that_can_be_copied_compared_and_hashed() {
    fn value<T: Clone + Eq + Hash + Send + Sync>() {}
    value::<Node>();
}
