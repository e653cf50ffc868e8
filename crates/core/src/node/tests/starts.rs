//! The start stage: permits, memory, turns, eviction.

use super::*;
use crate::output::{IntentKind, Refusal};

fn begun(out: &[Output]) -> Vec<String> {
    let starts = out.iter().filter_map(|o| match o {
        Output::StartContainer { action, .. } => Some(action.namespace().to_owned()),
        _ => None,
    });
    starts.collect()
}

fn evicted(out: &[Output]) -> Vec<u64> {
    let victims = out.iter().filter_map(|o| match o {
        Output::Event(Event::Evicting { container, .. }) => Some(*container),
        _ => None,
    });
    victims.collect()
}

fn actions(namespace: &str, count: usize) -> Vec<Arc<ActionSpec>> {
    (0..count).map(|n| named(namespace, &format!("a{n}"), 1)).collect()
}

/// Two paused containers that fill the memory; the second has served more.
fn full() -> (Rig, [u64; 2]) {
    let mut rig = Rig::with(Config { memory_mb: 512, pause_grace_us: 2 * SECOND, ..Config::default() });
    let (first, second) = (named("ns", "first", 1), named("ns", "second", 1));
    let a = rig.warm(&first);
    let b = rig.warm(&second);
    for id in 100..110 {
        let (_, run) = ran(&rig.invoke(id, &second)).unwrap();
        rig.finish(b, run, RunEnd::Answered);
    }
    rig.pass(4 * SECOND);
    for container in [a, b] {
        rig.tell(Input::PauseEnded { container, ok: true });
        assert_eq!(rig.state(container), Some(Lifecycle::Paused));
    }
    (rig, [a, b])
}

#[test]
fn no_more_starts_run_at_once_than_there_are_permits() {
    let mut rig = Rig::with(Config { parallel_starts: 2, ..Config::default() });
    let mut out = Vec::new();
    for (id, spec) in actions("ns", 3).iter().enumerate() {
        out.extend(rig.invoke(id as u128, spec));
    }
    assert_eq!(starts(&out), 2);
    let out = rig.tell(Input::ContainerCreated { container: started(&out).unwrap() });
    assert_eq!(starts(&out), 1, "the permit is for the engine's work alone");
}

#[test]
fn starts_never_take_more_memory_than_the_limit() {
    let mut rig = Rig::with(Config { memory_mb: 600, ..Config::default() });
    for (id, spec) in actions("ns", 5).iter().enumerate() {
        rig.invoke(id as u128, spec);
    }
    assert_eq!(rig.node.memory_used_mb(), 512);
}

#[test]
fn an_action_larger_than_the_node_is_never_started_here() {
    let mut rig = Rig::without_memory();
    let mut out = rig.invoke(1, &spec(1));
    out.extend(rig.pass(70 * SECOND));
    assert_eq!(starts(&out), 0);
    assert!(matches!(refused(&out)[..], [(1, Refusal::NoCapacity { .. })]));
}

#[test]
fn namespaces_take_turns_at_the_permits() {
    let mut rig = Rig::with(Config { parallel_starts: 1, ..Config::default() });
    let mut out = Vec::new();
    for (id, spec) in actions("greedy", 6).iter().enumerate() {
        out.extend(rig.invoke(id as u128, spec));
    }
    out.extend(rig.invoke(50, &named("modest", "a", 1)));
    let mut order = begun(&out);
    let mut last = started(&out);
    while let Some(container) = last {
        let out = rig.tell(Input::ContainerCreated { container });
        order.extend(begun(&out));
        last = started(&out);
    }
    let turn = order.iter().position(|namespace| namespace == "modest").unwrap();
    assert!(turn <= 2, "{order:?}");
}

#[test]
fn a_start_that_is_no_longer_needed_is_not_made() {
    let mut rig = Rig::with(Config { parallel_starts: 1, ..Config::default() });
    let first = started(&rig.invoke(1, &named("ns", "a", 1))).unwrap();
    rig.invoke(2, &named("ns", "b", 1));
    rig.tell(Input::InvokeCancelled { activation: ActivationId(2) });
    assert_eq!(starts(&rig.tell(Input::ContainerCreated { container: first })), 0);
}

#[test]
fn an_activation_whose_start_finds_no_memory_in_time_is_refused() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    rig.warm(&named("ns", "busy", 1));
    rig.invoke(1, &named("ns", "busy", 1));
    rig.invoke(2, &named("ns", "late", 1));
    assert!(refused(&rig.pass(10 * SECOND - 1)).is_empty());
    let out = rig.pass(1);
    assert!(matches!(refused(&out)[..], [(2, Refusal::NoCapacity { .. })]), "{out:?}");
}

#[test]
fn when_memory_is_short_the_container_worth_least_is_asked_for_by_an_urgent_intent() {
    let (mut rig, [unused, used]) = full();
    let out = rig.invoke(1, &named("ns", "new", 1));
    assert_eq!(evicted(&out), [unused], "not {used}, which served more");
    let urgent = out.iter().find_map(|o| match o {
        Output::SendIntent { notice, gossip, .. } => Some((notice.clone(), *gossip)),
        _ => None,
    });
    let (notice, gossip) = urgent.unwrap();
    assert!(notice.urgent && gossip);
    assert_eq!((notice.window_us, notice.kind), (100 * MS, IntentKind::Remove));
    assert!(rig.pass(100 * MS).contains(&Output::RemoveContainer { container: unused }));
    assert_eq!(starts(&rig.tell(Input::RemoveEnded { container: unused })), 1);
}

#[test]
fn an_urgent_eviction_that_is_vetoed_takes_its_next_victim() {
    let (mut rig, [first, second]) = full();
    rig.invoke(1, &named("ns", "new", 1));
    let round = rig.node.intents().iter().find(|i| i.notice.urgent).unwrap().notice.round;
    let from = NodeId::new("n2");
    rig.tell(Input::VetoReceived { from, container: own(first), round, hold_us: 30 * SECOND });
    let out = rig.pass(300 * MS);
    assert_eq!(evicted(&out), [second]);
    assert!(out.contains(&Output::RemoveContainer { container: second }));
    assert_eq!(rig.state(first), Some(Lifecycle::Paused));
}

#[test]
fn a_container_in_its_grace_or_before_its_first_run_is_no_victim() {
    let mut rig = Rig::with(Config { memory_mb: 512, ..Config::default() });
    rig.warm(&named("ns", "fresh", 1));
    let unused = named("ns", "unused", 1);
    let container = started(&rig.invoke(1, &unused)).unwrap();
    rig.created(container);
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    rig.ready(container);
    let mut out = rig.invoke(2, &named("ns", "new", 1));
    out.extend(rig.pass(5 * SECOND));
    assert_eq!(evicted(&out), []);
}

#[test]
fn a_used_container_is_no_victim() {
    let (mut rig, [first, second]) = full();
    rig.invoke(1, &named("ns", "first", 1));
    rig.tell(Input::ResumeEnded { container: first, ok: true });
    rig.reserve(&named("ns", "second", 1), Ask { wait_us: SECOND, ..Ask::default() });
    rig.tell(Input::ResumeEnded { container: second, ok: true });
    assert_eq!((rig.node.running(), rig.node.granted_leases().count()), (1, 1));
    let mut out = rig.invoke(2, &named("ns", "new", 1));
    out.extend(rig.pass(5 * SECOND));
    assert_eq!(evicted(&out), []);
}

#[test]
fn a_failed_start_gives_its_memory_back_when_the_engine_has_removed_it() {
    let mut rig = Rig::new();
    let container = started(&rig.invoke(1, &spec(1))).unwrap();
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    let failure = crate::input::StartFailure::Engine;
    let out = rig.tell(Input::ContainerFailed { container, failure });
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(rig.node.memory_used_mb(), 256);
    rig.tell(Input::RemoveEnded { container });
    assert_eq!(rig.node.memory_used_mb(), 0);
}

#[test]
fn a_removal_that_was_not_asked_for_changes_nothing() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let before = rig.node.clone();
    rig.tell(Input::RemoveEnded { container });
    assert_eq!(rig.node, before);
}

#[test]
fn a_start_that_waits_for_room_that_does_not_come_holds_up_no_other_that_fits() {
    let mut rig = Rig::with(Config { memory_mb: 640, ..Config::default() });
    let busy = named("busy", "a", 1);
    let out = rig.invoke(1, &busy);
    let container = started(&out).unwrap();
    rig.created(container);
    ran(&rig.ready(container)).unwrap();
    let large = Arc::new(ActionSpec { memory_mb: 512, ..(*named("large", "a", 1)).clone() });
    assert_eq!(starts(&rig.invoke(2, &large)), 0);
    rig.pass(6 * SECOND);
    assert_eq!(begun(&rig.invoke(3, &named("small", "a", 1))), ["small"]);
}

#[test]
fn a_container_that_nobody_needed_in_the_end_is_a_victim_after_its_grace() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let out = rig.invoke(1, &named("ns", "given-up", 1));
    let container = started(&out).unwrap();
    rig.created(container);
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    rig.ready(container);
    rig.pass(12 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    assert_eq!(rig.state(container), Some(Lifecycle::Paused));
    assert_eq!(evicted(&rig.invoke(2, &named("ns", "other", 1))), [container]);
}

#[test]
fn only_those_who_waited_too_long_for_memory_are_refused() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let out = rig.invoke(1, &named("busy", "a", 1));
    let container = started(&out).unwrap();
    rig.created(container);
    ran(&rig.ready(container)).unwrap();
    let waits = named("waits", "a", 1);
    rig.invoke(2, &waits);
    let mut out = rig.pass(9 * SECOND);
    rig.invoke(3, &waits);
    out.extend(rig.pass(3 * SECOND));
    let ids: Vec<u128> = refused(&out).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [2]);
}
