//! Membership, facts and adverts: each node takes over what the others say of themselves, some time later.

use embermesh_core::output::Advert;
use embermesh_core::time::MS;
use embermesh_core::{Epoch, Input};

use super::world::{Event, World};

/// Mean time between two exchanges of one pair.
const INTERVAL: u64 = 60 * MS;

impl World {
    pub(crate) fn pull(&mut self, to: usize, from: usize) {
        let next = INTERVAL / 2 + self.below(INTERVAL);
        self.after(next, Event::Pull { to, from });
        if self.is_cut(to, from) || self.hosts[to].node.is_none() {
            return;
        }
        let peer = self.hosts[from].id.clone();
        let known = self.hosts[to].gossip_seen.get(&from).cloned();
        let Some(node) = &self.hosts[from].node else {
            if let Some((epoch, _)) = known {
                self.deliver(to, Input::PeerDown { peer, epoch });
            }
            return;
        };
        let epoch = self.hosts[from].epoch;
        let facts = (node.draining(), self.config.memory_mb.saturating_sub(node.memory_used_mb()));
        let adverts = self.hosts[from].adverts.clone();
        let before = known.filter(|(of, _)| *of == epoch).map(|(_, adverts)| adverts).unwrap_or_default();
        self.deliver(to, Input::PeerUp { peer: peer.clone(), epoch });
        let (draining, room_mb) = facts;
        self.deliver(to, Input::PeerFacts { peer: peer.clone(), epoch, draining, room_mb });
        for (hash, advert) in &adverts {
            if before.get(hash) != Some(advert) {
                let input = Input::AdvertReceived { peer: peer.clone(), epoch, hash: *hash, advert: *advert };
                self.deliver(to, input);
            }
        }
        self.hosts[to].gossip_seen.insert(from, (epoch, adverts));
    }

    /// A verdict that is wrong: the next exchange takes it back.
    pub(crate) fn suspect(&mut self, observer: usize, peer: usize) {
        if observer == peer {
            return;
        }
        let epoch = self.hosts[peer].epoch;
        let peer_id = self.hosts[peer].id.clone();
        self.hosts[observer].gossip_seen.remove(&peer);
        self.deliver(observer, Input::PeerDown { peer: peer_id, epoch });
    }

    pub(crate) fn stale_gossip(&mut self, observer: usize, peer: usize) {
        if observer == peer {
            return;
        }
        let epoch = Epoch(self.hosts[peer].epoch.0 - 1);
        let hash = self.hosts[peer].registry[0].action_hash();
        let peer = self.hosts[peer].id.clone();
        let advert = Advert { warm: 1, paused: 0, starting: 0, free_bucket: 3 };
        self.deliver(observer, Input::PeerUp { peer: peer.clone(), epoch });
        self.deliver(observer, Input::AdvertReceived { peer: peer.clone(), epoch, hash, advert });
        self.deliver(observer, Input::PeerDown { peer, epoch });
    }
}
