//! What chitchat knows, turned into events that lose nothing.
//!
//! chitchat tells neither deaths nor which keys changed, so the gossip task shows it to this view every few
//! tens of milliseconds. The view keeps, per node id, only the highest generation that was ever live (G2), what
//! the consumer was told, and what it has not been told yet: the latest value of each changed key. A consumer
//! that is slow therefore misses intermediate values, never the last one, and memory stays bounded.
//!
//! ```text
//!   unknown --live--> up --not live, and silent for `down_after`--> down --live--> up
//!                      \-- a higher generation is live: starts over as that one --/
//! ```

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatId, NodeState};
use tokio::time::Instant;

use super::{GossipEvent, MAX_KEYS, MAX_NODES, epoch_of};

/// A node is reported down when the failure detector says so *and* nothing was heard of it for this many
/// intervals. The detector's patience follows the traffic (measured: 2.4 s in a mesh of three at 250 ms); this
/// keeps the promise that a stall of two seconds kills nobody from depending on it.
const DOWN_AFTER_INTERVALS: u32 = 10;
/// After this process stalled, or chitchat was down, silence proves nothing for this many intervals.
const HOLD_INTERVALS: u32 = 16;
/// A look this many intervals after the one before means such a pause. A chitchat that was started anew sooner
/// knows nobody yet either, but hears of everybody before `DOWN_AFTER_INTERVALS` are over.
const STALL_INTERVALS: u32 = 4;
/// News of a dead generation of ourselves may still rise for a moment while it spreads; a twin's keeps rising.
const TWIN_AFTER_INTERVALS: u32 = 8;
/// Nodes that are gone are remembered, for G2, up to this many records in all.
const MAX_RECORDS: usize = 8 * MAX_NODES;
const MAX_TWINS: usize = 16;

pub(super) struct View {
    me: ChitchatId,
    interval: Duration,
    peers: BTreeMap<Arc<str>, Peer>,
    /// Peers with something to tell, each once.
    waiting: VecDeque<Arc<str>>,
    twins: HashMap<ChitchatId, Twin>,
    untold_twins: VecDeque<GossipEvent>,
    hold_until: Option<Instant>,
    last_look: Option<Instant>,
    look: u64,
}

struct Peer {
    generation: u64,
    advertise: SocketAddr,
    up: bool,
    heartbeat: u64,
    /// When the heartbeat was last seen to rise.
    risen_at: Instant,
    read_version: u64,
    /// Epoch and address that the consumer believes to be up.
    told: Option<(u64, SocketAddr)>,
    /// By version, each key once.
    untold: VecDeque<Untold>,
    waiting: bool,
    /// The look in which chitchat last called it live.
    live_in_look: u64,
}

struct Untold {
    version: u64,
    key: String,
    value: String,
}

struct Twin {
    heartbeat: u64,
    first_rise: Option<Instant>,
    told: bool,
}

impl View {
    pub(super) fn new(me: ChitchatId, interval: Duration) -> Self {
        Self {
            me,
            interval,
            peers: BTreeMap::new(),
            waiting: VecDeque::new(),
            twins: HashMap::new(),
            untold_twins: VecDeque::new(),
            hold_until: None,
            last_look: None,
            look: 0,
        }
    }

    /// Takes in what chitchat knows now. Called under its lock: reads only what changed.
    pub(super) fn observe<'a>(
        &mut self,
        now: Instant,
        nodes: impl Iterator<Item = (&'a ChitchatId, &'a NodeState)>,
        live: &HashSet<&ChitchatId>,
    ) {
        self.look += 1;
        let last_look = self.last_look.replace(now).unwrap_or(now);
        if now.saturating_duration_since(last_look) > STALL_INTERVALS * self.interval {
            self.hold(now);
        }
        for (id, state) in nodes {
            if id.node_id == self.me.node_id {
                self.observe_own_name(now, id, state);
            } else {
                self.observe_peer(now, id, state, live.contains(id));
            }
        }
        self.find_silent(now);
        self.forget_oldest();
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.values().filter(|peer| peer.up).map(|peer| peer.advertise)
    }

    pub(super) fn has_events(&self) -> bool {
        !self.waiting.is_empty() || !self.untold_twins.is_empty()
    }

    /// The next thing to tell; whoever takes it must deliver it.
    pub(super) fn next_event(&mut self) -> Option<GossipEvent> {
        if let Some(twin) = self.untold_twins.pop_front() {
            return Some(twin);
        }
        while let Some(name) = self.waiting.pop_front() {
            let Some(peer) = self.peers.get_mut(&name) else {
                continue;
            };
            peer.waiting = false;
            if let Some(event) = peer.next_event(&name) {
                // To the back of the queue: a talkative peer does not keep others waiting.
                enqueue(&mut self.waiting, &name, peer);
                return Some(event);
            }
        }
        None
    }

    fn observe_peer(&mut self, now: Instant, id: &ChitchatId, state: &NodeState, live: bool) {
        let peer = match self.peers.get_mut(&id.node_id) {
            Some(peer) => peer,
            // Names of nodes that may have been dead for long also travel; only life makes a peer.
            None if live => self.peers.entry(id.node_id.clone()).or_insert_with(|| Peer::new(id, now)),
            None => return,
        };
        if id.generation_id < peer.generation {
            return;
        }
        if id.generation_id > peer.generation {
            if !live {
                return;
            }
            peer.start_over(id, now);
        } else if id.gossip_advertise_addr != peer.advertise {
            return;
        }
        let heartbeat = u64::from(state.heartbeat());
        if heartbeat > peer.heartbeat {
            peer.heartbeat = heartbeat;
            peer.risen_at = now;
        }
        if live {
            peer.live_in_look = self.look;
            peer.up = true;
        }
        if peer.up {
            peer.read(state);
        }
        enqueue(&mut self.waiting, &id.node_id, peer);
    }

    fn observe_own_name(&mut self, now: Instant, id: &ChitchatId, state: &NodeState) {
        let same_agent =
            epoch_of(id) == epoch_of(&self.me) && id.gossip_advertise_addr == self.me.gossip_advertise_addr;
        if same_agent || (self.twins.len() >= MAX_TWINS && !self.twins.contains_key(id)) {
            return;
        }
        let heartbeat = u64::from(state.heartbeat());
        let twin = self.twins.entry(id.clone()).or_insert(Twin { heartbeat, first_rise: None, told: false });
        if heartbeat <= twin.heartbeat {
            return;
        }
        twin.heartbeat = heartbeat;
        let first_rise = *twin.first_rise.get_or_insert(now);
        if !twin.told && now.saturating_duration_since(first_rise) >= TWIN_AFTER_INTERVALS * self.interval {
            twin.told = true;
            self.untold_twins.push_back(GossipEvent::Twin {
                node_id: id.node_id.to_string(),
                epoch: epoch_of(id),
                advertise: id.gossip_advertise_addr,
            });
        }
    }

    /// From now on silence proves nothing for a while.
    fn hold(&mut self, now: Instant) {
        self.hold_until = Some(now + HOLD_INTERVALS * self.interval);
    }

    fn find_silent(&mut self, now: Instant) {
        if self.hold_until.is_some_and(|until| now < until) {
            return;
        }
        let down_after = DOWN_AFTER_INTERVALS * self.interval;
        for (name, peer) in &mut self.peers {
            let silent = now.saturating_duration_since(peer.risen_at) >= down_after;
            if peer.up && peer.live_in_look != self.look && silent {
                peer.up = false;
                // Should it come back, everything is told again: the consumer may have thrown it away.
                peer.untold.clear();
                peer.read_version = 0;
                enqueue(&mut self.waiting, name, peer);
            }
        }
    }

    fn forget_oldest(&mut self) {
        while self.peers.len() > MAX_RECORDS {
            let gone = self.peers.iter().filter(|(_, peer)| !peer.up && peer.told.is_none());
            let Some(oldest) = gone.min_by_key(|(_, peer)| peer.risen_at).map(|(name, _)| name.clone()) else {
                return;
            };
            self.peers.remove(&oldest);
        }
    }
}

impl Peer {
    fn new(id: &ChitchatId, now: Instant) -> Self {
        Self {
            generation: id.generation_id,
            advertise: id.gossip_advertise_addr,
            up: false,
            heartbeat: 0,
            risen_at: now,
            read_version: 0,
            told: None,
            untold: VecDeque::new(),
            waiting: false,
            live_in_look: 0,
        }
    }

    /// Becomes a higher generation of the same node id; what the consumer was told stays on record.
    fn start_over(&mut self, id: &ChitchatId, now: Instant) {
        *self = Self { told: self.told, waiting: self.waiting, ..Self::new(id, now) };
    }

    fn read(&mut self, state: &NodeState) {
        if state.max_version() <= self.read_version {
            return;
        }
        for (key, entry) in state.key_values_including_deleted().take(MAX_KEYS) {
            if entry.version > self.read_version && !entry.is_deleted() {
                self.untold.retain(|untold| untold.key != key);
                self.untold.push_back(Untold {
                    version: entry.version,
                    key: key.to_owned(),
                    value: entry.value.clone(),
                });
            }
        }
        self.untold.make_contiguous().sort_unstable_by_key(|untold| untold.version);
        self.read_version = state.max_version();
    }

    fn has_event(&self) -> bool {
        if !self.up {
            return self.told.is_some();
        }
        self.told != Some((self.epoch(), self.advertise)) || !self.untold.is_empty()
    }

    fn next_event(&mut self, name: &Arc<str>) -> Option<GossipEvent> {
        let node_id = name.to_string();
        if !self.up {
            return self.told.take().map(|(epoch, _)| GossipEvent::PeerDown { node_id, epoch });
        }
        let epoch = self.epoch();
        let advertise = self.advertise;
        if self.told != Some((epoch, advertise)) {
            self.told = Some((epoch, advertise));
            return Some(GossipEvent::PeerUp { node_id, epoch, advertise });
        }
        let Untold { key, value, .. } = self.untold.pop_front()?;
        Some(GossipEvent::Entry { node_id, epoch, key, value })
    }

    fn epoch(&self) -> u64 {
        self.generation >> super::INCARNATION_BITS
    }
}

fn enqueue(waiting: &mut VecDeque<Arc<str>>, name: &Arc<str>, peer: &mut Peer) {
    if !peer.waiting && peer.has_event() {
        peer.waiting = true;
        waiting.push_back(name.clone());
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
