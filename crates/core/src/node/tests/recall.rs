//! The end of a lease at its owner: release, recall, expiry, death.

use super::*;
use crate::output::IntentKind;

fn recalled(out: &[Output]) -> Vec<Fence> {
    let recalls = out.iter().filter_map(|o| match o {
        Output::SendRecall { fence, .. } => Some(*fence),
        _ => None,
    });
    recalls.collect()
}

#[test]
fn a_release_ends_the_lease_whose_fence_it_names() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let first = rig.granted(&spec, Ask::default());
    let second = rig.granted(&spec, Ask { number: 2, ..Ask::default() });
    let out = rig.release(container, first, 0);
    assert!(noted(&out, |e| matches!(e, Event::LeaseReleased { fence, .. } if *fence == first)));
    assert_eq!(rig.node.granted_leases().map(|l| l.fence).collect::<Vec<_>>(), [second]);
}

#[test]
fn a_release_by_another_holder_or_another_life_of_it_changes_nothing() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 4, ..Ask::default() });
    for (holder, holder_epoch) in [("n3", Epoch(1)), ("n2", Epoch(2))] {
        let holder = NodeId::new(holder);
        rig.tell(Input::ReleaseReceived { holder, holder_epoch, container: own(container), fence, keep: 0 });
    }
    let other_life = ContainerId { epoch: Epoch(7), ..own(container) };
    let (holder, holder_epoch) = (NodeId::new("n2"), Epoch(1));
    rig.tell(Input::ReleaseReceived { holder, holder_epoch, container: other_life, fence, keep: 0 });
    assert_eq!(rig.free(container), 0);
}

#[test]
fn a_release_keeps_the_slots_of_runs_in_flight() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 3, ..Ask::default() });
    rig.run(&spec, 2, container, fence, 3);
    rig.release(container, fence, 0);
    assert_eq!(rig.free(container), 3);
}

#[test]
fn a_lost_grant_comes_back_at_ttl_and_grace_and_not_before() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.granted(&spec, Ask::default());
    rig.pass(5_200 * MS - 1);
    assert_eq!(rig.free(container), 0);
    let out = rig.pass(1);
    assert!(noted(&out, |e| matches!(e, Event::LeaseExpired { .. })));
    assert_eq!(rig.free(container), 1);
}

#[test]
fn a_run_that_outlives_its_lease_keeps_its_slot_and_not_the_lease() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 2, ..Ask::default() });
    let RunAnswer::Accepted { run, .. } = rig.run(&spec, 2, container, fence, 2) else { panic!() };
    rig.pass(6 * SECOND);
    assert_eq!((rig.node.granted_leases().count(), rig.free(container)), (0, 1));
    rig.finish(container, run, RunEnd::Answered);
    assert_eq!(rig.free(container), 2);
}

#[test]
fn a_renewed_lease_ends_later_than_it_would_have() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    rig.pass(4 * SECOND);
    let RunAnswer::Accepted { run, .. } = rig.run(&spec, 2, container, fence, 1) else { panic!() };
    rig.finish(container, run, RunEnd::Answered);
    rig.pass(5 * SECOND);
    assert_eq!(rig.node.granted_leases().count(), 1);
    rig.pass(200 * MS);
    assert_eq!(rig.node.granted_leases().count(), 0);
}

#[test]
fn an_own_activation_that_waits_calls_leases_back() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    assert_eq!(recalled(&rig.invoke(1, &spec)), [fence]);
    assert_eq!(recalled(&rig.invoke(2, &spec)), [], "once is enough");
}

#[test]
fn a_peer_that_waits_calls_the_leases_of_others_back() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    let out = rig.reserve_out("n3", &spec, Ask { wait_us: SECOND, ..Ask::default() });
    assert_eq!(recalled(&out), [fence]);
    let out = rig.release(container, fence, 0);
    assert!(matches!(answered(&out), Some(ReserveAnswer::Granted { .. })));
}

#[test]
fn a_recalled_lease_still_runs_and_is_not_renewed() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask { slots: 2, ..Ask::default() });
    rig.reserve_out("n3", &spec, Ask { wait_us: 100 * MS, ..Ask::default() });
    rig.pass(200 * MS);
    let answer = rig.run(&spec, 2, container, fence, 2);
    assert!(matches!(answer, RunAnswer::Accepted { renewed_us: 0, .. }), "{answer:?}");
}

#[test]
fn a_retiring_container_calls_its_leases_back_and_goes_with_the_last() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let fence = rig.granted(&spec, Ask::default());
    let out = rig.tell(Input::IntentRequested { container, kind: IntentKind::Remove, force: true });
    assert_eq!(recalled(&out), [fence]);
    assert_eq!(rig.state(container), Some(Lifecycle::Retiring));
    let out = rig.release(container, fence, 0);
    assert!(out.contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_retiring_container_whose_holder_is_silent_goes_when_the_lease_expires() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.granted(&spec, Ask::default());
    rig.tell(Input::IntentRequested { container, kind: IntentKind::Remove, force: true });
    assert!(rig.pass(5_200 * MS).contains(&Output::RemoveContainer { container }));
}

#[test]
fn leases_on_a_dead_container_are_void_at_once() {
    let mut rig = Rig::new();
    let spec = spec(2);
    let container = rig.warm(&spec);
    rig.granted(&spec, Ask::default());
    let out = rig.tell(Input::ContainerDied { container });
    assert!(noted(&out, |e| matches!(e, Event::LeaseExpired { .. })));
    assert!(out.contains(&Output::RemoveContainer { container }));
    assert_eq!(rig.node.granted_leases().count(), 0);
}

#[test]
fn a_verdict_of_gossip_ends_no_lease() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.peer("n2");
    rig.granted(&spec, Ask::default());
    rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(1) });
    assert_eq!(rig.node.granted_leases().count(), 1);
}

#[test]
fn fences_grow_with_every_grant() {
    let mut rig = Rig::new();
    let spec = spec(4);
    rig.warm(&spec);
    let fences: Vec<Fence> = (1..=4).map(|number| rig.granted(&spec, Ask { number, ..Ask::default() })).collect();
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}
