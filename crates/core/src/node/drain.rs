//! Ending work on this node: nothing new is accepted, all containers retire, and at the deadline what is left
//! is reported, or killed if that was asked for. When the node only makes place for its next life, what has retired
//! or is paused stays for that one to adopt.

use super::{Node, Timer};
use crate::container::{Container, Lifecycle};
use crate::history::What;
use crate::ids::ActionId;
use crate::output::{Denial, Event, Output, Refusal};
use crate::time::{Micros, Time};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Drain {
    deadline: Time,
    force: bool,
    /// Containers stay, once they are idle.
    hand_over: bool,
    /// The end was reported.
    ended: bool,
}

impl Node {
    pub(super) fn handle_drain(&mut self, deadline_us: Micros, force: bool) {
        self.drain_to(deadline_us, force, false);
    }

    pub(super) fn handle_hand_over(&mut self, deadline_us: Micros) {
        self.drain_to(deadline_us, false, true);
    }

    fn drain_to(&mut self, deadline_us: Micros, force: bool, hand_over: bool) {
        let deadline = self.now + deadline_us;
        if self.drain.is_none() {
            self.note(Event::Draining);
        }
        self.drain = Some(Drain { deadline, force, hand_over, ended: false });
        if hand_over {
            self.tell(|_| What::HandsOver);
        }
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
            self.retire_or_keep(number);
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
        let left = if drain.force { Vec::new() } else { self.not_done() };
        self.end_drain(left);
    }

    /// Reports the end as soon as nothing is left.
    pub(super) fn drain_progress(&mut self) {
        let busy = self.drain.as_ref().is_some_and(|d| !d.ended);
        if busy && self.requests.is_empty() && self.activations.is_empty() && self.not_done().is_empty() {
            self.end_drain(Vec::new());
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// What a drain does with a container that is up, or has come up.
    pub(super) fn retire_or_keep(&mut self, number: u64) {
        if self.hands_over() && !self.is_outdated(number) {
            match self.containers.get_mut(&number) {
                Some(container) if container.state() == Lifecycle::Paused => return self.overtake_intent(number),
                Some(container) if container.state() == Lifecycle::Warm => container.stays = true,
                _ => {}
            }
        }
        self.retire(number);
    }

    /// Whether idle containers stay for the next life of this node.
    pub(super) fn hands_over(&self) -> bool {
        self.drain.as_ref().is_some_and(|d| d.hand_over)
    }

    /// Containers that stay for the next life of this node: nothing runs in them, and nothing will.
    pub fn handed_over(&self) -> Vec<u64> {
        let stays = |c: &Container| {
            c.state() == Lifecycle::Paused || (c.state() == Lifecycle::Retiring && c.stays && c.unused())
        };
        let hands_over = self.hands_over();
        self.containers.iter().filter(|(_, c)| hands_over && stays(c)).map(|(n, _)| *n).collect()
    }

    /// Containers that the drain waits for.
    fn not_done(&self) -> Vec<u64> {
        let stay = self.handed_over();
        self.containers.keys().copied().filter(|n| !stay.contains(n)).collect()
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
