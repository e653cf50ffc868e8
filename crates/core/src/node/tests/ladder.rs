//! Where the next slot comes from.

use super::*;
use crate::input::Advice;
use crate::output::Denial;

fn denied(reserve: &SendReserve, hint: Option<&str>) -> Input {
    Input::ReserveDenied { request: reserve.request.clone(), denial: Denial::NoCapacity, hint: hint.map(NodeId::new) }
}

#[test]
fn an_own_free_slot_comes_first() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let out = rig.invoke(1, &spec);
    assert!(ran(&out).is_some());
    assert_eq!(reserved(&out), None, "no reservation while an own slot is free");
}

#[test]
fn a_held_lease_comes_before_a_new_reservation() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let fence = rig.held(1, &spec, 1);
    let out = rig.invoke(2, &spec);
    let run = sent_run(&out).unwrap();
    assert_eq!((run.fence, run.to.as_str(), run.keep), (fence, "n2", 1));
    assert_eq!(reserved(&out), None);
}

#[test]
fn a_small_body_travels_with_the_reservation() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    assert_eq!(reserve.run, Some(attempt(1)));
    assert_eq!((reserve.slots, reserve.wait_us), (1, 0), "no more slots than are queued");
    assert_eq!(rig.node.queued(), 0, "nothing else may run it now");
}

#[test]
fn a_large_body_follows_its_grant() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    assert_eq!(reserve.run, None);
    assert_eq!(rig.node.queued(), 1);
    let fence = Fence { epoch: Epoch(1), counter: 1 };
    let out = rig.tell(granted_by("n2", &reserve, fence, 1));
    let run = sent_run(&out).unwrap();
    assert_eq!((run.activation, run.fence), (ActivationId(1), fence));
}

#[test]
fn an_activation_asks_three_peers_at_most_and_the_same_one_not_at_once_again() {
    let mut rig = Rig::new();
    let spec = spec(1);
    for peer in ["n2", "n3", "n4", "n5", "n6"] {
        rig.peer(peer);
        rig.advert(peer, &spec, FREE);
    }
    let mut out = rig.invoke(1, &spec);
    let mut asked = Vec::new();
    while let Some(reserve) = reserved(&out) {
        asked.push(reserve.to.clone());
        out = rig.tell(denied(&reserve, None));
    }
    assert_eq!(asked.len(), 3, "{asked:?}");
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn a_hint_is_followed_though_gossip_shows_nothing_there() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.peer("n3");
    rig.advert("n2", &spec, FREE);
    let first = reserved(&rig.invoke(1, &spec)).unwrap();
    let out = rig.tell(denied(&first, Some("n3")));
    assert_eq!(reserved(&out).map(|r| r.to), Some(NodeId::new("n3")));
}

#[test]
fn a_hint_at_a_peer_that_was_asked_is_not_followed() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let first = reserved(&rig.invoke(1, &spec)).unwrap();
    let out = rig.tell(denied(&first, Some("n2")));
    assert_eq!(reserved(&out), None);
}

#[test]
fn a_paused_container_is_resumed_before_another_is_started() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.pass(12 * SECOND);
    rig.tell(Input::PauseEnded { container, ok: true });
    let out = rig.invoke(1, &spec);
    assert!(out.contains(&Output::ResumeContainer { container }));
    assert_eq!(starts(&out), 0);
    let out = rig.tell(Input::ResumeEnded { container, ok: true });
    assert!(out.iter().any(|o| matches!(o, Output::RunLocal { served: crate::output::Served::Resumed, .. })));
}

#[test]
fn a_peers_paused_container_is_reserved_with_a_wait_and_without_the_body() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, Advert { warm: 0, paused: 1, starting: 0, free_bucket: 0 });
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    assert!(reserve.wait_us > 0);
    assert_eq!(reserve.run, None);
}

#[test]
fn a_short_queue_waits_rather_than_starts() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    let out = rig.invoke(2, &spec);
    assert_eq!((starts(&out), rig.node.queued()), (0, 1));
    let out = rig.finish(container, run, RunEnd::Answered);
    assert_eq!(ran(&out).map(|(id, _)| id), Some(ActivationId(2)));
}

#[test]
fn a_backlog_that_costs_more_than_a_start_is_worth_one() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.pass(200 * MS);
    rig.finish(container, run, RunEnd::Answered);
    let mut out = Vec::new();
    for id in 2..20 {
        out.extend(rig.invoke(id, &spec));
    }
    assert!(starts(&out) > 0);
}

#[test]
fn a_run_slower_than_any_before_makes_a_start_worth_it() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    assert_eq!(starts(&rig.invoke(2, &spec)), 0);
    assert_eq!(starts(&rig.pass(SECOND)), 1);
}

#[test]
fn a_slow_run_at_a_peer_makes_a_start_worth_it_as_well() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.grant_held(&reserve, 1);
    rig.advert("n2", &spec, Advert { free_bucket: 0, ..FREE });
    rig.invoke(2, &spec);
    assert_eq!(starts(&rig.pass(2 * SECOND)), 1);
}

#[test]
fn a_node_short_of_memory_asks_a_peer_with_room_to_start_one() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    rig.warm(&named("ns", "other", 1));
    rig.peer("n2");
    rig.tell(Input::PeerFacts { peer: NodeId::new("n2"), epoch: Epoch(1), draining: false, room_mb: 1_000 });
    let reserve = reserved(&rig.invoke(1, &spec(1))).unwrap();
    assert!(reserve.start && reserve.wait_us > 0);
    assert_eq!(reserve.run, None);
}

#[test]
fn slots_asked_for_count_as_taken_until_gossip_shows_them() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, Advert { free_bucket: 2, ..FREE });
    assert!(reserved(&rig.invoke(1, &spec)).is_some());
    assert!(reserved(&rig.invoke(2, &spec)).is_some());
    assert_eq!(reserved(&rig.invoke(3, &spec)), None, "both slots shown are taken");
}

#[test]
fn a_draining_peer_and_a_dead_one_are_not_asked() {
    let mut rig = Rig::new();
    let spec = spec(1);
    for peer in ["n2", "n3"] {
        rig.peer(peer);
        rig.advert(peer, &spec, FREE);
    }
    rig.tell(Input::PeerFacts { peer: NodeId::new("n2"), epoch: Epoch(1), draining: true, room_mb: 0 });
    rig.tell(Input::PeerDown { peer: NodeId::new("n3"), epoch: Epoch(1) });
    assert_eq!(reserved(&rig.invoke(1, &spec)), None);
}

fn begins(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::StartContainer { .. } | Output::SendNotice { .. }))
}

#[test]
fn a_burst_waits_for_the_answer_of_a_peer_that_may_have_more_slots_than_gossip_can_tell() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let asked: Vec<SendReserve> = (1..=10)
        .filter_map(|id| {
            let out = rig.invoke(id, &spec);
            assert!(!begins(&out), "{id}: {out:?}");
            reserved(&out)
        })
        .collect();
    assert_eq!((asked.len(), rig.node.queued()), (4, 6), "as many as are certain");
    assert!(!begins(&rig.pass(SECOND / 100)));
    let fence = Fence { epoch: Epoch(1), counter: 1 };
    let out = rig.tell(granted_by("n2", &asked[0], fence, 1));
    let more = reserved(&out).unwrap();
    assert_eq!((more.slots, begins(&out)), (6, false), "for all that wait");
}

#[test]
fn who_waited_in_vain_for_a_peer_that_might_have_had_more_starts_a_container() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let asked: Vec<SendReserve> = (1..=5).filter_map(|id| reserved(&rig.invoke(id, &spec))).collect();
    assert!(begins(&rig.tell(denied(&asked[0], None))), "it has none");
    let mut rig = Rig::new();
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    (1..=5).for_each(|id| drop(rig.invoke(id, &spec)));
    assert!(begins(&rig.pass(2 * SECOND)), "it says nothing");
}

#[test]
fn calls_that_come_before_gossip_tells_of_a_container_that_granted_are_asked_for_there_and_start_none() {
    let mut rig = Rig::new();
    let spec = spec(50);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.advert("n2", &spec, Advert::default());
    rig.grant_held(&reserve, 1);
    rig.pass(200 * MS);
    rig.run_ended(&reserve.request, 5 * SECOND);
    assert!(sent_run(&rig.invoke(2, &spec)).is_some(), "on the lease");
    for id in 3..10 {
        let out = rig.invoke(id, &spec);
        assert!(!begins(&out), "{id}: {out:?}");
        assert!(id > 6 || reserved(&out).is_some(), "{id}: {out:?}");
    }
}

#[test]
fn a_grant_of_less_than_was_asked_for_tells_of_no_more() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = spec(50);
    (1..=3).for_each(|id| drop(rig.invoke_sized(id, &spec, 100_000)));
    let there = Advice::ReserveAt { peer: NodeId::new("n2"), epoch: Epoch(1) };
    let reserve = reserved(&rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: there })).unwrap();
    assert_eq!(reserve.slots, 3);
    let fence = Fence { epoch: Epoch(1), counter: 1 };
    let out = rig.tell(granted_by("n2", &reserve, fence, 1));
    assert!(sent_run(&out).is_some());
    // Long enough for one slot to be too little for the two that are left.
    assert_eq!(reserved(&rig.pass(200 * MS)), None);
}

#[test]
fn a_queue_that_waits_for_its_own_start_takes_what_a_peer_comes_to_have_free() {
    let mut rig = Rig::new();
    let spec = spec(50);
    assert!(begins(&rig.invoke(1, &spec)));
    rig.peer("n2");
    let out = rig.advert("n2", &spec, FREE);
    assert_eq!(reserved(&out).and_then(|r| r.run), Some(attempt(1)));
}

#[test]
fn a_start_that_is_nearly_through_is_waited_for_but_not_one_that_is_overdue() {
    for (after, asks) in [(300 * MS, false), (400 * MS, true)] {
        let mut rig = Rig::new();
        let spec = spec(50);
        rig.invoke(1, &spec);
        rig.peer("n2");
        rig.pass(after);
        assert_eq!(reserved(&rig.advert("n2", &spec, FREE)).is_some(), asks, "{after}");
    }
}

#[test]
fn a_grant_tells_of_more_than_an_advert_from_before_the_container_was_there() {
    let mut rig = Rig::new();
    let spec = spec(50);
    rig.peer("n2");
    rig.advert("n2", &spec, Advert { warm: 0, paused: 0, starting: 1, free_bucket: 0 });
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    assert!(reserve.wait_us > 0);
    rig.pass(200 * MS);
    rig.grant_held(&reserve, 1);
    rig.pass(100 * MS);
    for id in 2..6 {
        let out = rig.invoke(id, &spec);
        assert_eq!(reserved(&out).and_then(|r| r.run), Some(attempt(id)));
    }
}

#[test]
fn what_an_owner_granted_in_an_earlier_life_tells_nothing_of_this_one() {
    let mut rig = Rig::new();
    let spec = spec(50);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::PeerUp { peer: NodeId::new("n2"), epoch: Epoch(2) });
    rig.grant_held(&reserve, 1);
    assert_eq!(reserved(&rig.invoke(2, &spec)), None);
}

#[test]
fn what_an_owner_granted_of_an_older_revision_tells_nothing_of_the_new_one() {
    let mut rig = Rig::new();
    let spec = spec(50);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    let newer = newer(&spec);
    rig.tell(Input::ActionChanged { spec: newer.clone() });
    rig.grant_held(&reserve, 1);
    let out = rig.invoke(2, &newer);
    assert_eq!((reserved(&out), begins(&out)), (None, true));
}

/// A node without room, its peer that shows a free slot and denies it, and the action of which a call waits.
fn denied_without_room() -> (Rig, Arc<ActionSpec>) {
    let mut rig = Rig::with(Config { memory_mb: 128, ..Config::default() });
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, Advert { free_bucket: 1, ..FREE });
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    let out = rig.tell(denied(&reserve, None));
    assert_eq!((reserved(&out), rig.node.queued()), (None, 1));
    (rig, spec)
}

#[test]
fn who_asked_in_vain_as_a_container_was_being_paused_asks_again_once_gossip_shows_it_as_paused() {
    let (mut rig, spec) = denied_without_room();
    let out = rig.advert("n2", &spec, Advert { warm: 0, paused: 1, starting: 0, free_bucket: 0 });
    assert!(reserved(&out).is_some_and(|reserve| reserve.wait_us > 0), "{out:?}");
}

#[test]
fn who_asked_in_vain_asks_again_for_a_container_that_gossip_showed_as_paused_before_the_refusal_came() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, Advert { free_bucket: 1, ..FREE });
    let reserve = reserved(&rig.invoke(1, &spec)).unwrap();
    rig.advert("n2", &spec, Advert { warm: 0, paused: 1, starting: 0, free_bucket: 0 });
    assert_eq!(reserved(&rig.tell(denied(&reserve, None))), None);
    let again = reserved(&rig.pass(2 * SECOND)).unwrap();
    assert!(again.wait_us > 0, "{again:?}");
}

#[test]
fn who_asked_in_vain_asks_again_when_what_gossip_shows_is_believed_again() {
    let (mut rig, _) = denied_without_room();
    // The slot was taken for a moment only: no advert tells of that.
    assert_eq!(reserved(&rig.pass(SECOND)), None);
    let again = reserved(&rig.pass(SECOND)).unwrap();
    assert_eq!(again.run, Some(attempt(1)));
    rig.tell(denied(&again, None));
    let last = reserved(&rig.pass(2 * SECOND)).unwrap();
    rig.tell(denied(&last, None));
    assert_eq!(reserved(&rig.pass(4 * SECOND)), None, "three times in all");
}

#[test]
fn slots_that_one_container_of_a_peer_has_not_are_asked_for_at_its_next() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.advert("n2", &spec, FREE);
    let asked: Vec<SendReserve> = (1..=7).filter_map(|id| reserved(&rig.invoke(id, &spec))).collect();
    rig.pass(10 * MS);
    let first = rig.tell(granted_by("n2", &asked[0], Fence { epoch: Epoch(1), counter: 1 }, 1));
    let more = reserved(&first).unwrap();
    assert_eq!(more.slots, 3);
    let next = rig.tell(granted_by("n2", &more, Fence { epoch: Epoch(1), counter: 2 }, 1));
    assert_eq!((reserved(&next).map(|r| r.slots), begins(&next)), (Some(2), false));
}
