//! Membership and adverts: what gossip says, taken as hints. State of an older epoch never replaces that of a
//! newer one.

use std::collections::BTreeMap;

use super::{Node, Timer};
use crate::config::Config;
use crate::container::Lifecycle;
use crate::history::What;
use crate::ids::{ActionHash, ActionId, Epoch, NodeId};
use crate::mutations::{Mutation, on};
use crate::output::{Advert, Event, Output};
use crate::time::Time;

/// Peers remembered, dead ones included.
const MOST_PEERS: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) epoch: Epoch,
    pub(super) live: bool,
    pub(super) draining: bool,
    pub(super) room_mb: u64,
    /// Its adverts that gossip showed, so that none of many thousands has to be looked at to count them.
    gossiped: usize,
    /// Requests sent to it, and the numbers of those that it may still get again, each with how many were sent
    /// before it.
    pub(super) sent: u64,
    pub(super) open: BTreeMap<u64, u64>,
}

impl Peer {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, live: true, draining: false, room_mb: 0, gossiped: 0, sent: 0, open: BTreeMap::new() }
    }
}

/// As slots taken: the peer refused, whatever it shows.
const REFUSED: u32 = u32::MAX;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PeerAdvert {
    pub(super) epoch: Epoch,
    pub(super) advert: Advert,
    /// Slots that we asked for and gossip has not shown yet, or [`REFUSED`]; forgotten when it should have.
    taken: u32,
    taken_at: Time,
    /// From gossip; else from a grant, which came before gossip told of the container.
    gossiped: bool,
}

impl PeerAdvert {
    pub(super) fn free(&self, now: Time, cfg: &Config) -> u32 {
        self.advert.free_at_least().saturating_sub(self.taken(now, cfg))
    }

    /// All that it certainly shows is asked for, and an answer may tell that there is more: adverts count to four.
    pub(super) fn may_have_more(&self, now: Time, cfg: &Config) -> bool {
        self.shows_many() && self.taken(now, cfg) != REFUSED
    }

    /// A container that it may resume for us.
    pub(super) fn shows_paused(&self, now: Time, cfg: &Config) -> bool {
        self.advert.paused > 0 && self.taken(now, cfg) != REFUSED
    }

    /// A container with so many slots that were granted here, and others that may be free.
    fn show(&mut self, granted: u32, rest: u32) {
        self.advert.warm = 1;
        (self.advert.free_bucket, self.taken) = match rest {
            // Free again when they are given back, which gossip may never have to show.
            0 => (Advert::bucket(granted).min(Advert::MANY - 1), granted),
            _ => (Advert::bucket(rest), 0),
        };
    }

    pub(super) fn shows_many(&self) -> bool {
        self.advert.free_bucket == Advert::MANY
    }

    fn taken(&self, now: Time, cfg: &Config) -> u32 {
        let believed_us = cfg.advert_interval_us + 4 * cfg.gossip_interval_us;
        if now.since(self.taken_at) < believed_us { self.taken } else { 0 }
    }
}

/// The last advert of an own action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Published {
    advert: Advert,
    at: Time,
}

impl Node {
    pub(super) fn on_peer_up(&mut self, name: NodeId, epoch: Epoch) {
        if name == self.id {
            return;
        }
        match self.peers.get_mut(&name) {
            Some(peer) if peer.epoch > epoch && !on(Mutation::OldEpochBelieved) => return,
            Some(peer) if peer.epoch == epoch => {
                if std::mem::replace(&mut peer.live, true) {
                    return;
                }
            }
            Some(peer) => {
                peer.epoch = epoch;
                peer.live = true;
                peer.draining = false;
                peer.room_mb = 0;
                self.env.estimates.forget_peer(&name);
                self.void_held_of(&name, epoch);
                self.drop_adverts_of(&name, Some(epoch));
                self.notices.forget_node(&name);
            }
            None => {
                if self.peers.len() >= MOST_PEERS {
                    let idle = self.peers.iter().find(|(_, p)| !p.live && p.open.is_empty()).map(|(n, _)| n.clone());
                    match idle {
                        Some(idle) => {
                            self.peers.remove(&idle);
                            self.env.estimates.forget_peer(&idle);
                        }
                        None => return,
                    }
                }
                self.peers.insert(name.clone(), Peer::new(epoch));
            }
        }
        self.note(Event::PeerUp { peer: name, epoch });
    }

    /// A verdict of gossip ends no lease: those expire by themselves, or the next run on them tells.
    pub(super) fn on_peer_down(&mut self, name: &NodeId, epoch: Epoch) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.epoch != epoch || !std::mem::replace(&mut peer.live, false) {
            return;
        }
        self.drop_adverts_of(name, None);
        self.notices.forget_node(name);
        self.note(Event::PeerDown { peer: name.clone(), epoch });
        let backlog: Vec<ActionId> =
            self.actions.iter().filter(|(_, a)| !a.queue.is_empty()).map(|(n, _)| n.clone()).collect();
        for action in backlog {
            self.touch(&action);
        }
    }

    pub(super) fn on_peer_facts(&mut self, name: &NodeId, epoch: Epoch, draining: bool, room_mb: u64) {
        if let Some(peer) = self.peers.get_mut(name).filter(|p| p.epoch == epoch) {
            peer.draining = draining;
            peer.room_mb = room_mb;
        }
    }

    pub(super) fn on_advert(&mut self, name: NodeId, epoch: Epoch, hash: ActionHash, advert: Advert) {
        if on(Mutation::RevivedByGossip) {
            self.revive(hash);
        }
        if self.peers.get(&name).is_none_or(|p| p.epoch != epoch) && !on(Mutation::OldEpochBelieved) {
            return;
        }
        let known = self.adverts.get(&hash).is_some_and(|a| a.get(&name).is_some_and(|a| a.gossiped));
        if advert == Advert::default() {
            if let Some(adverts) = self.adverts.get_mut(&hash) {
                adverts.remove(&name);
                if adverts.is_empty() {
                    self.adverts.remove(&hash);
                }
            }
            if known {
                self.count_gossiped(&name, |count| count.saturating_sub(1));
            }
            return;
        }
        if !known {
            let most = self.cfg().adverts_per_peer;
            if self.peers.get(&name).is_some_and(|p| p.gossiped >= most) {
                return;
            }
            self.count_gossiped(&name, |count| count + 1);
        }
        self.tell(|_| What::AdvertTaken { peer: name.clone(), epoch });
        let told = PeerAdvert { epoch, advert, taken: 0, taken_at: Time::default(), gossiped: true };
        let before = self.adverts.entry(hash).or_default().insert(name.clone(), told);
        let Some((action, state)) = self.actions.iter().find(|(_, a)| a.hash == hash) else { return };
        let action = action.clone();
        if advert.has_copy() && !before.is_some_and(|before| before.advert.has_copy()) {
            // What is paused here may be spare from now on, and kept shorter.
            for number in state.containers.iter().copied().collect::<Vec<_>>() {
                self.arm_idle(number);
            }
        }
        if self.actions.get(&action).is_some_and(|a| !a.queue.is_empty()) {
            if advert.free_bucket > 0 || advert.paused > 0 {
                self.may_ask_again(&action, &name);
            }
            self.touch(&action);
        }
    }

    fn count_gossiped(&mut self, name: &NodeId, change: impl FnOnce(usize) -> usize) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.gossiped = change(peer.gossiped);
        }
    }

    /// A bug on purpose.
    fn revive(&mut self, hash: ActionHash) {
        let own = self.actions.values().filter(|a| a.hash == hash).flat_map(|a| a.containers.iter().copied());
        let leaving = own.filter(|n| self.containers.get(n).is_some_and(|c| c.state() == Lifecycle::Removing));
        for number in leaving.collect::<Vec<_>>() {
            self.moved(number, Lifecycle::Warm);
        }
    }

    /// A peer that was asked in vain shows free slots or a paused container now: those who wait may ask it once more.
    fn may_ask_again(&mut self, action: &ActionId, peer: &NodeId) {
        let Some(state) = self.actions.get(action) else { return };
        for id in state.queue.values() {
            if let Some(activation) = self.activations.get_mut(id) {
                activation.asked.retain(|asked| asked != peer);
            }
        }
    }

    /// Counts slots that we have just asked a peer for.
    pub(super) fn count_taken(&mut self, name: &ActionId, peer: &NodeId, slots: u32) {
        let (now, cfg) = (self.now, self.env.cfg.clone());
        if let Some(advert) = self.advert_of(name, peer) {
            if advert.free(now, &cfg) == advert.advert.free_at_least() {
                advert.taken = 0;
            }
            if advert.taken != REFUSED {
                advert.taken = advert.taken.saturating_add(slots).min(REFUSED - 1);
                advert.taken_at = now;
            }
        }
    }

    /// A grant is news of its owner, and may be faster than gossip: the container is there. Of less than was asked for
    /// it says that this container has no more; else the rest of its slots may be free as well. Where gossip shows the
    /// highest bucket, only what is not answered yet counts as taken; elsewhere slots are ours until it shows them.
    pub(super) fn count_granted(&mut self, name: &ActionId, peer: &NodeId, asked: u32, granted: u32) {
        let now = self.now;
        let Some((hash, concurrency)) = self.actions.get(name).map(|a| (a.hash, a.spec.concurrency)) else { return };
        let Some(epoch) = self.peers.get(peer).filter(|p| p.live).map(|p| p.epoch) else { return };
        let told = self.adverts.entry(hash).or_default().entry(peer.clone()).or_insert_with(|| PeerAdvert {
            epoch,
            advert: Advert::default(),
            taken: 0,
            taken_at: now,
            gossiped: false,
        });
        if told.advert.warm == 0 && told.advert.free_bucket == 0 {
            told.show(granted, if granted < asked { 0 } else { concurrency.saturating_sub(granted) });
            told.taken_at = now;
        } else if told.taken == REFUSED {
            told.taken = 0;
        } else {
            // What it has not given there may be in another container of its.
            let answered = if told.shows_many() { asked } else { asked - granted };
            told.taken = told.taken.saturating_sub(answered);
        }
    }

    /// What only grants told of an action goes with this node's interest in it.
    pub(super) fn forget_grants(&mut self, hash: ActionHash) {
        if let Some(adverts) = self.adverts.get_mut(&hash) {
            adverts.retain(|_, advert| advert.gossiped);
            if adverts.is_empty() {
                self.adverts.remove(&hash);
            }
        }
    }

    /// Slots that we gave back are free again.
    pub(super) fn count_returned(&mut self, name: &ActionId, peer: &NodeId, slots: u32) {
        if let Some(advert) = self.advert_of(name, peer).filter(|a| a.taken != REFUSED) {
            advert.taken = advert.taken.saturating_sub(slots);
        }
    }

    /// A peer refused: until gossip says otherwise it has nothing free.
    pub(super) fn advert_was_wrong(&mut self, name: &ActionId, peer: &NodeId) {
        let now = self.now;
        let Some(advert) = self.advert_of(name, peer) else { return };
        (advert.taken, advert.taken_at) = (REFUSED, now);
        if !advert.gossiped
            && let Some(hash) = self.actions.get(name).map(|a| a.hash)
            && let Some(adverts) = self.adverts.get_mut(&hash)
        {
            adverts.remove(peer);
            if adverts.is_empty() {
                self.adverts.remove(&hash);
            }
        }
    }

    fn advert_of(&mut self, name: &ActionId, peer: &NodeId) -> Option<&mut PeerAdvert> {
        let hash = self.actions.get(name)?.hash;
        self.adverts.get_mut(&hash)?.get_mut(peer)
    }

    /// Another peer that shows free slots, for one that is refused here.
    pub(super) fn better_peer(&self, name: &ActionId, not: &NodeId) -> Option<NodeId> {
        let hash = self.actions.get(name)?.hash;
        let adverts = self.adverts.get(&hash)?.iter().filter(|(n, a)| {
            *n != not
                && a.free(self.now, self.cfg()) > 0
                && self.peers.get(*n).is_some_and(|p| p.live && !p.draining && p.epoch == a.epoch)
        });
        adverts.max_by_key(|(_, a)| a.free(self.now, self.cfg())).map(|(n, _)| n.clone())
    }

    /// Whether this node counts its copy as the last warm one: no other node advertises one, or this one comes
    /// first in rendezvous order among those that do. Of several here, the oldest counts.
    pub(super) fn is_last_copy(&self, number: u64) -> bool {
        let Some(container) = self.containers.get(&number) else { return false };
        if on(Mutation::AllAreLast) {
            return true;
        }
        let Some(action) = self.actions.get(&container.action) else { return true };
        let eldest = action
            .containers
            .iter()
            .find(|n| self.containers.get(n).is_some_and(|c| c.revision == container.revision && c.state().is_copy()));
        if eldest.is_some_and(|n| *n != number) {
            return false;
        }
        let hash = ActionHash::of(&container.action, &container.revision);
        let own = (hash.weight(&self.id), &self.id);
        let others = self.adverts.get(&hash).into_iter().flatten();
        others
            .filter(|(n, a)| {
                a.advert.has_copy() && self.peers.get(*n).is_some_and(|p| p.live && !p.draining && p.epoch == a.epoch)
            })
            .all(|(n, _)| (hash.weight(n), n) < own)
    }

    /// Publishes what changed since the last advert, at most every `advert_interval`.
    pub(super) fn refresh_advert(&mut self, name: &ActionId) {
        let Some(action) = self.actions.get(name) else { return };
        let mut advert = Advert::default();
        let mut free = 0;
        for container in action.containers.iter().filter_map(|n| self.containers.get(n)) {
            if container.revision != action.spec.revision {
                continue;
            }
            match container.state() {
                Lifecycle::Warm => advert.warm += 1,
                Lifecycle::Paused | Lifecycle::Pausing => advert.paused += 1,
                Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Resuming => advert.starting += 1,
                _ => {}
            }
            free += container.free();
        }
        if action.queue.is_empty() && action.waiting.is_empty() {
            advert.free_bucket = Advert::bucket(free);
        }
        let (now, interval, hash) = (self.now, self.cfg().advert_interval_us, action.hash);
        match &action.published {
            Some(last) if last.advert == advert => return,
            Some(last) if now.since(last.at) < interval => {
                let at = last.at + interval;
                return self.arm(at, Timer::Advert(hash));
            }
            None if advert == Advert::default() => return,
            _ => {}
        }
        let published = self.actions.values().filter(|a| a.published.is_some()).count();
        let Some(action) = self.actions.get_mut(name) else { return };
        if action.published.is_none() && published >= self.env.cfg.adverts_per_peer {
            return;
        }
        action.published = (advert != Advert::default()).then_some(Published { advert, at: now });
        self.emit(Output::PublishAdvert { hash, advert });
    }

    /// What peers are to believe of an action now; `Advert::default()` when there is nothing to tell.
    pub fn published_advert(&self, hash: ActionHash) -> Advert {
        let action = self.actions.values().find(|a| a.hash == hash);
        action.and_then(|a| a.published.as_ref()).map_or_else(Advert::default, |p| p.advert)
    }

    pub(super) fn advert_due(&mut self, hash: ActionHash) {
        if let Some(name) = self.actions.iter().find(|(_, a)| a.hash == hash).map(|(n, _)| n.clone()) {
            self.touch(&name);
        }
    }

    /// The revision that was advertised is no longer the newest.
    pub(super) fn withdraw_advert(&mut self, hash: ActionHash, published: Option<Published>) {
        if published.is_some() {
            self.emit(Output::PublishAdvert { hash, advert: Advert::default() });
        }
    }

    fn drop_adverts_of(&mut self, name: &NodeId, older_than: Option<Epoch>) {
        let mut dropped = 0;
        for adverts in self.adverts.values_mut() {
            if adverts.get(name).is_some_and(|a| older_than.is_none_or(|epoch| a.epoch < epoch)) {
                dropped += usize::from(adverts.remove(name).is_some_and(|a| a.gossiped));
            }
        }
        self.adverts.retain(|_, a| !a.is_empty());
        self.count_gossiped(name, |count| count.saturating_sub(dropped));
    }
}
