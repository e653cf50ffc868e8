//! The holder's side: leases held at peers, and what became of our requests.
//!
//! A holder counts from its *first* send of a request, whichever answer arrives, and stops using the lease at
//! ttl − margin. It never touches a container: every run goes through the owner.

use std::collections::BTreeSet;

use super::acquire::Ask;
use super::{LeaseKey, Node, Timer};
use crate::history::What;
use crate::ids::{ActionId, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, Revision};
use crate::input::RemoteEnd;
use crate::mutations::{Mutation, on};
use crate::output::{Denial, Event, Output, Refusal, RunRefusal, SendReserve, SendRun, Served};
use crate::time::{Micros, SECOND, Time};

/// Sends of one request whose outcome is unknown, the first included.
const MOST_TRIES: u32 = 2;
/// Recalls kept for a grant that may still be on its way.
const MOST_EARLY_RECALLS: usize = 16;
/// A retry's own time, at least.
const RETRY_AT_LEAST: Micros = SECOND;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HeldLease {
    pub(super) container: ContainerId,
    pub(super) action: ActionId,
    pub(super) revision: Revision,
    pub(super) slots: u32,
    pub(super) running: u32,
    /// Most runs at once since the last send.
    peak: u32,
    /// Nothing is sent on it from this moment on.
    pub(super) expires_at: Time,
    pub(super) recalled: bool,
    /// Its owner does not know it any more: no answer of a run renews it.
    lost: bool,
    /// No run was sent on it yet but the one it was made for.
    fresh: bool,
}

/// A request under way at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum OutRequest {
    Reserve(OutReserve),
    Run(OutRun),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct OutReserve {
    message: SendReserve,
    pub(super) slots: u32,
    pub(super) run: Option<ActivationId>,
    /// The grant came; the run that went along is still out.
    pub(super) granted: bool,
    /// The lease that it made.
    lease: Option<LeaseKey>,
    /// Since when this peer is asked to wait for a container that comes.
    waits_since: Time,
    sent_at: Time,
    tries: u32,
    /// A send of unknown fate came before: only this epoch's own word is proof that it did not run.
    unsure: bool,
    /// Recalls of leases that are not known here: one of them may be overtaking this request's grant.
    early_recalls: BTreeSet<Fence>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct OutRun {
    message: SendRun,
    lease: LeaseKey,
    sent_at: Time,
    tries: u32,
    unsure: bool,
}

impl OutRequest {
    pub(super) fn reserve(message: SendReserve, now: Time) -> Self {
        Self::Reserve(OutReserve {
            slots: message.slots,
            run: message.run.map(|r| r.activation),
            message,
            granted: false,
            lease: None,
            waits_since: now,
            sent_at: now,
            tries: 1,
            unsure: false,
            early_recalls: BTreeSet::new(),
        })
    }

    pub(super) fn to(&self) -> &NodeId {
        match self {
            OutRequest::Reserve(r) => &r.message.to,
            OutRequest::Run(r) => &r.message.to,
        }
    }

    /// Since when a run of that action is out, as far as is known here.
    pub(super) fn running_since(&self, action: &ActionId) -> Option<Time> {
        match self {
            OutRequest::Reserve(r) => (r.granted && r.message.action == *action).then_some(r.sent_at),
            OutRequest::Run(r) => (r.message.action == *action).then_some(r.sent_at),
        }
    }

    /// Since when it is out, if its peer was to answer at once and has not.
    pub(super) fn unanswered_since(&self) -> Option<Time> {
        match self {
            OutRequest::Reserve(r) => (!r.granted && r.message.wait_us == 0).then_some(r.sent_at),
            OutRequest::Run(_) => None,
        }
    }

    pub(super) fn carries_body(&self) -> bool {
        self.activation().is_some()
    }

    /// Whose body it carries.
    pub(super) fn activation(&self) -> Option<ActivationId> {
        match self {
            OutRequest::Reserve(r) => r.run,
            OutRequest::Run(r) => Some(r.message.activation),
        }
    }
}

/// How long a retry may take: what the first send left, and enough to fetch an outcome that is there.
fn left(now: Time, reserve: &OutReserve) -> Micros {
    reserve.message.timeout_us.saturating_sub(now.since(reserve.sent_at)).max(RETRY_AT_LEAST)
}

impl Node {
    pub(super) fn next_request(&mut self, to: &NodeId) -> RequestId {
        self.counters.request += 1;
        let number = self.counters.request;
        if let Some(peer) = self.peers.get_mut(to) {
            peer.sent += 1;
            peer.open.insert(number, peer.sent);
        }
        RequestId { holder: self.id.clone(), epoch: self.epoch, number }
    }

    /// The lowest number that may still be retried at that peer.
    ///
    /// The owner keeps its answers from here up, and only so many: a request that has been out for long (a long
    /// run) gives up its right to a retry rather than shut out all later ones.
    pub(super) fn open_from(&mut self, to: &NodeId) -> u64 {
        let next = self.counters.request + 1;
        let most = self.env.cfg.answers_per_holder as u64 / 2;
        let Some(peer) = self.peers.get_mut(to) else { return next };
        while let Some((oldest, sent)) = peer.open.first_key_value().map(|(n, s)| (*n, *s)) {
            if peer.sent - sent <= most {
                return oldest;
            }
            peer.open.pop_first();
            match self.requests.get_mut(&oldest) {
                Some(OutRequest::Reserve(r)) => r.tries = MOST_TRIES,
                Some(OutRequest::Run(r)) => r.tries = MOST_TRIES,
                None => {}
            }
        }
        next
    }

    /// A held lease that has a free slot now.
    pub(super) fn usable_lease(&self, name: &ActionId) -> Option<LeaseKey> {
        let action = self.actions.get(name)?;
        let free = |key: &&LeaseKey| self.held.get(key).is_some_and(|l| l.running < l.slots);
        let usable = action.held.iter().filter(|key| self.serves(key, action)).filter(free);
        usable.min_by_key(|key| self.env.estimates.rtt(&key.0)).cloned()
    }

    /// Whether runs may still be sent on a lease: of the newest revision, not recalled, not expired, and its owner
    /// not silent. Gossip's verdict ends no lease; it only makes another slot the better choice.
    pub(super) fn serves(&self, key: &LeaseKey, action: &super::Action) -> bool {
        self.held.get(key).is_some_and(|l| {
            !l.recalled
                && self.now < l.expires_at
                && l.revision == action.spec.revision
                && self.peers.get(&key.0).is_some_and(|p| p.live)
        })
    }

    pub(super) fn bind_leased(&mut self, id: ActivationId, key: LeaseKey) {
        self.dequeue(id);
        let Some(activation) = self.activations.get(&id) else { return };
        let attempt = activation.attempt;
        let name = activation.action.clone();
        let Some(action) = self.actions.get(&name) else { return };
        let (timeout_us, waiting) = (action.spec.timeout_us, action.queue.len() as u32);
        let request = self.next_request(&key.0);
        let open_from = self.open_from(&key.0);
        let Some(lease) = self.held.get_mut(&key) else { return };
        lease.running += 1;
        let needed = lease.running.saturating_add(waiting);
        // What was used at once since the last run, or is about to be.
        lease.slots = lease.peak.max(needed).min(lease.slots);
        lease.peak = lease.running;
        let served = if std::mem::take(&mut lease.fresh) { Served::NewLease } else { Served::HeldLease };
        let message = SendRun {
            activation: id,
            request,
            to: key.0.clone(),
            owner_epoch: key.1.epoch,
            open_from,
            container: lease.container.clone(),
            fence: key.1,
            action: name,
            revision: lease.revision.clone(),
            keep: lease.slots,
            attempt,
            timeout_us,
            served,
        };
        self.tell(|_| What::Asked { to: message.to.clone(), owner_epoch: message.owner_epoch });
        self.emit(Output::SendRun(message.clone()));
        let run = OutRun { lease: key, sent_at: self.now, tries: 1, unsure: false, message };
        self.requests.insert(run.message.request.number, OutRequest::Run(run));
    }

    pub(super) fn on_granted(
        &mut self,
        request: &RequestId,
        container: ContainerId,
        fence: Fence,
        slots: u32,
        ttl_us: Micros,
    ) {
        if request.epoch != self.epoch {
            return;
        }
        let Some(OutRequest::Reserve(reserve)) = self.requests.get_mut(&request.number) else { return };
        if reserve.granted {
            return;
        }
        if fence.epoch != reserve.message.owner_epoch || container.owner != reserve.message.to {
            // No grant of what was asked for: what that owner did is anybody's guess.
            reserve.tries = MOST_TRIES;
            return self.on_reserve_failed(request, false);
        }
        let key = (reserve.message.to.clone(), fence);
        reserve.granted = true;
        reserve.lease = Some(key.clone());
        let (name, revision) = (reserve.message.action.clone(), reserve.message.revision.clone());
        let asked = reserve.slots;
        let slots = slots.min(asked);
        let (with_run, waited) = (reserve.run.is_some(), reserve.message.wait_us > 0);
        let (sent_at, tries) = (reserve.sent_at, reserve.tries);
        let recalled = reserve.early_recalls.contains(&fence);
        let expires_at = (sent_at + ttl_us.min(self.cfg().ttl_us)) - self.cfg().margin_us;
        let current = self.peers.get(&key.0).is_some_and(|p| p.epoch == fence.epoch);
        if self.tells_of_now(&key.0, fence.epoch, &name, &revision) {
            self.env.estimates.answered(&key.0, false);
            self.count_granted(&name, &key.0, asked, slots);
        }
        if !waited && tries == 1 {
            self.env.estimates.round_trip(&key.0, self.now.since(sent_at));
        }
        if !with_run {
            self.close_request(request.number);
        }
        if let Some(action) = self.actions.get_mut(&name) {
            action.reserving.remove(&request.number);
        }
        if slots == 0 || !current || (self.now >= expires_at && !with_run) {
            return self.touch(&name);
        }
        if let Some(action) = self.actions.get_mut(&name) {
            action.held.insert(key.clone());
        }
        let running = u32::from(with_run);
        self.note(Event::LeaseHeld { owner: key.0.clone(), container: container.clone(), fence, slots });
        self.arm(expires_at, Timer::HeldEnd(key.0.clone(), fence));
        let lease = HeldLease {
            container,
            action: name.clone(),
            revision,
            slots,
            running,
            peak: running,
            expires_at,
            recalled: false,
            lost: false,
            fresh: !with_run,
        };
        self.held.insert(key.clone(), lease);
        self.serve_queue(&name);
        if recalled {
            self.on_recall(key.0.clone(), fence.epoch, fence);
        }
        // What the queue no longer needs goes back at once.
        self.give_back(&key);
        self.touch(&name);
    }

    /// Whether an answer of that life of a peer, about that revision, says anything of what gossip shows of it now.
    fn tells_of_now(&self, owner: &NodeId, epoch: Epoch, name: &ActionId, revision: &Revision) -> bool {
        self.peers.get(owner).is_some_and(|p| p.epoch == epoch)
            && self.actions.get(name).is_some_and(|a| a.spec.revision == *revision)
    }

    /// An owner will not serve that, as gossip has it now.
    fn count_refused(&mut self, message: &SendReserve) {
        if self.tells_of_now(&message.to, message.owner_epoch, &message.action, &message.revision) {
            self.env.estimates.answered(&message.to, true);
            self.advert_was_wrong(&message.action, &message.to);
        }
    }

    /// Slots that an owner was asked for are free there, as far as this node knows.
    fn count_untaken(&mut self, reserve: &OutReserve) {
        let SendReserve { to, owner_epoch, action, revision, .. } = &reserve.message;
        if self.tells_of_now(to, *owner_epoch, action, revision) {
            self.count_returned(action, to, reserve.slots);
        }
    }

    pub(super) fn on_denied(&mut self, request: &RequestId, denial: Denial, hint: Option<NodeId>) {
        if request.epoch != self.epoch {
            return;
        }
        let Some(OutRequest::Reserve(reserve)) = self.requests.get(&request.number) else { return };
        if reserve.granted {
            // A retry was denied, by another epoch: what became of the run that was granted is not known.
            return self.on_run_answered(request, RemoteEnd::Unknown);
        }
        let reserve = reserve.clone();
        self.close_request(request.number);
        let to = reserve.message.to.clone();
        let name = reserve.message.action.clone();
        if reserve.message.wait_us == 0 && reserve.tries == 1 {
            self.env.estimates.round_trip(&to, self.now.since(reserve.sent_at));
        }
        self.forget_reserving(&name, request.number);
        self.count_untaken(&reserve);
        if denial == Denial::StillComing && self.wait_again(&reserve) {
            return self.touch(&name);
        }
        self.count_refused(&reserve.message);
        if let Some(id) = reserve.run {
            // Neither another epoch nor one that has closed the number can speak for an earlier copy.
            if reserve.unsure && matches!(denial, Denial::WrongEpoch | Denial::StaleRequest) {
                self.indeterminate(id);
            } else {
                self.came_back(id);
            }
        }
        let next = self.actions.get(&name).and_then(|a| a.queue.values().next().copied());
        if let Some(activation) = next.and_then(|id| self.activations.get_mut(&id)) {
            activation.hint = hint.filter(|peer| !activation.asked.contains(peer));
        }
        self.touch(&name);
    }

    /// What was waited for is still on its way: asked for once more, for as long as a home would send others there,
    /// rather than started here as well.
    fn wait_again(&mut self, before: &OutReserve) -> bool {
        let SendReserve { to, owner_epoch, action: name, wait_us, start, slots, .. } = before.message.clone();
        let Some(action) = self.actions.get(&name) else { return false };
        let waits_for = action.queue.len() as u32;
        let patience = super::home::lasts_us(self.env.estimates.start(&action.spec.image));
        let current = self.peers.get(&to).is_some_and(|p| p.live && !p.draining && p.epoch == owner_epoch);
        if !current || waits_for == 0 || wait_us == 0 || self.now.since(before.waits_since) >= patience {
            return false;
        }
        let ask = Ask { to, owner_epoch, slots: slots.min(waits_for), wait_us, start, run: None };
        self.send_reserve(&name, ask);
        if let Some(OutRequest::Reserve(again)) = self.requests.get_mut(&self.counters.request) {
            again.waits_since = before.waits_since;
        }
        true
    }

    pub(super) fn on_reserve_failed(&mut self, request: &RequestId, never_sent: bool) {
        if request.epoch != self.epoch {
            return;
        }
        let Some(OutRequest::Reserve(reserve)) = self.requests.get_mut(&request.number) else { return };
        if reserve.granted {
            // The grant came and the run's answer did not.
            return self.on_run_answered(request, RemoteEnd::Unknown);
        }
        let unsure = reserve.unsure || !never_sent;
        reserve.unsure = unsure;
        if unsure && reserve.run.is_some() && reserve.tries < MOST_TRIES {
            reserve.tries += 1;
            if on(Mutation::CountsFromLastSend) {
                reserve.sent_at = self.now;
            }
            let message = SendReserve { timeout_us: left(self.now, reserve), ..reserve.message.clone() };
            return self.emit(Output::SendReserve(message));
        }
        let reserve = reserve.clone();
        self.close_request(request.number);
        let name = reserve.message.action.clone();
        self.count_refused(&reserve.message);
        self.forget_reserving(&name, request.number);
        match reserve.run {
            Some(id) if unsure => self.indeterminate(id),
            Some(id) => self.came_back(id),
            None => {}
        }
        self.touch(&name);
    }

    /// The origin takes the activation back, and has not sent the request: nothing is wrong with the peer.
    pub(super) fn on_reserve_withdrawn(&mut self, request: &RequestId) {
        if request.epoch != self.epoch {
            return;
        }
        let Some(OutRequest::Reserve(reserve)) = self.requests.get(&request.number) else { return };
        let reserve = reserve.clone();
        let name = reserve.message.action.clone();
        self.drop_request(request.number);
        self.count_untaken(&reserve);
        self.forget_reserving(&name, request.number);
        if let Some(id) = reserve.run {
            self.withdrawn(id);
        }
        self.touch(&name);
    }

    pub(super) fn on_run_answered(&mut self, request: &RequestId, end: RemoteEnd) {
        if request.epoch != self.epoch {
            return;
        }
        match self.requests.get_mut(&request.number) {
            Some(OutRequest::Reserve(reserve)) if reserve.granted => {
                let (Some(key), Some(id)) = (reserve.lease.clone(), reserve.run) else { return };
                let (sent_at, action, unsure) = (reserve.sent_at, reserve.message.action.clone(), reserve.unsure);
                if end == RemoteEnd::Unknown && reserve.tries < MOST_TRIES {
                    reserve.tries += 1;
                    reserve.unsure = true;
                    let message = SendReserve { timeout_us: left(self.now, reserve), ..reserve.message.clone() };
                    return self.emit(Output::SendReserve(message));
                }
                self.close_request(request.number);
                self.run_ended(id, &key, &action, sent_at, end, unsure);
            }
            Some(OutRequest::Run(run)) => {
                let retry = end == RemoteEnd::Unknown && run.tries < MOST_TRIES;
                if retry {
                    run.tries += 1;
                    run.unsure = true;
                    let spent = self.now.since(run.sent_at);
                    let timeout_us = run.message.timeout_us.saturating_sub(spent).max(RETRY_AT_LEAST);
                    let message = SendRun { timeout_us, ..run.message.clone() };
                    return self.emit(Output::SendRun(message));
                }
                let run = run.clone();
                if end == RemoteEnd::Withdrawn {
                    self.drop_request(request.number);
                    if let Some(lease) = self.held.get_mut(&run.lease) {
                        lease.fresh = run.message.served == Served::NewLease;
                    }
                } else {
                    self.close_request(request.number);
                }
                self.run_ended(run.message.activation, &run.lease, &run.message.action, run.sent_at, end, run.unsure);
            }
            // An end without a grant before it: the grant is not known, so neither is the run.
            Some(OutRequest::Reserve(_)) => self.on_reserve_failed(request, false),
            None => {}
        }
    }

    fn run_ended(
        &mut self,
        id: ActivationId,
        key: &LeaseKey,
        name: &ActionId,
        sent_at: Time,
        end: RemoteEnd,
        unsure: bool,
    ) {
        let margin = self.cfg().margin_us;
        let ttl = self.cfg().ttl_us;
        let now = self.now;
        if let Some(lease) = self.held.get_mut(key) {
            lease.peak = lease.peak.max(lease.running);
            lease.running -= 1;
            if let RemoteEnd::Answered { renewed_us } = end
                && renewed_us > 0
                && !lease.recalled
                && !lease.lost
            {
                // Renewal counts from the send: the owner counts from the acceptance, which came later.
                let over = lease.expires_at <= now;
                lease.expires_at = lease.expires_at.max((sent_at + renewed_us.min(ttl)) - margin);
                if over {
                    // Its timer came while the run was out.
                    let at = lease.expires_at;
                    self.arm(at, Timer::HeldEnd(key.0.clone(), key.1));
                }
            }
        }
        match end {
            RemoteEnd::Answered { .. } => {
                self.env.estimates.served(name, now.since(sent_at));
                self.answered(id);
            }
            RemoteEnd::Refused(refusal) => {
                // Whatever the reason, the lease is not what this node believes it to be.
                self.lose_lease(key);
                if unsure && matches!(refusal, RunRefusal::WrongEpoch | RunRefusal::StaleRequest) {
                    self.indeterminate(id);
                } else {
                    self.came_back(id);
                }
            }
            RemoteEnd::NeverSent if !unsure => {
                self.lose_lease(key);
                self.came_back(id);
            }
            RemoteEnd::Withdrawn if !unsure => self.withdrawn(id),
            RemoteEnd::NeverSent | RemoteEnd::Withdrawn | RemoteEnd::Unknown => {
                self.lose_lease(key);
                self.indeterminate(id);
            }
        }
        let done = self.held.get(key).is_some_and(|l| l.running == 0 && now >= l.expires_at);
        if done {
            self.drop_held(key);
        } else if self.held.get(key).is_some_and(|l| l.recalled) {
            self.give_back(key);
        }
        self.touch(name);
    }

    /// Nobody will know whether it ran: told as that, or run again if its user allows.
    fn indeterminate(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get_mut(&id) else { return };
        let idempotent = self.actions.get(&activation.action).is_some_and(|a| a.spec.idempotent);
        activation.maybe_ran = true;
        if idempotent && activation.attempt < 2 {
            activation.attempt += 1;
            activation.waits_since = self.now;
            self.requeue(id);
        } else {
            self.refuse(id, Refusal::NoCapacity { retry_after_us: 0 });
        }
    }

    pub(super) fn on_recall(&mut self, owner: NodeId, owner_epoch: Epoch, fence: Fence) {
        if fence.epoch != owner_epoch {
            return;
        }
        let key = (owner, fence);
        if let Some(lease) = self.held.get_mut(&key) {
            lease.recalled = true;
            let name = lease.action.clone();
            self.give_back(&key);
            return self.touch(&name);
        }
        // It may be faster than the grant that it is for.
        for request in self.requests.values_mut() {
            if let OutRequest::Reserve(reserve) = request
                && !reserve.granted
                && reserve.message.to == key.0
            {
                reserve.early_recalls.insert(fence);
                if reserve.early_recalls.len() > MOST_EARLY_RECALLS {
                    reserve.early_recalls.pop_first();
                }
            }
        }
    }

    pub(super) fn handle_release_request(&mut self, owner: &NodeId, fence: Fence) {
        let key = (owner.clone(), fence);
        if let Some(lease) = self.held.get_mut(&key) {
            lease.recalled = true;
            let name = lease.action.clone();
            self.give_back(&key);
            self.touch(&name);
        }
    }

    /// Gives the slots back that no run uses; with none in use the lease is over.
    pub(super) fn give_back(&mut self, key: &LeaseKey) {
        let Some(lease) = self.held.get_mut(key) else { return };
        if lease.slots > lease.running {
            let returned = lease.slots - lease.running;
            lease.slots = lease.running;
            let (container, keep) = (lease.container.clone(), lease.running);
            let name = lease.action.clone();
            self.count_returned(&name, &key.0, returned);
            self.emit(Output::SendRelease { to: key.0.clone(), container, fence: key.1, keep });
        }
        if self.held.get(key).is_some_and(|l| l.running == 0) {
            self.drop_held(key);
        }
    }

    pub(super) fn held_end(&mut self, owner: NodeId, fence: Fence) {
        let key = (owner, fence);
        let Some(lease) = self.held.get(&key) else { return };
        if self.now < lease.expires_at {
            // Renewed since: runs move no timer.
            let at = lease.expires_at;
            return self.arm(at, Timer::HeldEnd(key.0, key.1));
        }
        let name = lease.action.clone();
        if lease.running == 0 {
            self.drop_held(&key);
        }
        self.touch(&name);
    }

    /// The owner does not know the lease any more: nothing more is sent on it.
    fn lose_lease(&mut self, key: &LeaseKey) {
        let now = self.now;
        let Some(lease) = self.held.get_mut(key) else { return };
        (lease.expires_at, lease.lost) = (now, true);
        self.note(Event::LeaseLost { owner: key.0.clone(), fence: key.1 });
    }

    fn drop_held(&mut self, key: &LeaseKey) {
        if let Some(lease) = self.held.remove(key)
            && let Some(action) = self.actions.get_mut(&lease.action)
        {
            action.held.remove(key);
            let name = lease.action;
            self.touch(&name);
        }
    }

    /// A peer came back under a newer epoch: what it granted before is void.
    pub(super) fn void_held_of(&mut self, peer: &NodeId, before: Epoch) {
        let void: Vec<LeaseKey> = self.held.keys().filter(|k| k.0 == *peer && k.1.epoch < before).cloned().collect();
        for key in void {
            self.lose_lease(&key);
            if self.held.get(&key).is_some_and(|l| l.running == 0) {
                self.drop_held(&key);
            }
        }
    }

    /// Its outcome is known, or given up.
    fn close_request(&mut self, number: u64) {
        let Some(request) = self.requests.remove(&number) else { return };
        let (to, activation) = (request.to().clone(), request.activation());
        match activation.and_then(|id| self.kept.get_mut(&id)) {
            // Until its record is on disk a crash would forget that outcome: the owner keeps it meanwhile.
            Some(kept) => {
                if let Some((to, number)) = kept.handed.replace((to, number)) {
                    self.owner_may_forget(&to, number);
                }
            }
            None => self.owner_may_forget(&to, number),
        }
    }

    /// It was not sent in the end.
    fn drop_request(&mut self, number: u64) {
        if let Some(request) = self.requests.remove(&number) {
            self.owner_may_forget(&request.to().clone(), number);
        }
    }

    /// Nobody will ask for the answer to that request any more.
    pub(super) fn owner_may_forget(&mut self, to: &NodeId, number: u64) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.open.remove(&number);
        }
    }

    fn forget_reserving(&mut self, name: &ActionId, number: u64) {
        if let Some(action) = self.actions.get_mut(name) {
            action.reserving.remove(&number);
        }
    }
}
