//! Notices against herds. Gossip is slower than a start, so a node about to make the first start of an action
//! tells the action's *home* first, which knows who else is about to. The home's word is a hint: silent, it is
//! passed over.

use std::collections::BTreeMap;

use super::acquire::Ask;
use super::{Node, Timer};
use crate::container::{Container, Lifecycle};
use crate::ids::{ActionHash, ActionId, Epoch, NodeId};
use crate::input::Advice;
use crate::output::{Event, Output};
use crate::time::{MS, Micros, SECOND, Time};

/// Actions that a home keeps notices of.
const MOST_ACTIONS: usize = 1024;
/// A busy home answers late: waiting a little costs less than a start that was not needed.
const SHORTEST_SILENCE: Micros = 100 * MS;
const LONGEST_SILENCE: Micros = 500 * MS;

/// How long a start is believed in that should have come true long ago: on a busy machine it may take a few times what
/// starts have taken.
pub(super) fn lasts_us(start_us: Micros) -> Micros {
    start_us.saturating_mul(4).clamp(2 * SECOND, 10 * SECOND)
}

/// How far a node is with asking the home before a first start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum HomeStep {
    Unasked,
    Asked {
        until: Time,
    },
    /// It may start until then without asking again.
    Cleared {
        until: Time,
    },
}

/// What a node is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) queued: u32,
    pub(super) slots: u32,
    pub(super) start_us: Micros,
    pub(super) service_us: Micros,
}

/// Starts under way elsewhere, as this node was told as home.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Notices {
    coming: BTreeMap<ActionHash, Coming>,
}

/// The one start that others are sent to, until it should have come true.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Coming {
    node: NodeId,
    epoch: Epoch,
    slots: u32,
    /// Activations that are to be served there.
    queued: u32,
    until: Time,
}

impl Notices {
    /// Start, or go to whoever starts already, if that one's slots do for both.
    fn advise(&mut self, now: Time, from: (NodeId, Epoch), hash: ActionHash, plan: Plan) -> Advice {
        self.coming.retain(|_, c| c.until > now);
        if let Some(coming) = self.coming.get_mut(&hash)
            && coming.node != from.0
        {
            let queued = coming.queued.saturating_add(plan.queued);
            let work = u64::from(queued).saturating_mul(plan.service_us) / u64::from(coming.slots.max(1));
            if work <= plan.start_us {
                coming.queued = queued;
                return Advice::ReserveAt { peer: coming.node.clone(), epoch: coming.epoch };
            }
        }
        if self.coming.len() < MOST_ACTIONS || self.coming.contains_key(&hash) {
            let until = now + lasts_us(plan.start_us);
            let coming = Coming { node: from.0, epoch: from.1, slots: plan.slots, queued: plan.queued, until };
            self.coming.insert(hash, coming);
        }
        Advice::Start
    }

    pub(super) fn forget_node(&mut self, node: &NodeId) {
        self.coming.retain(|_, c| c.node != *node);
    }
}

impl Node {
    /// Starts a container, after the home was asked if this would be the first copy that anyone knows of.
    pub(super) fn start_or_ask_home(&mut self, name: &ActionId) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let (hash, alone) = (action.hash, !self.peers.values().any(|p| p.live));
        let known = !action.containers.is_empty()
            || !action.held.is_empty()
            || action.starts_queued > 0
            || self.adverts.get(&hash).is_some_and(|a| a.values().any(|p| p.advert.has_copy()));
        if alone || known {
            return self.request_start(name);
        }
        match action.home {
            HomeStep::Cleared { until } if self.now < until => self.request_start(name),
            HomeStep::Asked { .. } => false,
            _ => self.ask_home(name, hash),
        }
    }

    fn ask_home(&mut self, name: &ActionId, hash: ActionHash) -> bool {
        let Some(action) = self.actions.get(name) else { return false };
        let plan = Plan {
            queued: action.queue.len() as u32,
            slots: action.spec.concurrency,
            start_us: self.env.estimates.start(&action.spec.image),
            service_us: self.env.estimates.service(name).unwrap_or(0),
        };
        let home = self.home_of(hash);
        if home == self.id {
            let from = (self.id.clone(), self.epoch);
            let advice = self.notices.advise(self.now, from, hash, plan);
            self.follow(name, advice);
            return true;
        }
        let patience = (plan.start_us / 2).clamp(SHORTEST_SILENCE, LONGEST_SILENCE);
        let silence = (2 * self.env.estimates.rtt(&home)).max(patience);
        let until = self.now + silence;
        self.set_home(name, HomeStep::Asked { until });
        self.arm(until, Timer::HomeSilent(name.clone()));
        self.note(Event::HomeAsked { home: home.clone(), action: name.clone() });
        let Plan { queued, slots, start_us, service_us } = plan;
        self.emit(Output::SendNotice { to: home, hash, queued, slots, start_us, service_us });
        true
    }

    pub(super) fn on_notice(&mut self, from: NodeId, from_epoch: Epoch, hash: ActionHash, plan: Plan) {
        // This node's own start counts as well: it need not ask itself when it already has one.
        let own = self.actions.values().find(|a| a.hash == hash).is_some_and(|a| {
            let own = a.containers.iter().filter_map(|n| self.containers.get(n));
            let mut containers = own.filter(|c| c.revision == a.spec.revision);
            let coming = |c: &Container| matches!(c.state(), Lifecycle::Starting | Lifecycle::Initializing);
            a.starts_queued > 0 || containers.any(|c| coming(c) || c.free() > 0)
        });
        let advice = if own && self.drain.is_none() {
            Advice::ReserveAt { peer: self.id.clone(), epoch: self.epoch }
        } else {
            self.notices.advise(self.now, (from.clone(), from_epoch), hash, plan)
        };
        self.emit(Output::AnswerNotice { to: from, hash, advice });
    }

    pub(super) fn on_advice(&mut self, hash: ActionHash, advice: Advice) {
        let Some(name) = self.actions.iter().find(|(_, a)| a.hash == hash).map(|(n, _)| n.clone()) else { return };
        let asked = self.actions.get(&name).is_some_and(|a| matches!(a.home, HomeStep::Asked { .. }));
        if asked {
            self.follow(&name, advice);
        }
    }

    /// A home that says nothing is passed over.
    pub(super) fn home_silent(&mut self, name: &ActionId) {
        match self.actions.get(name).map(|a| a.home.clone()) {
            Some(HomeStep::Asked { until }) if until <= self.now => self.follow(name, Advice::Start),
            Some(HomeStep::Cleared { until }) if until <= self.now => {
                self.set_home(name, HomeStep::Unasked);
                self.touch(name);
            }
            _ => {}
        }
    }

    fn follow(&mut self, name: &ActionId, advice: Advice) {
        let Some(action) = self.actions.get(name) else { return };
        let start_us = self.env.estimates.start(&action.spec.image);
        // Not asked again before whoever goes there has waited in vain: then it starts.
        let until = self.now + lasts_us(start_us) + self.cfg().max_wait_us + SECOND;
        // Meanwhile another peer may have been asked for some.
        let needed = (action.queue.len() as u32).saturating_sub(self.supply(name).reserving);
        self.set_home(name, HomeStep::Cleared { until });
        self.arm(until, Timer::HomeSilent(name.clone()));
        self.touch(name);
        if needed == 0 {
            return;
        }
        if let Advice::ReserveAt { peer, epoch } = advice {
            let current = self.peers.get(&peer).is_some_and(|p| p.live && p.epoch == epoch);
            if current {
                self.note(Event::HomeSaidReserve { action: name.clone(), at: peer.clone() });
                let wait_us = self.cfg().max_wait_us.min(start_us.saturating_mul(4));
                if let Some(id) = self.first_queued(name)
                    && let Some(activation) = self.activations.get_mut(&id)
                {
                    activation.asked.push(peer.clone());
                }
                let ask = Ask { to: peer, owner_epoch: epoch, slots: needed, wait_us, start: false, run: None };
                self.send_reserve(name, ask);
            }
        }
    }

    fn first_queued(&self, name: &ActionId) -> Option<crate::ids::ActivationId> {
        self.actions.get(name)?.queue.values().next().copied()
    }

    fn set_home(&mut self, name: &ActionId, step: HomeStep) {
        if let Some(action) = self.actions.get_mut(name) {
            action.home = step;
        }
    }

    /// The live node that comes first for this action in rendezvous order.
    fn home_of(&self, hash: ActionHash) -> NodeId {
        let live = self.peers.iter().filter(|(_, p)| p.live && !p.draining).map(|(n, _)| n);
        live.chain([&self.id])
            .max_by_key(|n| (hash.weight(n), (*n).clone()))
            .cloned()
            .unwrap_or_else(|| self.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { queued: 1, slots: 1, start_us: 300 * MS, service_us: 0 };

    fn node(name: &str) -> (NodeId, Epoch) {
        (NodeId::new(name), Epoch(1))
    }

    #[test]
    fn the_first_to_tell_starts_and_the_others_go_there() {
        let mut notices = Notices::default();
        assert_eq!(notices.advise(Time(0), node("a"), ActionHash(1), PLAN), Advice::Start);
        let there = Advice::ReserveAt { peer: NodeId::new("a"), epoch: Epoch(1) };
        assert_eq!(notices.advise(Time(1), node("b"), ActionHash(1), PLAN), there);
        assert_eq!(notices.advise(Time(2), node("c"), ActionHash(2), PLAN), Advice::Start);
    }

    #[test]
    fn one_that_is_not_enough_for_both_does_not_hold_up_a_second() {
        let mut notices = Notices::default();
        let busy = Plan { queued: 10, service_us: 100 * MS, ..PLAN };
        assert_eq!(notices.advise(Time(0), node("a"), ActionHash(1), busy), Advice::Start);
        assert_eq!(notices.advise(Time(1), node("b"), ActionHash(1), busy), Advice::Start);
    }

    #[test]
    fn a_notice_is_forgotten_after_its_start_should_have_come_true() {
        let mut notices = Notices::default();
        notices.advise(Time(0), node("a"), ActionHash(1), PLAN);
        assert_eq!(notices.advise(Time(lasts_us(PLAN.start_us)), node("b"), ActionHash(1), PLAN), Advice::Start);
    }
}
