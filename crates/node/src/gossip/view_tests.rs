#![allow(clippy::unwrap_used)]

use chitchat::{Deserializable, Heartbeat, Serializable};

use super::super::generation;
use super::*;

const INTERVAL: Duration = Duration::from_millis(250);

/// One chitchat node as the view is shown it.
struct Shown {
    id: ChitchatId,
    state: NodeState,
    heartbeat: u64,
    live: bool,
}

impl Shown {
    fn new(name: &str, epoch: u64, incarnation: u64) -> Self {
        let id = ChitchatId::new(name, generation(epoch, incarnation), ([10, 0, 0, 2], 7411).into());
        Self { id, state: NodeState::for_test(), heartbeat: 1, live: true }
    }

    fn beat(&mut self) {
        self.heartbeat += 1;
        let heartbeat = Heartbeat::deserialize(&mut &self.heartbeat.serialize_to_vec()[..]).unwrap();
        self.state.try_set_heartbeat(heartbeat);
    }
}

fn view() -> View {
    View::new(ChitchatId::new("me", generation(50, 0), ([10, 0, 0, 1], 7411).into()), INTERVAL)
}

fn look(view: &mut View, now: Instant, shown: &[&Shown]) {
    let live = shown.iter().filter(|node| node.live).map(|node| &node.id).collect();
    view.observe(now, shown.iter().map(|node| (&node.id, &node.state)), &live);
}

/// Looks each interval until that many have passed.
fn look_on(view: &mut View, start: Instant, intervals: u32, shown: &[&Shown]) {
    for interval in 1..=intervals {
        look(view, start + interval * INTERVAL, shown);
    }
}

/// All events as short words: `+name@epoch`, `-name@epoch`, `name@epoch key=value`.
fn told(view: &mut View) -> Vec<String> {
    std::iter::from_fn(|| view.next_event())
        .map(|event| match event {
            GossipEvent::PeerUp { node_id, epoch, .. } => format!("+{node_id}@{epoch}"),
            GossipEvent::PeerDown { node_id, epoch } => format!("-{node_id}@{epoch}"),
            GossipEvent::Entry { node_id, epoch, key, value } => format!("{node_id}@{epoch} {key}={value}"),
            GossipEvent::Twin { node_id, epoch, .. } => format!("twin {node_id}@{epoch}"),
        })
        .collect()
}

#[test]
fn entries_come_after_their_peer_in_the_order_they_were_set_and_once() {
    let (mut view, now) = (view(), Instant::now());
    let mut a = Shown::new("a", 7, 0);
    a.state.set("z", "1");
    a.state.set("b", "2");
    look(&mut view, now, &[&a]);
    assert_eq!(told(&mut view), ["+a@7", "a@7 z=1", "a@7 b=2"]);
    look(&mut view, now, &[&a]);
    assert!(!view.has_events());
    a.state.set("z", "3");
    look(&mut view, now, &[&a]);
    assert_eq!(told(&mut view), ["a@7 z=3"]);
}

#[test]
fn what_a_slow_consumer_misses_is_only_what_has_been_overwritten() {
    let (mut view, now) = (view(), Instant::now());
    let mut a = Shown::new("a", 7, 0);
    for number in 0..100 {
        a.state.set("often", number);
        if number == 50 {
            a.state.set("once", "x");
        }
        look(&mut view, now, &[&a]);
    }
    assert_eq!(told(&mut view), ["+a@7", "a@7 once=x", "a@7 often=99"]);
}

#[test]
fn a_node_that_is_only_known_by_name_is_no_peer() {
    let (mut view, now) = (view(), Instant::now());
    let mut a = Shown::new("a", 7, 0);
    a.live = false;
    a.state.set("k", "v");
    look(&mut view, now, &[&a]);
    assert!(told(&mut view).is_empty());
}

#[test]
fn a_higher_epoch_replaces_without_a_death_and_the_lower_one_stays_silent() {
    let (mut view, now) = (view(), Instant::now());
    let (mut old, mut new) = (Shown::new("a", 7, 0), Shown::new("a", 8, 0));
    old.state.set("k", "old");
    new.live = false;
    new.state.set("k", "new");
    look(&mut view, now, &[&old, &new]);
    assert_eq!(told(&mut view), ["+a@7", "a@7 k=old"], "the new one is not live yet");
    old.state.set("k", "old, not told in time");
    look(&mut view, now, &[&old, &new]);
    new.live = true;
    look(&mut view, now, &[&old, &new]);
    assert_eq!(told(&mut view), ["+a@8", "a@8 k=new"]);
    old.state.set("k", "older state after newer");
    old.beat();
    look(&mut view, now, &[&old, &new]);
    assert!(told(&mut view).is_empty());
    // The new one dies: the old one is still no peer, live or not.
    new.live = false;
    look_on(&mut view, now, 20, &[&old, &new]);
    assert_eq!(told(&mut view), ["-a@8"]);
    look(&mut view, now + 21 * INTERVAL, &[&old]);
    assert!(told(&mut view).is_empty());
}

#[test]
fn a_death_is_told_with_the_epoch_that_the_consumer_believes_in() {
    let (mut view, now) = (view(), Instant::now());
    let old = Shown::new("a", 7, 0);
    let mut new = Shown::new("a", 8, 0);
    look(&mut view, now, &[&old]);
    assert_eq!(told(&mut view), ["+a@7"]);
    look(&mut view, now, &[&old, &new]);
    new.live = false;
    look_on(&mut view, now, 20, &[&old, &new]);
    assert_eq!(told(&mut view), ["-a@7"], "nobody took the news of epoch 8 in time");
}

#[test]
fn a_new_incarnation_of_the_same_epoch_only_tells_its_entries_again() {
    let (mut view, now) = (view(), Instant::now());
    let (mut first, mut second) = (Shown::new("a", 7, 0), Shown::new("a", 7, 1));
    first.state.set("k", "v");
    second.state.set("k", "v");
    look(&mut view, now, &[&first]);
    assert_eq!(told(&mut view), ["+a@7", "a@7 k=v"]);
    first.live = false;
    look_on(&mut view, now, 20, &[&first, &second]);
    assert_eq!(told(&mut view), ["a@7 k=v"]);
}

#[test]
fn nobody_is_down_who_was_heard_lately_or_while_silence_proves_nothing() {
    let (mut view, start) = (view(), Instant::now());
    let mut a = Shown::new("a", 7, 0);
    a.state.set("k", "v");
    a.beat();
    look(&mut view, start, &[&a]);
    assert_eq!(told(&mut view).len(), 2);
    a.live = false;
    look_on(&mut view, start, 9, &[&a]);
    assert!(told(&mut view).is_empty(), "the detector alone does not decide");
    view.hold(start + 9 * INTERVAL);
    for intervals in 10..25 {
        look(&mut view, start + intervals * INTERVAL, &[]);
    }
    assert!(told(&mut view).is_empty(), "chitchat was started anew and knows nobody yet");
    look(&mut view, start + 25 * INTERVAL, &[]);
    assert_eq!(told(&mut view), ["-a@7"]);
    a.live = true;
    a.beat();
    look(&mut view, start + 26 * INTERVAL, &[&a]);
    assert_eq!(told(&mut view), ["+a@7", "a@7 k=v"], "everything again: it may have been thrown away");
}

#[test]
fn a_stall_of_this_process_itself_proves_nobody_dead() {
    let (mut view, start) = (view(), Instant::now());
    let mut a = Shown::new("a", 7, 0);
    look(&mut view, start, &[&a]);
    assert_eq!(told(&mut view), ["+a@7"]);
    // After a minute without running, the detector finds everybody dead before it has read a datagram.
    a.live = false;
    look(&mut view, start + 240 * INTERVAL, &[&a]);
    for intervals in 241..256 {
        look(&mut view, start + intervals * INTERVAL, &[&a]);
    }
    assert!(told(&mut view).is_empty());
    look(&mut view, start + 256 * INTERVAL, &[&a]);
    assert_eq!(told(&mut view), ["-a@7"], "it had time to be heard again");
}

#[test]
fn a_twin_is_told_once_and_only_if_its_heart_goes_on_beating() {
    let (mut view, start) = (view(), Instant::now());
    let mut twin = Shown::new("me", 49, 0);
    let mut past = Shown::new("me", 48, 0);
    look(&mut view, start, &[&past, &twin]);
    for round in 1..20 {
        twin.beat();
        if round < 4 {
            // The last news of a dead generation, still spreading.
            past.beat();
        }
        look(&mut view, start + round * INTERVAL, &[&past, &twin]);
    }
    assert_eq!(told(&mut view), ["twin me@49"]);
}

#[test]
fn a_talkative_peer_does_not_keep_others_waiting() {
    let (mut view, now) = (view(), Instant::now());
    let (mut a, mut b) = (Shown::new("a", 7, 0), Shown::new("b", 7, 0));
    for number in 0..100 {
        a.state.set(format!("k{number}"), "v");
    }
    b.state.set("k", "v");
    look(&mut view, now, &[&a, &b]);
    let told = told(&mut view);
    assert!(told.iter().position(|event| event == "b@7 k=v").unwrap() < 5, "{told:?}");
}
