//! Own activations: they wait in their action's queue until a slot is theirs, and are bound to it in one step.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::{Node, Timer};
use crate::history::{End, What};
use crate::ids::{ActionId, ActionSpec, ActivationId, NodeId, RunId};
use crate::input::RunEnd;
use crate::mutations::{Mutation, on};
use crate::output::{Attempt, Output, Refusal, Served};
use crate::time::{MS, SECOND, Time};

/// Times a body may fail to reach its container before the activation is given up.
const MOST_NEVER_STARTED: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Activation {
    pub(super) action: ActionId,
    pub(super) body_bytes: u64,
    /// Its place in the queue, which it gets back when an owner refuses it.
    pub(super) seq: u64,
    /// Since when it waits: its arrival, or when it was to be run again.
    pub(super) waits_since: Time,
    /// Peers asked for it, hints included.
    pub(super) asked: Vec<NodeId>,
    /// A better peer, as one that refused has told.
    pub(super) hint: Option<NodeId>,
    pub(super) attempt: u32,
    pub(super) never_started: u32,
    /// An earlier attempt may have run: its end is never told as 'has not run'.
    pub(super) maybe_ran: bool,
    queued: bool,
    /// The caller has left.
    cancelled: bool,
}

/// What is known of a body that the journal keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Kept {
    bytes: u64,
    /// The last request that it went with, once that has its answer.
    pub(super) handed: Option<(NodeId, u64)>,
    /// It is promised and not under way: asked for sooner or later.
    awaited: Option<ActionId>,
}

impl Activation {
    pub(super) fn queued_at(&self, seq: u64, action: &ActionId) -> bool {
        self.queued && self.seq == seq && self.action == *action
    }
}

impl Node {
    pub(super) fn handle_invoke(
        &mut self,
        id: ActivationId,
        spec: Arc<ActionSpec>,
        body_bytes: u64,
        attempt: u32,
        journaled: bool,
    ) {
        if self.drain.is_some() && !self.finishes(id) {
            let refusal = self.drain_refusal(id);
            return self.turn_away(id, refusal, attempt);
        }
        let name = spec.action.clone();
        self.learn_spec(spec);
        self.env.estimates.arrived(&name, self.now);
        let Some(action) = self.actions.get(&name) else { return };
        if action.deleted {
            // Asked for before it was deleted, and once more now.
            return self.turn_away(id, Refusal::Deleted, attempt);
        }
        let queued = action.queue.len();
        let more_bytes = if self.kept.contains_key(&id) { 0 } else { body_bytes };
        let bytes = self.queued_bytes.saturating_add(self.kept_bytes).saturating_add(more_bytes);
        if queued >= self.cfg().queue_per_action || (more_bytes > 0 && bytes > self.cfg().queue_bytes) {
            let retry_after_us = self.env.estimates.service(&name).unwrap_or(SECOND).max(100 * MS);
            return self.turn_away(id, Refusal::QueueFull { retry_after_us }, attempt);
        }
        if journaled {
            self.keep_body(id, body_bytes);
        }
        self.counters.arrival += 1;
        let activation = Activation {
            action: name.clone(),
            // What the journal keeps is counted there.
            body_bytes: if self.kept.contains_key(&id) { 0 } else { body_bytes },
            seq: self.counters.arrival,
            waits_since: self.now,
            maybe_ran: attempt > 0,
            asked: Vec::new(),
            hint: None,
            attempt,
            never_started: 0,
            queued: false,
            cancelled: false,
        };
        self.activations.insert(id, activation);
        self.await_kept(id, None);
        self.enqueue(id);
        self.serve_queue(&name);
        if self.activations.get(&id).is_some_and(|a| a.queued) {
            self.arm(self.now + self.cfg().max_queue_wait_us, Timer::GiveUp(id));
        }
        self.touch(&name);
    }

    /// It is not even queued.
    fn turn_away(&mut self, id: ActivationId, refusal: Refusal, attempt: u32) {
        let maybe_ran = attempt > 0;
        match refusal {
            // Nothing will change that.
            Refusal::Deleted | Refusal::GivenUp if maybe_ran => self.emit(Output::Indeterminate { activation: id }),
            refusal => self.emit_refusal(id, refusal, maybe_ran),
        }
    }

    fn emit_refusal(&mut self, id: ActivationId, refusal: Refusal, maybe_ran: bool) {
        if refusal == Refusal::GivenUp {
            self.count_given_up();
        }
        self.emit(Output::Refuse { activation: id, refusal, maybe_ran });
    }

    pub(super) fn handle_body_kept(&mut self, id: ActivationId, action: ActionId, bytes: u64) {
        self.keep_body(id, bytes);
        let under_way = self.activations.contains_key(&id);
        self.await_kept(id, (!under_way).then_some(action));
    }

    fn keep_body(&mut self, id: ActivationId, bytes: u64) {
        let kept = self.kept.entry(id).or_default();
        let before = std::mem::replace(&mut kept.bytes, bytes);
        self.kept_bytes = (self.kept_bytes - before).saturating_add(bytes);
    }

    /// What is kept is still to be asked for, or is under way.
    fn await_kept(&mut self, id: ActivationId, action: Option<ActionId>) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let before = std::mem::replace(&mut kept.awaited, action.clone());
        if let Some(action) = action {
            *self.awaited.entry(action).or_default() += 1;
        }
        if let Some(before) = before
            && let Entry::Occupied(mut count) = self.awaited.entry(before.clone())
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
                // A drain may have waited for it.
                self.touch(&before);
            }
        }
    }

    pub(super) fn drop_body(&mut self, id: ActivationId) {
        self.await_kept(id, None);
        let Some(kept) = self.kept.remove(&id) else { return };
        self.kept_bytes -= kept.bytes;
        if let Some((to, number)) = kept.handed {
            self.owner_may_forget(&to, number);
        }
    }

    pub(super) fn handle_cancel(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get_mut(&id) else { return };
        activation.cancelled = true;
        if activation.queued && activation.maybe_ran {
            self.refuse(id, Refusal::Cancelled);
        } else if activation.queued {
            self.dequeue(id);
            self.activations.remove(&id);
            self.tell(|_| What::Ended { activation: id, end: End::Dropped });
        }
    }

    /// An own activation has its answer, whatever that says. None if it is a peer's.
    pub(super) fn answered(&mut self, id: ActivationId) -> Option<ActionId> {
        let ended = self.activations.remove(&id)?;
        self.tell(|_| What::Ended { activation: id, end: End::Answered });
        Some(ended.action)
    }

    /// Taken back before it was handed on.
    pub(super) fn withdrawn(&mut self, id: ActivationId) {
        if let Some(activation) = self.activations.remove(&id) {
            self.tell(|_| What::Ended { activation: id, end: End::Withdrawn });
            self.await_kept(id, Some(activation.action));
        }
    }

    /// Binds queued activations to free slots: own containers first, then leases already held.
    pub(super) fn serve_queue(&mut self, name: &ActionId) {
        while let Some(id) = self.actions.get(name).and_then(|a| a.queue.values().next().copied()) {
            if let Some(number) = self.free_container(name) {
                self.bind_local(id, number);
            } else if let Some(lease) = self.usable_lease(name) {
                self.bind_leased(id, lease);
            } else {
                break;
            }
        }
    }

    /// An own warm container of the newest revision with a free slot; the fullest, so that others may go idle.
    pub(super) fn free_container(&self, name: &ActionId) -> Option<u64> {
        let action = self.actions.get(name)?;
        let candidates = action.containers.iter().filter_map(|n| Some((*n, self.containers.get(n)?)));
        candidates
            .filter(|(_, c)| c.free() > 0 && c.revision == action.spec.revision)
            .min_by_key(|(number, c)| (c.free(), *number))
            .map(|(number, _)| number)
    }

    fn bind_local(&mut self, id: ActivationId, number: u64) {
        self.dequeue(id);
        let run = self.next_run();
        let now = self.now;
        self.cancel_intent_by_use(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        // The first run after a start or a resume is the one that paid for it.
        let fresh = container.fresh.take();
        let served = fresh.unwrap_or(Served::Local);
        container.start_own(run, id, fresh, now);
        let attempt = self.activations.get(&id).map_or(0, |a| a.attempt);
        let (action, revision) = (container.action.clone(), container.revision.clone());
        self.tell(|_| {
            let attempt = Attempt { activation: id, attempt };
            What::RunBegan { run, container: number, attempt, action, revision, lease: None }
        });
        self.emit(Output::RunLocal { activation: id, run, container: number, attempt, served });
    }

    pub(super) fn handle_run_finished(&mut self, number: u64, run: RunId, end: RunEnd) {
        let now = self.now;
        let Some(container) = self.containers.get_mut(&number).filter(|c| c.runs().contains_key(&run)) else {
            return self.voided_run_finished(run, end);
        };
        let name = container.action.clone();
        match end {
            RunEnd::Answered => {
                let Some(ended) = container.end_run(run, now) else { return };
                self.env.estimates.served(&name, now.since(ended.started_at));
                self.answered(ended.activation);
                self.arm_idle(number);
            }
            RunEnd::Withdrawn => {
                let Some(withdrawn) = container.withdraw_run(run, now) else { return };
                self.withdrawn(withdrawn.activation);
                self.arm_idle(number);
            }
            RunEnd::NeverStarted => {
                let Some(ended) = container.end_run(run, now) else { return };
                self.requeue_never_started(ended.activation);
                // It takes no runs any more; those that it has may well end.
                self.retire(number);
            }
            // Nobody knows whether it still runs in there: its slot never returns.
            RunEnd::Lost if on(Mutation::BusyLeaked) => {
                let activation = container.runs().get(&run).map(|r| r.activation);
                activation.and_then(|id| self.answered(id));
            }
            RunEnd::TimedOut | RunEnd::Lost => {
                let Some(ended) = container.overdue(run) else { return };
                let (activation, took) = (ended.activation, now.since(ended.started_at));
                self.env.estimates.served(&name, took);
                self.answered(activation);
                self.retire(number);
            }
        }
        self.touch_container(number);
        self.end_if_retired(number);
    }

    /// Its container was dead or gone before: only what the run tells of its activation counts.
    fn voided_run_finished(&mut self, run: RunId, end: RunEnd) {
        let Some(id) = self.voided.remove(&run) else { return };
        match end {
            RunEnd::NeverStarted => self.requeue_never_started(id),
            RunEnd::Withdrawn => self.withdrawn(id),
            RunEnd::Answered | RunEnd::TimedOut | RunEnd::Lost => {
                if let Some(action) = self.answered(id) {
                    self.touch(&action);
                }
            }
        }
    }

    /// The body provably never left: the activation returns to its old place.
    fn requeue_never_started(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get_mut(&id) else { return };
        activation.never_started += 1;
        if activation.never_started >= MOST_NEVER_STARTED {
            self.refuse(id, Refusal::StartFailed);
        } else {
            self.came_back(id);
        }
    }

    /// It certainly did not run where it was handed: told, since the journal may have noted that, and asked for anew.
    pub(super) fn came_back(&mut self, id: ActivationId) {
        if self.activations.contains_key(&id) {
            self.emit(Output::CameBack { activation: id });
            self.requeue(id);
        }
    }

    /// Back to its old place, unless its caller has left or this node takes no more work.
    pub(super) fn requeue(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get(&id) else { return };
        if activation.cancelled {
            self.refuse(id, Refusal::Cancelled);
        } else if self.now.since(activation.waits_since) >= self.cfg().max_queue_wait_us {
            self.refuse(id, Refusal::NoCapacity { retry_after_us: SECOND });
        } else if self.drain.is_some() && !self.finishes(id) {
            let refusal = self.drain_refusal(id);
            self.refuse(id, refusal);
        } else if self.actions.get(&activation.action).is_some_and(|a| a.deleted) {
            self.refuse(id, Refusal::Deleted);
        } else {
            let give_up_at = activation.waits_since + self.cfg().max_queue_wait_us;
            self.enqueue(id);
            self.arm(give_up_at, Timer::GiveUp(id));
        }
    }

    /// Ends an activation that has not run, or of which nobody knows whether it has. Its task is told in any
    /// case: it waits even when its caller has left.
    pub(super) fn refuse(&mut self, id: ActivationId, refusal: Refusal) {
        self.dequeue(id);
        match self.activations.remove(&id) {
            Some(activation) if activation.maybe_ran => self.emit(Output::Indeterminate { activation: id }),
            Some(_) => self.emit_refusal(id, refusal, false),
            None => {}
        }
    }

    pub(super) fn refuse_queue(&mut self, name: &ActionId, refusal: Refusal) {
        let Some(action) = self.actions.get(name) else { return };
        for id in action.queue.values().copied().collect::<Vec<_>>() {
            self.refuse(id, refusal);
        }
    }

    /// Refuses those that have waited since before that moment.
    pub(super) fn refuse_waiting_since(&mut self, name: &ActionId, since: Time) {
        let Some(action) = self.actions.get(name) else { return };
        for id in action.queue.values().copied().collect::<Vec<_>>() {
            if self.activations.get(&id).is_some_and(|a| a.waits_since <= since) {
                self.refuse(id, Refusal::NoCapacity { retry_after_us: SECOND });
            }
        }
    }

    pub(super) fn give_up(&mut self, id: ActivationId) {
        if self.activations.get(&id).is_some_and(|a| a.queued) {
            self.refuse(id, Refusal::NoCapacity { retry_after_us: SECOND });
        }
    }

    pub(super) fn dequeue(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get_mut(&id) else { return };
        if std::mem::take(&mut activation.queued) {
            self.queued_bytes -= activation.body_bytes;
            self.timers.remove(&(activation.waits_since + self.env.cfg.max_queue_wait_us, Timer::GiveUp(id)));
            if let Some(action) = self.actions.get_mut(&activation.action) {
                action.queue.remove(&activation.seq);
            }
        }
    }

    pub(super) fn next_run(&mut self) -> RunId {
        self.counters.run += 1;
        RunId(self.counters.run)
    }

    fn enqueue(&mut self, id: ActivationId) {
        let Some(activation) = self.activations.get_mut(&id) else { return };
        let Some(action) = self.actions.get_mut(&activation.action) else { return };
        activation.queued = true;
        self.queued_bytes += activation.body_bytes;
        action.queue.insert(activation.seq, id);
        let name = activation.action.clone();
        self.touch(&name);
    }
}
