//! What goes through gossip, and under which keys: `n` about the node, once; `f` facts that change slowly; `a/0` to `a/31`
//! adverts; `i/0` to `i/7` a ring of intents; `r` the action registry's digest. How adverts and intents are written is
//! the core's `gossiped`. What can't be read is dropped and counted, never guessed.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use embermesh_core::output::{Advert, IntentNotice};
use embermesh_core::{ActionHash, Epoch, Input, NodeId, gossiped};

use crate::gossip::{Gossip, GossipError, GossipEvent, STATE_KEY, STATE_LEFT};
use crate::node::Node;
use crate::peers::About;

const INTENT_SLOTS: u64 = 8;
/// Free memory is told in steps, so that each start does not make news.
const ROOM_STEP_MB: u64 = 128;

/// Keys for adverts: used again, since keys are never deleted.
const ADVERT_SLOTS: usize = 32;

/// What stands under the keys that are used again and again.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<SlotTable>);

#[derive(Debug, Default)]
struct SlotTable {
    /// Intents told so far: the next one's place in the ring.
    intents: u64,
    /// Own adverts by key number.
    own: BTreeMap<usize, ActionHash>,
    /// What a peer had under a key: when another action takes the key, the first one's advert is gone.
    peers: BTreeMap<(NodeId, String), (Epoch, ActionHash)>,
}

impl SlotTable {
    /// The key of an own advert, its old one or a free one.
    fn own_slot(&mut self, hash: ActionHash) -> Option<usize> {
        let had = self.own.iter().find(|(_, h)| **h == hash).map(|(slot, _)| *slot);
        had.or_else(|| (0..ADVERT_SLOTS).find(|slot| !self.own.contains_key(slot)))
    }

    /// Notes what a peer has under a key, nothing if `gone`; the action that had it before, if it has no other
    /// key by now.
    fn replace(&mut self, peer: &NodeId, key: &str, epoch: Epoch, hash: ActionHash, gone: bool) -> Option<ActionHash> {
        let place = (peer.clone(), key.to_owned());
        let before = if gone { self.peers.remove(&place) } else { self.peers.insert(place, (epoch, hash)) };
        let before = before.filter(|(e, h)| *e == epoch && *h != hash).map(|(_, h)| h)?;
        let elsewhere = self.peers.iter().any(|((p, _), (e, h))| p == peer && *e == epoch && *h == before);
        (!elsewhere).then_some(before)
    }

    /// What an older epoch of a peer had means nothing any more.
    fn forget_older(&mut self, peer: &NodeId, epoch: Epoch) {
        self.peers.retain(|(p, _), (e, _)| p != peer || *e >= epoch);
    }
}

impl Slots {
    fn lock(&self) -> std::sync::MutexGuard<'_, SlotTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Tells what does not change.
    pub(crate) fn publish_about(&self, about: &About) {
        if let Ok(text) = serde_json::to_string(about) {
            self.publish("n", &text);
        }
    }

    /// Tells what changes slowly; gossip ignores what is the same.
    pub(crate) fn publish_facts(&self) {
        let (room_mb, draining) =
            self.driver().look(|core| (self.memory_mb().saturating_sub(core.memory_used_mb()), core.draining()));
        let room_mb = room_mb / ROOM_STEP_MB * ROOM_STEP_MB;
        self.publish("f", &format!("{},{room_mb}", u8::from(draining)));
        self.publish("r", &format!("{:016x}", self.registry().digest()));
    }

    /// Tells what the core says of an action by now: of two that come here with their steps' news, the later one may
    /// be the quicker.
    pub(crate) fn publish_advert(&self, hash: ActionHash) {
        let mut slots = self.slots().lock();
        let advert = self.driver().look(|core| core.published_advert(hash));
        let Some(slot) = slots.own_slot(hash) else { return };
        if advert == Advert::default() {
            slots.own.remove(&slot);
        } else {
            slots.own.insert(slot, hash);
        }
        self.publish(&format!("a/{slot}"), &format!("{hash},{advert}"));
    }

    /// To those named directly, and to everybody through the ring.
    pub(crate) fn spread_intent(&self, to: Vec<NodeId>, gossip: bool, notice: IntentNotice) {
        for peer in to {
            self.spawn_intent(peer, &notice);
        }
        if gossip {
            let place = {
                let mut slots = self.slots().lock();
                slots.intents += 1;
                slots.intents % INTENT_SLOTS
            };
            self.publish(&format!("i/{place}"), &notice.to_string());
        }
    }

    fn publish(&self, key: &str, value: &str) {
        match self.gossip(|gossip: &Gossip| gossip.set(key, value)) {
            // On its way out there is nothing more to tell.
            Ok(_) | Err(GossipError::Closed) => {}
            Err(error) => tracing::warn!(key, %error, "a fact could not be gossiped"),
        }
    }

    /// Takes what gossip tells.
    pub(crate) fn on_gossip(&self, event: GossipEvent) {
        match event {
            GossipEvent::PeerUp { node_id, epoch, advertise } => {
                let (peer, epoch) = (NodeId::new(&node_id), Epoch(epoch));
                if self.peers().up(&peer, epoch, advertise) {
                    tracing::info!(peer = %peer, %advertise, "a peer is up");
                    self.slots().lock().forget_older(&peer, epoch);
                    self.tell(Input::PeerUp { peer, epoch });
                }
            }
            GossipEvent::PeerDown { node_id, epoch } => {
                let (peer, epoch) = (NodeId::new(&node_id), Epoch(epoch));
                tracing::warn!(peer = %peer, "a peer is silent");
                self.peers().down(&peer, epoch);
                self.tell(Input::PeerDown { peer, epoch });
            }
            GossipEvent::Entry { node_id, epoch, key, value } => {
                let (peer, epoch) = (NodeId::new(&node_id), Epoch(epoch));
                if self.on_entry(peer.clone(), epoch, &key, &value).is_none() {
                    self.metrics().malformed_facts.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(peer = %peer, key, value, "a gossiped value makes no sense and is dropped");
                }
            }
            GossipEvent::Twin { node_id, epoch, advertise } => self.on_twin(&node_id, epoch, advertise),
        }
    }

    /// `None`: it could not be read.
    fn on_entry(&self, peer: NodeId, epoch: Epoch, key: &str, value: &str) -> Option<()> {
        if key.starts_with("a/") {
            let (hash, advert) = gossiped::advert(value)?;
            // The lock is not held over the step: what that publishes takes it as well.
            let gone = self.slots().lock().replace(&peer, key, epoch, hash, advert == Advert::default());
            if let Some(gone) = gone {
                self.tell(Input::AdvertReceived { peer: peer.clone(), epoch, hash: gone, advert: Advert::default() });
            }
            self.tell(Input::AdvertReceived { peer, epoch, hash, advert });
        } else if key.starts_with("i/") {
            let notice = gossiped::intent(peer, epoch, value)?;
            self.tell(Input::IntentReceived { notice });
        } else if key == "n" {
            let about: About = serde_json::from_str(value).ok()?;
            self.peers().change(&peer, epoch, |p| p.about = about);
        } else if key == "f" {
            let (draining, room_mb) = facts(value)?;
            self.peers().change(&peer, epoch, |p| p.draining = draining);
            self.tell(Input::PeerFacts { peer, epoch, draining, room_mb });
        } else if key == "r" {
            let digest = u64::from_str_radix(value, 16).ok()?;
            self.on_actions_told(peer, epoch, digest);
        } else if key == STATE_KEY && value == STATE_LEFT {
            self.peers().change(&peer, epoch, |p| (p.left, p.live) = (true, false));
            self.tell(Input::PeerDown { peer, epoch });
        }
        // A key of a newer version is none of our business.
        Some(())
    }
}

/// Reads what changes slowly; a newer version's further facts stand behind it.
fn facts(value: &str) -> Option<(bool, u64)> {
    let mut parts = value.split(',');
    Some((parts.next()? == "1", parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_newer_version_are_read_as_far_as_they_are_known() {
        assert_eq!((facts("1,640"), facts("0,0")), (Some((true, 640)), Some((false, 0))));
        assert_eq!(facts("1,640,x,7"), Some((true, 640)));
        assert_eq!((facts("1"), facts("1,"), facts("")), (None, None, None));
    }

    #[test]
    fn an_advert_that_moved_to_another_key_is_not_taken_for_gone() {
        let mut slots = SlotTable::default();
        let (peer, epoch) = (NodeId::new("n1"), Epoch(1));
        let (a, b) = (ActionHash(1), ActionHash(2));
        assert_eq!(slots.replace(&peer, "a/3", epoch, a, false), None);
        assert_eq!(slots.replace(&peer, "a/1", epoch, a, false), None);
        assert_eq!(slots.replace(&peer, "a/3", epoch, b, false), None);
        assert_eq!(slots.replace(&peer, "a/1", epoch, b, false), Some(a));
        assert_eq!(slots.replace(&peer, "a/1", epoch, b, true), None);
    }
}
