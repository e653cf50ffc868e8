//! The start stage that all actions share: permits and memory, by deficit round robin between namespaces.
//! When memory is short, the containers worth least are asked for by urgent intents.

use super::{Node, Timer};
use crate::container::{Cause, Container, Lifecycle};
use crate::history::What;
use crate::ids::{ActionId, ActionSpec};
use crate::output::{Event, IntentKind, Output};
use crate::policy::KeepView;
use crate::time::{MS, Micros, Time};

/// One container to be started.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StartRequest {
    action: ActionId,
    asked_at: Time,
}

impl Node {
    /// Queues a start for the action.
    pub(super) fn request_start(&mut self, name: &ActionId) -> bool {
        let drains = self.drains(name);
        let Some(action) = self.actions.get_mut(name) else { return false };
        if drains || action.spec.memory_mb > self.env.cfg.memory_mb {
            return false;
        }
        action.starts_queued += 1;
        let cost = action.spec.memory_mb;
        let request = StartRequest { action: name.clone(), asked_at: self.now };
        self.starts.push(name.namespace(), cost, request);
        self.arm_stage(self.cfg().max_memory_wait_us);
        self.pump_starts();
        true
    }

    /// Begins as many starts as permits and memory allow, in turn.
    pub(super) fn pump_starts(&mut self) {
        while !self.starts.is_empty() && self.starting() < self.cfg().parallel_starts {
            let Some((needed_mb, request)) = self.starts.peek() else { return };
            let (name, asked_at) = (request.action.clone(), request.asked_at);
            if !self.still_needed(&name) {
                self.starts.pop();
                self.start_left_queue(&name);
                continue;
            }
            let free_mb = self.cfg().memory_mb.saturating_sub(self.memory_used_mb);
            if needed_mb <= free_mb {
                self.starts.pop();
                self.start_left_queue(&name);
                self.begin_start(&name);
                continue;
            }
            if self.actions.get(&name).is_none_or(|a| a.queue.is_empty()) {
                // Asked by a peer: nobody here has to go for it.
                self.starts.pop();
                self.start_left_queue(&name);
                continue;
            }
            let room_comes = self.make_room(needed_mb);
            // A start that fits passes one that waits for room; but not for so long that this one never gets the
            // room that is made for it.
            if room_comes && self.now.since(asked_at) >= self.cfg().max_memory_wait_us / 2 {
                return;
            }
            let Some(request) = self.starts.take_first(|cost| cost <= free_mb) else { return };
            self.start_left_queue(&request.action);
            if self.still_needed(&request.action) {
                self.begin_start(&request.action);
            }
        }
    }

    /// Containers that the engine makes now.
    pub(super) fn starting(&self) -> usize {
        self.containers.values().filter(|c| c.state() == Lifecycle::Starting).count()
    }

    /// A start waited too long for memory, or victims may have come free.
    pub(super) fn stage_due(&mut self) {
        let (now, longest) = (self.now, self.cfg().max_memory_wait_us);
        if self.stage_at.is_none_or(|at| at > now) {
            return;
        }
        self.stage_at = None;
        let late: Vec<ActionId> =
            self.starts.iter().filter(|r| now.since(r.asked_at) >= longest).map(|r| r.action.clone()).collect();
        self.starts.retain(|r| now.since(r.asked_at) < longest);
        for name in late {
            self.start_left_queue(&name);
            let Some(action) = self.actions.get(&name) else { continue };
            let hopeful = !action.held.is_empty()
                || action.containers.iter().filter_map(|n| self.containers.get(n)).any(|c| {
                    matches!(
                        c.state(),
                        Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Warm | Lifecycle::Resuming
                    )
                });
            if !hopeful {
                self.refuse_waiting_since(&name, now - longest);
            }
            self.touch(&name);
        }
        if !self.starts.is_empty() {
            self.arm_stage(longest);
        }
        self.pump_starts();
    }

    fn arm_stage(&mut self, after: Micros) {
        let at = self.now + after;
        if self.stage_at.is_none_or(|armed| armed > at) {
            self.stage_at = Some(at);
            self.arm(at, Timer::Stage);
        }
    }

    pub(super) fn drop_queued_starts(&mut self, name: &ActionId) {
        self.starts.retain(|r| r.action != *name);
        if let Some(action) = self.actions.get_mut(name) {
            action.starts_queued = 0;
        }
    }

    pub(super) fn keep_view(&self, number: u64) -> Option<KeepView> {
        let container = self.containers.get(&number)?;
        let start_us = self.actions.get(&container.action).map_or(0, |a| self.env.estimates.start(&a.spec.image));
        Some(KeepView {
            runs: container.runs_started,
            start_us,
            memory_mb: container.memory_mb,
            last_copy: self.is_last_copy(number),
            clock: self.env.eviction_clock,
        })
    }

    /// The reason for a queued start may have gone: another slot came first, or is on its way.
    pub(super) fn still_needed(&self, name: &ActionId) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let waiting = action.queue.len() + action.waiting.len();
        let containers = action.containers.iter().filter_map(|n| self.containers.get(n));
        let coming = containers.filter(|c| {
            c.revision == action.spec.revision
                && matches!(c.state(), Lifecycle::Starting | Lifecycle::Initializing | Lifecycle::Resuming)
        });
        waiting > coming.map(|c| c.slots as usize).sum()
    }

    fn start_left_queue(&mut self, name: &ActionId) {
        if let Some(action) = self.actions.get_mut(name) {
            action.starts_queued = action.starts_queued.saturating_sub(1);
            self.touch(name);
        }
    }

    fn begin_start(&mut self, name: &ActionId) {
        self.counters.container += 1;
        let number = self.counters.container;
        let Some(action) = self.actions.get_mut(name) else { return };
        let spec = action.spec.clone();
        action.containers.insert(number);
        let container = Container::new(name.clone(), spec.revision.clone(), spec.concurrency, spec.memory_mb, self.now);
        self.tell_made(number, &spec);
        self.memory_used_mb += spec.memory_mb;
        self.containers.insert(number, container);
        self.note(Event::ContainerStarting { container: number, action: name.clone() });
        self.emit(Output::StartContainer { container: number, action: name.clone(), revision: spec.revision.clone() });
    }

    pub(super) fn tell_made(&mut self, container: u64, spec: &ActionSpec) {
        self.tell(|_| What::Made {
            container,
            action: spec.action.clone(),
            revision: spec.revision.clone(),
            slots: spec.concurrency,
            memory_mb: spec.memory_mb,
        });
    }

    /// Opens urgent intents on the containers worth least, until what they hold is enough. Whether enough room is on
    /// its way.
    fn make_room(&mut self, needed_mb: u64) -> bool {
        let limit = self.cfg().memory_mb;
        let leaving: u64 = self
            .containers
            .values()
            .filter(|c| self.is_leaving(c) || c.intent.as_ref().is_some_and(|i| i.urgent()))
            .map(|c| c.memory_mb)
            .sum();
        let mut short = (self.memory_used_mb + needed_mb).saturating_sub(limit + leaving);
        let mut victims: Vec<(u64, u64)> = if short > 0 { self.victims() } else { Vec::new() };
        victims.sort_unstable();
        let memory = |n: &u64| self.containers.get(n).map_or(0, |c| c.memory_mb);
        if victims.iter().map(|(_, n)| memory(n)).sum::<u64>() < short {
            // All of them together are not enough: none goes for nothing.
            victims.clear();
        }
        for (_, number) in victims {
            if short == 0 {
                break;
            }
            if self.open_intent(number, IntentKind::Remove, Cause::Memory).is_some() {
                let freed = self.containers.get(&number).map_or(0, |c| c.memory_mb);
                short = short.saturating_sub(freed);
                self.note(Event::Evicting { container: number, needed_mb });
            }
        }
        // Looked at again soon: runs end, holds pass.
        self.arm_stage(100 * MS);
        short == 0
    }

    /// Containers that may be asked for, with what each is worth: unused, past their first run and their grace.
    fn victims(&self) -> Vec<(u64, u64)> {
        let eligible = self.containers.iter().filter(|(_, c)| {
            let rested = match c.state() {
                Lifecycle::Paused => true,
                Lifecycle::Warm => self.now.since(c.idle_since) >= self.cfg().pause_after_us(c.slots),
                _ => false,
            };
            // One that nobody needed in the end has had its time too.
            let used = c.runs_ended > 0 || self.now.since(c.created_at) >= self.cfg().pause_after_us(c.slots);
            rested && used && c.unused() && c.intent.is_none() && self.now >= c.rounds.hold_until
        });
        eligible.filter_map(|(n, _)| Some((self.env.keep.value(&self.keep_view(*n)?), *n))).collect()
    }
}
