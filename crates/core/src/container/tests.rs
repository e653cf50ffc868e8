#![allow(clippy::unwrap_used)]

use std::hash::DefaultHasher;

use super::*;
use crate::time::SECOND;

const NOW: Time = Time(1_000_000);

fn warm(slots: u32) -> Container {
    let revision = Revision { counter: 1, node: NodeId::new("n1") };
    let mut container = Container::new(ActionId::new("ns", "a"), revision, slots, 128, Time(0));
    container.transition(Lifecycle::Initializing, Time(1)).unwrap();
    container.transition(Lifecycle::Warm, Time(2)).unwrap();
    container
}

fn fence(counter: u64) -> Fence {
    Fence { epoch: Epoch(1), counter }
}

fn lease(slots: u32) -> Lease {
    Lease {
        holder: NodeId::new("n2"),
        holder_epoch: Epoch(7),
        slots,
        running: 0,
        granted_at: NOW,
        expires_at: NOW + SECOND,
        recalled: false,
    }
}

fn run_on(container: &mut Container, run: u64, fence: Fence, keep: u32, now: Time) -> Result<(), RunRefusal> {
    container.start_leased(RunId(run), ActivationId(run.into()), (&NodeId::new("n2"), Epoch(7)), fence, keep, now)
}

#[test]
fn moments_that_no_step_reads_again_are_in_no_hash() {
    let hash = |container: &Container| {
        let mut hasher = DefaultHasher::new();
        container.hash(&mut hasher);
        hasher.finish()
    };
    let (mut one, mut other) = (warm(1), warm(1));
    (other.created_at, other.since) = (Time(1), Time(5));
    assert_ne!(hash(&one), hash(&other), "one that has not served yet is as old as it is");
    let serve = |container: &mut Container, run: u64| container.start_own(RunId(run), ActivationId(1), None, NOW);
    for container in [&mut one, &mut other] {
        serve(container, 1);
        container.end_run(RunId(1), NOW).unwrap();
    }
    assert_eq!(hash(&one), hash(&other));
    other.idle_since = NOW + 1;
    assert_ne!(hash(&one), hash(&other), "its idle time is counted from then");
    serve(&mut one, 2);
    serve(&mut other, 2);
    assert_eq!(hash(&one), hash(&other));
}

#[test]
fn a_grant_takes_slots_and_a_release_returns_them() {
    let mut container = warm(4);
    container.grant(fence(1), lease(3));
    assert_eq!(container.free(), 1);
    assert!(container.release(fence(1), (&NodeId::new("n2"), Epoch(7)), 1, NOW));
    assert_eq!(container.free(), 3);
    assert!(container.release(fence(1), (&NodeId::new("n2"), Epoch(7)), 0, NOW));
    assert!(container.unused());
    container.check().unwrap();
}

#[test]
fn a_release_changes_only_the_lease_of_its_fence_and_holder() {
    let mut container = warm(4);
    container.grant(fence(2), lease(2));
    assert!(!container.release(fence(1), (&NodeId::new("n2"), Epoch(7)), 0, NOW));
    assert!(!container.release(fence(2), (&NodeId::new("n3"), Epoch(7)), 0, NOW));
    assert!(!container.release(fence(2), (&NodeId::new("n2"), Epoch(6)), 0, NOW));
    assert_eq!(container.leased_slots(), 2);
}

#[test]
fn no_run_starts_from_the_moment_a_lease_expires() {
    let mut container = warm(1);
    container.grant(fence(1), lease(1));
    assert_eq!(run_on(&mut container, 1, fence(1), 1, NOW + SECOND), Err(RunRefusal::UnknownLease));
    run_on(&mut container, 1, fence(1), 1, NOW + (SECOND - 1)).unwrap();
}

#[test]
fn a_run_in_flight_keeps_its_slot_when_its_lease_expires() {
    let mut container = warm(3);
    container.grant(fence(1), lease(2));
    run_on(&mut container, 1, fence(1), 2, NOW).unwrap();
    container.expire(fence(1), NOW + SECOND).unwrap();
    assert_eq!(container.free(), 2);
    container.check().unwrap();
    container.end_run(RunId(1), NOW + SECOND).unwrap();
    assert_eq!(container.free(), 3);
    assert!(container.unused());
}

#[test]
fn a_lease_takes_no_more_runs_than_it_has_slots() {
    let mut container = warm(4);
    container.grant(fence(1), lease(2));
    run_on(&mut container, 1, fence(1), 2, NOW).unwrap();
    run_on(&mut container, 2, fence(1), 2, NOW).unwrap();
    assert_eq!(run_on(&mut container, 3, fence(1), 2, NOW), Err(RunRefusal::NoSlot));
}

#[test]
fn the_slots_a_holder_keeps_never_grow_and_never_fall_below_its_runs() {
    let mut container = warm(4);
    container.grant(fence(1), lease(3));
    run_on(&mut container, 1, fence(1), 0, NOW).unwrap();
    assert_eq!(container.leased_slots(), 1);
    container.end_run(RunId(1), NOW).unwrap();
    run_on(&mut container, 2, fence(1), 9, NOW).unwrap();
    assert_eq!(container.leased_slots(), 1);
    container.check().unwrap();
}

#[test]
fn a_run_over_its_time_out_never_gives_its_slot_back() {
    let mut container = warm(2);
    container.grant(fence(1), lease(2));
    run_on(&mut container, 1, fence(1), 2, NOW).unwrap();
    container.overdue(RunId(1)).unwrap();
    container.check().unwrap();
    assert_eq!(container.leased_slots(), 1);
    container.expire(fence(1), NOW + SECOND);
    assert_eq!(container.free(), 1);
    assert!(container.may_end() && !container.unused());
}

#[test]
fn a_recalled_or_old_lease_is_not_renewed() {
    let mut container = warm(2);
    container.grant(fence(1), lease(1));
    assert!(container.renew(fence(1), NOW + 10, SECOND, 30 * SECOND, false));
    assert!(!container.renew(fence(1), NOW + 10, SECOND, 30 * SECOND, true));
    assert!(!container.renew(fence(1), NOW + 30 * SECOND, SECOND, 30 * SECOND, false));
    assert!(container.recall(fence(1)));
    assert!(!container.recall(fence(1)));
    assert!(!container.renew(fence(1), NOW + 10, SECOND, 30 * SECOND, false));
}

#[test]
fn a_retiring_container_refuses_runs_and_lets_accepted_ones_finish() {
    let mut container = warm(2);
    container.grant(fence(1), lease(2));
    run_on(&mut container, 1, fence(1), 2, NOW).unwrap();
    container.transition(Lifecycle::Retiring, NOW).unwrap();
    assert_eq!(run_on(&mut container, 2, fence(1), 2, NOW), Err(RunRefusal::Retiring));
    assert_eq!(container.free(), 0);
    assert!(!container.may_end());
    container.end_run(RunId(1), NOW).unwrap();
    container.expire(fence(1), NOW);
    assert!(container.may_end());
}

#[test]
fn a_dead_container_voids_its_leases_at_once() {
    let mut container = warm(2);
    container.grant(fence(1), lease(1));
    container.start_own(RunId(1), ActivationId(1), None, NOW);
    let (leases, runs) = container.void();
    assert_eq!((leases.len(), runs.len()), (1, 1));
    container.check().unwrap();
    assert!(container.unused());
}
