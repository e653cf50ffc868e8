//! What the checkers remember of what went before, from inputs and outputs alone.

use std::collections::{BTreeMap, BTreeSet};

use embermesh_core::output::{Attempt, Event, IntentEnd, Output, ReserveAnswer, RunAnswer};
use embermesh_core::{
    ActionId, ActionSpec, ActivationId, ContainerId, Epoch, Fence, Input, NodeId, RequestId, RunId, Time,
};

use crate::world::{Step, World};

#[derive(Default)]
pub(crate) struct Ledger {
    activations: BTreeMap<ActivationId, Life>,
    /// The last fence that a host granted, in all its lives.
    pub(crate) fences: BTreeMap<usize, Fence>,
    /// What each life of an owner granted to each request.
    pub(crate) grants: BTreeMap<(usize, Epoch, RequestId), Grant>,
    /// When a lease ends by the owner's clock, kept from grants and accepted runs alone.
    pub(crate) leases: BTreeMap<(usize, Fence), Granted>,
    /// Containers that the engine pauses or removes.
    pub(crate) engine_busy: BTreeSet<(usize, u64)>,
    pub(crate) removed: BTreeSet<ContainerId>,
    pub(crate) rounds: BTreeMap<ContainerId, Rounds>,
    /// The epoch last shown to each observer's life.
    pub(crate) epochs: BTreeMap<(usize, NodeId), Epoch>,
    /// Requests seen sent, so that a retry is told from a first send.
    pub(crate) sent: BTreeSet<(usize, Epoch, u64)>,
    /// How often each thing happened.
    pub(crate) seen: BTreeMap<&'static str, u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) container: u64,
    pub(crate) expires_at: Time,
}

/// A lease's fence and container, and the run that came along.
pub(crate) type Grant = (Fence, ContainerId, Option<RunId>);

/// Rounds of intents of one container.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Cancelled in a row without a run in between.
    pub(crate) in_vain: u32,
    /// Countable vetoes of each round.
    pub(crate) vetoes: BTreeMap<u32, u32>,
    /// When each round's window closes.
    pub(crate) closes_at: BTreeMap<u32, Time>,
}

struct Life {
    host: usize,
    action: ActionId,
    idempotent: bool,
    begun: u32,
    begun_by_attempt: BTreeMap<u32, u32>,
    /// Sends of its body that neither answer nor refusal has settled, by attempt.
    unsettled: BTreeMap<u32, i32>,
    cancelled: bool,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    AnsweredHere,
    AnsweredByPeer,
    Refused,
    Indeterminate,
    /// The node that accepted it went down.
    OriginGone,
}

impl Ledger {
    pub(crate) fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    pub(crate) fn invoked(&mut self, id: ActivationId, host: usize, spec: &ActionSpec) {
        let life = Life {
            host,
            action: spec.action.clone(),
            idempotent: spec.idempotent,
            begun: 0,
            begun_by_attempt: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            cancelled: false,
            end: None,
        };
        self.activations.insert(id, life);
    }

    /// Activations without an end, with their origin.
    pub(crate) fn open_activations(&self) -> impl Iterator<Item = (ActivationId, usize)> {
        self.activations.iter().filter(|(_, l)| l.end.is_none() && !l.cancelled).map(|(id, l)| (*id, l.host))
    }

    /// The action of one whose caller is still there.
    pub(crate) fn wanted(&self, id: ActivationId) -> Option<&ActionId> {
        self.activations.get(&id).filter(|life| !life.cancelled).map(|life| &life.action)
    }

    pub(crate) fn cancelled(&mut self, id: ActivationId) {
        if let Some(life) = self.activations.get_mut(&id) {
            life.cancelled = true;
        }
    }

    /// Gives an activation its end; a second one is an error.
    pub(crate) fn end(&mut self, id: ActivationId, end: End) -> Result<(), String> {
        self.note(match end {
            End::AnsweredHere => "answered here",
            End::AnsweredByPeer => "answered by a peer",
            End::Refused => "refused",
            End::Indeterminate => "indeterminate",
            End::OriginGone => "origin gone",
        });
        let Some(life) = self.activations.get_mut(&id) else { return Err(format!("{id} is not known and ends")) };
        match life.end.replace(end) {
            Some(before) => Err(format!("{id} ended as {before:?} and as {end:?}")),
            None => Ok(()),
        }
    }

    pub(crate) fn origin_gone(&mut self, host: usize) {
        for life in self.activations.values_mut().filter(|l| l.host == host && l.end.is_none()) {
            life.end = Some(End::OriginGone);
        }
        self.engine_busy.retain(|(h, _)| *h != host);
        self.leases.retain(|(h, _), _| *h != host);
    }

    pub(crate) fn life_began(&mut self, host: usize) {
        self.epochs.retain(|(observer, _), _| *observer != host);
    }

    /// A body begins to run in a container.
    pub(crate) fn begins(&mut self, attempt: Attempt, local: bool) -> Result<(), String> {
        let id = attempt.activation;
        let Some(life) = self.activations.get_mut(&id) else { return Err(format!("{id} is not known and runs")) };
        life.begun += 1;
        if !life.idempotent && life.begun > 1 {
            return Err(format!("{id} began {} times", life.begun));
        }
        if !local {
            let begun = life.begun_by_attempt.entry(attempt.attempt).or_insert(0);
            *begun += 1;
            if *begun > 1 {
                return Err(format!("attempt {} of {id} began {begun} times", attempt.attempt));
            }
        }
        if life.begun > 3 { Err(format!("{id} began {} times", life.begun)) } else { Ok(()) }
    }

    pub(crate) fn started(&self, id: ActivationId) -> u32 {
        self.activations.get(&id).map_or(0, |l| l.begun)
    }

    pub(crate) fn body_sent(&mut self, attempt: Attempt) {
        self.settle(attempt, |sends| sends + 1);
    }

    /// The body provably never left.
    pub(crate) fn came_back(&mut self, attempt: Attempt) {
        self.settle(attempt, |sends| sends - 1);
    }

    /// An answer or a refusal came: it settles all sends if it is of the life that they were meant for.
    pub(crate) fn answered(&mut self, attempt: Attempt, settles_all: bool) {
        self.settle(attempt, |sends| if settles_all { 0 } else { sends - 1 });
    }

    /// Whether a body of it left and nothing was heard of that.
    pub(crate) fn left(&self, id: ActivationId) -> bool {
        self.activations.get(&id).is_some_and(|l| l.unsettled.values().any(|sends| *sends > 0))
    }

    pub(crate) fn engine_done(&mut self, host: usize, container: u64) {
        self.engine_busy.remove(&(host, container));
    }

    fn settle(&mut self, attempt: Attempt, change: impl FnOnce(i32) -> i32) {
        if let Some(life) = self.activations.get_mut(&attempt.activation) {
            let sends = life.unsettled.entry(attempt.attempt).or_insert(0);
            *sends = change(*sends);
        }
    }
}

impl World {
    /// Notes how often what happened; what a check compares with is kept by the check itself.
    pub(crate) fn note_step(&mut self, step: &Step) {
        if let Input::PeerUp { peer, epoch } = &step.input {
            let known = self.ledger.epochs.entry((step.host, peer.clone())).or_insert(*epoch);
            *known = (*known).max(*epoch);
        }
        for output in &step.outputs {
            let what = match output {
                Output::AnswerReserve { answer: ReserveAnswer::Granted { run, first, .. }, .. } => match (run, first) {
                    (_, false) => "the same grant again",
                    (Some(_), _) => "grant with a run",
                    (None, _) => "grant",
                },
                Output::AnswerReserve { .. } => "denied",
                Output::AnswerRun { answer: RunAnswer::Accepted { .. }, .. } => "run on a held lease",
                Output::AnswerRun { answer: RunAnswer::Refused(_), .. } => "run refused",
                Output::Event(Event::LeaseExpired { .. }) => "lease expired",
                Output::Event(Event::LeaseReleased { .. }) => "lease released",
                Output::Event(Event::VetoCounted { .. }) => "veto counted",
                Output::Event(Event::VetoIgnored { .. }) => "veto ignored",
                Output::Event(Event::Evicting { .. }) => "urgent",
                Output::Event(Event::IntentClosed { end, .. }) => match end {
                    IntentEnd::Committed => "round Committed",
                    IntentEnd::Vetoed { .. } => "round Vetoed",
                    IntentEnd::Used => "round Used",
                    IntentEnd::Late => "round Late",
                    IntentEnd::Overtaken => "round Overtaken",
                },
                _ => continue,
            };
            self.ledger.note(what);
        }
    }
}
