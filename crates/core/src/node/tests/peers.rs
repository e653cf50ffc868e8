//! Membership and adverts: hints, and never of an older epoch over a newer.

use super::*;

fn up(epoch: u64) -> Input {
    Input::PeerUp { peer: NodeId::new("n2"), epoch: Epoch(epoch) }
}

fn advert(spec: &ActionSpec, epoch: u64, advert: Advert) -> Input {
    Input::AdvertReceived { peer: NodeId::new("n2"), epoch: Epoch(epoch), hash: spec.action_hash(), advert }
}

fn published(out: &[Output]) -> Vec<Advert> {
    let adverts = out.iter().filter_map(|o| match o {
        Output::PublishAdvert { advert, .. } => Some(*advert),
        _ => None,
    });
    adverts.collect()
}

#[test]
fn an_older_epoch_never_replaces_a_newer() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.tell(up(5));
    rig.tell(advert(&spec, 5, FREE));
    let before = rig.node.clone();
    rig.tell(up(4));
    rig.tell(advert(&spec, 4, Advert { free_bucket: 0, ..FREE }));
    rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(4) });
    rig.tell(Input::PeerFacts { peer: NodeId::new("n2"), epoch: Epoch(4), draining: true, room_mb: 0 });
    assert_eq!(rig.node, before);
    assert_eq!(reserved(&rig.invoke(1, &spec)).map(|r| r.owner_epoch), Some(Epoch(5)));
}

#[test]
fn a_newer_epoch_voids_what_the_older_granted_and_showed() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.held(1, &spec, 1);
    let out = rig.tell(up(2));
    assert!(noted(&out, |e| matches!(e, Event::LeaseLost { .. })));
    assert_eq!(rig.node.held_leases().count(), 0);
    let out = rig.invoke(2, &spec);
    assert_eq!((sent_run(&out), reserved(&out)), (None, None));
}

#[test]
fn a_grant_of_an_epoch_that_is_over_is_not_held() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.tell(up(1));
    rig.tell(advert(&spec, 1, FREE));
    let reserve = reserved(&rig.invoke_sized(1, &spec, 100_000)).unwrap();
    rig.tell(up(2));
    rig.grant_held(&reserve, 1);
    assert_eq!(rig.node.held_leases().count(), 0);
}

#[test]
fn a_dead_peers_adverts_are_forgotten_and_its_return_is_told() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.tell(up(1));
    rig.tell(advert(&spec, 1, FREE));
    let out = rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(1) });
    assert!(noted(&out, |e| matches!(e, Event::PeerDown { .. })));
    assert_eq!(rig.node.live_peers(), 0);
    assert!(noted(&rig.tell(up(1)), |e| matches!(e, Event::PeerUp { .. })));
    assert_eq!(reserved(&rig.invoke(1, &spec)), None, "what it showed before is no hint any more");
}

#[test]
fn hearing_of_a_live_peer_again_changes_nothing() {
    let mut rig = Rig::new();
    rig.tell(up(1));
    let before = rig.node.clone();
    assert!(rig.tell(up(1)).is_empty());
    assert_eq!(rig.node, before);
}

#[test]
fn a_node_is_no_peer_of_itself() {
    let mut rig = Rig::new();
    rig.peer("n1");
    assert_eq!(rig.node.live_peers(), 0);
}

#[test]
fn an_advert_of_an_unknown_peer_is_not_kept() {
    let mut rig = Rig::new();
    let spec = spec(1);
    rig.tell(advert(&spec, 1, FREE));
    rig.tell(up(1));
    assert_eq!(reserved(&rig.invoke(1, &spec)), None);
}

#[test]
fn a_peer_shows_no_more_actions_than_the_bound() {
    let mut rig = Rig::with(Config { adverts_per_peer: 2, ..Config::default() });
    rig.tell(up(1));
    let actions: Vec<_> = (0..3).map(|n| named("ns", &format!("a{n}"), 1)).collect();
    for spec in &actions {
        rig.tell(advert(spec, 1, FREE));
    }
    assert!(reserved(&rig.invoke(1, &actions[1])).is_some());
    assert_eq!(reserved(&rig.invoke(2, &actions[2])), None);
}

#[test]
fn an_advert_that_is_gone_makes_room_for_another() {
    let mut rig = Rig::with(Config { adverts_per_peer: 1, ..Config::default() });
    let actions: Vec<_> = (0..3).map(|n| named("ns", &format!("a{n}"), 1)).collect();
    rig.tell(up(1));
    rig.tell(advert(&actions[0], 1, FREE));
    rig.tell(advert(&actions[0], 1, Advert::default()));
    rig.tell(advert(&actions[0], 1, Advert::default()));
    rig.tell(advert(&actions[1], 1, FREE));
    assert!(reserved(&rig.invoke(1, &actions[1])).is_some(), "the first is gone");
    rig.tell(up(2));
    rig.tell(advert(&actions[2], 2, FREE));
    assert!(reserved(&rig.invoke(2, &actions[2])).is_some(), "the life before is over");
    rig.tell(Input::PeerDown { peer: NodeId::new("n2"), epoch: Epoch(2) });
    rig.tell(up(2));
    rig.tell(advert(&actions[0], 2, FREE));
    assert!(reserved(&rig.invoke(3, &actions[0])).is_some(), "what it showed before its death is forgotten");
}

#[test]
fn a_backlog_goes_to_a_peer_that_begins_to_show_free_slots() {
    let mut rig = Rig::without_memory();
    let spec = spec(1);
    rig.tell(up(1));
    rig.invoke(1, &spec);
    assert!(reserved(&rig.tell(advert(&spec, 1, FREE))).is_some());
}

#[test]
fn an_advert_tells_states_and_free_slots_in_buckets() {
    let mut rig = Rig::new();
    let spec = spec(4);
    let container = started(&rig.invoke(1, &spec)).unwrap();
    rig.pass(SECOND);
    rig.created(container);
    let out = rig.ready(container);
    let shown = Advert { warm: 1, paused: 0, starting: 0, free_bucket: 2 };
    assert_eq!(published(&out), [shown], "three of four slots are free");
}

#[test]
fn adverts_of_one_action_keep_their_distance_and_the_last_state_is_told() {
    let mut rig = Rig::new();
    let spec = spec(4);
    rig.warm(&spec);
    rig.pass(SECOND);
    let mut runs = Vec::new();
    for id in 1..=4 {
        let out = rig.invoke(id, &spec);
        runs.extend(published(&out));
    }
    assert_eq!(runs.len(), 1, "{runs:?}");
    let later = published(&rig.pass(500 * MS));
    assert_eq!(later.iter().map(|a| a.free_bucket).collect::<Vec<_>>(), [0]);
}

#[test]
fn what_is_gone_is_told_as_a_value() {
    let mut rig = Rig::new();
    let spec = spec(1);
    let container = rig.warm(&spec);
    rig.tell(Input::ContainerDied { container });
    rig.tell(Input::RemoveEnded { container });
    assert_eq!(published(&rig.pass(SECOND)).last(), Some(&Advert::default()));
}
