//! Own activations: queue, cancellation, return to the old place, refusal.

use super::*;
use crate::history::{End, What};
use crate::input::StartFailure;
use crate::output::{Refusal, Served};

#[test]
fn an_activation_over_the_actions_queue_bound_is_refused_with_a_time_to_come_back() {
    let mut rig = Rig::with(Config { queue_per_action: 2, ..Config::default() });
    let spec = spec(1);
    rig.invoke(1, &spec);
    rig.invoke(2, &spec);
    let out = rig.invoke(3, &spec);
    assert!(matches!(refused(&out)[..], [(3, Refusal::QueueFull { retry_after_us })] if retry_after_us >= 100 * MS));
    assert_eq!(rig.node.queued(), 2);
}

#[test]
fn one_asked_for_again_that_may_have_run_is_put_off_and_no_more_is_said_of_it() {
    let mut rig = Rig::with(Config { queue_per_action: 1, ..Config::default() });
    let spec = spec(1);
    rig.invoke(1, &spec);
    let put_off = |out: &[Output]| matches!(out, [.., Output::Refuse { maybe_ran: true, .. }]);
    let full = rig.invoke_journaled(2, &spec, 100, 1);
    assert!(put_off(&full), "{full:?}");
    rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    let deleted = rig.invoke_journaled(2, &spec, 100, 1);
    assert!(
        deleted.contains(&Output::Indeterminate { activation: ActivationId(2) }),
        "nothing will change: {deleted:?}"
    );
}

#[test]
fn an_activation_over_the_nodes_bytes_is_refused_though_its_action_has_room() {
    let mut rig = Rig::with(Config { queue_bytes: 1_000, ..Config::default() });
    rig.invoke_sized(1, &spec(1), 900);
    let out = rig.invoke_sized(2, &named("ns", "b", 1), 200);
    assert!(matches!(refused(&out)[..], [(2, Refusal::QueueFull { .. })]));
}

#[test]
fn bytes_are_given_back_when_an_activation_leaves_the_queue() {
    let mut rig = Rig::with(Config { queue_bytes: 1_000, ..Config::default() });
    rig.invoke_sized(1, &spec(1), 900);
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    assert_eq!(rig.node.queued_bytes, 0);
    assert!(refused(&rig.invoke_sized(2, &spec(1), 900)).is_empty());
}

#[test]
fn a_caller_that_leaves_takes_its_activation_out_of_the_queue() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.invoke(2, &spec);
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    rig.created(container);
    let out = rig.ready(container);
    assert_eq!(ran(&out).map(|(id, _)| id), Some(ActivationId(2)));
    assert!(!rig.node.knows_activation(ActivationId(1)));
}

#[test]
fn a_caller_that_leaves_does_not_end_a_run() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    let out = rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(rig.free(container), 0);
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(rig.free(container), 1);
}

#[test]
fn one_that_never_reached_its_container_returns_to_its_old_place() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.invoke(2, &spec);
    let out = rig.finish(container, run, RunEnd::NeverStarted);
    let next = started(&out).unwrap();
    rig.created(next);
    let out = rig.ready(next);
    assert_eq!(ran(&out).map(|(id, _)| id), Some(ActivationId(1)), "before 2, which came later");
}

#[test]
fn one_whose_caller_left_does_not_return_to_the_queue() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    let out = rig.finish(container, run, RunEnd::NeverStarted);
    assert_eq!(refused(&out), [(1, Refusal::Cancelled)], "its task still waits for an end");
    assert_eq!(rig.node.queued(), 0);
    assert!(!rig.node.knows_activation(ActivationId(1)));
}

#[test]
fn one_that_three_containers_did_not_take_is_given_up() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let mut container = rig.warm(&spec);
    let mut out = rig.invoke(1, &spec);
    for n in 1..=3 {
        let (_, run) = ran(&out).unwrap();
        out = rig.finish(container, run, RunEnd::NeverStarted);
        if n < 3 {
            assert!(refused(&out).is_empty());
            container = started(&out).unwrap();
            rig.created(container);
            out = rig.ready(container);
        }
    }
    assert_eq!(refused(&out), [(1, Refusal::StartFailed)]);
}

#[test]
fn one_whose_container_died_before_taking_it_returns_to_the_queue() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ContainerDied { container });
    rig.finish(container, run, RunEnd::NeverStarted);
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn it_returns_to_the_queue_however_long_its_container_is_gone() {
    let mut rig = Rig::with(Config { max_hold_us: SECOND, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ContainerDied { container });
    rig.tell(Input::RemoveEnded { container });
    rig.pass(20 * SECOND);
    rig.finish(container, run, RunEnd::NeverStarted);
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn a_run_that_ends_after_its_container_died_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let (_, first) = ran(&rig.invoke(1, &spec)).unwrap();
    let (_, second) = ran(&rig.invoke(2, &spec)).unwrap();
    rig.finish(container, first, RunEnd::Lost);
    rig.tell(Input::RemoveEnded { container });
    rig.finish(container, second, RunEnd::Answered);
    assert!(!rig.node.knows_activation(ActivationId(1)));
    assert!(!rig.node.knows_activation(ActivationId(2)));
}

#[test]
fn an_activation_that_finds_no_slot_in_time_is_refused() {
    let mut rig = Rig::with(Config { max_queue_wait_us: 2 * SECOND, ..Config::default() });
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.invoke(2, &spec);
    let early = rig.pass(2 * SECOND - 1);
    assert!(refused(&early).is_empty());
    let out = rig.pass(1);
    assert!(matches!(refused(&out)[..], [(2, Refusal::NoCapacity { .. })]));
}

#[test]
fn code_that_fails_to_initialise_refuses_all_that_wait_for_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.invoke(2, &spec);
    rig.created(container);
    let out = rig.tell(Input::ContainerFailed { container, failure: StartFailure::Init });
    assert_eq!(refused(&out), [(1, Refusal::InitFailed), (2, Refusal::InitFailed)]);
    assert_eq!(rig.state(container), Some(Lifecycle::Removing));
}

#[test]
fn an_engine_that_fails_three_times_in_a_row_refuses_the_queue() {
    let mut rig = Rig::new();
    let mut out = rig.invoke(1, &spec(1));
    for _ in 0..3 {
        assert!(refused(&out).is_empty());
        let container = started(&out).unwrap();
        out = rig.tell(Input::ContainerFailed { container, failure: StartFailure::Engine });
    }
    assert_eq!(refused(&out), [(1, Refusal::StartFailed)]);
    assert_eq!(starts(&out), 0);
}

#[test]
fn a_queue_whose_starts_wait_for_other_images_is_not_refused_however_often() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let mut out = rig.invoke(1, &spec);
    for _ in 0..5 {
        let container = started(&out).unwrap();
        out = rig.tell(Input::ContainerFailed { container, failure: StartFailure::Busy });
        out.extend(rig.tell(Input::RemoveEnded { container }));
        assert!(!out.iter().any(|o| matches!(o, Output::Refuse { .. })), "{out:?}");
    }
    let container = started(&out).unwrap();
    rig.created(container);
    assert!(ran(&rig.ready(container)).is_some());
}

#[test]
fn a_run_over_its_time_out_takes_its_slot_and_its_container_with_it() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let (_, late) = ran(&rig.invoke(1, &spec)).unwrap();
    let (_, other) = ran(&rig.invoke(2, &spec)).unwrap();
    rig.finish(container, late, RunEnd::TimedOut);
    assert_eq!(rig.state(container), Some(Lifecycle::Retiring), "the other run may finish");
    let out = rig.finish(container, other, RunEnd::Answered);
    assert!(out.contains(&Output::RemoveContainer { container }), "timed-out runs don't count");
}

#[test]
fn the_first_run_after_a_start_is_cold_and_the_next_is_not() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.created(container);
    let out = rig.ready(container);
    assert!(out.iter().any(|o| matches!(o, Output::RunLocal { served: Served::Cold, .. })));
    rig.finish(container, ran(&out).unwrap().1, RunEnd::Answered);
    let out = rig.invoke(2, &spec);
    assert!(out.iter().any(|o| matches!(o, Output::RunLocal { served: Served::Local, .. })));
}

#[test]
fn an_activation_that_may_have_run_ends_as_that_even_when_its_caller_leaves_while_it_waits() {
    let mut rig = Rig::without_memory();
    let spec = Arc::new(ActionSpec { idempotent: true, ..(*spec(1)).clone() });
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let request = reserved(&rig.invoke(1, &spec)).unwrap().request;
    for _ in 0..2 {
        rig.tell(Input::ReserveFailed { request: request.clone(), never_sent: false });
    }
    let out = rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    assert!(out.contains(&Output::Indeterminate { activation: ActivationId(1) }), "{out:?}");
}

#[test]
fn one_that_is_taken_back_frees_its_slot_and_leaves_its_container_warm() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.invoke(2, &spec);
    let out = rig.finish(container, run, RunEnd::Withdrawn);
    assert_eq!(ran(&out).map(|(id, _)| id), Some(ActivationId(2)), "the slot serves the next");
    assert!(!rig.node.knows_activation(ActivationId(1)));
    assert!(ran(&rig.invoke(1, &spec)).is_none(), "it may be asked for again, and waits like any other");
}

#[test]
fn one_that_is_taken_back_from_a_container_that_died_has_no_answer_in_its_history() {
    let mut rig = Rig::new();
    rig.node = rig.node.with_history();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ContainerDied { container });
    let out = rig.finish(container, run, RunEnd::Withdrawn);
    let ends = out.iter().filter_map(|output| match output {
        Output::History(record) => Some(&record.what),
        _ => None,
    });
    let ends = ends.filter_map(|what| match what {
        What::Ended { end, .. } => Some(*end),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [End::Withdrawn]);
}

#[test]
fn bodies_in_the_journal_count_against_the_nodes_bytes_until_they_are_dropped() {
    let mut rig = Rig::with(Config { queue_bytes: 1_000, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke_journaled(1, &spec, 900, 0)).unwrap();
    rig.finish(container, run, RunEnd::Answered);
    assert!(matches!(refused(&rig.invoke_sized(2, &spec, 200))[..], [(2, Refusal::QueueFull { .. })]));
    rig.tell(Input::BodyDropped { activation: ActivationId(1) });
    rig.tell(Input::BodyDropped { activation: ActivationId(1) });
    assert!(refused(&rig.invoke_sized(3, &spec, 900)).is_empty());
}

#[test]
fn a_body_that_the_journal_has_already_is_counted_once_and_never_refused_for_its_bytes() {
    let mut rig = Rig::with(Config { queue_bytes: 1_000, ..Config::default() });
    let spec = spec(1);
    let action = spec.action.clone();
    rig.tell(Input::BodyKept { activation: ActivationId(1), action: action.clone(), bytes: 900 });
    rig.tell(Input::BodyKept { activation: ActivationId(2), action, bytes: 900 });
    assert!(refused(&rig.invoke_journaled(1, &spec, 900, 0)).is_empty());
    assert_eq!((rig.node.queued_bytes, rig.node.kept_bytes), (0, 1_800));
}

#[test]
fn one_that_was_refused_at_once_is_not_counted_as_kept() {
    let mut rig = Rig::with(Config { queue_per_action: 1, ..Config::default() });
    let spec = spec(1);
    rig.invoke(1, &spec);
    assert!(matches!(refused(&rig.invoke_journaled(2, &spec, 100, 0))[..], [(2, Refusal::QueueFull { .. })]));
    assert_eq!(rig.node.kept_bytes, 0);
}

#[test]
fn one_that_may_have_run_before_a_restart_is_never_told_as_not_run() {
    let mut rig = Rig::with(Config { max_queue_wait_us: SECOND, memory_mb: 64, ..Config::default() });
    let spec = spec(1);
    rig.invoke_journaled(1, &spec, 100, 1);
    let out = rig.pass(20 * SECOND);
    assert!(refused(&out).is_empty(), "{out:?}");
    assert!(out.iter().any(|o| matches!(o, Output::Indeterminate { activation: ActivationId(1) })), "{out:?}");
}

#[test]
fn a_run_that_is_withdrawn_leaves_the_first_one_after_a_start_to_the_next() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.created(container);
    let out = rig.ready(container);
    let served = |out: &[Output]| {
        out.iter().find_map(|o| match o {
            Output::RunLocal { served, run, .. } => Some((*served, *run)),
            _ => None,
        })
    };
    let (first, run) = served(&out).unwrap();
    rig.finish(container, run, RunEnd::Withdrawn);
    let counted = rig.node.containers().next().map(|c| (c.container.runs_started, c.container.runs_ended));
    assert_eq!(counted, Some((0, 0)), "it was none");
    let (second, _) = served(&rig.invoke(1, &spec)).unwrap();
    assert_eq!((first, second), (crate::output::Served::Cold, crate::output::Served::Cold));
}

#[test]
fn one_that_is_withdrawn_or_refused_and_asked_for_again_has_one_end_in_its_history() {
    use crate::history::Judge;
    let mut rig = Rig::new();
    rig.node = rig.node.with_history();
    let spec = spec(1);
    let mut judge = Judge::with_story();
    let mut judged = |out: Vec<Output>| {
        for output in &out {
            if let Output::History(record) = output {
                judge.observe(record).unwrap();
            }
        }
        out
    };
    let container = started(&judged(rig.invoke_journaled(1, &spec, 100, 0))).unwrap();
    judged(rig.tell(Input::ContainerCreated { container }));
    let (_, run) = ran(&judged(rig.ready(container))).unwrap();
    judged(rig.finish(container, run, RunEnd::Withdrawn));
    judged(rig.tell(Input::StopRequested { deadline_us: SECOND }));
    let out = judged(rig.invoke_journaled(1, &spec, 100, 0));
    assert_eq!(refused(&out), [(1, Refusal::Draining)]);
}
