//! Ending work on this node: nothing new is accepted, all containers retire, and at the deadline what is left
//! is reported, or killed if that was asked for.

use super::{Node, Timer};
use crate::ids::ActionId;
use crate::output::{Denial, Event, Output, Refusal};
use crate::time::{Micros, Time};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Drain {
    deadline: Time,
    force: bool,
    /// The end was reported.
    ended: bool,
}

impl Node {
    pub(super) fn handle_drain(&mut self, deadline_us: Micros, force: bool) {
        let deadline = self.now + deadline_us;
        if self.drain.is_none() {
            self.note(Event::Draining);
        }
        self.drain = Some(Drain { deadline, force, ended: false });
        self.arm(deadline, Timer::Drain);
        let actions: Vec<ActionId> = self.actions.keys().cloned().collect();
        for name in &actions {
            self.drop_queued_starts(name);
            self.refuse_queue(name, Refusal::Draining);
            let waiting: Vec<_> =
                self.actions.get(name).map_or_else(Vec::new, |a| a.waiting.values().cloned().collect());
            for request in waiting {
                self.deny_waiting(&request, Denial::Draining);
            }
            self.touch(name);
        }
        for number in self.containers.keys().copied().collect::<Vec<_>>() {
            self.retire(number);
        }
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            self.on_recall(key.0, key.1.epoch, key.1);
        }
    }

    pub(super) fn drain_due(&mut self) {
        let Some(drain) = self.drain.clone() else { return };
        if drain.ended || self.now < drain.deadline {
            return;
        }
        if drain.force {
            for number in self.containers.keys().copied().collect::<Vec<_>>() {
                self.fail_container(number);
            }
        }
        let left: Vec<u64> = if drain.force { Vec::new() } else { self.not_gone() };
        self.end_drain(left);
    }

    /// Reports the end as soon as nothing is left.
    pub(super) fn drain_progress(&mut self) {
        let busy = self.drain.as_ref().is_some_and(|d| !d.ended);
        if busy && self.containers.is_empty() && self.requests.is_empty() && self.activations.is_empty() {
            self.end_drain(Vec::new());
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    fn not_gone(&self) -> Vec<u64> {
        self.containers.keys().copied().collect()
    }

    fn end_drain(&mut self, left: Vec<u64>) {
        if let Some(drain) = &mut self.drain {
            drain.ended = true;
        }
        if left.is_empty() {
            self.note(Event::Drained);
        }
        self.emit(Output::Drained { left });
    }
}
