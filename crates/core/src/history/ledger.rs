//! What the records so far add up to: every owner's table, kept a second time by whoever judges.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use super::{End, Heard, Premises, Record, What};
use crate::container::Lifecycle;
use crate::ids::{ActionId, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, Revision, RunId};
use crate::input::RunEnd;
use crate::output::{Attempt, IntentEnd};
use crate::time::Time;

/// What is known of all nodes before the next record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub(super) lives: BTreeMap<NodeId, Life>,
    /// The last fence of each node, in all its lives.
    pub(super) fences: BTreeMap<NodeId, Fence>,
    pub(super) activations: BTreeMap<ActivationId, Activation>,
    /// Containers whose removal has begun.
    pub(super) removed: BTreeSet<ContainerId>,
    /// Whether it is told what enters containers.
    tells_insides: bool,
}

/// One life of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Life {
    pub(super) epoch: Epoch,
    pub(super) premises: Premises,
    /// Its last step that told anything, and when that was.
    pub(super) last: Aside<(u64, Time)>,
    pub(super) containers: BTreeMap<u64, Container>,
    /// It makes place for its next life: what is paused stays so.
    hands_over: bool,
    pub(super) grants: BTreeMap<RequestId, Fence>,
    /// Which attempt each run is, runs that have ended included.
    pub(super) attempts: BTreeMap<RunId, Attempt>,
    /// Runs that have begun, and neither entered their container nor ended.
    outside: BTreeSet<RunId>,
    /// Which attempt's body each request carried.
    pub(super) bodies: BTreeMap<RequestId, Attempt>,
    /// The newest epoch of each peer that this life was shown.
    pub(super) shown: BTreeMap<NodeId, Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Container {
    pub(super) action: ActionId,
    pub(super) revision: Revision,
    pub(super) slots: u32,
    pub(super) memory_mb: u64,
    pub(super) state: Lifecycle,
    pub(super) leases: BTreeMap<Fence, Lease>,
    pub(super) runs: BTreeMap<RunId, Run>,
    /// Runs that the container itself has and has not answered.
    pub(super) inside: BTreeSet<RunId>,
    pub(super) round: Option<Round>,
    /// A round that this step has closed, and has yet to show why.
    pub(super) closing: Option<Closing>,
    /// Rounds cancelled without a run in between, as the owner counts them, and those of them that were in vain.
    pub(super) cancelled: u32,
    pub(super) in_vain: u32,
    pub(super) hold_until: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) holder: NodeId,
    pub(super) holder_epoch: Epoch,
    pub(super) slots: u32,
    pub(super) running: u32,
    pub(super) expires_at: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) lease: Option<Fence>,
    /// Over its time-out, or its connection broke: its slot never returns.
    pub(super) overdue: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Round {
    pub(super) number: u32,
    pub(super) closes_at: Time,
    pub(super) last_word: bool,
    pub(super) awaits_permit: bool,
    /// Vetoes that count, each with its hold.
    pub(super) vetoes: BTreeMap<NodeId, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    pub(super) end: IntentEnd,
    own_waits: bool,
}

/// What a ledger knows beside what it says: two that differ only here are the same to a model checker. (When a step
/// was made matters to checks between steps alone, which [`Glance`](super::Glance) makes on the nodes as well.)
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Aside<T>(pub(super) T);

impl<T> PartialEq for Aside<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Aside<T> {}

impl<T> Hash for Aside<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Activation {
    pub(super) origin: Option<NodeId>,
    pub(super) idempotent: bool,
    /// Runs begun by each attempt, without those that provably never reached their container.
    pub(super) begun: BTreeMap<u32, u32>,
    /// Sends of its body that neither answer nor refusal has settled, by attempt.
    pub(super) unsettled: BTreeMap<u32, i32>,
    pub(super) end: Option<End>,
    /// The origin's epoch at that end.
    pub(super) ended_in: Option<Epoch>,
    /// Its origin went down before it had an end.
    pub(super) orphaned: bool,
}

impl Ledger {
    /// Sends of an activation's body that neither answer nor refusal has settled.
    pub fn unsettled_sends(&self, id: ActivationId) -> i32 {
        self.activations.get(&id).map_or(0, |a| a.unsettled.values().sum())
    }

    /// The life that a record belongs to.
    pub(super) fn life(&self, record: &Record) -> Option<&Life> {
        self.lives.get(&record.node).filter(|life| life.epoch == record.epoch)
    }

    pub(super) fn container(&self, record: &Record, number: u64) -> Option<&Container> {
        self.life(record)?.containers.get(&number)
    }

    /// Containers of the node as its last step left them, if this record is of a later one.
    pub(super) fn after_last_step(&self, record: &Record) -> Option<&Life> {
        self.life(record).filter(|life| life.last.0.0 < record.step)
    }

    /// All containers of all nodes that live.
    pub(super) fn containers(&self) -> impl Iterator<Item = (ContainerId, &Container)> {
        self.lives.iter().flat_map(|(node, life)| {
            let id = |number| ContainerId { owner: node.clone(), epoch: life.epoch, number };
            life.containers.iter().map(move |(number, container)| (id(*number), container))
        })
    }

    pub(super) fn apply(&mut self, record: &Record) {
        let node = &record.node;
        if let What::Began(premises) = &record.what {
            return self.begin(record, premises.clone());
        }
        if let What::Granted { fence, .. } = &record.what {
            self.fences.insert(node.clone(), *fence);
        }
        if let What::Moved { container, to: Lifecycle::Removing } = &record.what {
            let id = ContainerId { owner: node.clone(), epoch: record.epoch, number: *container };
            self.removed.insert(id);
        }
        let Some(life) = self.lives.get_mut(node).filter(|life| life.epoch == record.epoch) else { return };
        // Whoever runs the containers tells of them beside the node's steps.
        if record.step > 0 {
            life.last = Aside((record.step, record.at));
        }
        match &record.what {
            What::Invoked { activation, idempotent, attempt } => {
                let activation = self.activations.entry(*activation).or_default();
                activation.origin = Some(node.clone());
                activation.idempotent = *idempotent;
                activation.orphaned = false;
                // It is asked for again: what has not run, or what an earlier life did not get on disk.
                let again = activation.ended_in != Some(record.epoch);
                activation.end.take_if(|end| again || matches!(end, End::Refused | End::PutOff | End::Withdrawn));
                // That attempt of an earlier life is asked for again only if its owner said that it has not taken it.
                activation.unsettled.remove(attempt);
                if *attempt > 0 {
                    // What an earlier life sent or ran, or this one without an answer.
                    let sends = activation.unsettled.entry(attempt - 1).or_default();
                    *sends = (*sends).max(1);
                }
            }
            What::BodySent { attempt, request, .. } => {
                life.bodies.insert(request.clone(), *attempt);
                let activation = self.activations.entry(attempt.activation).or_default();
                *activation.unsettled.entry(attempt.attempt).or_default() += 1;
            }
            What::Heard { request, heard } => {
                if let Some(attempt) = life.bodies.get(request)
                    && let Some(activation) = self.activations.get_mut(&attempt.activation)
                    && let Some(sends) = activation.unsettled.get_mut(&attempt.attempt)
                {
                    *sends = if *heard == Heard::Settled { 0 } else { *sends - 1 };
                    if *heard == Heard::Settled {
                        // What comes of it later, by another copy, says nothing of the next request's body.
                        life.bodies.remove(request);
                    }
                }
            }
            What::Ended { activation, end } => {
                let activation = self.activations.entry(*activation).or_default();
                (activation.end, activation.ended_in) = (Some(*end), Some(record.epoch));
            }
            What::Shown { peer, epoch } => {
                let known = life.shown.entry(peer.clone()).or_insert(*epoch);
                *known = (*known).max(*epoch);
            }
            What::HandsOver => life.hands_over = true,
            What::Granted { request, fence, .. } => {
                life.grants.insert(request.clone(), *fence);
            }
            What::RunBegan { run, attempt, .. } => {
                life.attempts.insert(*run, *attempt);
                life.outside.insert(*run);
                let activation = self.activations.entry(attempt.activation).or_default();
                *activation.begun.entry(attempt.attempt).or_default() += 1;
            }
            What::Entered { run, .. } => {
                life.outside.remove(run);
                self.tells_insides = true;
            }
            What::RunEnded { run, end, .. } => {
                life.outside.remove(run);
                if let (RunEnd::NeverStarted | RunEnd::Withdrawn, Some(attempt)) = (end, life.attempts.get(run)) {
                    never_ran(&mut self.activations, attempt);
                }
            }
            _ => {}
        }
        life.apply_to_container(record);
    }

    pub(super) fn forget_asker(&mut self, node: &NodeId) {
        let ended = |a: &Activation| a.origin.as_ref() == Some(node) && (a.end.is_some() || a.orphaned);
        let mut forgotten = BTreeSet::new();
        self.activations.retain(|id, activation| !ended(activation) || !forgotten.insert(*id));
        for life in self.lives.values_mut() {
            life.grants.retain(|request, _| request.holder != *node);
            life.bodies.retain(|request, _| request.holder != *node);
            life.attempts.retain(|_, attempt| !forgotten.contains(&attempt.activation));
        }
    }

    fn begin(&mut self, record: &Record, premises: Premises) {
        let orphans = self.activations.values_mut().filter(|a| a.origin.as_ref() == Some(&record.node));
        for activation in orphans.filter(|a| a.end.is_none()) {
            activation.orphaned = true;
        }
        // Who would have handed these over is gone.
        let before = self.lives.remove(&record.node).filter(|_| self.tells_insides);
        for run in before.iter().flat_map(|life| life.outside.iter().filter_map(|run| life.attempts.get(run))) {
            never_ran(&mut self.activations, run);
        }
        let life = Life {
            epoch: record.epoch,
            premises,
            last: Aside((record.step, record.at)),
            containers: BTreeMap::new(),
            hands_over: false,
            grants: BTreeMap::new(),
            attempts: BTreeMap::new(),
            outside: BTreeSet::new(),
            bodies: BTreeMap::new(),
            shown: BTreeMap::new(),
        };
        self.lives.insert(record.node.clone(), life);
    }
}

/// A run of this attempt provably never reached its container.
fn never_ran(activations: &mut BTreeMap<ActivationId, Activation>, attempt: &Attempt) {
    if let Some(begun) = activations.get_mut(&attempt.activation).and_then(|a| a.begun.get_mut(&attempt.attempt)) {
        *begun = begun.saturating_sub(1);
    }
}

impl Life {
    fn apply_to_container(&mut self, record: &Record) {
        let at = record.at;
        let expires_at = at + self.premises.accepts_us;
        let number = match &record.what {
            What::Made { container, action, revision, slots, memory_mb } => {
                let made = Container::new(action.clone(), revision.clone(), *slots, *memory_mb);
                self.containers.insert(*container, made);
                return;
            }
            What::Gone { container } => {
                self.containers.remove(container);
                return;
            }
            What::Moved { container, .. }
            | What::Granted { container, .. }
            | What::RunBegan { container, .. }
            | What::RunEnded { container, .. }
            | What::Released { container, .. }
            | What::Expired { container, .. }
            | What::Entered { container, .. }
            | What::Left { container, .. } => *container,
            What::Opened { intent, .. } | What::AwaitsPermit { intent } | What::Closed { intent, .. } => {
                intent.container.number
            }
            What::Veto { container, counted: true, .. } => container.number,
            _ => return,
        };
        let Some(container) = self.containers.get_mut(&number) else { return };
        match &record.what {
            What::Moved { to, .. } => container.moved(*to),
            What::Granted { request, fence, slots, .. } => {
                container.explain(|end| *end == IntentEnd::Used, true);
                let (holder, holder_epoch) = (request.holder.clone(), request.epoch);
                let lease = Lease { holder, holder_epoch, slots: *slots, running: 0, expires_at };
                container.leases.insert(*fence, lease);
            }
            What::RunBegan { run, lease, .. } => {
                container.explain(|end| *end == IntentEnd::Used, false);
                (container.cancelled, container.in_vain, container.hold_until) = (0, 0, Time::default());
                let on = lease.as_ref().map(|l| l.fence);
                container.runs.insert(*run, Run { lease: on, overdue: false });
                if let Some(shown) = lease
                    && let Some(lease) = container.leases.get_mut(&shown.fence)
                {
                    lease.running += 1;
                    lease.slots = shown.keep.clamp(lease.running.min(lease.slots), lease.slots);
                    if shown.renewed {
                        lease.expires_at = expires_at;
                    }
                }
            }
            What::RunEnded { run, end, .. } => container.run_ended(*run, *end),
            What::Released { fence, slots: 0, .. } => {
                container.leases.remove(fence);
            }
            What::Released { fence, slots, .. } => {
                if let Some(lease) = container.leases.get_mut(fence) {
                    lease.slots = *slots;
                }
            }
            What::Expired { fence, .. } => {
                container.leases.remove(fence);
                for run in container.runs.values_mut().filter(|r| r.lease == Some(*fence)) {
                    run.lease = None;
                }
            }
            What::Entered { run, .. } => {
                container.inside.insert(*run);
            }
            What::Left { run, .. } => {
                container.inside.remove(run);
            }
            What::Opened { intent, window_us, last_word, .. } => {
                container.round = Some(Round {
                    number: intent.round,
                    closes_at: at + *window_us,
                    last_word: *last_word,
                    awaits_permit: false,
                    vetoes: BTreeMap::new(),
                });
            }
            What::AwaitsPermit { .. } => {
                if let Some(round) = &mut container.round {
                    round.awaits_permit = true;
                }
            }
            What::Veto { from, hold_us, .. } => {
                let hold_us = (*hold_us).min(self.premises.max_hold_us);
                if let Some(round) = &mut container.round {
                    let hold = round.vetoes.entry(from.clone()).or_default();
                    *hold = (*hold).max(hold_us);
                }
            }
            What::Closed { end, own_waits, .. } => container.closed(end, *own_waits, at, self.hands_over),
            _ => {}
        }
    }
}

impl Container {
    fn new(action: ActionId, revision: Revision, slots: u32, memory_mb: u64) -> Self {
        Self {
            action,
            revision,
            slots,
            memory_mb,
            state: Lifecycle::Starting,
            leases: BTreeMap::new(),
            runs: BTreeMap::new(),
            inside: BTreeSet::new(),
            round: None,
            closing: None,
            cancelled: 0,
            in_vain: 0,
            hold_until: Time::default(),
        }
    }

    /// Leased slots and runs outside of leases.
    pub(super) fn taken(&self) -> u32 {
        let leased: u32 = self.leases.values().map(|l| l.slots).sum();
        leased + self.runs.values().filter(|r| r.lease.is_none()).count() as u32
    }

    fn moved(&mut self, to: Lifecycle) {
        match to {
            Lifecycle::Failed => {
                self.leases.clear();
                self.runs.clear();
                self.round = None;
            }
            Lifecycle::Resuming => self.explain(|end| *end == IntentEnd::Used, true),
            Lifecycle::Retiring => self.explain(|end| *end == IntentEnd::Overtaken, false),
            Lifecycle::Pausing | Lifecycle::Removing => self.explain(|end| *end == IntentEnd::Committed, false),
            _ => {}
        }
        self.state = to;
    }

    /// A round that this step closed gets its reason; one that no run follows may have been in vain.
    fn explain(&mut self, by: impl Fn(&IntentEnd) -> bool, without_run: bool) {
        if let Some(closing) = self.closing.take_if(|c| by(&c.end)) {
            let own = self.state == Lifecycle::Paused && closing.own_waits;
            if without_run && !own {
                self.in_vain += 1;
            }
        }
    }

    fn run_ended(&mut self, run: RunId, end: RunEnd) {
        match end {
            RunEnd::Answered | RunEnd::NeverStarted | RunEnd::Withdrawn => {
                if let Some(lease) = self.runs.remove(&run).and_then(|r| self.leases.get_mut(&r.lease?)) {
                    lease.running = lease.running.saturating_sub(1);
                }
            }
            RunEnd::TimedOut | RunEnd::Lost => {
                let Some(overdue) = self.runs.get_mut(&run) else { return };
                overdue.overdue = true;
                if let Some(fence) = overdue.lease.take()
                    && let Some(lease) = self.leases.get_mut(&fence)
                {
                    lease.running = lease.running.saturating_sub(1);
                    lease.slots = lease.slots.saturating_sub(1);
                    if lease.slots == 0 {
                        self.leases.remove(&fence);
                    }
                }
            }
        }
    }

    fn closed(&mut self, end: &IntentEnd, own_waits: bool, at: Time, hands_over: bool) {
        let round = self.round.take();
        let used = !self.leases.is_empty() || !self.runs.is_empty();
        let explained = match end {
            IntentEnd::Used => used,
            IntentEnd::Overtaken => match self.state {
                Lifecycle::Warm => false,
                Lifecycle::Paused => hands_over,
                _ => true,
            },
            IntentEnd::Committed => false,
            IntentEnd::Vetoed { .. } | IntentEnd::Late => true,
        };
        match end {
            IntentEnd::Vetoed { .. } => {
                self.cancelled += 1;
                self.in_vain += 1;
                let hold = round.iter().flat_map(|r| r.vetoes.values()).max().copied().unwrap_or(0);
                self.hold_until = at + hold;
            }
            IntentEnd::Used if self.runs.is_empty() => {
                self.cancelled += 1;
                self.hold_until = at;
            }
            _ => {}
        }
        self.closing = (!explained).then(|| Closing { end: end.clone(), own_waits });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::config::Config;
    use crate::history::{End, Judge, Record, What};
    use crate::ids::{ActionId, ActionSpec, ActivationId, Epoch, NodeId, Revision, RunId};
    use crate::input::RunEnd;
    use crate::output::Output;
    use crate::{Input, Node, Time};

    const ID: ActivationId = ActivationId(7);

    fn spec() -> Arc<ActionSpec> {
        Arc::new(ActionSpec {
            action: ActionId::new("guest", "hello"),
            revision: Revision { counter: 1, node: NodeId::new("n1") },
            concurrency: 1,
            memory_mb: 256,
            timeout_us: 1_000_000,
            idempotent: true,
            image: "image".into(),
        })
    }

    fn node(epoch: u64) -> Node {
        Node::new(NodeId::new("n1"), Epoch(epoch), Arc::new(Config::default()), 1).with_history()
    }

    /// A step, judged; what it put out.
    fn step(judge: &mut Judge, node: &mut Node, at: u64, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        node.handle(Time(at), input, &mut outputs);
        for output in &outputs {
            if let Output::History(record) = output {
                assert_eq!(judge.observe(record), Ok(()));
            }
        }
        outputs
    }

    fn invoke(attempt: u32) -> Input {
        Input::InvokeRequested { activation: ID, spec: spec(), body_bytes: 1, attempt, journaled: true }
    }

    fn run_of(outputs: &[Output]) -> Option<crate::ids::RunId> {
        outputs.iter().find_map(|o| if let Output::RunLocal { run, .. } = o { Some(*run) } else { None })
    }

    fn warm(judge: &mut Judge, node: &mut Node) -> Option<crate::ids::RunId> {
        step(judge, node, 2_000_000, invoke(0));
        step(judge, node, 2_000_001, Input::ContainerCreated { container: 1 });
        run_of(&step(judge, node, 2_000_002, Input::ContainerReady { container: 1 }))
    }

    #[test]
    fn an_activation_whose_answer_was_not_on_disk_may_end_again_in_the_next_life() {
        let mut judge = Judge::default();
        let mut first = node(1);
        let run = warm(&mut judge, &mut first);
        let end = RunEnd::Answered;
        step(&mut judge, &mut first, 2_000_003, Input::RunFinished { container: 1, run: run.expect("it runs"), end });
        let mut second = node(2);
        step(&mut judge, &mut second, 2_000_000, invoke(1));
        step(&mut judge, &mut second, 2_000_001, Input::ContainerCreated { container: 1 });
        let run = run_of(&step(&mut judge, &mut second, 2_000_002, Input::ContainerReady { container: 1 }));
        step(&mut judge, &mut second, 2_000_003, Input::RunFinished { container: 1, run: run.expect("it runs"), end });
        // Twice without being asked for again is still wrong.
        let again = What::Ended { activation: ID, end: End::Answered };
        let record = Record { at: Time(2_000_004), node: NodeId::new("n1"), epoch: Epoch(2), step: 9, what: again };
        assert!(judge.observe(&record).is_err_and(|v| v.invariant == "A4_every_request_answered"));
    }

    #[test]
    fn an_attempt_that_an_earlier_life_ran_itself_may_end_as_indeterminate() {
        let mut judge = Judge::default();
        assert!(warm(&mut judge, &mut node(1)).is_some());
        let mut second = node(2);
        step(&mut judge, &mut second, 2_000_000, invoke(1));
        let ended = step(&mut judge, &mut second, 2_000_001, Input::StopRequested { deadline_us: 1 });
        assert!(ended.iter().any(|o| matches!(o, Output::Indeterminate { .. })), "{ended:?}");
    }

    #[test]
    fn a_run_that_its_container_never_saw_before_a_crash_may_begin_in_the_next_life_and_no_other() {
        for entered in [false, true] {
            let mut judge = Judge::default();
            let run = warm(&mut judge, &mut node(1)).expect("it runs");
            // It is known that a container saw something.
            let run = if entered { run } else { RunId(run.0 + 1) };
            let what = What::Entered { container: 1, run };
            let record = Record { at: Time(2_000_003), node: NodeId::new("n1"), epoch: Epoch(1), step: 0, what };
            assert_eq!(judge.observe(&record), Ok(()));
            let mut second = node(2);
            step(&mut judge, &mut second, 2_000_000, invoke(0));
            step(&mut judge, &mut second, 2_000_001, Input::ContainerCreated { container: 1 });
            let mut outputs = Vec::new();
            second.handle(Time(2_000_002), Input::ContainerReady { container: 1 }, &mut outputs);
            let records =
                outputs.iter().filter_map(|o| if let Output::History(record) = o { Some(record) } else { None });
            let wrong: Vec<&str> = records.filter_map(|r| judge.observe(r).err()).map(|v| v.invariant).collect();
            let expected: &[&str] = if entered { &["A1_started_at_most_once"] } else { &[] };
            assert_eq!((wrong.as_slice(), run_of(&outputs).is_some()), (expected, true));
        }
    }

    #[test]
    fn a_round_of_a_paused_container_may_be_overtaken_by_a_hand_over_only() {
        for (input, right) in [(Input::HandOverRequested { deadline_us: 1_000_000 }, true), (Input::Tick, false)] {
            let mut judge = Judge::default();
            let mut node = node(1);
            let run = warm(&mut judge, &mut node);
            let end = RunEnd::Answered;
            step(
                &mut judge,
                &mut node,
                2_000_003,
                Input::RunFinished { container: 1, run: run.expect("it runs"), end },
            );
            // Idle, paused, idle: two rounds, of which the second is open.
            let mut opened = None;
            for second in 3..2_000 {
                let outputs = step(&mut judge, &mut node, second * 1_000_000, Input::Tick);
                if outputs.iter().any(|o| matches!(o, Output::PauseContainer { .. })) {
                    step(&mut judge, &mut node, second * 1_000_000 + 1, Input::PauseEnded { container: 1, ok: true });
                }
                opened = node.intents().first().map(|i| i.notice.round).filter(|_| second > 600);
                if opened.is_some() {
                    break;
                }
            }
            assert!(opened.is_some(), "no round is open");
            let at = node.now().0 + 1;
            step(&mut judge, &mut node, at, input);
            let next = step(&mut judge, &mut node, at + 1, Input::Tick);
            assert_eq!(node.intents().is_empty(), right, "{next:?}");
        }
    }
}
