//! What an owner answers to peers: each denial, each refusal, and each thing twice.

use super::*;
use crate::output::{Denial, RunRefusal};

#[test]
fn a_reserve_for_another_epoch_of_the_owner_is_denied_and_does_nothing() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let answer = rig.reserve(&spec, Ask { owner_epoch: 2, ..Ask::default() });
    assert_eq!(denial(answer), Some(Denial::WrongEpoch));
    assert_eq!(rig.free(container), 1);
}

#[test]
fn a_reserve_below_open_from_or_of_an_older_holder_is_stale() {
    let mut rig = Rig::new();
    let spec = spec(4);
    rig.warm(&spec);
    rig.granted(&spec, Ask { number: 5, open_from: 5, epoch: 2, ..Ask::default() });
    let closed = rig.reserve(&spec, Ask { number: 4, epoch: 2, ..Ask::default() });
    assert_eq!(denial(closed), Some(Denial::StaleRequest));
    let older_life = rig.reserve(&spec, Ask { number: 9, epoch: 1, ..Ask::default() });
    assert_eq!(denial(older_life), Some(Denial::NotTaken), "nothing was begun for it, and nothing is");
}

#[test]
fn a_holder_in_its_next_life_learns_what_became_of_the_last_ones_requests_whatever_it_asked_for_before() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let with_body = || Ask { number: 5, run: Some(1), ..Ask::default() };
    let Some(ReserveAnswer::Granted { fence, run: Some(run), first: true, .. }) = rig.reserve(&spec, with_body())
    else {
        panic!("not granted");
    };
    rig.finish(container, run, RunEnd::Answered);
    let RunAnswer::Accepted { run: second, .. } = rig.run(&spec, 7, container, fence, 1) else { panic!("not run") };
    rig.granted(&spec, Ask { number: 1, open_from: 1, epoch: 2, ..Ask::default() });
    let again = rig.reserve(&spec, with_body());
    assert!(matches!(again, Some(ReserveAnswer::Granted { run: Some(r), first: false, .. }) if r == run), "{again:?}");
    assert_eq!(rig.run(&spec, 7, container, fence, 1), RunAnswer::Joined { run: second });
    assert_eq!(rig.run(&spec, 8, container, fence, 1), RunAnswer::Refused(RunRefusal::NotStarted));
}

#[test]
fn a_wait_that_ends_while_the_container_is_still_on_its_way_is_told_as_that() {
    let mut rig = Rig::new();
    let spec = spec(4);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: 300 * MS, ..Ask::default() });
    assert_eq!(denial(answered(&rig.pass(300 * MS))), Some(Denial::StillComing));
}

#[test]
fn a_container_on_its_way_that_can_not_serve_all_who_wait_is_no_reason_to_wait_on() {
    let mut rig = Rig::new();
    let spec = spec(1);
    // A run takes 2 s, a start 300 ms.
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.pass(2 * SECOND);
    rig.finish(container, run, RunEnd::Answered);
    rig.tell(Input::ContainerDied { container });
    rig.invoke(2, &spec);
    rig.reserve(&spec, Ask { wait_us: 300 * MS, ..Ask::default() });
    assert_eq!(denial(answered(&rig.pass(300 * MS))), Some(Denial::NoCapacity));
}

#[test]
fn an_action_that_the_owner_does_not_know_is_denied() {
    let mut rig = Rig::new();
    let unknown = Input::ReserveReceived {
        request: request("n2", 1),
        owner_epoch: Epoch(1),
        open_from: 1,
        action: ActionId::new("ns", "a"),
        revision: revision(1),
        spec: None,
        slots: 1,
        wait_us: 0,
        start: false,
        run: None,
    };
    assert_eq!(denial(answered(&rig.tell(unknown))), Some(Denial::UnknownAction));
    let newer_than_known = rig.reserve(&spec(1), Ask { number: 2, revision: 2, ..Ask::default() });
    assert_eq!(denial(newer_than_known), Some(Denial::UnknownAction));
}

#[test]
fn a_reserve_without_a_free_slot_is_denied_at_once_if_it_does_not_wait() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.granted(&spec, Ask::default());
    let answer = rig.reserve(&spec, Ask { number: 2, ..Ask::default() });
    assert_eq!(denial(answer), Some(Denial::NoCapacity));
}

#[test]
fn a_denial_names_a_peer_that_shows_free_slots() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.granted(&spec, Ask::default());
    rig.peer("n2");
    rig.peer("n3");
    rig.advert("n2", &spec, FREE);
    rig.advert("n3", &spec, FREE);
    let answer = rig.reserve(&spec, Ask { number: 2, ..Ask::default() });
    let hint = Some(NodeId::new("n3"));
    assert_eq!(answer, Some(ReserveAnswer::Denied { denial: Denial::NoCapacity, hint }), "never the asker itself");
}

#[test]
fn while_an_own_activation_waits_peers_are_denied_as_busy() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.invoke(2, &spec);
    assert_eq!(denial(rig.reserve(&spec, Ask::default())), Some(Denial::Busy));
}

#[test]
fn while_an_own_activation_waits_a_run_is_accepted_and_its_lease_not_renewed() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.invoke(1, &spec);
    let answer = rig.run(&spec, 2, container, fence, 1);
    assert!(matches!(answer, RunAnswer::Accepted { renewed_us: 0, .. }), "{answer:?}");
}

#[test]
fn a_draining_owner_denies() {
    let mut rig = Rig::new();
    rig.tell(Input::DrainRequested { deadline_us: SECOND, force: false });
    assert_eq!(denial(rig.reserve(&spec(1), Ask::default())), Some(Denial::Draining));
}

#[test]
fn an_owner_that_keeps_too_many_answers_denies_as_full_until_the_holder_closes_some() {
    let mut rig = Rig::with(Config { answers_per_holder: 2, ..Config::default() });
    let spec = spec(8);
    rig.warm(&spec);
    for number in 1..=2 {
        rig.granted(&spec, Ask { number, ..Ask::default() });
    }
    assert_eq!(denial(rig.reserve(&spec, Ask { number: 3, ..Ask::default() })), Some(Denial::Full));
    rig.granted(&spec, Ask { number: 4, open_from: 4, ..Ask::default() });
}

#[test]
fn the_same_reserve_twice_is_one_grant() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let first = rig.reserve(&spec, Ask { run: Some(7), ..Ask::default() });
    let Some(ReserveAnswer::Granted { fence, run, first: true, .. }) = first else { panic!("{first:?}") };
    let again = rig.reserve(&spec, Ask { run: Some(7), ..Ask::default() });
    let Some(ReserveAnswer::Granted { fence: same, run: joined, first: false, .. }) = again else {
        panic!("{again:?}")
    };
    assert_eq!((fence, run), (same, joined));
    assert_eq!(rig.free(container), 3);
    assert_eq!(rig.node.running(), 1);
}

#[test]
fn no_more_slots_are_granted_than_are_free_or_asked_for() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    rig.granted(&spec, Ask { slots: 3, ..Ask::default() });
    assert_eq!(rig.free(container), 1);
    let rest = rig.reserve(&spec, Ask { number: 2, slots: 3, ..Ask::default() });
    assert!(matches!(rest, Some(ReserveAnswer::Granted { slots: 1, .. })), "{rest:?}");
}

#[test]
fn a_waiting_reserve_is_granted_as_soon_as_a_slot_comes_free() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    assert_eq!(rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() }), None);
    assert_eq!(rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() }), None, "a copy waits for the same answer");
    let out = rig.finish(container, run, RunEnd::Answered);
    assert!(matches!(answered(&out), Some(ReserveAnswer::Granted { .. })));
    assert_eq!(rig.node.granted_leases().count(), 1);
}

#[test]
fn a_waiting_reserve_is_denied_when_its_wait_is_over() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: 300 * MS, ..Ask::default() });
    assert_eq!(answered(&rig.pass(299 * MS)), None);
    assert_eq!(denial(answered(&rig.pass(MS))), Some(Denial::NoCapacity));
}

#[test]
fn an_owner_holds_a_reserve_no_longer_than_its_own_bound() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: 60 * SECOND, ..Ask::default() });
    assert_eq!(denial(answered(&rig.pass(SECOND))), Some(Denial::NoCapacity));
}

#[test]
fn no_more_reserves_wait_than_the_bound() {
    let mut rig = Rig::with(Config { waiting_per_action: 1, ..Config::default() });
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    assert_eq!(rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() }), None);
    let second = rig.reserve(&spec, Ask { number: 2, wait_us: SECOND, ..Ask::default() });
    assert_eq!(denial(second), Some(Denial::NoCapacity));
}

#[test]
fn a_waiting_reserve_whose_holder_began_a_new_life_is_not_granted() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() });
    let out = rig.reserve_out("n2", &spec, Ask { epoch: 2, number: 1, open_from: 1, ..Ask::default() });
    assert!(noted(&out, |e| matches!(e, Event::LeaseDenied { denial: Denial::StaleRequest, .. })));
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(rig.free(container), 1);
}

#[test]
fn a_reserve_resumes_a_paused_container_and_waits_for_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.pass(11 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let out = rig.reserve_out("n2", &spec, Ask { wait_us: SECOND, ..Ask::default() });
    assert!(out.contains(&Output::ResumeContainer { container }), "{out:?}");
    let out = rig.tell(Input::ResumeEnded { container, ok: true });
    assert!(matches!(answered(&out), Some(ReserveAnswer::Granted { .. })));
}

#[test]
fn a_reserve_that_asks_for_a_start_gets_one_and_any_other_does_not() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let out = rig.reserve_out("n2", &spec, Ask { wait_us: SECOND, ..Ask::default() });
    assert_eq!((starts(&out), denial(answered(&out))), (0, Some(Denial::NoCapacity)));
    let out = rig.reserve_out("n2", &spec, Ask { number: 2, wait_us: SECOND, start: true, ..Ask::default() });
    assert_eq!(starts(&out), 1);
}

#[test]
fn a_run_on_a_lease_is_accepted_and_renews_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    let answer = rig.run(&spec, 2, container, fence, 1);
    assert!(matches!(answer, RunAnswer::Accepted { renewed_us, .. } if renewed_us == 5 * SECOND), "{answer:?}");
}

#[test]
fn the_same_run_twice_joins_the_first() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 2, ..Ask::default() });
    let first = rig.run(&spec, 2, container, fence, 2);
    let RunAnswer::Accepted { run, .. } = first else { panic!("{first:?}") };
    let again = rig.run(&spec, 2, container, fence, 2);
    assert!(matches!(again, RunAnswer::Joined { run: joined, .. } if joined == run), "{again:?}");
    assert_eq!(rig.node.running(), 1);
}

#[test]
fn a_run_for_another_epoch_of_the_owner_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = Fence { epoch: Epoch(0), ..rig.granted(&spec, Ask::default()) };
    assert_eq!(rig.run(&spec, 2, container, fence, 1), RunAnswer::Refused(RunRefusal::WrongEpoch));
}

#[test]
fn a_run_below_open_from_is_stale() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { number: 5, open_from: 5, ..Ask::default() });
    assert_eq!(rig.run(&spec, 2, container, fence, 1), RunAnswer::Refused(RunRefusal::StaleRequest));
}

#[test]
fn a_run_of_another_revision_than_the_containers_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    assert_eq!(rig.run(&newer(&spec), 2, container, fence, 1), RunAnswer::Refused(RunRefusal::StaleRevision));
}

#[test]
fn a_run_on_a_container_that_is_not_there_is_refused_and_so_is_one_of_another_action() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    assert_eq!(rig.run(&spec, 2, 77, fence, 1), RunAnswer::Refused(RunRefusal::UnknownContainer));
    let other = named("ns", "b", 1);
    assert_eq!(rig.run(&other, 3, container, fence, 1), RunAnswer::Refused(RunRefusal::UnknownContainer));
}

#[test]
fn a_run_on_a_lease_that_is_over_or_was_never_granted_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    let never = Fence { counter: fence.counter + 1, ..fence };
    assert_eq!(rig.run(&spec, 2, container, never, 1), RunAnswer::Refused(RunRefusal::UnknownLease));
    rig.pass(5_200 * MS - 1);
    rig.now = rig.now + 1;
    assert_eq!(
        rig.run(&spec, 3, container, fence, 1),
        RunAnswer::Refused(RunRefusal::UnknownLease),
        "not from then on"
    );
}

#[test]
fn a_run_just_before_the_owners_last_moment_is_accepted() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.now = rig.now + 5_200 * MS - 1;
    assert!(matches!(rig.run(&spec, 2, container, fence, 1), RunAnswer::Accepted { .. }));
}

#[test]
fn a_run_without_a_slot_of_its_lease_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.run(&spec, 2, container, fence, 1);
    assert_eq!(rig.run(&spec, 3, container, fence, 1), RunAnswer::Refused(RunRefusal::NoSlot));
}

#[test]
fn a_refused_run_stays_refused_when_it_is_sent_again() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    let RunAnswer::Accepted { run, .. } = rig.run(&spec, 2, container, fence, 1) else { panic!() };
    rig.run(&spec, 3, container, fence, 1);
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(rig.run(&spec, 3, container, fence, 1), RunAnswer::Refused(RunRefusal::NoSlot));
}

#[test]
fn a_run_on_a_retiring_container_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.tell(Input::IntentRequested { container, kind: crate::output::IntentKind::Remove, force: true });
    assert_eq!(rig.run(&spec, 2, container, fence, 1), RunAnswer::Refused(RunRefusal::Retiring));
}

#[test]
fn a_run_over_the_answers_bound_is_refused_as_full() {
    let mut rig = Rig::with(Config { answers_per_holder: 1, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    assert_eq!(rig.run(&spec, 2, container, fence, 1), RunAnswer::Refused(RunRefusal::Full));
}

#[test]
fn a_lease_older_than_its_longest_age_is_not_renewed() {
    let mut rig = Rig::with(Config { max_lease_age_us: 4 * SECOND, ..Config::default() });
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.pass(4 * SECOND);
    let answer = rig.run(&spec, 2, container, fence, 1);
    assert!(matches!(answer, RunAnswer::Accepted { renewed_us: 0, .. }), "{answer:?}");
}

#[test]
fn each_run_gives_back_what_the_holder_does_not_keep_and_never_takes_more() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 3, ..Ask::default() });
    rig.run(&spec, 2, container, fence, 2);
    assert_eq!(rig.free(container), 2);
    rig.run(&spec, 3, container, fence, 4);
    assert_eq!(rig.free(container), 2);
}

#[test]
fn a_full_container_does_not_keep_a_start_from_a_peer_that_asks_for_one() {
    let (mut rig, spec) = (Rig::new(), spec(1));
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.peer("n2");
    let out = rig.reserve_out("n2", &spec, Ask { wait_us: SECOND, start: true, ..Ask::default() });
    assert_eq!(starts(&out), 1, "{out:?}");
    rig.finish(container, run, RunEnd::Answered);
}

#[test]
fn a_start_for_a_peer_that_does_not_fit_is_dropped_and_evicts_nobody() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let victim = rig.warm(&named("ns", "other", 1));
    rig.pass(12 * SECOND);
    rig.tell(Input::PauseEnded { container: victim, ok: true });
    assert_eq!(rig.state(victim), Some(Lifecycle::Paused), "it could be asked for");
    rig.peer("n2");
    let out = rig.reserve_out("n2", &spec(1), Ask { wait_us: SECOND, start: true, ..Ask::default() });
    assert_eq!((starts(&out), noted(&out, |e| matches!(e, Event::Evicting { .. }))), (0, false));
}

#[test]
fn a_start_for_a_peer_beside_one_of_an_older_revision_is_made_once() {
    let (mut rig, old) = (Rig::new(), spec(1));
    let outdated = started(&rig.invoke(1, &old)).unwrap();
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    let new = newer(&old);
    rig.tell(Input::ActionChanged { spec: new.clone() });
    rig.peer("n2");
    let out = rig.reserve_out("n2", &new, Ask { revision: 2, wait_us: SECOND, start: true, ..Ask::default() });
    assert_eq!(starts(&out), 1, "{out:?}");
    assert_eq!(rig.state(outdated), Some(Lifecycle::Starting));
}

/// What a holder in that epoch of its is answered.
fn asks(rig: &mut Rig, spec: &Arc<ActionSpec>, holder: &str, epoch: u64, number: u64) -> Option<ReserveAnswer> {
    answered(&rig.reserve_out(holder, spec, Ask { epoch, number, open_from: number, ..Ask::default() }))
}

#[test]
fn an_owner_takes_new_holders_however_many_have_come_and_gone() {
    let mut rig = Rig::with(Config { holders: 4, ..Config::default() });
    let spec = spec(2);
    let container = rig.warm(&spec);
    for n in 1..=100 {
        let holder = format!("h{n}");
        let granted = asks(&mut rig, &spec, &holder, n, 1);
        let Some(ReserveAnswer::Granted { fence, .. }) = granted else { panic!("{holder}: {granted:?}") };
        let (holder, holder_epoch) = (NodeId::new(&holder), Epoch(n));
        rig.tell(Input::ReleaseReceived { holder, holder_epoch, container: own(container), fence, keep: 0 });
    }
    for n in [1, 90] {
        let late = asks(&mut rig, &spec, &format!("h{n}"), n, 1);
        assert_eq!(denial(late), Some(Denial::StaleRequest), "a late copy of h{n}'s request");
    }
}

#[test]
fn a_holder_that_is_live_has_a_lease_or_a_run_here_is_not_closed_for_another() {
    let mut rig = Rig::with(Config { holders: 3, ..Config::default() });
    let spec = spec(4);
    rig.warm(&spec);
    rig.peer("live");
    assert_eq!(denial(asks(&mut rig, &newer(&spec), "live", 1, 1)), Some(Denial::StaleRevision));
    let runs = Ask { run: Some(7), epoch: 2, ..Ask::default() };
    let Some(ReserveAnswer::Granted { run: Some(run), .. }) = answered(&rig.reserve_out("runs", &spec, runs)) else {
        panic!()
    };
    rig.pass(10 * SECOND);
    assert!(matches!(asks(&mut rig, &spec, "leases", 3, 1), Some(ReserveAnswer::Granted { .. })));
    assert_eq!(denial(asks(&mut rig, &spec, "new", 4, 1)), Some(Denial::Full));
    let container = rig.node.containers().next().unwrap().id.number;
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(denial(asks(&mut rig, &spec, "new", 4, 1)), Some(Denial::StaleRequest), "that one for good");
    assert!(matches!(asks(&mut rig, &spec, "new", 4, 2), Some(ReserveAnswer::Granted { .. })));
    assert!(matches!(asks(&mut rig, &spec, "leases", 3, 1), Some(ReserveAnswer::Granted { first: false, .. })));
    let again = Ask { run: Some(7), epoch: 2, ..Ask::default() };
    let late = answered(&rig.reserve_out("runs", &spec, again));
    assert_eq!(denial(late), Some(Denial::StaleRequest), "its run had ended");
}
