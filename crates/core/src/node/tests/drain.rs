//! Ending work on a node.

use super::*;
use crate::output::{Denial, DrainEnd, Refusal};

fn drain(deadline_us: Micros, force: bool) -> Input {
    Input::DrainRequested { deadline_us, force }
}

fn end(out: &[Output]) -> Option<DrainEnd> {
    out.iter().find_map(|o| match o {
        Output::Drained(end) => Some(end.clone()),
        _ => None,
    })
}

fn drained(out: &[Output]) -> Option<Vec<u64>> {
    end(out).map(|end| end.containers)
}

#[test]
fn a_draining_node_retires_its_containers_and_says_when_they_are_gone() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let out = rig.tell(drain(10 * SECOND, false));
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(drained(&out), None, "it blocks until it is empty");
    assert!(rig.node.draining());
    assert_eq!(drained(&rig.tell(Input::RemoveEnded { container })), Some(Vec::new()));
}

#[test]
fn an_empty_node_is_drained_at_once() {
    let mut rig = Rig::new();
    assert_eq!(drained(&rig.tell(drain(10 * SECOND, false))), Some(Vec::new()));
}

#[test]
fn a_draining_node_refuses_what_is_new_and_what_waits() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.invoke(2, &spec);
    assert_eq!(refused(&rig.tell(drain(10 * SECOND, false))), [(2, Refusal::Draining)]);
    assert_eq!(refused(&rig.invoke(3, &spec)), [(3, Refusal::Draining)]);
}

#[test]
fn a_draining_node_denies_the_peers_that_wait_here() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() });
    assert_eq!(denial(answered(&rig.tell(drain(10 * SECOND, false)))), Some(Denial::Draining));
}

#[test]
fn a_draining_node_lets_runs_finish() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(drain(10 * SECOND, false));
    assert_eq!(rig.state(container), Some(Lifecycle::Retiring));
    let out = rig.finish(container, run, RunEnd::Answered);
    assert!(out.contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_draining_node_gives_its_leases_back() {
    let mut rig = Rig::new();
    rig.held(1, &spec(1), 1);
    let out = rig.tell(drain(10 * SECOND, false));
    assert!(out.iter().any(|o| matches!(o, Output::SendRelease { keep: 0, .. })));
    assert_eq!(rig.node.held_leases().count(), 0);
}

#[test]
fn at_its_deadline_a_drain_reports_what_is_left_and_kills_nothing() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.tell(drain(2 * SECOND, false));
    assert_eq!(drained(&rig.pass(2 * SECOND - 1)), None);
    let out = rig.pass(1);
    assert_eq!(drained(&out), Some(vec![container]));
    assert!(!out.contains(&Output::RemoveContainer { container }));
}

#[test]
fn with_force_a_drain_kills_what_is_left_at_its_deadline() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.tell(drain(2 * SECOND, true));
    let out = rig.pass(2 * SECOND);
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(end(&out), None, "it is not gone yet");
    let out = rig.tell(Input::RemoveEnded { container });
    assert_eq!(end(&out), Some(DrainEnd { killed: 1, ..DrainEnd::default() }));
}

#[test]
fn a_drain_by_force_tells_what_the_engine_has_not_removed_soon_after_its_deadline() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    rig.invoke(1, &spec(1));
    rig.tell(drain(2 * SECOND, true));
    assert_eq!(end(&rig.pass(6 * SECOND)), None);
    let left = DrainEnd { containers: vec![container], killed: 1, ..DrainEnd::default() };
    assert_eq!(end(&rig.pass(SECOND)), Some(left));
}

#[test]
fn a_container_that_comes_up_while_its_node_drains_goes_at_once() {
    let mut rig = Rig::new();
    let container = started(&rig.invoke(1, &spec(1))).unwrap();
    rig.tell(drain(10 * SECOND, false));
    rig.created(container);
    assert!(rig.ready(container).contains(&Output::RemoveContainer { container }));
    assert_eq!(drained(&rig.tell(Input::RemoveEnded { container })), Some(Vec::new()));
}

#[test]
fn a_container_that_died_with_its_run_does_not_keep_a_drain_from_its_end() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ContainerDied { container });
    rig.tell(drain(10 * SECOND, false));
    rig.tell(Input::RemoveEnded { container });
    assert_eq!(drained(&rig.finish(container, run, RunEnd::Lost)), Some(Vec::new()));
}

fn dropped(id: u128) -> Input {
    Input::BodyDropped { activation: ActivationId(id) }
}

fn kept(id: u128, spec: &ActionSpec) -> Input {
    Input::BodyKept { activation: ActivationId(id), action: spec.action.clone(), bytes: 100 }
}

#[test]
fn what_was_promised_is_finished_before_a_drain_ends_its_container() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.invoke_journaled(2, &spec, 100, 0);
    rig.invoke(3, &spec);
    assert_eq!(refused(&rig.tell(drain(10 * SECOND, false))), [(3, Refusal::Draining)], "nobody was promised that");
    assert_eq!(refused(&rig.invoke_journaled(4, &spec, 100, 0)), [(4, Refusal::Draining)], "nor is it now");
    let out = rig.finish(container, run, RunEnd::Answered);
    let (id, run) = ran(&out).unwrap();
    assert_eq!((id, rig.state(container)), (ActivationId(2), Some(Lifecycle::Retiring)), "with its last run");
    rig.tell(dropped(1));
    assert!(rig.finish(container, run, RunEnd::Answered).contains(&Output::RemoveContainer { container }));
    assert_eq!(drained(&rig.tell(Input::RemoveEnded { container })), None, "its record is not on disk yet");
    assert_eq!(drained(&rig.tell(dropped(2))), Some(Vec::new()));
}

#[test]
fn what_was_promised_is_started_for_by_a_node_that_drains() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.tell(drain(10 * SECOND, false));
    rig.created(container);
    assert_eq!(ran(&rig.ready(container)).map(|(id, _)| id), Some(ActivationId(1)));
    // One that its journal could not note before comes back late.
    rig.tell(kept(2, &spec));
    assert!(started(&rig.invoke_journaled(2, &spec, 100, 0)).is_some());
}

#[test]
fn at_its_deadline_a_drain_tells_of_runs_at_peers_and_of_what_is_owed() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.grant_held(&reserve, 1);
    rig.invoke_journaled(2, &spec, 100, 0);
    rig.tell(drain(SECOND, false));
    let out = rig.pass(SECOND);
    assert_eq!(end(&out), Some(DrainEnd { at_peers: 2, owed: 1, ..DrainEnd::default() }), "{out:?}");
    assert!(!noted(&out, |event| *event == Event::Drained));
}

#[test]
fn with_force_a_drain_gives_up_what_was_promised_at_its_deadline_and_tells_how_much() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.tell(kept(3, &spec));
    let (_, run) = ran(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.invoke_journaled(2, &spec, 100, 0);
    assert_eq!(refused(&rig.tell(drain(SECOND, true))), []);
    assert_eq!(refused(&rig.pass(SECOND)), [(2, Refusal::GivenUp)]);
    assert_eq!(refused(&rig.invoke_journaled(3, &spec, 100, 0)), [(3, Refusal::GivenUp)], "one that comes late");
    rig.finish(container, run, RunEnd::Lost);
    rig.tell(Input::RemoveEnded { container });
    rig.tell(dropped(1));
    assert_eq!(end(&rig.tell(dropped(2))), None, "one has no record yet");
    assert_eq!(end(&rig.tell(dropped(3))), Some(DrainEnd { killed: 1, given_up: 2, ..DrainEnd::default() }));
}

#[test]
fn what_may_have_run_before_is_not_counted_as_given_up_by_force() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.tell(kept(3, &spec));
    let (_, run) = ran(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.invoke_journaled(2, &spec, 100, 1);
    rig.tell(drain(SECOND, true));
    let out = rig.pass(SECOND);
    assert!(out.contains(&Output::Indeterminate { activation: ActivationId(2) }), "it waited: {out:?}");
    let out = rig.invoke_journaled(3, &spec, 100, 1);
    assert!(out.contains(&Output::Indeterminate { activation: ActivationId(3) }), "it came late: {out:?}");
    rig.finish(container, run, RunEnd::Lost);
    rig.tell(Input::RemoveEnded { container });
    rig.tell(dropped(1));
    rig.tell(dropped(2));
    assert_eq!(end(&rig.tell(dropped(3))), Some(DrainEnd { killed: 1, ..DrainEnd::default() }));
}

#[test]
fn a_drain_by_force_leaves_promises_that_run_at_peers_and_counts_them() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.grant_held(&reserve, 1);
    rig.tell(drain(SECOND, true));
    assert_eq!(end(&rig.pass(SECOND)), Some(DrainEnd { at_peers: 1, owed: 1, ..DrainEnd::default() }));
}

#[test]
fn a_node_that_drains_runs_a_thousand_promises_of_its_life_before_in_one_container() {
    const PROMISED: u128 = 1_000;
    const AT_ONCE: u128 = 256;
    let (mut rig, spec) = (Rig::new(), spec(AT_ONCE as u32));
    for id in 1..=PROMISED {
        rig.tell(kept(id, &spec));
    }
    rig.tell(drain(60 * SECOND, false));
    let mut started_in_all = 0;
    for first in (1..=PROMISED).step_by(AT_ONCE as usize) {
        let ids = first..=(first + AT_ONCE - 1).min(PROMISED);
        let mut out: Vec<Output> = ids.clone().flat_map(|id| rig.invoke_journaled(id, &spec, 100, 0)).collect();
        for container in out.clone().iter().filter_map(|o| started(std::slice::from_ref(o))) {
            started_in_all += 1;
            rig.created(container);
            out.extend(rig.ready(container));
        }
        let runs = out.iter().filter_map(|o| match o {
            Output::RunLocal { run, container, .. } => Some((*container, *run)),
            _ => None,
        });
        let runs: Vec<_> = runs.collect();
        assert_eq!(runs.len(), ids.clone().count(), "all of the batch, at once");
        for (container, run) in runs {
            rig.finish(container, run, RunEnd::Answered);
        }
        for id in ids {
            rig.tell(dropped(id));
        }
    }
    assert_eq!(started_in_all, 1);
    let container = rig.node.containers().next().unwrap();
    assert_eq!(container.container.state(), Lifecycle::Removing, "the last is done");
}

#[test]
fn an_operators_drain_changes_nothing_for_a_node_that_hands_over() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.tell(Input::HandOverRequested { deadline_us: SECOND });
    let handed_over = rig.node.handed_over();
    assert_eq!(handed_over.len(), 1);
    rig.tell(drain(SECOND, true));
    assert_eq!(rig.node.handed_over(), handed_over);
}

#[test]
fn a_node_that_stops_leaves_what_was_promised_to_its_next_life() {
    for stop in [Input::StopRequested { deadline_us: SECOND }, Input::HandOverRequested { deadline_us: SECOND }] {
        let mut rig = Rig::new();
        let spec = spec(1);
        rig.warm(&spec);
        rig.invoke(1, &spec);
        rig.invoke_journaled(2, &spec, 100, 0);
        assert_eq!(refused(&rig.tell(stop)), [(2, Refusal::Draining)]);
    }
}
