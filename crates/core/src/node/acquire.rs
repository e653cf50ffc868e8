//! The ladder: where the next slot for a queue comes from. One cost rule on measured figures decides; the
//! order of the rungs only breaks ties.
//!
//! ```text
//! wait    (queued + 1) · S / slots; where a peer has a free slot, what starts or resumes here counts once it is there
//! lease   rtt + resume? + P(refuse) · next; rtt more at a peer that was asked for all that adverts can tell
//! resume  resume
//! start   create + init
//! ```

use std::collections::BTreeMap;

use super::holder::OutRequest;
use super::home::HomeStep;
use super::peers::PeerAdvert;
use super::{Action, Node, Timer};
use crate::container::Lifecycle;
use crate::history::What;
use crate::ids::{ActionId, ActivationId, Epoch, NodeId};
use crate::output::{Attempt, Output, SendReserve};
use crate::time::{Micros, SECOND};

/// Times that an origin asks peers for one activation.
const MOST_ASKED: usize = 3;
/// Steps of one look at a backlog; the next look follows after `decide_interval`.
const MOST_STEPS: usize = 64;
/// Most slots asked for in one Reserve.
const MOST_SLOTS: u32 = 64;

/// A peer that may have a slot.
#[derive(Debug, Clone)]
struct Candidate {
    peer: NodeId,
    free: u32,
    /// Slots to ask it for.
    most: u32,
    cost: Micros,
    /// How long the owner may hold the request; 0 when it shows free slots.
    wait_us: Micros,
    start: bool,
    /// It may have more than what it was asked for already: its answers are waited for.
    later: bool,
}

/// One Reserve as it is decided; the rest of the message follows from it.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) to: NodeId,
    pub(super) owner_epoch: Epoch,
    pub(super) slots: u32,
    pub(super) wait_us: Micros,
    pub(super) start: bool,
    pub(super) run: Option<Attempt>,
}

/// What the queue can count on already.
#[derive(Debug, Default)]
pub(super) struct Supply {
    /// Slots that serve this queue, busy ones included.
    slots: u32,
    /// Slots asked for at peers.
    pub(super) reserving: u32,
    /// Slots of containers that start or resume here.
    coming: u32,
    /// How long the first of these will take.
    comes_in: Micros,
}

/// How long something will still take: one that is overdue, as long again as it is.
fn expected(takes: Micros, elapsed: Micros) -> Micros {
    takes.abs_diff(elapsed)
}

impl Supply {
    fn add_coming(&mut self, slots: u32, comes_in: Micros) {
        self.comes_in = if self.coming == 0 { comes_in } else { self.comes_in.min(comes_in) };
        self.coming += slots;
    }
}

impl Node {
    /// Serves one action: queues first, then peers that wait, then looks for more slots.
    pub(super) fn serve(&mut self, name: &ActionId) {
        self.serve_queue(name);
        self.serve_waiting(name);
        self.recall_if_short(name);
        self.acquire(name);
        self.start_for_waiting(name);
    }

    fn acquire(&mut self, name: &ActionId) {
        for _ in 0..MOST_STEPS {
            let Some(action) = self.actions.get(name) else { return };
            let queued = action.queue.len() as u32;
            if queued == 0 {
                return;
            }
            let supply = self.supply(name);
            let wait = self.wait_cost(name, queued, &supply);
            let lease = (queued > supply.reserving).then(|| self.best_candidate(name)).flatten();
            let uncovered = queued > supply.reserving + supply.coming;
            let resume = uncovered.then(|| self.resumable(name)).flatten();
            let start = uncovered.then(|| self.start_cost(name)).flatten();

            let lease_cost = lease.as_ref().map_or(Micros::MAX, |c| c.cost);
            let resume_cost = if resume.is_some() { self.resume_cost(name) } else { Micros::MAX };
            let start_cost = start.unwrap_or(Micros::MAX);
            let best = lease_cost.min(resume_cost).min(start_cost);
            let behind = self.falls_behind(name, &supply);
            // A slot that is free at a peer saves the time until what comes here is there.
            let free_at_peer = lease.as_ref().is_some_and(|c| c.wait_us == 0 && c.cost == best);
            let wait = if free_at_peer { wait.max(self.wait_for_coming(name, queued, &supply)) } else { wait };
            if best == Micros::MAX || (best >= wait && !behind) {
                break;
            }
            let went_on = if lease_cost == best {
                let now = lease.filter(|candidate| !candidate.later);
                now.is_some_and(|candidate| self.reserve_at(name, candidate, queued - supply.reserving))
            } else if resume_cost == best {
                resume.is_some_and(|number| self.resume(number))
            } else {
                self.start_or_ask_home(name)
            };
            if !went_on {
                break;
            }
        }
        let waiting = self.actions.get(name).is_some_and(|a| !a.queue.is_empty());
        if waiting {
            self.arm_decide(name);
        }
    }

    /// Looks at the backlog again after a while: estimates age, and a slow run makes a start worth it.
    pub(super) fn arm_decide(&mut self, name: &ActionId) {
        let at = self.now + self.cfg().decide_interval_us;
        let Some(action) = self.actions.get_mut(name) else { return };
        if !std::mem::replace(&mut action.decide_armed, true) {
            self.arm(at, Timer::Decide(name.clone()));
        }
    }

    pub(super) fn decide_due(&mut self, name: &ActionId) {
        if let Some(action) = self.actions.get_mut(name) {
            action.decide_armed = false;
            self.touch(name);
        }
    }

    pub(super) fn supply(&self, name: &ActionId) -> Supply {
        let mut supply = Supply::default();
        let Some(action) = self.actions.get(name) else { return supply };
        let start_us = self.env.estimates.start(&action.spec.image);
        let resume_us = self.env.estimates.resume(start_us);
        let own = action.containers.iter().filter_map(|n| self.containers.get(n));
        for container in own.filter(|c| c.revision == action.spec.revision) {
            match container.state() {
                Lifecycle::Warm => supply.slots += container.slots - container.leased_slots(),
                Lifecycle::Starting | Lifecycle::Initializing => {
                    let left = expected(start_us, self.now.since(container.created_at));
                    supply.add_coming(container.slots, left);
                }
                Lifecycle::Resuming => {
                    let left = expected(resume_us, self.now.since(container.since));
                    supply.add_coming(container.slots, left);
                }
                _ => {}
            }
        }
        if action.starts_queued > 0 {
            supply.add_coming(action.starts_queued * action.spec.concurrency, start_us);
        }
        if matches!(action.home, HomeStep::Asked { .. }) {
            supply.add_coming(action.spec.concurrency, start_us);
        }
        let held = action.held.iter().filter(|key| self.serves(key, action));
        supply.slots += held.filter_map(|k| self.held.get(k)).map(|l| l.slots).sum::<u32>();
        supply.reserving = action
            .reserving
            .iter()
            .filter_map(|n| match self.requests.get(n) {
                Some(OutRequest::Reserve(r)) if !r.granted => Some(r.slots - u32::from(r.run.is_some())),
                _ => None,
            })
            .sum();
        supply
    }

    /// What the last in the queue would wait; infinite with nothing to wait for.
    fn wait_cost(&self, name: &ActionId, queued: u32, supply: &Supply) -> Micros {
        self.drained_in(name, queued, supply.slots + supply.reserving + supply.coming)
    }

    /// The same, where slots count only once they are there; 0 when none is on its way.
    fn wait_for_coming(&self, name: &ActionId, queued: u32, supply: &Supply) -> Micros {
        if supply.coming == 0 {
            return 0;
        }
        match self.drained_in(name, queued, supply.slots + supply.reserving) {
            // Not known yet.
            0 => supply.comes_in,
            without => without.min(supply.comes_in),
        }
    }

    /// How long so many slots take for the queue.
    fn drained_in(&self, name: &ActionId, queued: u32, slots: u32) -> Micros {
        if slots == 0 {
            return Micros::MAX;
        }
        let service = self.env.estimates.service(name).unwrap_or(0).max(self.oldest_run(name));
        u64::from(queued + 1).saturating_mul(service) / u64::from(slots)
    }

    /// Whether the arrivals here need more slots than there are, at four fifths of use: λ · S / 0.8, what keeps a
    /// backlog from growing (OpenWhisk's scheduler v2 adds containers by this).
    fn falls_behind(&self, name: &ActionId, supply: &Supply) -> bool {
        let estimates = &self.env.estimates;
        let (Some(service), Some((gap, _))) = (estimates.service(name), estimates.gap(name)) else { return false };
        let slots = u64::from(supply.slots + supply.reserving + supply.coming);
        service.saturating_mul(5) > slots.saturating_mul(gap.max(1)).saturating_mul(4)
    }

    /// How long the oldest run of the action has lasted: a floor for its service time.
    fn oldest_run(&self, name: &ActionId) -> Micros {
        let Some(action) = self.actions.get(name) else { return 0 };
        let containers = action.containers.iter().filter_map(|n| self.containers.get(n));
        let own = containers.filter_map(|c| c.runs().values().next()).map(|r| r.started_at);
        let leased = self.requests.values().filter_map(|request| request.running_since(name));
        own.chain(leased).map(|since| self.now.since(since)).max().unwrap_or(0)
    }

    fn resume_cost(&self, name: &ActionId) -> Micros {
        let start_us = self.actions.get(name).map_or(0, |a| self.env.estimates.start(&a.spec.image));
        self.env.estimates.resume(start_us)
    }

    fn resumable(&self, name: &ActionId) -> Option<u64> {
        let action = self.actions.get(name)?;
        action.containers.iter().copied().find(|n| {
            self.containers.get(n).is_some_and(|c| c.state() == Lifecycle::Paused && c.revision == action.spec.revision)
        })
    }

    /// What a start here costs, with those under way before it; none if it can never fit.
    fn start_cost(&self, name: &ActionId) -> Option<Micros> {
        let action = self.actions.get(name)?;
        if self.drains(name) || action.spec.memory_mb > self.cfg().memory_mb {
            return None;
        }
        let alone = self.env.estimates.start(&action.spec.image);
        let ahead = self.starting() as u64 + self.starts.iter().count() as u64;
        let crowded = alone.saturating_mul(1 + ahead / self.cfg().parallel_starts as u64);
        // When memory is short, somebody has to go first.
        let short = self.memory_used_mb + action.spec.memory_mb > self.cfg().memory_mb;
        Some(if short { crowded + self.cfg().urgent_window_us } else { crowded })
    }

    /// The cheapest peer to ask for the activation that would ask, which has not just asked it in vain; of two random
    /// ones that show free slots, the freer.
    fn best_candidate(&mut self, name: &ActionId) -> Option<Candidate> {
        let action = self.actions.get(name)?;
        let asker = self.asker(name)?;
        let asked = &self.activations.get(&asker)?.asked;
        let hint = self.activations.get(&asker)?.hint.clone();
        let asking: Vec<&NodeId> = action
            .reserving
            .iter()
            .filter_map(|n| self.requests.get(n))
            .filter(|r| !r.carries_body())
            .map(|r| r.to())
            .collect();
        let silent = self.silent(action);
        let start_us = self.env.estimates.start(&action.spec.image);
        let adverts = self.adverts.get(&action.hash);
        let mut free: Vec<Candidate> = Vec::new();
        let mut rest: Vec<Candidate> = Vec::new();
        for (peer, facts) in &self.peers {
            if !facts.live || facts.draining {
                continue;
            }
            let rtt = self.env.estimates.rtt(peer).max(silent.get(peer).copied().unwrap_or(0));
            let refusal = self.env.estimates.refusal(peer);
            let lease = |extra: Micros| rtt + extra + refusal * (rtt + start_us) / 1000;
            let shown = adverts.and_then(|a| a.get(peer)).filter(|a| a.epoch == facts.epoch);
            let shown_free = shown.map_or(0, |a| a.free(self.now, self.cfg()));
            // What gossip shows is believed again some time after it was asked for in vain.
            let may_serve = shown_free > 0 || shown.is_some_and(|a| a.shows_paused(self.now, self.cfg()));
            if asked.contains(peer) && (!may_serve || asking.contains(&peer)) {
                continue;
            }
            let candidate = |free, cost, wait_us| {
                let most = if shown.is_some_and(PeerAdvert::shows_many) { MOST_SLOTS } else { free };
                Candidate { peer: peer.clone(), free, most, cost, wait_us, start: false, later: false }
            };
            if shown_free > 0 {
                free.push(candidate(shown_free, lease(0), 0));
            } else if shown.is_some_and(|a| a.may_have_more(self.now, self.cfg())) {
                rest.push(Candidate { later: true, ..candidate(0, lease(rtt), 0) });
            } else if asking.contains(&peer) {
                continue;
            } else if hint.as_ref() == Some(peer) {
                free.push(candidate(1, lease(0), 0));
            } else if let Some(advert) = shown.map(|a| a.advert) {
                let wait_us = self.cfg().max_wait_us.min(start_us.saturating_mul(4));
                if advert.paused > 0 {
                    rest.push(candidate(1, lease(self.env.estimates.resume(start_us)), wait_us));
                } else if advert.starting > 0 {
                    rest.push(candidate(1, lease(start_us / 2), wait_us));
                }
            }
        }
        if !free.is_empty() {
            let one = self.random(free.len());
            let other = self.random(free.len());
            let pick = if free[other].free > free[one].free { other } else { one };
            return Some(free.swap_remove(pick));
        }
        let not_yet_free = rest.into_iter().min_by_key(|c| c.cost);
        not_yet_free.or_else(|| self.peer_with_room(name, &asker))
    }

    /// How long peers have not answered a Reserve that they were to answer at once: a floor for their round trip.
    fn silent(&self, action: &Action) -> BTreeMap<&NodeId, Micros> {
        let mut silent: BTreeMap<&NodeId, Micros> = BTreeMap::new();
        for request in action.reserving.iter().filter_map(|number| self.requests.get(number)) {
            if let Some(since) = request.unanswered_since() {
                let longest = silent.entry(request.to()).or_default();
                *longest = self.now.since(since).max(*longest);
            }
        }
        silent
    }

    /// When memory is short here: a peer with room to start a container.
    fn peer_with_room(&self, name: &ActionId, asker: &ActivationId) -> Option<Candidate> {
        let action = self.actions.get(name)?;
        let needed_mb = action.spec.memory_mb;
        if self.memory_used_mb + needed_mb <= self.cfg().memory_mb {
            return None;
        }
        let asked = &self.activations.get(asker)?.asked;
        let start_us = self.env.estimates.start(&action.spec.image);
        let roomy = self.peers.iter().filter(|(peer, facts)| {
            facts.live && !facts.draining && facts.room_mb >= needed_mb && !asked.contains(peer)
        });
        let (peer, facts) = roomy.max_by_key(|(_, facts)| facts.room_mb)?;
        debug_assert!(facts.live);
        let cost = self.env.estimates.rtt(peer) + start_us;
        let wait_us = self.cfg().max_wait_us;
        Some(Candidate { peer: peer.clone(), free: 1, most: 1, cost, wait_us, start: true, later: false })
    }

    /// The first in the queue that may still ask a peer.
    fn asker(&self, name: &ActionId) -> Option<ActivationId> {
        let action = self.actions.get(name)?;
        let may_ask = |id: &&ActivationId| self.activations.get(id).is_some_and(|a| a.asked.len() < MOST_ASKED);
        action.queue.values().find(may_ask).copied()
    }

    /// Sends a Reserve; a small body travels with it when the peer shows a free slot.
    fn reserve_at(&mut self, name: &ActionId, candidate: Candidate, needed: u32) -> bool {
        let Some(id) = self.asker(name) else { return false };
        let Some(epoch) = self.peers.get(&candidate.peer).map(|p| p.epoch) else { return false };
        let small_body_bytes = self.cfg().small_body_bytes;
        let Some(activation) = self.activations.get_mut(&id) else { return false };
        activation.asked.push(candidate.peer.clone());
        activation.hint = None;
        let carried = candidate.wait_us == 0 && activation.body_bytes <= small_body_bytes;
        let run = carried.then_some(Attempt { activation: id, attempt: activation.attempt });
        if carried {
            self.dequeue(id);
        }
        let slots = needed.min(candidate.most).max(1);
        let Candidate { peer, wait_us, start, .. } = candidate;
        self.send_reserve(name, Ask { to: peer, owner_epoch: epoch, slots, wait_us, start, run })
    }

    pub(super) fn send_reserve(&mut self, name: &ActionId, ask: Ask) -> bool {
        let Ask { to, owner_epoch, slots, wait_us, start, run } = ask;
        let Some(action) = self.actions.get(name) else { return false };
        let (revision, timeout_us) = (action.spec.revision.clone(), action.spec.timeout_us);
        self.count_taken(name, &to, slots);
        let request = self.next_request(&to);
        let open_from = self.open_from(&to);
        let number = request.number;
        self.tell(|_| What::Asked { to: to.clone(), owner_epoch });
        let reserve = SendReserve {
            request,
            to,
            owner_epoch,
            open_from,
            action: name.clone(),
            revision,
            slots,
            wait_us,
            start,
            run,
            timeout_us: if run.is_some() { timeout_us } else { wait_us + SECOND },
        };
        self.emit(Output::SendReserve(reserve.clone()));
        self.requests.insert(number, OutRequest::reserve(reserve, self.now));
        if let Some(action) = self.actions.get_mut(name) {
            action.reserving.insert(number);
        }
        true
    }
}
