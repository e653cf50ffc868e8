//! Both sides of intents: an owner that wants to pause or remove a container, and peers that may object.
//!
//! Silence is not consent: safety rests on the owner's own table, looked at again in the step that commits.

use super::{Node, Timer};
use crate::container::{Cause, Closing, Container, Lifecycle, OpenIntent};
use crate::history::What;
use crate::ids::{ContainerId, IntentId, NodeId};
use crate::mutations::{Mutation, on};
use crate::output::{Event, IntentEnd, IntentKind, IntentNotice, IntentProblem, Output};
use crate::policy::VetoView;
use crate::time::{MS, Micros, SECOND, Time};

/// Intents of peers remembered, for people and against answering one twice.
const MOST_HEARD: usize = 256;
/// An engine call that takes longer is stuck.
const STUCK_CALL_US: Micros = 10 * SECOND;

/// An intent of a peer that this node heard of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Heard {
    pub(super) notice: IntentNotice,
    pub(super) until: Time,
}

impl Node {
    /// Opens a round, unless one is open or an earlier veto still holds.
    pub(super) fn open_intent(&mut self, number: u64, kind: IntentKind, cause: Cause) -> Option<IntentId> {
        let last_copy = self.is_last_copy(number);
        let id = self.container_id(number);
        let (now, window_us) = (self.now, self.window_us(cause));
        let container = self.containers.get_mut(&number)?;
        if container.intent.is_some() || now < container.rounds.hold_until {
            return None;
        }
        let (round, last_word) = container.rounds.open();
        let closes_at = now + window_us;
        container.intent = Some(OpenIntent {
            round,
            kind,
            cause,
            closes_at,
            vetoes: Default::default(),
            last_word,
            awaits_permit: false,
        });
        let name = container.action.clone();
        let revision = container.revision.clone();
        let urgent = cause == Cause::Memory;
        let hash = crate::ids::ActionHash::of(&name, &revision);
        let intent = IntentId { container: id.clone(), round };
        self.arm(closes_at, Timer::Close(number));
        self.tell(|_| What::Opened { intent: intent.clone(), kind, window_us, last_word });
        self.note(Event::IntentOpened { intent: intent.clone(), kind, urgent, operator: cause == Cause::Operator });
        let notice = IntentNotice { container: id, hash, round, kind, urgent, window_us, last_copy };
        let recently = 60 * SECOND;
        let to = self.actions.get(&name).map_or_else(Vec::new, |a| {
            let recent = a.askers.iter().filter(|(_, at)| now.since(**at) < recently);
            recent.map(|(peer, _)| peer.clone()).filter(|p| self.peers.get(p).is_some_and(|p| p.live)).collect()
        });
        self.emit(Output::SendIntent { to, gossip: kind == IntentKind::Remove, notice });
        Some(intent)
    }

    pub(super) fn window_us(&self, cause: Cause) -> Micros {
        if cause == Cause::Memory { self.cfg().urgent_window_us } else { self.cfg().window_us }
    }

    pub(super) fn handle_intent_request(&mut self, number: u64, kind: IntentKind, force: bool) {
        let answer = self.check_intent_request(number, kind, force);
        let answer = match answer {
            Err(problem) => Err(problem),
            // Only the end of a container can be forced.
            Ok(()) if force && kind == IntentKind::Remove => {
                let round = self.containers.get(&number).map_or(0, |c| c.rounds.last());
                self.emit(Output::IntentAnswer {
                    container: number,
                    answer: Ok(IntentId { container: self.container_id(number), round }),
                });
                return self.retire(number);
            }
            Ok(()) => {
                let held = self.containers.get(&number).map_or(0, |c| c.rounds.hold_until.since(self.now) / MS);
                self.open_intent(number, kind, Cause::Operator).ok_or(IntentProblem::Held(held))
            }
        };
        self.emit(Output::IntentAnswer { container: number, answer });
    }

    fn check_intent_request(&self, number: u64, kind: IntentKind, force: bool) -> Result<(), IntentProblem> {
        let container = self.containers.get(&number).ok_or(IntentProblem::UnknownContainer)?;
        let fits = match kind {
            IntentKind::Pause => container.state() == Lifecycle::Warm,
            IntentKind::Remove => matches!(container.state(), Lifecycle::Warm | Lifecycle::Paused),
        };
        if !fits {
            return Err(IntentProblem::WrongState(container.state()));
        }
        match &container.intent {
            Some(open) if !force => Err(IntentProblem::AlreadyOpen(open.round)),
            _ => Ok(()),
        }
    }

    /// A grant or a run in the window cancels the intent at once; without a run it is one more round in vain.
    pub(super) fn cancel_intent_by_use(&mut self, number: u64) {
        self.end_round(number, IntentEnd::Used, |container, now| {
            if container.runs().is_empty() {
                container.rounds.cancelled(now);
            }
        });
    }

    /// The container went another way.
    pub(super) fn overtake_intent(&mut self, number: u64) {
        self.end_round(number, IntentEnd::Overtaken, |_, _| {});
    }

    pub(super) fn on_veto(&mut self, from: NodeId, container: ContainerId, round: u32, hold_us: Micros) {
        let (now, max_hold) = (self.now, self.cfg().max_hold_us);
        let own = container.owner == self.id && container.epoch == self.epoch;
        let open = self.containers.get_mut(&container.number).filter(|_| own).and_then(|c| c.intent.as_mut());
        let counted = open
            .filter(|i| i.round == round || on(Mutation::OldRoundVeto))
            .is_some_and(|i| i.veto(&from, hold_us, max_hold, now));
        self.tell(|_| What::Veto { from: from.clone(), container: container.clone(), round, hold_us, counted });
        if counted {
            let hold_us = hold_us.min(max_hold);
            self.note(Event::VetoCounted { intent: IntentId { container, round }, peer: from, hold_us });
        } else {
            self.note(Event::VetoIgnored { peer: from, container, round });
        }
    }

    /// The window of a round has closed: commit, or cancel and say why.
    pub(super) fn close_window(&mut self, number: u64) {
        let now = self.now;
        let late_after = self.cfg().gossip_interval_us;
        let id = self.container_id(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(intent) = container.intent.as_mut() else { return };
        if intent.awaits_permit {
            return self.commit(number);
        }
        if now < intent.closes_at {
            return;
        }
        let (kind, cause) = (intent.kind, intent.cause);
        let closing = intent.close(now, late_after);
        let by: Vec<_> = intent.vetoes.iter().map(|(n, h)| (n.clone(), *h)).collect();
        let hold = intent.longest_hold();
        match closing {
            Closing::Commit => {
                // Whether it is unused is looked at in the step that commits.
                intent.awaits_permit = true;
                let intent = IntentId { container: id, round: intent.round };
                self.tell(|_| What::AwaitsPermit { intent });
                self.commit(number);
            }
            Closing::Vetoed => {
                self.end_round(number, IntentEnd::Vetoed { by }, |c, now| c.rounds.cancelled(now + hold));
            }
            Closing::Late => {
                self.end_round(number, IntentEnd::Late, |_, _| {});
                self.open_intent(number, kind, cause);
            }
        }
        self.arm_idle(number);
        self.touch_container(number);
        self.pump_starts();
    }

    /// The one step that carries an intent out: no lease, no run, no countable veto, an engine permit, and then
    /// the engine call, with nothing in between.
    fn commit(&mut self, number: u64) {
        if self.engine_calls() >= self.cfg().parallel_starts {
            // The end of a call brings it back; so does this, should they all be stuck.
            return self.arm(self.now + STUCK_CALL_US, Timer::Close(number));
        }
        let Some(container) = self.containers.get(&number) else { return };
        let Some(intent) = container.intent.as_ref().filter(|i| i.awaits_permit) else { return };
        if !container.unused() && !on(Mutation::CommitWithoutRecheck) {
            return self.cancel_intent_by_use(number);
        }
        let kind = intent.kind;
        let fits = match kind {
            IntentKind::Pause => container.state() == Lifecycle::Warm,
            IntentKind::Remove => matches!(container.state(), Lifecycle::Warm | Lifecycle::Paused),
        };
        if !fits {
            return self.overtake_intent(number);
        }
        if intent.urgent()
            && let Some(view) = self.keep_view(number)
        {
            self.env.eviction_clock = self.env.keep.value(&view);
        }
        self.end_round(number, IntentEnd::Committed, |_, _| {});
        match kind {
            IntentKind::Pause => {
                if self.moved(number, Lifecycle::Pausing) {
                    self.emit(Output::PauseContainer { container: number });
                }
            }
            IntentKind::Remove => self.begin_removal(number),
        }
    }

    /// A permit came free: whoever waits for one is looked at again.
    pub(super) fn resume_commits(&mut self) {
        let waiting: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, c)| c.intent.as_ref().is_some_and(|i| i.awaits_permit))
            .map(|(n, _)| *n)
            .collect();
        for number in waiting {
            self.commit(number);
            self.touch_container(number);
        }
    }

    /// On its way out, and not stuck there.
    pub(super) fn is_leaving(&self, container: &Container) -> bool {
        container.state() == Lifecycle::Removing && self.now.since(container.since) < STUCK_CALL_US
    }

    /// Pauses and removals that the engine is busy with; one that is stuck takes no permit from the others.
    fn engine_calls(&self) -> usize {
        let busy = self.containers.values().filter(|c| matches!(c.state(), Lifecycle::Pausing | Lifecycle::Removing));
        busy.filter(|c| self.now.since(c.since) < STUCK_CALL_US).count()
    }

    fn end_round(&mut self, number: u64, end: IntentEnd, then: impl FnOnce(&mut Container, Time)) {
        let now = self.now;
        let id = self.container_id(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(intent) = container.intent.take() else { return };
        then(container, now);
        let closed = IntentId { container: id, round: intent.round };
        let name = container.action.clone();
        self.tell(|node| What::Closed {
            intent: closed.clone(),
            end: end.clone(),
            own_waits: node.actions.get(&name).is_some_and(|a| !a.queue.is_empty()),
        });
        self.note(Event::IntentClosed { intent: closed, kind: intent.kind, end });
    }

    // The peers' side.

    pub(super) fn on_intent(&mut self, notice: IntentNotice) {
        let owner = notice.container.owner.clone();
        let current = self.peers.get(&owner).is_some_and(|p| p.live && p.epoch == notice.container.epoch);
        let again = self.heard.get(&notice.container).is_some_and(|h| h.notice.round >= notice.round);
        if !current || again || owner == self.id {
            return;
        }
        let now = self.now;
        self.heard.retain(|_, h| h.until > now);
        if self.heard.len() >= MOST_HEARD {
            return;
        }
        let until = now + notice.window_us.min(self.cfg().window_us);
        self.heard.insert(notice.container.clone(), Heard { notice: notice.clone(), until });
        let view = self.veto_view(&notice);
        if let Some(hold_us) = self.env.veto.hold(&view) {
            self.send_veto(&notice.container, notice.round, hold_us.min(self.cfg().max_hold_us));
        }
    }

    pub(super) fn handle_veto_request(&mut self, container: ContainerId, round: u32, hold_us: Option<Micros>) {
        let hold_us = hold_us.unwrap_or(self.cfg().max_hold_us).min(self.cfg().max_hold_us);
        self.send_veto(&container, round, hold_us);
    }

    fn send_veto(&mut self, container: &ContainerId, round: u32, hold_us: Micros) {
        if container.owner == self.id {
            return self.on_veto(self.id.clone(), container.clone(), round, hold_us);
        }
        let to = container.owner.clone();
        let intent = IntentId { container: container.clone(), round };
        self.note(Event::VetoSent { owner: to.clone(), intent, hold_us });
        self.emit(Output::SendVeto { to, container: container.clone(), round, hold_us });
    }

    fn veto_view(&self, notice: &IntentNotice) -> VetoView {
        let action = self.actions.values().find(|a| a.hash == notice.hash);
        let name = action.map(|a| &a.spec.action);
        let leased = action.map_or(0, |a| {
            let held = a.held.iter().filter_map(|k| self.held.get(k));
            held.filter(|l| l.container == notice.container).map(|l| l.slots).sum()
        });
        let own_free =
            action.map_or(0, |a| a.containers.iter().filter_map(|n| self.containers.get(n)).map(|c| c.free()).sum());
        let estimates = &self.env.estimates;
        VetoView {
            queued: action.map_or(0, |a| a.queue.len() as u32),
            leased,
            own_free,
            gap: name.and_then(|n| estimates.gap(n)).map(|(gap, last)| (gap, self.now.since(last))),
            start_us: action.map_or(0, |a| estimates.start(&a.spec.image)),
            last_copy: notice.last_copy,
            max_hold_us: self.cfg().max_hold_us,
        }
    }
}
