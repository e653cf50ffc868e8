//! The owner's side: what peers ask of own containers. Each grant and each run is decided in one step on this
//! node's own table; gossip and messages are hints.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::answers::{Admission, Answer};
use super::{Node, Timer};
use crate::container::{Lease, Lifecycle};
use crate::history::{OnLease, What};
use crate::ids::{ActionId, ActionSpec, ContainerId, Epoch, Fence, NodeId, RequestId, Revision, RunId};
use crate::mutations::{Mutation, on};
use crate::output::{Attempt, Denial, Event, Output, ReserveAnswer, RunAnswer, RunRefusal};
use crate::time::Micros;

/// Askers remembered for one action.
const MOST_ASKERS: usize = 16;

pub(super) struct Reserve {
    pub(super) request: RequestId,
    pub(super) action: ActionId,
    pub(super) revision: Revision,
    pub(super) slots: u32,
    pub(super) wait_us: Micros,
    pub(super) start: bool,
    pub(super) run: Option<Attempt>,
}

pub(super) struct LeasedRun {
    pub(super) request: RequestId,
    pub(super) container: ContainerId,
    pub(super) fence: Fence,
    pub(super) action: ActionId,
    pub(super) revision: Revision,
    pub(super) keep: u32,
    pub(super) attempt: Attempt,
}

/// A Reserve held until a slot comes free or its wait is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    action: ActionId,
    revision: Revision,
    seq: u64,
    slots: u32,
    start: bool,
    run: Option<Attempt>,
}

impl Node {
    pub(super) fn on_reserve(
        &mut self,
        reserve: Reserve,
        owner_epoch: Epoch,
        open_from: u64,
        spec: Option<Arc<ActionSpec>>,
    ) {
        let request = reserve.request.clone();
        if owner_epoch != self.epoch && !on(Mutation::OldEpochServed) {
            return self.answer_reserve(&request, denied(Denial::WrongEpoch));
        }
        match self.admit(&request, open_from) {
            Admission::New => {}
            Admission::Again(_) if on(Mutation::DuplicateTakesTwoSlots) => {}
            Admission::Again(Answer::Reserve(mut answer)) => {
                if let ReserveAnswer::Granted { first, run, .. } = &mut answer {
                    *first = false;
                    if let (Some(run), Some(attempt)) = (*run, reserve.run) {
                        self.tell(|_| What::RunJoined { run, attempt });
                    }
                }
                return self.answer_reserve(&request, answer);
            }
            // The first copy's answer, when it comes, is for both.
            Admission::Again(Answer::Waiting) => return,
            // A number used for another sort of request: a mistake of the holder's.
            Admission::Again(_) | Admission::Stale => {
                return self.answer_reserve(&request, denied(Denial::StaleRequest));
            }
            Admission::NotTaken => return self.answer_reserve(&request, denied(Denial::NotTaken)),
            Admission::Full => return self.answer_reserve(&request, denied(Denial::Full)),
        }
        let known = match spec {
            Some(spec) if spec.revision == reserve.revision => spec,
            Some(spec) if spec.revision > reserve.revision => return self.deny(&reserve, Denial::StaleRevision),
            _ => return self.deny(&reserve, Denial::UnknownAction),
        };
        if self.drain.is_some() {
            return self.deny(&reserve, Denial::Draining);
        }
        self.learn_spec(known);
        let name = reserve.action.clone();
        self.touch(&name);
        self.note_asker(&name, &request.holder);
        let own_waits = self.actions.get(&name).is_some_and(|a| !a.queue.is_empty());
        let others_wait = self.actions.get(&name).is_some_and(|a| !a.waiting.is_empty());
        if !own_waits
            && !others_wait
            && let Some(number) = self.grantable(&name)
        {
            return self.grant(number, &request, reserve.slots, reserve.run);
        }
        if reserve.wait_us > 0 && (reserve.start || self.something_comes(&name)) {
            return self.wait_for_slot(reserve);
        }
        self.deny(&reserve, if own_waits { Denial::Busy } else { Denial::NoCapacity });
    }

    /// What to do with a request that is meant for this epoch.
    fn admit(&mut self, request: &RequestId, open_from: u64) -> Admission {
        let (most_answers, most_holders) = (self.cfg().answers_per_holder, self.cfg().holders);
        if self.answers.is_full_for(&request.holder, most_holders) {
            let containers = || self.containers.values();
            let holding: BTreeSet<_> =
                containers().flat_map(|c| c.leases().values()).map(|lease| &lease.holder).collect();
            let runs = containers().flat_map(|c| c.runs().keys()).chain(self.voided.keys()).copied().collect();
            let lives = |name: &NodeId, epoch| self.peers.get(name).is_some_and(|p| p.live && p.epoch <= epoch);
            let in_use = |name: &NodeId, epoch| holding.contains(name) || lives(name, epoch);
            self.answers.make_room(&request.holder, most_holders, &runs, in_use);
        }
        self.answers.admit(request, open_from, (most_answers, most_holders))
    }

    pub(super) fn on_run(&mut self, run: LeasedRun, owner_epoch: Epoch, open_from: u64) {
        let request = run.request.clone();
        if owner_epoch != self.epoch || run.fence.epoch != self.epoch {
            return self.answer_run(&request, RunAnswer::Refused(RunRefusal::WrongEpoch));
        }
        match self.admit(&request, open_from) {
            Admission::New => {}
            Admission::Again(_) if on(Mutation::RunTwice) => {}
            Admission::Again(Answer::Run { run: joined }) => {
                self.tell(|_| What::RunJoined { run: joined, attempt: run.attempt });
                let run = joined;
                return self.answer_run(&request, RunAnswer::Joined { run });
            }
            Admission::Again(Answer::RunRefused(refusal)) => {
                return self.answer_run(&request, RunAnswer::Refused(refusal));
            }
            Admission::Again(_) | Admission::Stale => {
                return self.answer_run(&request, RunAnswer::Refused(RunRefusal::StaleRequest));
            }
            Admission::NotTaken => return self.answer_run(&request, RunAnswer::Refused(RunRefusal::NotStarted)),
            Admission::Full => return self.answer_run(&request, RunAnswer::Refused(RunRefusal::Full)),
        }
        match self.accept_run(&run) {
            Ok(answer) => {
                if let RunAnswer::Accepted { run: id, .. } = answer {
                    self.answers.keep(&request, Answer::Run { run: id });
                }
                self.answer_run(&request, answer);
            }
            Err(refusal) => {
                self.answers.keep(&request, Answer::RunRefused(refusal));
                self.note(Event::RunRefused { holder: request.holder.clone(), refusal });
                self.answer_run(&request, RunAnswer::Refused(refusal));
            }
        }
        self.touch(&run.action);
    }

    /// The owner's one step: checks revision, container, fence, time and slot, and marks the slot busy.
    fn accept_run(&mut self, run: &LeasedRun) -> Result<RunAnswer, RunRefusal> {
        if run.container.owner != self.id || run.container.epoch != self.epoch {
            return Err(RunRefusal::UnknownContainer);
        }
        let number = run.container.number;
        let container = self.containers.get(&number).ok_or(RunRefusal::UnknownContainer)?;
        if container.action != run.action {
            return Err(RunRefusal::UnknownContainer);
        }
        if container.revision != run.revision {
            return Err(RunRefusal::StaleRevision);
        }
        let id = self.next_run();
        let now = self.now;
        let holder = (&run.request.holder, run.request.epoch);
        let container = self.containers.get_mut(&number).ok_or(RunRefusal::UnknownContainer)?;
        container.start_leased(id, run.attempt.activation, holder, run.fence, run.keep, now)?;
        container.fresh = None;
        self.cancel_intent_by_use(number);
        let own_waits = self.actions.get(&run.action).is_some_and(|a| !a.queue.is_empty());
        let lasts = self.accepts_us();
        let max_age = self.cfg().max_lease_age_us;
        let ttl_us = self.cfg().ttl_us;
        let Some(container) = self.containers.get_mut(&number) else { return Err(RunRefusal::UnknownContainer) };
        let renewed_us = if container.renew(run.fence, now, lasts, max_age, own_waits) { ttl_us } else { 0 };
        self.tell(|_| What::RunBegan {
            run: id,
            container: number,
            attempt: run.attempt,
            action: run.action.clone(),
            revision: run.revision.clone(),
            lease: Some(OnLease {
                request: run.request.clone(),
                fence: run.fence,
                keep: run.keep,
                renewed: renewed_us > 0,
            }),
        });
        Ok(RunAnswer::Accepted { run: id, container: number, renewed_us })
    }

    pub(super) fn on_release(
        &mut self,
        holder: &NodeId,
        epoch: Epoch,
        container: &ContainerId,
        fence: Fence,
        keep: u32,
    ) {
        if container.owner != self.id || container.epoch != self.epoch {
            return;
        }
        let now = self.now;
        let number = container.number;
        let Some(container) = self.containers.get_mut(&number) else { return };
        if container.release(fence, (holder, epoch), keep, now) {
            let slots = container.leases().get(&fence).map_or(0, |lease| lease.slots);
            let over = slots == 0;
            self.tell(|_| What::Released {
                container: number,
                fence,
                holder: holder.clone(),
                holder_epoch: epoch,
                slots,
            });
            if over {
                self.note(Event::LeaseReleased { holder: holder.clone(), container: number, fence });
            }
            self.arm_idle(number);
            self.touch_container(number);
            self.end_if_retired(number);
        }
    }

    pub(super) fn lease_end(&mut self, number: u64, fence: Fence) {
        let now = self.now;
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(lease) = container.leases().get(&fence) else { return };
        if now < lease.expires_at || (on(Mutation::RenewsExpired) && now < lease.expires_at + self.env.cfg.ttl_us) {
            let at = lease.expires_at.max(now + 1);
            return self.arm(at, Timer::LeaseEnd(number, fence));
        }
        if let Some(lease) = container.expire(fence, now) {
            self.note(Event::LeaseExpired { holder: lease.holder, container: number, fence });
        }
        self.arm_idle(number);
        self.touch_container(number);
        self.end_if_retired(number);
    }

    /// How long this node accepts runs after a grant or a renewing run.
    pub(super) fn accepts_us(&self) -> Micros {
        self.cfg().ttl_us + if on(Mutation::NoGrace) { 0 } else { self.cfg().grace_us }
    }

    /// Grants free slots to peers that wait, in order of arrival, once no own activation does.
    pub(super) fn serve_waiting(&mut self, name: &ActionId) {
        loop {
            let Some(action) = self.actions.get(name) else { return };
            if !action.queue.is_empty() {
                return;
            }
            let Some(request) = action.waiting.values().next().cloned() else { return };
            let Some(waiting) = self.waiting.get(&request) else { return };
            if waiting.revision != action.spec.revision {
                self.deny_waiting(&request, Denial::StaleRevision);
            } else if !self.answers.is_open(&request) {
                // Its holder has closed it, or is another life of it now: nobody waits for the answer.
                self.deny_waiting(&request, Denial::StaleRequest);
            } else if let Some(number) = self.grantable(name) {
                let (slots, run) = (waiting.slots, waiting.run);
                self.forget_waiting(&request);
                self.grant(number, &request, slots, run);
            } else {
                return;
            }
        }
    }

    /// Takes slots back from leases when somebody waits for them.
    pub(super) fn recall_if_short(&mut self, name: &ActionId) {
        let Some(action) = self.actions.get(name) else { return };
        if action.queue.is_empty() && action.waiting.is_empty() {
            return;
        }
        let numbers: Vec<u64> = action.containers.iter().copied().collect();
        for number in numbers {
            let Some(container) = self.containers.get_mut(&number) else { continue };
            if container.state() != Lifecycle::Warm || container.free() > 0 {
                continue;
            }
            let fences: Vec<Fence> = container.leases().keys().copied().collect();
            for fence in fences {
                let holder = container.leases().get(&fence).map(|l| l.holder.clone());
                if let Some(to) = holder
                    && container.recall(fence)
                {
                    self.env.out.push(Output::SendRecall { to, fence });
                }
            }
        }
    }

    /// Makes a start for peers that asked for one and find nothing here.
    pub(super) fn start_for_waiting(&mut self, name: &ActionId) {
        let Some(action) = self.actions.get(name) else { return };
        let asked = action.waiting.values().filter_map(|r| self.waiting.get(r)).any(|w| w.start);
        // Nobody here has to go for a peer: what was room when it asked may be none now.
        let fits = self.memory_used_mb + action.spec.memory_mb <= self.cfg().memory_mb;
        if asked && fits && !self.slot_comes(name) && self.still_needed(name) {
            self.request_start(name);
        }
    }

    pub(super) fn wait_end(&mut self, request: &RequestId) {
        let coming = self.waiting.get(request).is_some_and(|waiting| self.still_comes(&waiting.action));
        self.deny_waiting(request, if coming { Denial::StillComing } else { Denial::NoCapacity });
    }

    /// Whether a container is on its way that should do for all who wait here, in the time of one start.
    fn still_comes(&self, name: &ActionId) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let coming = action.containers.iter().filter_map(|n| self.containers.get(n)).filter(|c| {
            c.revision == action.spec.revision
                && matches!(c.state(), Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Resuming)
        });
        let slots = coming.map(|c| c.slots).sum::<u32>() + action.starts_queued * action.spec.concurrency;
        let waiting = (action.queue.len() + action.waiting.len()) as u64;
        let work = waiting.saturating_mul(self.env.estimates.service(name).unwrap_or(0));
        slots > 0 && work / u64::from(slots) <= self.env.estimates.start(&action.spec.image)
    }

    pub(super) fn deny_waiting(&mut self, request: &RequestId, denial: Denial) {
        let Some(waiting) = self.forget_waiting(request) else { return };
        self.env.out.push(Output::Event(Event::LeaseDenied {
            holder: request.holder.clone(),
            action: waiting.action.clone(),
            denial,
        }));
        let hint = self.better_peer(&waiting.action, &request.holder);
        let answer = ReserveAnswer::Denied { denial, hint };
        self.answers.keep(request, Answer::Reserve(answer.clone()));
        self.answer_reserve(request, answer);
    }

    /// A warm container of the newest revision that may take a lease now.
    fn grantable(&self, name: &ActionId) -> Option<u64> {
        let action = self.actions.get(name)?;
        let candidates = action.containers.iter().filter_map(|n| Some((*n, self.containers.get(n)?)));
        candidates
            .filter(|(_, c)| {
                c.free() > 0
                    && c.revision == action.spec.revision
                    && !c.intent.as_ref().is_some_and(|intent| intent.last_word)
            })
            .min_by_key(|(number, c)| (c.free(), *number))
            .map(|(number, _)| number)
    }

    /// Whether a slot is free or on its way; a full container is neither.
    fn slot_comes(&self, name: &ActionId) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let mut containers = action.containers.iter().filter_map(|n| self.containers.get(n));
        action.starts_queued > 0
            || containers.any(|c| {
                let coming = matches!(
                    c.state(),
                    Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Pausing | Lifecycle::Resuming
                );
                c.revision == action.spec.revision && (coming || c.free() > 0)
            })
    }

    /// Whether waiting makes sense: a container of the action is there, or on its way.
    fn something_comes(&self, name: &ActionId) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let mut containers = action.containers.iter().filter_map(|n| self.containers.get(n));
        action.starts_queued > 0
            || matches!(action.home, super::HomeStep::Asked { .. })
            || containers.any(|c| {
                c.revision == action.spec.revision
                    && !c.intent.as_ref().is_some_and(|i| i.last_word)
                    && matches!(
                        c.state(),
                        Lifecycle::Starting
                            | Lifecycle::Initializing
                            | Lifecycle::Warm
                            | Lifecycle::Pausing
                            | Lifecycle::Paused
                            | Lifecycle::Resuming
                    )
            })
    }

    fn wait_for_slot(&mut self, reserve: Reserve) {
        let name = reserve.action.clone();
        let most = self.cfg().waiting_per_action;
        let Some(action) = self.actions.get_mut(&name) else { return };
        if action.waiting.len() >= most {
            return self.deny(&reserve, Denial::NoCapacity);
        }
        self.counters.arrival += 1;
        let seq = self.counters.arrival;
        action.waiting.insert(seq, reserve.request.clone());
        let waiting = Waiting {
            action: name.clone(),
            revision: reserve.revision,
            seq,
            slots: reserve.slots,
            start: reserve.start,
            run: reserve.run,
        };
        self.answers.keep(&reserve.request, Answer::Waiting);
        let until = self.now + reserve.wait_us.min(self.cfg().max_wait_us);
        self.arm(until, Timer::WaitEnd(reserve.request.clone()));
        self.waiting.insert(reserve.request, waiting);
        self.resume_for_waiting(&name);
    }

    /// Peers wait and nothing warm is there or coming: a paused container is resumed for them.
    pub(super) fn resume_for_waiting(&mut self, name: &ActionId) {
        let Some(action) = self.actions.get(name) else { return };
        let mut paused = None;
        for number in &action.containers {
            let container = self.containers.get(number);
            let Some(container) = container.filter(|c| !c.intent.as_ref().is_some_and(|i| i.last_word)) else {
                continue;
            };
            match container.state() {
                Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Resuming => return,
                Lifecycle::Warm if container.free() > 0 => return,
                Lifecycle::Paused => paused = Some(*number),
                _ => {}
            }
        }
        if let Some(number) = paused
            && !action.waiting.is_empty()
        {
            self.resume(number);
        }
    }

    fn forget_waiting(&mut self, request: &RequestId) -> Option<Waiting> {
        let waiting = self.waiting.remove(request)?;
        if let Some(action) = self.actions.get_mut(&waiting.action) {
            action.waiting.remove(&waiting.seq);
        }
        Some(waiting)
    }

    fn grant(&mut self, number: u64, request: &RequestId, slots: u32, run: Option<Attempt>) {
        self.cancel_intent_by_use(number);
        let (now, ttl_us) = (self.now, self.cfg().ttl_us);
        let expires_at = now + self.accepts_us();
        self.counters.fence += 1;
        let fence = Fence { epoch: self.epoch, counter: self.counters.fence };
        let started = run.map(|_| self.next_run());
        let id = self.container_id(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        let slots = slots.clamp(1, container.free());
        let (action, revision) = (container.action.clone(), container.revision.clone());
        container.fresh = None;
        container.grant(
            fence,
            Lease {
                holder: request.holder.clone(),
                holder_epoch: request.epoch,
                slots,
                running: 0,
                granted_at: now,
                expires_at,
                recalled: false,
            },
        );
        if let (Some(attempt), Some(run)) = (run, started) {
            let holder = (&request.holder, request.epoch);
            // It can't fail: the lease was made for it in this step.
            let accepted = container.start_leased(run, attempt.activation, holder, fence, slots, now);
            debug_assert_eq!(accepted, Ok(()));
        }
        if self.env.step.is_some() {
            self.tell_grant(number, request, fence, slots, run.zip(started), (action, revision));
        }
        self.arm(expires_at, Timer::LeaseEnd(number, fence));
        self.note(Event::LeaseGranted { holder: request.holder.clone(), container: number, fence, slots });
        let answer = ReserveAnswer::Granted { container: id, fence, slots, ttl_us, run: started, first: true };
        self.answers.keep(request, Answer::Reserve(answer.clone()));
        self.answer_reserve(request, answer);
    }

    fn tell_grant(
        &mut self,
        container: u64,
        request: &RequestId,
        fence: Fence,
        slots: u32,
        run: Option<(Attempt, RunId)>,
        (action, revision): (ActionId, Revision),
    ) {
        self.tell(|_| What::Granted {
            request: request.clone(),
            container,
            fence,
            slots,
            action: action.clone(),
            revision: revision.clone(),
        });
        if let Some((attempt, run)) = run {
            let lease = Some(OnLease { request: request.clone(), fence, keep: slots, renewed: false });
            self.tell(|_| What::RunBegan { run, container, attempt, action, revision, lease });
        }
    }

    fn deny(&mut self, reserve: &Reserve, denial: Denial) {
        let hint = self.better_peer(&reserve.action, &reserve.request.holder);
        let answer = ReserveAnswer::Denied { denial, hint };
        self.answers.keep(&reserve.request, Answer::Reserve(answer.clone()));
        self.note(Event::LeaseDenied {
            holder: reserve.request.holder.clone(),
            action: reserve.action.clone(),
            denial,
        });
        self.answer_reserve(&reserve.request, answer);
    }

    fn answer_reserve(&mut self, request: &RequestId, answer: ReserveAnswer) {
        self.emit(Output::AnswerReserve { request: request.clone(), answer });
    }

    fn answer_run(&mut self, request: &RequestId, answer: RunAnswer) {
        self.emit(Output::AnswerRun { request: request.clone(), answer });
    }

    fn note_asker(&mut self, name: &ActionId, peer: &NodeId) {
        let now = self.now;
        let Some(action) = self.actions.get_mut(name) else { return };
        if action.askers.len() >= MOST_ASKERS && !action.askers.contains_key(peer) {
            let oldest = action.askers.iter().min_by_key(|(_, at)| **at).map(|(n, _)| n.clone());
            oldest.and_then(|n| action.askers.remove(&n));
        }
        action.askers.insert(peer.clone(), now);
    }
}

fn denied(denial: Denial) -> ReserveAnswer {
    ReserveAnswer::Denied { denial, hint: None }
}
