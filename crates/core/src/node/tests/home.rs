//! The home of an action, told before a first start.

use super::*;
use crate::input::Advice;

/// An action whose home is the node under test, or not, with `n2` the only peer.
fn action_with_home_here(here: bool) -> Arc<ActionSpec> {
    let own = |s: &ActionSpec| s.action_hash().weight(&NodeId::new("n1")) > s.action_hash().weight(&NodeId::new("n2"));
    (0..100).map(|n| named("ns", &format!("a{n}"), 1)).find(|s| own(s) == here).unwrap()
}

fn asked(out: &[Output]) -> Option<NodeId> {
    out.iter().find_map(|o| match o {
        Output::SendNotice { to, .. } => Some(to.clone()),
        _ => None,
    })
}

fn advice(out: &[Output]) -> Option<Advice> {
    out.iter().find_map(|o| match o {
        Output::AnswerNotice { advice, .. } => Some(advice.clone()),
        _ => None,
    })
}

fn notice(from: &str, spec: &ActionSpec) -> Input {
    Input::NoticeReceived {
        from: NodeId::new(from),
        from_epoch: Epoch(1),
        hash: spec.action_hash(),
        queued: 1,
        slots: 1,
        start_us: 300 * MS,
        service_us: 0,
    }
}

#[test]
fn a_node_alone_starts_without_asking() {
    let mut rig = Rig::new();
    let out = rig.invoke(1, &spec(1));
    assert_eq!((asked(&out), starts(&out)), (None, 1));
}

#[test]
fn a_first_start_is_told_to_the_home_and_waits_for_its_word() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = action_with_home_here(false);
    let out = rig.invoke(1, &spec);
    assert_eq!((asked(&out), starts(&out)), (Some(NodeId::new("n2")), 0));
    let out = rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: Advice::Start });
    assert_eq!(starts(&out), 1);
}

#[test]
fn a_silent_home_is_passed_over() {
    let mut rig = Rig::new();
    rig.peer("n2");
    rig.invoke(1, &action_with_home_here(false));
    assert_eq!(starts(&rig.pass(SECOND)), 1);
}

#[test]
fn whoever_is_sent_to_another_reserves_there_with_a_wait_and_does_not_start() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = action_with_home_here(false);
    rig.invoke(1, &spec);
    let there = Advice::ReserveAt { peer: NodeId::new("n2"), epoch: Epoch(1) };
    let out = rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: there });
    let reserve = reserved(&out).unwrap();
    assert!(reserve.wait_us > 0);
    assert_eq!((reserve.run, starts(&out)), (None, 0));
}

#[test]
fn a_word_that_names_another_life_of_the_peer_is_taken_for_start() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = action_with_home_here(false);
    rig.invoke(1, &spec);
    let there = Advice::ReserveAt { peer: NodeId::new("n2"), epoch: Epoch(9) };
    let out = rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: there });
    assert_eq!((reserved(&out), starts(&out)), (None, 1));
}

#[test]
fn a_word_that_nobody_waits_for_changes_nothing() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = action_with_home_here(false);
    let before = rig.node.clone();
    rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: Advice::Start });
    assert_eq!(rig.node, before);
}

#[test]
fn a_home_sends_the_second_to_the_first() {
    let mut rig = Rig::new();
    let spec = spec(1);
    assert_eq!(advice(&rig.tell(notice("n2", &spec))), Some(Advice::Start));
    let there = Advice::ReserveAt { peer: NodeId::new("n2"), epoch: Epoch(1) };
    assert_eq!(advice(&rig.tell(notice("n3", &spec))), Some(there));
}

#[test]
fn a_home_that_starts_one_itself_sends_others_to_itself() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.invoke(1, &spec);
    let here = Advice::ReserveAt { peer: NodeId::new("n1"), epoch: Epoch(1) };
    assert_eq!(advice(&rig.tell(notice("n2", &spec))), Some(here));
}

#[test]
fn a_home_that_drains_sends_nobody_to_itself() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.invoke(1, &spec);
    rig.tell(Input::DrainRequested { deadline_us: SECOND, force: false });
    assert_eq!(advice(&rig.tell(notice("n2", &spec))), Some(Advice::Start));
}

#[test]
fn a_home_forgets_what_a_node_told_it_before_that_went_down() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.peer("n2");
    rig.tell(notice("n2", &spec));
    rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(1) });
    assert_eq!(advice(&rig.tell(notice("n3", &spec))), Some(Advice::Start));
}

#[test]
fn a_node_that_is_the_home_starts_at_once() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let out = rig.invoke(1, &action_with_home_here(true));
    assert_eq!((asked(&out), starts(&out)), (None, 1));
}

#[test]
fn a_node_that_knows_of_a_warm_copy_starts_a_second_without_asking() {
    let mut rig = Rig::new();
    rig.peer("n2");
    let spec = action_with_home_here(false);
    rig.advert("n2", &spec, Advert { free_bucket: 0, ..FREE });
    let out = rig.invoke(1, &spec);
    assert_eq!((asked(&out), starts(&out)), (None, 1));
}

/// The Reserve that `n1`'s first activation waits with at `n2`, as the home said.
fn sent_there(rig: &mut Rig, spec: &Arc<ActionSpec>) -> SendReserve {
    rig.peer("n2");
    rig.invoke(1, spec);
    let there = Advice::ReserveAt { peer: NodeId::new("n2"), epoch: Epoch(1) };
    reserved(&rig.tell(Input::NoticeAnswered { hash: spec.action_hash(), advice: there })).unwrap()
}

fn denied(reserve: &SendReserve, denial: crate::output::Denial) -> Input {
    Input::ReserveDenied { request: reserve.request.clone(), denial, hint: None }
}

#[test]
fn whoever_is_told_that_it_is_still_coming_waits_again_and_does_not_start() {
    let mut rig = Rig::new();
    let spec = action_with_home_here(false);
    let first = sent_there(&mut rig, &spec);
    rig.pass(SECOND);
    let out = rig.tell(denied(&first, crate::output::Denial::StillComing));
    let second = reserved(&out).unwrap();
    assert_eq!((second.to.as_str(), second.wait_us, starts(&out)), ("n2", first.wait_us, 0));
    assert!(second.request.number > first.request.number, "the first has its answer");
    let out = rig.tell(granted_by("n2", &second, Fence { epoch: Epoch(1), counter: 1 }, 1));
    assert!(sent_run(&out).is_some(), "{out:?}");
}

#[test]
fn nobody_waits_for_what_comes_for_ever() {
    let mut rig = Rig::new();
    let spec = action_with_home_here(false);
    let mut waiting = sent_there(&mut rig, &spec);
    for asked in 1.. {
        assert!(asked < 20, "it still waits");
        rig.pass(SECOND / 2);
        let out = rig.tell(denied(&waiting, crate::output::Denial::StillComing));
        match reserved(&out) {
            Some(again) => waiting = again,
            None => return assert_eq!((asked > 2, starts(&out)), (true, 1)),
        }
    }
}

#[test]
fn whoever_is_told_that_nothing_comes_starts_at_once() {
    let mut rig = Rig::new();
    let spec = action_with_home_here(false);
    let waiting = sent_there(&mut rig, &spec);
    let out = rig.tell(denied(&waiting, crate::output::Denial::NoCapacity));
    assert_eq!((reserved(&out), starts(&out)), (None, 1));
}
