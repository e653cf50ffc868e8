//! Both sides of intents: rounds, windows, vetoes and what commits.

use super::*;
use crate::output::{IntentEnd, IntentKind, IntentNotice, IntentProblem};

fn opened(out: &[Output]) -> Option<(u32, IntentKind)> {
    out.iter().find_map(|o| match o {
        Output::Event(Event::IntentOpened { intent, kind, .. }) => Some((intent.round, *kind)),
        _ => None,
    })
}

fn closed(out: &[Output]) -> Vec<IntentEnd> {
    let ends = out.iter().filter_map(|o| match o {
        Output::Event(Event::IntentClosed { end, .. }) => Some(end.clone()),
        _ => None,
    });
    ends.collect()
}

fn notice(out: &[Output]) -> Option<(Vec<NodeId>, bool, IntentNotice)> {
    out.iter().find_map(|o| match o {
        Output::SendIntent { to, gossip, notice } => Some((to.clone(), *gossip, notice.clone())),
        _ => None,
    })
}

fn veto(round: u32, container: u64) -> Input {
    Input::VetoReceived { from: NodeId::new("n2"), container: own(container), round, hold_us: 3 * SECOND }
}

fn ask(container: u64, kind: IntentKind) -> Input {
    Input::IntentRequested { container, kind, force: false }
}

/// A warm container with the pause intent of its idleness open.
fn idle() -> (Rig, Arc<ActionSpec>, u64) {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    assert_eq!(opened(&rig.pass(10 * SECOND)), Some((1, IntentKind::Pause)));
    (rig, spec, container)
}

#[test]
fn an_idle_container_is_paused_after_its_grace_and_the_window() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    assert_eq!(opened(&rig.pass(10 * SECOND - 1)), None);
    assert_eq!(opened(&rig.pass(1)), Some((1, IntentKind::Pause)));
    assert!(!rig.pass(SECOND - 1).contains(&Output::PauseContainer { container }));
    let out = rig.pass(1);
    assert_eq!(closed(&out), [IntentEnd::Committed]);
    assert!(out.contains(&Output::PauseContainer { container }));
    assert_eq!(rig.state(container), Some(Lifecycle::Pausing));
}

#[test]
fn a_container_of_concurrent_runs_has_its_own_grace() {
    let mut rig = Rig::new();
    rig.warm(&spec(4));
    assert_eq!(opened(&rig.pass(60 * SECOND - 1)), None);
    assert_eq!(opened(&rig.pass(1)), Some((1, IntentKind::Pause)));
}

#[test]
fn a_container_paused_for_long_is_removed() {
    let (mut rig, _, container) = idle();
    rig.pass(SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let out = rig.pass(600 * SECOND);
    assert_eq!(opened(&out), Some((2, IntentKind::Remove)));
    assert!(rig.pass(SECOND).contains(&Output::RemoveContainer { container }));
    rig.tell(Input::RemoveEnded { container });
    assert_eq!(rig.node.memory_used_mb(), 0);
}

#[test]
fn of_two_copies_of_one_node_the_elder_is_kept_longer_whichever_is_paused_first() {
    for elder_first in [true, false] {
        let mut rig = Rig::new();
        let [elder, other] = rig.warm_pair(&spec(1));
        rig.pass(11 * SECOND);
        for container in if elder_first { [elder, other] } else { [other, elder] } {
            assert_eq!(rig.state(container), Some(Lifecycle::Pausing));
            rig.tell(Input::PauseEnded { container, ok: true });
        }
        let spare_goes = rig.pass(301 * SECOND);
        assert!(spare_goes.contains(&Output::RemoveContainer { container: other }), "{elder_first}: {spare_goes:?}");
        rig.tell(Input::RemoveEnded { container: other });
        assert_eq!(opened(&rig.pass(299 * SECOND - 1)), None);
        assert!(rig.pass(SECOND + 1).contains(&Output::RemoveContainer { container: elder }));
    }
}

#[test]
fn a_pause_intent_goes_to_recent_askers_and_a_remove_intent_to_everyone() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.peer("n2");
    rig.peer("n3");
    let fence = rig.granted(&spec, Ask::default());
    rig.release(container, fence, 0);
    let (to, gossip, _) = notice(&rig.pass(10 * SECOND)).unwrap();
    assert_eq!((to, gossip), (vec![NodeId::new("n2")], false));
    rig.pass(SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let (_, gossip, notice) = notice(&rig.tell(ask(container, IntentKind::Remove))).unwrap();
    assert!(gossip);
    assert_eq!((notice.kind, notice.round, notice.window_us), (IntentKind::Remove, 2, SECOND));
}

#[test]
fn a_veto_cancels_the_round_and_holds_the_next() {
    let (mut rig, _, container) = idle();
    assert!(noted(&rig.tell(veto(1, container)), |e| matches!(e, Event::VetoCounted { .. })));
    let out = rig.pass(SECOND);
    let by = vec![(NodeId::new("n2"), 3 * SECOND)];
    assert_eq!(closed(&out), [IntentEnd::Vetoed { by }]);
    assert_eq!(opened(&rig.pass(3 * SECOND - 1)), None);
    assert_eq!(opened(&rig.pass(1)), Some((2, IntentKind::Pause)));
}

#[test]
fn a_hold_is_no_longer_than_the_bound() {
    let (mut rig, _, container) = idle();
    let hold_us = 600 * SECOND;
    rig.tell(Input::VetoReceived { from: NodeId::new("n2"), container: own(container), round: 1, hold_us });
    rig.pass(SECOND);
    assert_eq!(opened(&rig.pass(30 * SECOND)), Some((2, IntentKind::Pause)));
}

#[test]
fn a_veto_of_another_round_epoch_or_container_changes_nothing() {
    let (mut rig, _, container) = idle();
    let other_life = ContainerId { epoch: Epoch(9), ..own(container) };
    let other_node = ContainerId { owner: NodeId::new("n9"), ..own(container) };
    let from = NodeId::new("n2");
    let astray = [
        veto(2, container),
        veto(0, container),
        veto(1, container + 1),
        Input::VetoReceived { from: from.clone(), container: other_life, round: 1, hold_us: SECOND },
        Input::VetoReceived { from, container: other_node, round: 1, hold_us: SECOND },
    ];
    let before = rig.node.clone();
    for veto in astray {
        let out = rig.tell(veto);
        assert!(noted(&out, |e| matches!(e, Event::VetoIgnored { .. })));
        assert_eq!(rig.node, before);
    }
    assert_eq!(closed(&rig.pass(SECOND)), [IntentEnd::Committed]);
}

#[test]
fn a_veto_after_the_close_comes_too_late() {
    let (mut rig, _, container) = idle();
    rig.pass(SECOND);
    let out = rig.tell(veto(1, container));
    assert!(noted(&out, |e| matches!(e, Event::VetoIgnored { .. })));
    assert_eq!(rig.state(container), Some(Lifecycle::Pausing));
}

#[test]
fn a_run_in_the_window_cancels_at_once() {
    let (mut rig, spec, container) = idle();
    let out = rig.invoke(1, &spec);
    assert_eq!(closed(&out), [IntentEnd::Used]);
    let (_, run) = ran(&out).unwrap();
    rig.pass(2 * SECOND);
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(opened(&rig.pass(10 * SECOND)), Some((2, IntentKind::Pause)));
}

#[test]
fn a_grant_in_the_window_cancels_at_once() {
    let (mut rig, spec, container) = idle();
    let out = rig.reserve_out("n2", &spec, Ask::default());
    assert_eq!(closed(&out), [IntentEnd::Used]);
    rig.pass(2 * SECOND);
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
}

#[test]
fn after_three_rounds_in_vain_the_next_has_the_last_word() {
    let (mut rig, spec, container) = idle();
    for round in 1..=3 {
        rig.tell(veto(round, container));
        rig.pass(SECOND);
        assert_eq!(opened(&rig.pass(3 * SECOND)), Some((round + 1, IntentKind::Pause)));
    }
    assert!(noted(&rig.tell(veto(4, container)), |e| matches!(e, Event::VetoIgnored { .. })));
    let answer = rig.reserve(&spec, Ask::default());
    assert!(denial(answer).is_some(), "no grant keeps it either");
    assert_eq!(closed(&rig.pass(SECOND)), [IntentEnd::Committed]);
    assert_eq!(rig.state(container), Some(Lifecycle::Pausing));
}

#[test]
fn a_run_between_two_rounds_begins_the_count_anew() {
    let (mut rig, spec, container) = idle();
    for round in 1..=3 {
        rig.tell(veto(round, container));
        rig.pass(4 * SECOND);
    }
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.finish(container, run, RunEnd::Answered);
    let (round, _) = opened(&rig.pass(10 * SECOND)).unwrap();
    assert!(noted(&rig.tell(veto(round, container)), |e| matches!(e, Event::VetoCounted { .. })));
}

#[test]
fn peers_that_only_ask_do_not_keep_a_paused_container_from_its_last_word() {
    let (mut rig, spec, container) = idle();
    for round in 1..=3 {
        rig.tell(veto(round, container));
        rig.pass(4 * SECOND);
    }
    rig.pass(SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    rig.tell(ask(container, IntentKind::Remove));
    let out = rig.reserve_out("n2", &spec, Ask { wait_us: SECOND, ..Ask::default() });
    assert!(!out.contains(&Output::ResumeContainer { container }));
    assert!(rig.pass(SECOND).contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_window_that_closes_late_is_cancelled_and_opened_anew() {
    let (mut rig, _, container) = idle();
    rig.now = rig.now + SECOND + 250 * MS + 1;
    let out = rig.tell(Input::Tick);
    assert_eq!(closed(&out), [IntentEnd::Late]);
    assert_eq!(opened(&out), Some((2, IntentKind::Pause)));
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
    assert_eq!(closed(&rig.pass(SECOND)), [IntentEnd::Committed]);
}

#[test]
fn a_window_that_closes_a_gossip_interval_late_still_commits() {
    let (mut rig, _, _) = idle();
    rig.now = rig.now + SECOND + 250 * MS;
    assert_eq!(closed(&rig.tell(Input::Tick)), [IntentEnd::Committed]);
}

#[test]
fn a_commit_waits_for_the_engines_permit_with_the_container_still_usable() {
    let mut rig = Rig::with(Config { parallel_starts: 1, ..Config::default() });
    let (first, second) = (spec(1), named("ns", "b", 1));
    let (a, b) = (rig.warm(&first), rig.warm(&second));
    rig.pass(11 * SECOND);
    assert_eq!((rig.state(a), rig.state(b)), (Some(Lifecycle::Pausing), Some(Lifecycle::Warm)));
    let (_, run) = ran(&rig.invoke(1, &second)).unwrap();
    rig.finish(b, run, RunEnd::Answered);
    assert!(!rig.tell(Input::PauseEnded { container: a, ok: true }).contains(&Output::PauseContainer { container: b }));
}

#[test]
fn a_commit_that_waited_for_its_permit_is_made_when_one_comes_free() {
    let mut rig = Rig::with(Config { parallel_starts: 1, ..Config::default() });
    let (a, b) = (rig.warm(&spec(1)), rig.warm(&named("ns", "b", 1)));
    rig.pass(11 * SECOND);
    let out = rig.tell(Input::PauseEnded { container: a, ok: true });
    assert!(out.contains(&Output::PauseContainer { container: b }));
}

#[test]
fn a_pause_of_unknown_outcome_ends_the_container() {
    let (mut rig, _, container) = idle();
    rig.pass(SECOND);
    let out = rig.tell(Input::PauseEnded { container, ok: false });
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(rig.state(container), Some(Lifecycle::Removing));
}

#[test]
fn nothing_is_granted_or_started_while_the_engine_pauses_it() {
    let (mut rig, spec, _) = idle();
    rig.pass(SECOND);
    assert!(denial(rig.reserve(&spec, Ask::default())).is_some());
    let out = rig.invoke(1, &spec);
    assert!(ran(&out).is_none());
    assert_eq!(starts(&out), 1);
}

#[test]
fn an_operator_opens_an_intent_and_hears_of_its_round() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let out = rig.tell(ask(container, IntentKind::Remove));
    assert!(out.iter().any(|o| matches!(o, Output::IntentAnswer { answer: Ok(id), .. } if id.round == 1)));
    assert!(rig.pass(SECOND).contains(&Output::RemoveContainer { container }));
}

#[test]
fn an_operators_intent_that_cannot_be_says_why() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let problem = |out: Vec<Output>| {
        out.into_iter().find_map(|o| match o {
            Output::IntentAnswer { answer: Err(problem), .. } => Some(problem),
            _ => None,
        })
    };
    assert_eq!(problem(rig.tell(ask(77, IntentKind::Pause))), Some(IntentProblem::UnknownContainer));
    rig.tell(ask(container, IntentKind::Pause));
    assert_eq!(problem(rig.tell(ask(container, IntentKind::Pause))), Some(IntentProblem::AlreadyOpen(1)));
    rig.tell(veto(1, container));
    rig.pass(SECOND);
    assert_eq!(problem(rig.tell(ask(container, IntentKind::Pause))), Some(IntentProblem::Held(3_000)));
    rig.pass(30 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let wrong = IntentProblem::WrongState(Lifecycle::Paused);
    assert_eq!(problem(rig.tell(ask(container, IntentKind::Pause))), Some(wrong));
}

#[test]
fn with_force_an_operator_asks_nobody() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let out = rig.tell(Input::IntentRequested { container, kind: IntentKind::Remove, force: true });
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(notice(&out), None);
}

#[test]
fn a_pause_that_an_operator_asks_for_is_asked_of_the_peers_whatever_force_says() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    let out = rig.tell(Input::IntentRequested { container, kind: IntentKind::Pause, force: true });
    assert!(notice(&out).is_some(), "{out:?}");
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
}

#[test]
fn a_peer_with_work_on_the_way_vetoes_and_one_without_does_not() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    let heard = |round| IntentNotice {
        container: ContainerId { owner: NodeId::new("n2"), epoch: Epoch(1), number: 5 },
        hash: spec.action_hash(),
        round,
        kind: IntentKind::Remove,
        urgent: false,
        window_us: SECOND,
        last_copy: true,
    };
    let sent = |out: &[Output]| out.iter().any(|o| matches!(o, Output::SendVeto { .. }));
    assert!(!sent(&rig.tell(Input::IntentReceived { notice: heard(1) })));
    rig.invoke(1, &spec);
    assert!(sent(&rig.tell(Input::IntentReceived { notice: heard(2) })));
    assert!(!sent(&rig.tell(Input::IntentReceived { notice: heard(2) })), "hearing it twice changes nothing");
}

#[test]
fn an_operator_can_veto_what_this_node_heard_of() {
    let mut rig = Rig::new();
    let container = ContainerId { owner: NodeId::new("n2"), epoch: Epoch(1), number: 5 };
    let out = rig.tell(Input::VetoRequested { container: container.clone(), round: 4, hold_us: None });
    assert!(out.contains(&Output::SendVeto { to: NodeId::new("n2"), container, round: 4, hold_us: 30 * SECOND }));
}

#[test]
fn of_two_copies_one_owner_is_the_keeper_and_the_other_counts_its_own_as_spare() {
    let spec = spec(1);
    let other = |name: &str| {
        let mut rig = Rig::new();
        let container = rig.warm(&spec);
        rig.peer(name);
        rig.advert(name, &spec, FREE);
        notice(&rig.tell(ask(container, IntentKind::Remove))).unwrap().2.last_copy
    };
    let hash = spec.action_hash();
    let own_weight = hash.weight(&NodeId::new("n1"));
    let (mut keeper, mut spare) = (0, 0);
    for n in 2..12 {
        let name = format!("n{n}");
        let first = own_weight > hash.weight(&NodeId::new(&name));
        assert_eq!(other(&name), first, "{name}");
        *(if first { &mut keeper } else { &mut spare }) += 1;
    }
    assert!(keeper > 0 && spare > 0);
}

#[test]
fn a_paused_copy_that_becomes_spare_is_kept_no_longer_than_a_spare_one() {
    let (mut rig, spec, container) = idle();
    rig.pass(SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    rig.pass(100 * SECOND);
    let weight = |name: &str| spec.action_hash().weight(&NodeId::new(name));
    let keeper = (2..).map(|n| format!("n{n}")).find(|name| weight(name) > weight("n1")).unwrap();
    rig.peer(&keeper);
    rig.advert(&keeper, &spec, FREE);
    assert_eq!(opened(&rig.pass(200 * SECOND - 1)), None);
    assert_eq!(opened(&rig.pass(1)), Some((2, IntentKind::Remove)));
}

#[test]
fn a_copy_that_nobody_else_shows_is_the_last() {
    let mut rig = Rig::new();
    let container = rig.warm(&spec(1));
    rig.peer("n2");
    assert!(notice(&rig.tell(ask(container, IntentKind::Remove))).unwrap().2.last_copy);
}
