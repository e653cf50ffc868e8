//! Leases held at peers, and what becomes of requests whose answer is late, lost or a refusal.

use super::*;
use crate::input::RemoteEnd;
use crate::output::{Denial, RunRefusal, Served};

fn released(out: &[Output]) -> Option<(Fence, u32)> {
    out.iter().find_map(|o| match o {
        Output::SendRelease { fence, keep, .. } => Some((*fence, *keep)),
        _ => None,
    })
}

fn indeterminate(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::Indeterminate { .. }))
}

fn idempotent() -> Arc<ActionSpec> {
    Arc::new(ActionSpec { idempotent: true, ..(*spec(1)).clone() })
}

/// A Reserve for activation 1 with its body, at `n2`.
fn carried(rig: &mut Rig, spec: &Arc<ActionSpec>) -> SendReserve {
    rig.peer("n2");
    rig.advert("n2", spec, FREE);
    reserved(&rig.invoke(1, spec)).unwrap()
}

fn ended(request: &RequestId, end: RemoteEnd) -> Input {
    Input::RunAnswered { request: request.clone(), end }
}

fn failed(request: &RequestId, never_sent: bool) -> Input {
    Input::ReserveFailed { request: request.clone(), never_sent }
}

fn denied(request: &RequestId, denial: Denial) -> Input {
    Input::ReserveDenied { request: request.clone(), denial, hint: None }
}

/// When the lease that is held ends, from now.
fn left(rig: &Rig) -> Option<Micros> {
    rig.node.held_leases().next().map(|l| l.expires_in_us)
}

#[test]
fn a_holder_counts_from_its_first_send_and_stops_a_margin_early() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    rig.pass(SECOND);
    let again = reserved(&rig.tell(failed(&reserve.request, false))).unwrap();
    assert_eq!(again.request, reserve.request, "a retry is the same request");
    rig.pass(SECOND);
    rig.grant_held(&reserve, 1);
    assert_eq!(left(&rig), Some(2_900 * MS), "5 s − 100 ms, two of them gone");
}

#[test]
fn nothing_is_sent_on_a_lease_whose_time_is_over() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    rig.pass(4_900 * MS - 1);
    assert!(left(&rig).is_some());
    rig.now = rig.now + 1;
    assert_eq!(sent_run(&rig.invoke(2, &spec)), None);
    assert_eq!(left(&rig), None);
}

#[test]
fn a_run_that_was_accepted_renews_the_lease_from_its_send() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    rig.pass(2 * SECOND);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.pass(SECOND);
    rig.run_ended(&run.request, 5 * SECOND);
    assert_eq!(left(&rig), Some(3_900 * MS));
}

#[test]
fn a_lease_renewed_by_a_run_that_outlived_it_still_ends() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    rig.pass(4 * SECOND);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.pass(2 * SECOND);
    rig.run_ended(&run.request, 5 * SECOND);
    assert_eq!(left(&rig), Some(2_900 * MS));
    rig.pass(3 * SECOND);
    assert_eq!(left(&rig), None);
}

#[test]
fn a_run_that_was_not_renewed_leaves_the_lease_as_it_was() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    rig.pass(2 * SECOND);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.run_ended(&run.request, 0);
    assert_eq!(left(&rig), Some(2_900 * MS));
}

#[test]
fn a_grant_that_the_queue_needs_no_more_goes_back_at_once() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    rig.tell(Input::InvokeCancelled { activation: ActivationId(1) });
    let fence = Fence { epoch: Epoch(1), counter: 9 };
    let out = rig.tell(granted_by("n2", &reserve, fence, 1));
    assert_eq!(released(&out), Some((fence, 0)));
    assert_eq!(left(&rig), None);
}

#[test]
fn slots_granted_beside_a_run_that_the_queue_needs_no_more_go_back_at_once() {
    let mut rig = Rig::without_memory();
    let spec = spec(50);
    rig.invoke(1, &spec);
    rig.invoke(2, &spec);
    rig.peer("n2");
    let reserve = reserved(&rig.advert("n2", &spec, FREE)).unwrap();
    assert_eq!((reserve.slots, reserve.run), (2, Some(attempt(1))));
    rig.tell(Input::InvokeCancelled { activation: ActivationId(2) });
    let fence = Fence { epoch: Epoch(1), counter: 9 };
    assert_eq!(released(&rig.tell(granted_by("n2", &reserve, fence, 2))), Some((fence, 1)));
}

#[test]
fn a_refusal_of_an_owners_life_before_says_nothing_of_what_gossip_shows_of_it_now() {
    let mut rig = Rig::without_memory();
    let spec = spec(50);
    let reserve = carried(&mut rig, &spec);
    rig.tell(Input::PeerUp { peer: NodeId::new("n2"), epoch: Epoch(2) });
    let (peer, hash) = (NodeId::new("n2"), spec.action_hash());
    rig.tell(Input::AdvertReceived { peer, epoch: Epoch(2), hash, advert: FREE });
    let again = reserved(&rig.tell(failed(&reserve.request, true))).unwrap();
    assert_eq!((again.owner_epoch, again.run), (Epoch(2), Some(attempt(1))));
}

#[test]
fn a_recalled_lease_goes_back_when_its_run_has_ended_and_takes_no_other() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    let fence = rig.grant_held(&reserve, 1);
    let out = rig.tell(Input::RecallReceived { owner: NodeId::new("n2"), owner_epoch: Epoch(1), fence });
    assert_eq!(released(&out), None, "the run keeps its slot");
    assert_eq!(sent_run(&rig.invoke(2, &spec)), None);
    let out = rig.run_ended(&reserve.request, 5 * SECOND);
    assert_eq!(released(&out), Some((fence, 0)));
    assert_eq!(left(&rig), None);
}

#[test]
fn a_recall_that_overtakes_its_grant_is_kept_for_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    let fence = Fence { epoch: Epoch(1), counter: 9 };
    rig.tell(Input::RecallReceived { owner: NodeId::new("n2"), owner_epoch: Epoch(1), fence });
    let out = rig.tell(granted_by("n2", &reserve, fence, 2));
    let run = sent_run(&out).unwrap();
    assert_eq!(run.activation, ActivationId(1), "what waits runs on it");
    let out = rig.run_ended(&run.request, 0);
    assert_eq!(released(&out), Some((fence, 0)));
}

#[test]
fn a_recall_of_another_lease_changes_nothing() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let fence = rig.held(1, &spec, 1);
    let other = Fence { counter: fence.counter + 1, ..fence };
    rig.tell(Input::RecallReceived { owner: NodeId::new("n2"), owner_epoch: Epoch(1), fence: other });
    rig.tell(Input::RecallReceived { owner: NodeId::new("n2"), owner_epoch: Epoch(2), fence });
    assert!(left(&rig).is_some());
}

#[test]
fn an_operator_can_give_a_lease_back() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let fence = rig.held(1, &spec, 2);
    let out = rig.tell(Input::ReleaseRequested { owner: NodeId::new("n2"), fence });
    assert_eq!(released(&out), Some((fence, 0)));
    assert_eq!(left(&rig), None);
}

/// A lease of three slots at `n2` with as many runs on it.
fn three_runs(rig: &mut Rig, spec: &Arc<ActionSpec>) -> (Fence, Vec<SendRun>) {
    rig.peer("n2");
    for id in 1..=3 {
        rig.invoke_sized(id, spec, 100_000);
    }
    let reserve = reserved(&rig.advert("n2", spec, FREE)).unwrap();
    assert_eq!(reserve.slots, 3, "what is queued, in one request");
    let fence = Fence { epoch: Epoch(1), counter: 9 };
    let out = rig.tell(granted_by("n2", &reserve, fence, 3));
    let runs = out.into_iter().filter_map(|o| match o {
        Output::SendRun(run) => Some(run),
        _ => None,
    });
    (fence, runs.collect())
}

#[test]
fn a_run_says_how_many_slots_the_holder_keeps_and_never_more_than_before() {
    let mut rig = Rig::without_memory();
    let spec = spec(4);
    let (_, runs) = three_runs(&mut rig, &spec);
    assert_eq!(runs.iter().map(|r| r.keep).collect::<Vec<_>>(), [3, 3, 3]);
    for run in &runs {
        rig.run_ended(&run.request, 5 * SECOND);
    }
    let next = sent_run(&rig.invoke(4, &spec)).unwrap();
    assert_eq!(next.keep, 3, "its peak use since the last run");
    rig.run_ended(&next.request, 5 * SECOND);
    let next = sent_run(&rig.invoke(5, &spec)).unwrap();
    assert_eq!(next.keep, 1);
    assert_eq!(rig.node.held_leases().next().map(|l| l.slots), Some(1));
}

#[test]
fn a_recall_gives_the_slots_back_that_no_run_uses() {
    let mut rig = Rig::without_memory();
    let spec = spec(4);
    let (fence, runs) = three_runs(&mut rig, &spec);
    rig.run_ended(&runs[0].request, 5 * SECOND);
    let out = rig.tell(Input::RecallReceived { owner: NodeId::new("n2"), owner_epoch: Epoch(1), fence });
    assert_eq!(released(&out), Some((fence, 2)));
    let out = rig.run_ended(&runs[1].request, 5 * SECOND);
    assert_eq!(released(&out), Some((fence, 1)));
    let out = rig.run_ended(&runs[2].request, 5 * SECOND);
    assert_eq!(released(&out), Some((fence, 0)));
}

#[test]
fn a_run_of_unknown_outcome_is_asked_for_once_more_and_then_indeterminate() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    let out = rig.tell(ended(&run.request, RemoteEnd::Unknown));
    assert_eq!(sent_run(&out).map(|r| (r.request, r.attempt)), Some((run.request.clone(), 0)));
    assert!(!indeterminate(&out));
    assert!(indeterminate(&rig.tell(ended(&run.request, RemoteEnd::Unknown))));
    assert!(!rig.node.knows_activation(ActivationId(2)));
}

#[test]
fn a_run_that_was_refused_is_not_indeterminate_but_waits_again() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    let out = rig.tell(ended(&run.request, RemoteEnd::Refused(RunRefusal::UnknownLease)));
    assert!(!indeterminate(&out) && refused(&out).is_empty());
    assert!(rig.node.knows_activation(ActivationId(2)));
    assert_eq!(sent_run(&out), None, "the lease is lost");
}

#[test]
fn a_body_that_never_left_is_not_indeterminate() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    let out = rig.tell(ended(&run.request, RemoteEnd::NeverSent));
    assert!(!indeterminate(&out));
    assert!(rig.node.knows_activation(ActivationId(2)));
}

#[test]
fn one_that_is_taken_back_leaves_its_lease_as_it_was() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.invoke(3, &spec);
    let out = rig.tell(ended(&run.request, RemoteEnd::Withdrawn));
    assert!(!rig.node.knows_activation(ActivationId(2)));
    assert_eq!(sent_run(&out).map(|r| (r.activation, r.fence)), Some((ActivationId(3), run.fence)), "{out:?}");
}

#[test]
fn a_retry_that_never_left_says_nothing_of_the_send_before() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.tell(ended(&run.request, RemoteEnd::Unknown));
    assert!(indeterminate(&rig.tell(ended(&run.request, RemoteEnd::NeverSent))));
}

#[test]
fn another_epochs_refusal_says_nothing_of_a_send_that_may_have_reached_the_one_before() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.tell(ended(&run.request, RemoteEnd::Unknown));
    let out = rig.tell(ended(&run.request, RemoteEnd::Refused(RunRefusal::WrongEpoch)));
    assert!(indeterminate(&out));
}

#[test]
fn the_same_epochs_refusal_settles_a_send_of_unknown_fate() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.tell(ended(&run.request, RemoteEnd::Unknown));
    let out = rig.tell(ended(&run.request, RemoteEnd::Refused(RunRefusal::UnknownLease)));
    assert!(!indeterminate(&out));
    assert!(rig.node.knows_activation(ActivationId(2)));
}

#[test]
fn an_idempotent_action_runs_again_under_the_next_attempt() {
    let mut rig = Rig::new();
    let spec = idempotent();
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.tell(ended(&run.request, RemoteEnd::Unknown));
    let out = rig.tell(ended(&run.request, RemoteEnd::Unknown));
    assert!(!indeterminate(&out));
    rig.advert("n2", &spec, FREE);
    rig.pass(SECOND);
    assert!(rig.node.knows_activation(ActivationId(2)));
}

#[test]
fn an_idempotent_action_is_indeterminate_after_its_third_attempt() {
    let mut rig = Rig::new();
    let spec = idempotent();
    let mut reserve = carried(&mut rig, &spec);
    let mut attempts = Vec::new();
    for peer in ["n3", "n4", "n5"] {
        attempts.push(reserve.run.unwrap().attempt);
        rig.peer(peer);
        rig.advert(peer, &spec, FREE);
        rig.tell(failed(&reserve.request, false));
        let out = rig.tell(failed(&reserve.request, false));
        match reserved(&out) {
            Some(next) => reserve = next,
            None => assert!(indeterminate(&out), "{out:?}"),
        }
    }
    assert_eq!(attempts, [0, 1, 2]);
    assert!(!rig.node.knows_activation(ActivationId(1)));
}

#[test]
fn a_reservation_whose_body_never_left_returns_it_to_the_queue() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    let out = rig.tell(failed(&reserve.request, true));
    assert!(!indeterminate(&out));
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn a_reservation_with_a_body_of_unknown_fate_ends_as_indeterminate() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    assert!(reserved(&rig.tell(failed(&reserve.request, false))).is_some());
    assert!(indeterminate(&rig.tell(failed(&reserve.request, false))));
}

#[test]
fn a_reservation_without_a_body_may_be_lost_and_nothing_is_known_less() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    let out = rig.tell(failed(&reserve.request, false));
    assert!(!indeterminate(&out));
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn a_denied_body_returns_to_the_queue() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    let out = rig.tell(denied(&reserve.request, Denial::Busy));
    assert!(!indeterminate(&out));
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn a_granted_run_whose_answer_is_lost_and_whose_owner_began_anew_is_indeterminate() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    rig.grant_held(&reserve, 1);
    let out = rig.tell(failed(&reserve.request, false));
    assert_eq!(reserved(&out).map(|r| r.request), Some(reserve.request.clone()));
    assert!(indeterminate(&rig.tell(denied(&reserve.request, Denial::WrongEpoch))));
}

#[test]
fn a_run_refused_after_its_owner_began_anew_waits_again() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    rig.tell(Input::PeerUp { peer: NodeId::new("n2"), epoch: Epoch(2) });
    rig.grant_held(&reserve, 1);
    assert_eq!(left(&rig), None, "the grant is void");
    rig.tell(ended(&reserve.request, RemoteEnd::Refused(RunRefusal::NotStarted)));
    assert_eq!(rig.node.queued(), 1);
}

#[test]
fn the_second_copy_of_a_grant_changes_nothing() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    let fence = rig.grant_held(&reserve, 1);
    let before = rig.node.clone();
    rig.tell(granted_by("n2", &reserve, fence, 1));
    assert_eq!(rig.node, before);
}

#[test]
fn an_answer_to_a_request_of_a_life_before_changes_nothing() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let reserve = carried(&mut rig, &spec);
    let before = rig.node.clone();
    let older = RequestId { epoch: Epoch(0), ..reserve.request };
    rig.tell(denied(&older, Denial::Busy));
    rig.tell(failed(&older, false));
    rig.tell(ended(&older, RemoteEnd::Unknown));
    assert_eq!(rig.node, before);
}

#[test]
fn a_requests_number_stays_open_as_long_as_it_may_be_retried() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    let first = carried(&mut rig, &spec);
    let second = reserved(&rig.invoke(2, &spec)).unwrap();
    assert_eq!((first.open_from, second.open_from), (1, 1));
    rig.tell(denied(&first.request, Denial::Busy));
    rig.tell(denied(&second.request, Denial::Busy));
    let third = reserved(&rig.advert("n2", &spec, FREE)).unwrap();
    assert_eq!(third.open_from, third.request.number);
}

#[test]
fn a_grant_that_is_not_what_was_asked_for_ends_the_activation_as_indeterminate() {
    let (mut rig, spec) = (Rig::without_memory(), spec(1));
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    let foreign = Fence { epoch: Epoch(9), counter: 1 };
    let out = rig.tell(granted_by("n2", &reserve, foreign, 1));
    assert!(out.contains(&Output::Indeterminate { activation: ActivationId(1) }), "{out:?}");
    assert_eq!(rig.node.held_leases().count(), 0);
}

#[test]
fn many_requests_to_one_peer_do_not_cost_a_run_at_another_its_retry() {
    let config = Config { answers_per_holder: 8, memory_mb: 64, ..Config::default() };
    let (mut rig, spec) = (Rig::with(config), spec(1));
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let long = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.grant_held(&long, 1);
    rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(1) });
    rig.peer("n3");
    for id in 2..20 {
        rig.advert("n3", &spec, Advert { free_bucket: 2, ..FREE });
        rig.pass(SECOND);
        let Some(reserve) = reserved(&rig.invoke(id, &spec)) else { continue };
        let (request, denial) = (reserve.request, crate::output::Denial::NoCapacity);
        rig.tell(Input::ReserveDenied { request, denial, hint: None });
    }
    // The next request to the first peer is where the oldest may be given up.
    rig.tell(Input::PeerDown { peer: NodeId::new("n3"), epoch: Epoch(1) });
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let next = reserved(&rig.invoke(50, &spec)).unwrap();
    assert_eq!((next.to.as_str(), next.open_from), ("n2", long.request.number));
    let end = crate::input::RemoteEnd::Unknown;
    let out = rig.tell(Input::RunAnswered { request: long.request.clone(), end });
    assert_eq!(reserved(&out).map(|r| r.request), Some(long.request), "it is tried again: {out:?}");
}

#[test]
fn a_request_that_the_journal_noted_stays_open_until_its_record_is_on_disk() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let first = reserved(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.grant_held(&first, 1);
    rig.run_ended(&first.request, 5 * SECOND);
    let second = sent_run(&rig.invoke(2, &spec)).unwrap();
    assert_eq!(second.open_from, first.request.number, "a crash would ask for it again");
    rig.tell(Input::BodyDropped { activation: ActivationId(1) });
    rig.run_ended(&second.request, 5 * SECOND);
    let third = sent_run(&rig.invoke(3, &spec)).unwrap();
    assert_eq!(third.open_from, third.request.number);
}

#[test]
fn of_the_requests_of_one_that_the_journal_keeps_only_the_last_stays_open() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let first = reserved(&rig.invoke_journaled(1, &spec, 100, 0)).unwrap();
    rig.tell(denied(&first.request, Denial::Busy));
    let again = reserved(&rig.advert("n2", &spec, FREE)).unwrap();
    assert_eq!(again.open_from, first.request.number);
    rig.tell(denied(&again.request, Denial::Busy));
    let third = reserved(&rig.advert("n2", &spec, FREE)).unwrap();
    assert_eq!(third.open_from, again.request.number);
}

#[test]
fn a_reserve_that_is_withdrawn_says_nothing_against_its_peer() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    let before = carried(&mut rig, &spec);
    rig.tell(Input::ReserveWithdrawn { request: before.request.clone() });
    assert!(!rig.node.knows_activation(ActivationId(1)));
    assert_eq!(rig.node.estimates().refusal(&before.to), 0);
    let again = reserved(&rig.invoke(1, &spec)).unwrap();
    assert_eq!((again.to, again.open_from), (before.to, again.request.number), "it is asked at once, and first");
}

#[test]
fn a_lease_whose_first_run_is_withdrawn_is_as_new_for_the_next() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    let out = rig.tell(granted_by("n2", &reserve, Fence { epoch: Epoch(1), counter: 1 }, 1));
    let first = sent_run(&out).unwrap();
    rig.tell(ended(&first.request, RemoteEnd::Withdrawn));
    let second = sent_run(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    assert_eq!((first.served, second.served), (Served::NewLease, Served::NewLease));
}

fn came_back(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::CameBack { activation } if *activation == ActivationId(1)))
}

/// Activation 1 on a lease that is held, sent.
fn leased(rig: &mut Rig, spec: &Arc<ActionSpec>) -> SendRun {
    rig.held(9, spec, 1);
    sent_run(&rig.invoke(1, spec)).unwrap()
}

#[test]
fn whoever_noted_where_a_body_went_is_told_when_it_certainly_did_not_run_there() {
    for denial in [Denial::Busy, Denial::NotTaken, Denial::StaleRequest, Denial::WrongEpoch] {
        let (mut rig, spec) = (Rig::without_memory(), spec(1));
        let reserve = carried(&mut rig, &spec);
        assert!(came_back(&rig.tell(denied(&reserve.request, denial))), "{denial:?}");
    }
    for end in [RemoteEnd::NeverSent, RemoteEnd::Refused(RunRefusal::StaleRequest)] {
        let (mut rig, spec) = (Rig::without_memory(), spec(1));
        let run = leased(&mut rig, &spec);
        assert!(came_back(&rig.tell(ended(&run.request, end))), "{end:?}");
    }
}

#[test]
fn nobody_is_told_that_it_did_not_run_as_long_as_a_copy_of_it_may_have() {
    let (mut rig, spec) = (Rig::without_memory(), idempotent());
    let reserve = carried(&mut rig, &spec);
    assert!(!came_back(&rig.tell(failed(&reserve.request, false))), "it is asked for once more");
    assert!(!came_back(&rig.tell(denied(&reserve.request, Denial::StaleRequest))), "nor if it is run again");
    assert!(rig.node.knows_activation(ActivationId(1)));
    let (mut rig, spec) = (Rig::without_memory(), idempotent());
    let run = leased(&mut rig, &spec);
    assert!(!came_back(&rig.tell(ended(&run.request, RemoteEnd::Unknown))));
    assert!(!came_back(&rig.tell(ended(&run.request, RemoteEnd::NeverSent))));
    assert!(rig.node.knows_activation(ActivationId(1)));
}

#[test]
fn a_late_answer_of_an_owners_life_before_does_not_bring_its_lease_back() {
    let (mut rig, spec) = (Rig::without_memory(), spec(1));
    let run = leased(&mut rig, &spec);
    rig.tell(Input::PeerUp { peer: NodeId::new("n2"), epoch: Epoch(2) });
    rig.run_ended(&run.request, 5 * SECOND);
    assert_eq!(rig.node.held_leases().count(), 0);
    assert_eq!(sent_run(&rig.invoke(2, &spec)), None);
}
