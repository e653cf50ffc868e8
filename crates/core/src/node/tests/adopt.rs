//! Containers of an earlier life: taken over, or let go. And those that are left for the next one.

use super::*;
use crate::output::{IntentKind, Served};

fn found(spec: &Arc<ActionSpec>) -> Input {
    Input::ContainerFound { found: 7, spec: spec.clone() }
}

fn adopting(out: &[Output]) -> Option<u64> {
    out.iter().find_map(|o| match o {
        Output::AdoptContainer { found: 7, container } => Some(*container),
        _ => None,
    })
}

fn adopted(container: u64, paused: bool) -> Input {
    Input::ContainerAdopted { container, paused }
}

fn ran_in(out: &[Output]) -> Option<u64> {
    out.iter().find_map(|o| match o {
        Output::RunLocal { container, .. } => Some(*container),
        _ => None,
    })
}

fn drained(out: &[Output]) -> Option<Vec<u64>> {
    out.iter().find_map(|o| match o {
        Output::Drained(end) => Some(end.containers.clone()),
        _ => None,
    })
}

const DISCARDED: Output = Output::DiscardFound { found: 7 };
const HAND_OVER: Input = Input::HandOverRequested { deadline_us: 10 * SECOND };

#[test]
fn a_container_that_was_found_serves_under_a_new_number_once_it_is_quiet() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = adopting(&rig.tell(found(&spec))).unwrap();
    assert_eq!((rig.state(container), rig.node.memory_used_mb()), (Some(Lifecycle::Adopting), spec.memory_mb));
    // Nothing is granted or run in it before.
    rig.reserve(&spec, Ask::default());
    assert_eq!(rig.node.granted_leases().count(), 0);
    rig.tell(adopted(container, false));
    let out = rig.invoke(1, &spec);
    assert_eq!(ran_in(&out), Some(container));
    assert!(out.iter().any(|o| matches!(o, Output::RunLocal { served: Served::Local, .. })), "it paid for no start");
}

#[test]
fn a_call_that_waits_for_a_container_that_is_taken_over_gets_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = adopting(&rig.tell(found(&spec))).unwrap();
    assert!(ran(&rig.invoke(1, &spec)).is_none());
    let out = rig.tell(adopted(container, false));
    assert_eq!(ran_in(&out), Some(container));
}

#[test]
fn a_paused_one_is_taken_over_as_paused_and_resumed_when_it_is_needed() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = adopting(&rig.tell(found(&spec))).unwrap();
    rig.tell(adopted(container, true));
    assert_eq!(rig.state(container), Some(Lifecycle::Paused));
    assert!(rig.invoke(1, &spec).contains(&Output::ResumeContainer { container }));
}

#[test]
fn one_that_dies_before_it_is_taken_over_goes() {
    let mut rig = Rig::new();
    let container = adopting(&rig.tell(found(&spec(1)))).unwrap();
    let out = rig.tell(Input::ContainerDied { container });
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert!(rig.tell(adopted(container, false)).is_empty(), "what the engine says later changes nothing");
}

#[test]
fn one_that_does_not_fit_or_is_outdated_is_let_go() {
    let mut rig = Rig::with(Config { memory_mb: 128, ..Config::default() });
    assert!(rig.tell(found(&Arc::new(ActionSpec { memory_mb: 129, ..spec(1).as_ref().clone() }))).contains(&DISCARDED));
    let newer = Arc::new(ActionSpec { revision: revision(9), ..spec(1).as_ref().clone() });
    rig.invoke(1, &newer);
    assert!(rig.tell(found(&spec(1))).contains(&DISCARDED));
    let mut rig = Rig::new();
    rig.tell(HAND_OVER);
    assert!(rig.tell(found(&spec(1))).contains(&DISCARDED), "a node that ends takes nothing over");
}

#[test]
fn one_whose_action_changes_while_it_is_taken_over_retires() {
    let mut rig = Rig::new();
    let container = adopting(&rig.tell(found(&spec(1)))).unwrap();
    let newer = Arc::new(ActionSpec { revision: revision(9), ..spec(1).as_ref().clone() });
    rig.tell(Input::ActionChanged { spec: newer });
    assert!(rig.tell(adopted(container, false)).contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_node_that_hands_over_keeps_its_idle_containers_and_takes_nothing_new() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let out = rig.tell(HAND_OVER);
    assert_eq!(drained(&out), Some(Vec::new()));
    assert!(!out.contains(&Output::RemoveContainer { container }));
    assert_eq!(rig.node.handed_over(), [container]);
    assert!(ran(&rig.invoke(1, &spec)).is_none());
    assert!(
        !rig.pass(3600 * SECOND).iter().any(|o| matches!(o, Output::RemoveContainer { .. })),
        "nor does it go idle"
    );
}

#[test]
fn a_node_that_hands_over_waits_for_runs_and_tells_of_those_that_do_not_end() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    assert_eq!(drained(&rig.tell(HAND_OVER)), None);
    assert_eq!(drained(&rig.pass(11 * SECOND)), Some(vec![container]));
    assert!(rig.node.handed_over().is_empty());
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(rig.node.handed_over(), [container], "it may end later, and stays all the same");
}

#[test]
fn a_container_with_a_run_over_its_time_out_is_not_handed_over() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(HAND_OVER);
    let out = rig.finish(container, run, RunEnd::TimedOut);
    assert!(out.contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_paused_container_stays_paused_for_the_next_life() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    rig.pass(11 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let out = rig.tell(HAND_OVER);
    assert_eq!((drained(&out), rig.node.handed_over()), (Some(Vec::new()), vec![container]));
    assert_eq!(rig.state(container), Some(Lifecycle::Paused));
}

#[test]
fn a_container_that_retires_for_another_reason_is_not_handed_over() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::IntentRequested { container, kind: IntentKind::Remove, force: true });
    rig.tell(HAND_OVER);
    assert!(rig.finish(container, run, RunEnd::Answered).contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_paused_container_can_be_removed_by_force_while_its_node_hands_over() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    rig.pass(11 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    rig.tell(HAND_OVER);
    let out = rig.tell(Input::IntentRequested { container, kind: IntentKind::Remove, force: true });
    assert!(out.contains(&Output::RemoveContainer { container }));
}
