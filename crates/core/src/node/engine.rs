//! Own containers coming up, pausing and ending, as the engine reports it.

use super::{Node, Timer};
use crate::container::Lifecycle;
use crate::history::What;
use crate::input::StartFailure;
use crate::output::{Event, IntentKind, Output, Refusal, Served};

/// Starts of one action that may fail in a row before its queue is refused.
const MOST_FAILED_STARTS: u32 = 3;
/// Removals that wait for vetoes at once: as many as gossip has room for.
const MOST_OPEN_REMOVALS: usize = 8;

impl Node {
    pub(super) fn handle_created(&mut self, number: u64) {
        self.moved(number, Lifecycle::Initializing);
        self.pump_starts();
    }

    pub(super) fn handle_ready(&mut self, number: u64) {
        if !self.moved(number, Lifecycle::Warm) {
            return;
        }
        let now = self.now;
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.fresh = Some(Served::Cold);
        let name = container.action.clone();
        let revision = container.revision.clone();
        let cold_us = now.since(container.created_at);
        let Some(action) = self.actions.get_mut(&name) else { return };
        action.starts_failed = 0;
        let outdated = action.spec.revision != revision || action.deleted;
        let image = action.spec.image.clone();
        self.env.estimates.started(&image, cold_us);
        self.note(Event::ContainerWarm { container: number, action: name.clone(), cold_us });
        if outdated || self.drains(&name) {
            return self.retire_or_keep(number);
        }
        self.arm_idle(number);
        self.touch(&name);
    }

    pub(super) fn handle_failed(&mut self, number: u64, failure: StartFailure) {
        let Some(container) = self.containers.get(&number) else { return };
        let (name, revision) = (container.action.clone(), container.revision.clone());
        self.fail_container(number);
        let Some(action) = self.actions.get_mut(&name) else { return };
        if action.spec.revision != revision || failure == StartFailure::Busy {
            // The next start has its turn like any other.
            return self.touch(&name);
        }
        action.starts_failed += 1;
        let hopeless = action.starts_failed >= MOST_FAILED_STARTS;
        let warm =
            action.containers.iter().filter_map(|n| self.containers.get(n)).any(|c| c.state() == Lifecycle::Warm);
        if failure == StartFailure::Init && !warm {
            // The code itself is at fault: the next start would end the same.
            self.refuse_queue(&name, Refusal::InitFailed);
            self.reset_failures(&name);
        } else if hopeless && !warm {
            self.refuse_queue(&name, Refusal::StartFailed);
            self.reset_failures(&name);
        }
        self.touch(&name);
    }

    pub(super) fn handle_pause_ended(&mut self, number: u64, ok: bool) {
        if !ok {
            return self.fail_container(number);
        }
        let paused = self.moved(number, Lifecycle::Paused);
        self.resume_commits();
        if paused {
            let name = self.containers[&number].action.clone();
            self.note(Event::ContainerPaused { container: number, action: name.clone() });
            self.arm_idle(number);
            if self.drains(&name) || self.is_outdated(number) {
                return self.retire_or_keep(number);
            }
            self.resume_for_waiting(&name);
            self.touch(&name);
        }
    }

    pub(super) fn handle_resume_ended(&mut self, number: u64, ok: bool) {
        if !ok {
            return self.fail_container(number);
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        let asked_at = container.since;
        if self.moved(number, Lifecycle::Warm) {
            let now = self.now;
            self.env.estimates.resumed(now.since(asked_at));
            let Some(container) = self.containers.get_mut(&number) else { return };
            container.fresh = Some(Served::Resumed);
            let name = container.action.clone();
            self.note(Event::ContainerResumed { container: number, action: name.clone() });
            if self.drains(&name) || self.is_outdated(number) {
                return self.retire_or_keep(number);
            }
            self.arm_idle(number);
            self.touch(&name);
        }
    }

    pub(super) fn handle_remove_ended(&mut self, number: u64) {
        let Some(container) = self.containers.remove(&number) else { return };
        if container.state() != Lifecycle::Removing {
            // The engine speaks of a removal that was not asked for; the container stays what it is.
            self.containers.insert(number, container);
            return;
        }
        self.memory_used_mb -= container.memory_mb;
        if let Some(action) = self.actions.get_mut(&container.action) {
            action.containers.remove(&number);
        }
        self.note(Event::ContainerRemoved { container: number, action: container.action.clone() });
        self.touch(&container.action);
        self.resume_commits();
        self.pump_starts();
    }

    pub(super) fn handle_died(&mut self, number: u64) {
        let Some(container) = self.containers.get(&number) else { return };
        if matches!(container.state(), Lifecycle::Removing | Lifecycle::Failed) {
            return;
        }
        let starting = matches!(container.state(), Lifecycle::Starting | Lifecycle::Initializing);
        let name = container.action.clone();
        self.note(Event::ContainerDied { container: number, action: name });
        if !starting {
            // A start that fails is told as that, with its cause.
            self.fail_container(number);
        }
    }

    /// Resumes a paused container; an intent to remove it is overtaken.
    pub(super) fn resume(&mut self, number: u64) -> bool {
        self.cancel_intent_by_use(number);
        if !self.moved(number, Lifecycle::Resuming) {
            return false;
        }
        self.emit(Output::ResumeContainer { container: number });
        true
    }

    /// Ends a container without asking: from here on nothing is granted or started on it, and it goes when its
    /// last lease and run have ended.
    pub(super) fn retire(&mut self, number: u64) {
        let Some(container) = self.containers.get(&number) else { return };
        match container.state() {
            Lifecycle::Warm | Lifecycle::Paused => {
                let name = container.action.clone();
                self.overtake_intent(number);
                self.moved(number, Lifecycle::Retiring);
                self.note(Event::ContainerRetiring { container: number, action: name.clone() });
                self.recall_all(number);
                self.touch(&name);
                self.end_if_retired(number);
            }
            // The others are looked at again when their engine call ends.
            _ => {}
        }
    }

    /// A container that the engine or its runs have lost: leases on it are void at once.
    pub(super) fn fail_container(&mut self, number: u64) {
        if !self.moved(number, Lifecycle::Failed) {
            return;
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        let name = container.action.clone();
        let (leases, runs) = container.void();
        // Those over their time-out have been reported.
        let open = runs.into_iter().filter(|(_, run)| !run.overdue);
        self.voided.extend(open.map(|(id, run)| (id, run.activation)));
        for (fence, lease) in leases {
            self.note(Event::LeaseExpired { holder: lease.holder, container: number, fence });
        }
        self.note(Event::ContainerFailed { container: number, action: name.clone() });
        self.begin_removal(number);
        self.touch(&name);
    }

    /// A retiring container goes as soon as nothing holds it.
    pub(super) fn end_if_retired(&mut self, number: u64) {
        let retired = self.containers.get(&number).is_some_and(|c| c.state() == Lifecycle::Retiring && c.may_end());
        // One with a run over its time-out can't serve on; an outdated one has nobody to serve.
        let stays = self.hands_over()
            && self.containers.get(&number).is_some_and(|c| c.stays && c.unused())
            && !self.is_outdated(number);
        if retired && !stays {
            self.begin_removal(number);
        }
    }

    pub(super) fn begin_removal(&mut self, number: u64) {
        if self.moved(number, Lifecycle::Removing) {
            self.emit(Output::RemoveContainer { container: number });
        }
    }

    /// Comes back when the container's idle time may be over.
    pub(super) fn arm_idle(&mut self, number: u64) {
        let Some(at) = self.idle_due(number) else { return };
        let Some(container) = self.containers.get_mut(&number) else { return };
        // One that comes too early looks again: a warm container's runs then move no timer.
        if container.idle_timer.is_none_or(|armed| armed > at) {
            container.idle_timer = Some(at);
            self.arm(at, Timer::Idle(number));
        }
    }

    pub(super) fn idle_end(&mut self, number: u64) {
        let now = self.now;
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.idle_timer.take_if(|at| *at <= now);
        let Some(at) = self.idle_due(number) else { return };
        if now < at {
            return self.arm_idle(number);
        }
        let kind = match self.containers.get(&number).map(|c| c.state()) {
            Some(Lifecycle::Paused) => IntentKind::Remove,
            _ => IntentKind::Pause,
        };
        // Gossip holds so many at once; the others wait for a window to close.
        if kind == IntentKind::Remove && self.open_removals() >= MOST_OPEN_REMOVALS {
            let later = now + self.cfg().window_us;
            if let Some(container) = self.containers.get_mut(&number) {
                container.idle_timer = Some(later);
            }
            return self.arm(later, Timer::Idle(number));
        }
        self.open_intent(number, kind, crate::container::Cause::Idle);
    }

    fn open_removals(&self) -> usize {
        let open = self.containers.values().filter_map(|c| c.intent.as_ref());
        open.filter(|i| i.kind == IntentKind::Remove && !i.urgent()).count()
    }

    /// When an intent for its idleness is due; none while it is used or one is open.
    fn idle_due(&self, number: u64) -> Option<crate::time::Time> {
        let container = self.containers.get(&number)?;
        if container.intent.is_some() || !container.unused() || self.hands_over() {
            return None;
        }
        let due = match container.state() {
            Lifecycle::Warm => container.idle_since + self.cfg().pause_after_us(container.slots),
            Lifecycle::Paused => {
                let keep = self.env.keep.keep_paused(&self.keep_view(number)?, self.cfg().idle_timeout_us);
                container.since + keep
            }
            _ => return None,
        };
        Some(due.max(container.rounds.hold_until))
    }

    pub(super) fn is_outdated(&self, number: u64) -> bool {
        self.containers
            .get(&number)
            .and_then(|c| self.actions.get(&c.action).map(|a| a.deleted || a.spec.revision != c.revision))
            .unwrap_or(true)
    }

    fn recall_all(&mut self, number: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let fences: Vec<_> = container.leases().iter().map(|(f, l)| (*f, l.holder.clone())).collect();
        for (fence, to) in fences {
            if container.recall(fence) {
                self.env.out.push(Output::SendRecall { to, fence });
            }
        }
    }

    fn reset_failures(&mut self, name: &crate::ids::ActionId) {
        if let Some(action) = self.actions.get_mut(name) {
            action.starts_failed = 0;
        }
    }

    pub(super) fn moved(&mut self, number: u64, to: Lifecycle) -> bool {
        let now = self.now;
        let moved = self.containers.get_mut(&number).is_some_and(|c| c.transition(to, now).is_ok());
        if moved {
            self.tell(|_| What::Moved { container: number, to });
        }
        moved
    }
}
