//! Ending work on this node: nothing new is accepted, what was promised is finished, all containers retire, and at the
//! deadline what is left is reported, or killed if that was asked for. When the node only makes place for its next life,
//! what was promised and has not begun is left to that one, as are containers that are idle or paused if it can adopt
//! them.

use super::holder::OutRequest;
use super::{Node, Timer};
use crate::container::{Container, Lifecycle};
use crate::history::What;
use crate::ids::{ActionId, ActivationId};
use crate::output::{Denial, DrainEnd, Event, Output, Refusal};
use crate::time::{Micros, SECOND, Time};

/// How long the engine and the disk may take after a kill before it is told what is left.
const SETTLES_IN: Micros = 5 * SECOND;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Drain {
    deadline: Time,
    way: Way,
    forced: Option<Forced>,
    /// The end was reported.
    ended: bool,
}

/// What was ended at the deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Forced {
    killed: u32,
    given_up: u32,
}

/// What becomes of promises and containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    /// An operator takes the node out: promises are kept here.
    Drain { force: bool },
    /// The process ends, and its containers with it; its next life keeps the promises.
    Stop,
    /// The process ends; its next life keeps the promises and adopts the containers.
    HandOver,
}

impl Drain {
    /// Whether what was promised is still begun.
    fn finishes(&self) -> bool {
        match self.way {
            Way::Drain { .. } => self.forced.is_none(),
            Way::Stop | Way::HandOver => false,
        }
    }
}

impl Node {
    pub(super) fn handle_drain(&mut self, deadline_us: Micros, force: bool) {
        // The end of the process has been decided on.
        let ends = |drain: &Drain| matches!(drain.way, Way::Stop | Way::HandOver);
        if !self.drain.as_ref().is_some_and(ends) {
            self.drain_to(deadline_us, Way::Drain { force });
        }
    }

    pub(super) fn handle_stop(&mut self, deadline_us: Micros) {
        self.drain_to(deadline_us, Way::Stop);
    }

    pub(super) fn handle_hand_over(&mut self, deadline_us: Micros) {
        self.drain_to(deadline_us, Way::HandOver);
    }

    fn drain_to(&mut self, deadline_us: Micros, way: Way) {
        let deadline = self.now + deadline_us;
        if self.drain.is_none() {
            self.note(Event::Draining);
        }
        if matches!(way, Way::HandOver) {
            self.tell(|_| What::HandsOver);
        }
        self.drain = Some(Drain { deadline, way, forced: None, ended: false });
        self.arm(deadline, Timer::Drain);
        for name in self.actions.keys().cloned().collect::<Vec<_>>() {
            self.refuse_unpromised(&name);
            let waiting: Vec<_> =
                self.actions.get(&name).map_or_else(Vec::new, |a| a.waiting.values().cloned().collect());
            for request in waiting {
                self.deny_waiting(&request, Denial::Draining);
            }
            // Ends the action before the step does, unless something promised waits for it.
            self.touch(&name);
        }
    }

    fn refuse_unpromised(&mut self, name: &ActionId) {
        let Some(action) = self.actions.get(name) else { return };
        for id in action.queue.values().copied().collect::<Vec<_>>() {
            if !self.finishes(id) {
                let refusal = self.drain_refusal(id);
                self.refuse(id, refusal);
            }
        }
    }

    /// Ends an action on a node that drains, once nothing that was promised waits for it, or will: its containers
    /// retire, and leases go back.
    pub(super) fn drain_action(&mut self, name: &ActionId) {
        if !self.drains(name) {
            return;
        }
        self.drop_queued_starts(name);
        let Some(action) = self.actions.get(name) else { return };
        let held = action.held.iter().filter(|key| self.held.get(key).is_some_and(|lease| !lease.recalled));
        let (held, containers): (Vec<_>, Vec<_>) =
            (held.cloned().collect(), action.containers.iter().copied().collect());
        for number in containers {
            self.retire_or_keep(number);
        }
        for key in held {
            self.on_recall(key.0, key.1.epoch, key.1);
        }
    }

    /// Whether nothing of the action is started here any more.
    pub(super) fn drains(&self, name: &ActionId) -> bool {
        let Some(drain) = &self.drain else { return false };
        let waits = || self.actions.get(name).is_some_and(|action| !action.queue.is_empty());
        !(drain.finishes() && (waits() || self.awaited.contains_key(name)))
    }

    /// Whether a draining node still runs this activation: the journal keeps it.
    pub(super) fn finishes(&self, id: ActivationId) -> bool {
        self.kept.contains_key(&id) && self.drain.as_ref().is_some_and(Drain::finishes)
    }

    /// Why a draining node does not run this activation.
    pub(super) fn drain_refusal(&self, id: ActivationId) -> Refusal {
        let by_force = self.drain.as_ref().is_some_and(|drain| drain.forced.is_some());
        if by_force && self.kept.contains_key(&id) { Refusal::GivenUp } else { Refusal::Draining }
    }

    pub(super) fn count_given_up(&mut self) {
        if let Some(forced) = self.drain.as_mut().and_then(|drain| drain.forced.as_mut()) {
            forced.given_up += 1;
        }
    }

    pub(super) fn drain_due(&mut self) {
        let now = self.now;
        let Some(drain) = self.drain.as_ref().filter(|drain| !drain.ended && drain.deadline <= now) else { return };
        match drain.way {
            Way::Drain { force: true } if drain.forced.is_none() => {
                // Told when the engine and the disk are done with it.
                let deadline = now + SETTLES_IN;
                self.drain = Some(Drain { deadline, forced: Some(Forced::default()), ..drain.clone() });
                self.arm(deadline, Timer::Drain);
                self.kill();
            }
            Way::Stop => {
                self.kill();
                self.end_drain(DrainEnd { at_peers: self.at_peers(), ..DrainEnd::default() });
            }
            Way::Drain { .. } | Way::HandOver => self.end_drain(self.left()),
        }
    }

    /// Ends all containers with what runs in them, and refuses what waits.
    fn kill(&mut self) {
        let containers: Vec<u64> = self.containers.keys().copied().collect();
        let runs = self.containers.values().flat_map(|container| container.runs().values());
        let killed = runs.filter(|run| !run.overdue).count() as u32;
        if let Some(forced) = self.drain.as_mut().and_then(|drain| drain.forced.as_mut()) {
            forced.killed = killed;
        }
        for name in self.actions.keys().cloned().collect::<Vec<_>>() {
            self.refuse_unpromised(&name);
            self.touch(&name);
        }
        for number in containers {
            self.fail_container(number);
        }
    }

    /// Reports the end as soon as nothing is left; by force, of what is here.
    pub(super) fn drain_progress(&mut self) {
        let Some(drain) = self.drain.as_ref().filter(|drain| !drain.ended) else { return };
        if !self.not_done().is_empty() {
            return;
        }
        if drain.forced.is_some() {
            if self.kept.len() == self.kept_at_peers() {
                self.end_drain(self.left());
            }
            return;
        }
        let kept = self.kept.is_empty() || !drain.finishes();
        if kept && self.requests.is_empty() && self.activations.is_empty() {
            self.end_drain(DrainEnd::default());
        }
    }

    fn left(&self) -> DrainEnd {
        let (at_peers, owed) = (self.at_peers(), self.kept.len() as u32);
        DrainEnd { containers: self.not_done(), at_peers, owed, ..DrainEnd::default() }
    }

    fn at_peers(&self) -> u32 {
        self.requests.values().filter(|request| request.carries_body()).count() as u32
    }

    fn kept_at_peers(&self) -> usize {
        let bodies = self.requests.values().filter_map(OutRequest::activation);
        bodies.filter(|id| self.kept.contains_key(id)).count()
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
        self.drain.as_ref().is_some_and(|d| d.way == Way::HandOver)
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

    fn end_drain(&mut self, mut end: DrainEnd) {
        if let Some(drain) = &mut self.drain {
            drain.ended = true;
            let Forced { killed, given_up } = drain.forced.unwrap_or_default();
            (end.killed, end.given_up) = (killed, given_up);
        }
        if end.is_empty() {
            self.note(Event::Drained);
        }
        self.emit(Output::Drained(end));
    }
}
