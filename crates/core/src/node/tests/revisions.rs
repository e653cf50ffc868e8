//! Newer revisions and deletions of an action.

use super::*;
use crate::output::{Denial, Refusal};

#[test]
fn a_newer_revision_retires_the_containers_of_the_older() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let out = rig.tell(Input::ActionChanged { spec: newer(&spec) });
    assert!(out.contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_run_of_the_older_revision_finishes_in_its_container() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ActionChanged { spec: newer(&spec) });
    assert_eq!(rig.state(container), Some(Lifecycle::Retiring));
    assert!(rig.finish(container, run, RunEnd::Answered).contains(&Output::RemoveContainer { container }));
}

#[test]
fn an_older_revision_never_replaces_a_newer() {
    let mut rig = Rig::new();
    let spec = newer(&spec(1));
    let container = rig.warm(&spec);
    let out = rig.tell(Input::ActionChanged { spec: super::spec(1) });
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
}

#[test]
fn what_waits_runs_in_the_newer_revision_which_does_not_wait_for_a_start_of_the_older() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let old = started(&rig.invoke(1, &spec)).unwrap();
    rig.created(old);
    let out = rig.tell(Input::ActionChanged { spec: newer(&spec) });
    let starts: Vec<_> = out.iter().filter_map(start_of).collect();
    let [(new, 2)] = starts[..] else { panic!("{out:?}") };
    rig.created(new);
    assert_eq!(ran(&rig.ready(new)).map(|(id, _)| id), Some(ActivationId(1)));
    let out = rig.ready(old);
    assert!(out.contains(&Output::RemoveContainer { container: old }), "{out:?}");
}

/// The container that starts, and of which revision.
fn start_of(output: &Output) -> Option<(u64, u64)> {
    match output {
        Output::StartContainer { container, revision, .. } => Some((*container, revision.counter)),
        _ => None,
    }
}

#[test]
fn what_a_grant_told_of_an_older_revision_is_forgotten() {
    let mut rig = Rig::new();
    let spec = spec(50);
    rig.peer("n2");
    let reserve = carried_unseen(&mut rig, &spec);
    rig.grant_held(&reserve, 1);
    assert_eq!(rig.node.adverts.len(), 1);
    rig.tell(Input::ActionChanged { spec: newer(&spec) });
    assert_eq!(rig.node.adverts.len(), 0);
}

/// A Reserve at `n2`, whose advert is withdrawn before the answer.
fn carried_unseen(rig: &mut Rig, spec: &Arc<ActionSpec>) -> SendReserve {
    rig.advert("n2", spec, FREE);
    let reserve = reserved(&rig.invoke(1, spec)).unwrap();
    rig.advert("n2", spec, Advert::default());
    reserve
}

#[test]
fn an_owner_refuses_an_older_revision_than_it_knows() {
    let mut rig = Rig::new();
    let newest = newer(&spec(1));
    rig.warm(&newest);
    let answer = rig.reserve(&newest, Ask { revision: 1, ..Ask::default() });
    assert_eq!(denial(answer), Some(Denial::StaleRevision));
}

#[test]
fn a_reserve_that_waits_for_an_older_revision_is_denied_when_a_newer_comes() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() });
    let out = rig.tell(Input::ActionChanged { spec: newer(&spec) });
    assert_eq!(denial(answered(&out)), Some(Denial::StaleRevision));
}

#[test]
fn a_lease_of_an_older_revision_takes_no_run_of_the_newer() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    assert_eq!(sent_run(&rig.invoke(2, &newer(&spec))), None);
}

#[test]
fn the_advert_of_the_older_revision_is_withdrawn() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    let out = rig.tell(Input::ActionChanged { spec: newer(&spec) });
    let gone = Output::PublishAdvert { hash: spec.action_hash(), advert: Advert::default() };
    assert!(out.contains(&gone), "{out:?}");
}

#[test]
fn a_deletion_refuses_what_waits_and_retires_the_containers() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    let (_, run) = ran(&rig.invoke(1, &spec)).unwrap();
    rig.invoke(2, &spec);
    let out = rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    assert_eq!(refused(&out), [(2, Refusal::Deleted)]);
    assert!(rig.finish(container, run, RunEnd::Answered).contains(&Output::RemoveContainer { container }));
}

#[test]
fn a_deletion_denies_the_peers_that_wait() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.invoke(1, &spec);
    rig.reserve(&spec, Ask { wait_us: SECOND, ..Ask::default() });
    let out = rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    assert_eq!(denial(answered(&out)), Some(Denial::UnknownAction));
}

#[test]
fn a_deletion_older_than_the_action_changes_nothing() {
    let mut rig = Rig::new();
    let spec = newer(&spec(1));
    let container = rig.warm(&spec);
    rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(1) });
    assert_eq!(rig.state(container), Some(Lifecycle::Warm));
}

#[test]
fn a_container_that_comes_up_after_its_action_was_deleted_goes_at_once() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    rig.created(container);
    assert!(rig.ready(container).contains(&Output::RemoveContainer { container }));
}

#[test]
fn one_that_a_peer_refuses_after_its_action_was_deleted_is_refused() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let run = sent_run(&rig.invoke(2, &spec)).unwrap();
    rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    let end = crate::input::RemoteEnd::Refused(crate::output::RunRefusal::Retiring);
    let out = rig.tell(Input::RunAnswered { request: run.request, end });
    assert_eq!(refused(&out), [(2, Refusal::Deleted)]);
    assert_eq!(starts(&out), 0);
}

#[test]
fn a_call_that_comes_back_for_a_deleted_action_is_refused_as_that() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.warm(&spec);
    rig.tell(Input::ActionDeleted { action: spec.action.clone(), revision: revision(2) });
    assert_eq!(refused(&rig.invoke(1, &spec)), [(1, Refusal::Deleted)]);
    let anew = Arc::new(ActionSpec { revision: revision(3), ..spec.as_ref().clone() });
    assert!(refused(&rig.invoke(2, &anew)).is_empty(), "one made anew is another");
}
