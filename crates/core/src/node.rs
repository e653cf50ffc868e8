//! One node's protocol state, and the steps it takes.
//!
//! Each file below is one part of the protocol and the same `Node`:
//!
//! | file | part |
//! | --- | --- |
//! | `origin` | own activations: queue, binding to a slot, refusal |
//! | `acquire` | the ladder: where the next slot comes from, by one cost rule |
//! | `holder` | leases held at peers, answers to our requests |
//! | `owner` | Reserve, Run and Release of peers on own containers |
//! | `answers` | what was answered to which request, so that a late copy changes nothing |
//! | `engine` | own containers coming up, pausing, ending |
//! | `intents` | both sides of intents and vetoes |
//! | `starts` | the shared start stage: permits, memory, eviction |
//! | `home` | notices against herds of cold starts |
//! | `peers` | membership and adverts |
//! | `drain` | ending work on this node |
//! | `view` | what the node shows of itself |

mod acquire;
mod adopt;
mod answers;
mod drain;
mod engine;
mod holder;
mod home;
mod intents;
mod origin;
mod owner;
mod peers;
mod starts;
mod view;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::config::Config;
use crate::container::Container;
use crate::estimates::Estimates;
use crate::history::{Premises, Record, What};
use crate::ids::{ActionHash, ActionId, ActionSpec, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, RunId};
use crate::input::Input;
use crate::mutations::{Mutation, on};
use crate::output::{Event, Output};
use crate::policy::{DemandVeto, GreedyDual, KeepAlive, VetoPolicy};
use crate::stage::Stage;
use crate::time::Time;

use answers::Answers;
use drain::Drain;
use holder::{HeldLease, OutRequest};
use home::{HomeStep, Notices};
use intents::Heard;
use origin::{Activation, Kept};
use owner::Waiting;
use peers::{Peer, PeerAdvert, Published};
use starts::StartRequest;

pub use view::{ContainerView, IntentView, LeaseView};

/// The protocol state of one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    id: NodeId,
    epoch: Epoch,
    now: Time,
    actions: BTreeMap<ActionId, Action>,
    activations: BTreeMap<ActivationId, Activation>,
    queued_bytes: u64,
    /// Bodies that the journal keeps: they count like those that wait.
    kept: BTreeMap<ActivationId, Kept>,
    kept_bytes: u64,
    /// How many of them are still to be asked for.
    awaited: BTreeMap<ActionId, usize>,
    containers: BTreeMap<u64, Container>,
    held: BTreeMap<LeaseKey, HeldLease>,
    requests: BTreeMap<u64, OutRequest>,
    answers: Answers,
    waiting: BTreeMap<RequestId, Waiting>,
    peers: BTreeMap<NodeId, Peer>,
    adverts: BTreeMap<ActionHash, BTreeMap<NodeId, PeerAdvert>>,
    heard: BTreeMap<ContainerId, Heard>,
    notices: Notices,
    starts: Stage<StartRequest>,
    memory_used_mb: u64,
    /// Runs of containers that failed, until each is reported as ended.
    voided: BTreeMap<RunId, ActivationId>,
    /// When the start stage is looked at again.
    stage_at: Option<Time>,
    drain: Option<Drain>,
    timers: BTreeSet<(Time, Timer)>,
    counters: Counters,
    env: Env,
}

/// What one node knows and does about one action, while it has anything to do with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Action {
    spec: Arc<ActionSpec>,
    hash: ActionHash,
    /// A newer revision says that it is gone.
    deleted: bool,
    /// Own activations that wait, in order of arrival.
    queue: BTreeMap<u64, ActivationId>,
    containers: BTreeSet<u64>,
    held: BTreeSet<LeaseKey>,
    /// Reserves under way.
    reserving: BTreeSet<u64>,
    /// Reserves of peers that wait here, in order of arrival.
    waiting: BTreeMap<u64, RequestId>,
    /// Starts that wait for a permit or for memory.
    starts_queued: u32,
    /// Starts of its containers that failed in a row.
    starts_failed: u32,
    home: HomeStep,
    /// Peers that asked for it, and when last: who to tell of intents.
    askers: BTreeMap<NodeId, Time>,
    published: Option<Published>,
    /// Timers that are armed, so that there is one of each.
    decide_armed: bool,
    forget_armed: bool,
}

/// Actions served in one step: all that one step touches, several times over.
const MOST_ROUNDS: usize = 10_000;

type LeaseKey = (NodeId, Fence);

/// Numbers that grow and are never used twice in one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Counters {
    container: u64,
    fence: u64,
    request: u64,
    run: u64,
    arrival: u64,
}

/// What wakes the node by itself. A timer that fires early or for nothing is harmless: each looks at the state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    GiveUp(ActivationId),
    LeaseEnd(u64, Fence),
    HeldEnd(NodeId, Fence),
    Idle(u64),
    Close(u64),
    WaitEnd(RequestId),
    HomeSilent(ActionId),
    Decide(ActionId),
    Stage,
    Advert(ActionHash),
    Forget(ActionId),
    Drain,
}

/// What is not protocol state: numbers fixed at start, policies, measured figures, randomness, the outbox.
/// Two nodes that differ only here are the same state to a model checker.
#[derive(Debug, Clone)]
struct Env {
    cfg: Arc<Config>,
    veto: Arc<dyn VetoPolicy>,
    keep: Arc<dyn KeepAlive>,
    estimates: Estimates,
    eviction_clock: u64,
    random: u64,
    out: Vec<Output>,
    dirty: Vec<ActionId>,
    /// Number of the step, if this node tells its history.
    step: Option<u64>,
}

impl PartialEq for Env {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Env {}

impl Hash for Env {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Node {
    /// `seed` feeds the choice between equal peers. The configuration has been validated.
    pub fn new(id: NodeId, epoch: Epoch, cfg: Arc<Config>, seed: u64) -> Self {
        let epoch = if on(Mutation::RestartForgetsEpoch) { Epoch(1) } else { epoch };
        Self {
            id,
            epoch,
            now: Time::default(),
            actions: BTreeMap::new(),
            activations: BTreeMap::new(),
            queued_bytes: 0,
            kept: BTreeMap::new(),
            kept_bytes: 0,
            awaited: BTreeMap::new(),
            containers: BTreeMap::new(),
            held: BTreeMap::new(),
            requests: BTreeMap::new(),
            answers: Answers::default(),
            waiting: BTreeMap::new(),
            peers: BTreeMap::new(),
            adverts: BTreeMap::new(),
            heard: BTreeMap::new(),
            notices: Notices::default(),
            starts: Stage::new(256),
            memory_used_mb: 0,
            voided: BTreeMap::new(),
            stage_at: None,
            drain: None,
            timers: BTreeSet::new(),
            counters: Counters::default(),
            env: Env {
                cfg,
                veto: Arc::new(DemandVeto),
                keep: Arc::new(GreedyDual),
                estimates: Estimates::default(),
                eviction_clock: 0,
                random: seed | 1,
                out: Vec::new(),
                dirty: Vec::new(),
                step: None,
            },
        }
    }

    /// Replaces the policies that users may choose.
    pub fn with_policies(mut self, veto: Arc<dyn VetoPolicy>, keep: Arc<dyn KeepAlive>) -> Self {
        self.env.veto = veto;
        self.env.keep = keep;
        self
    }

    /// Replaces the measured figures, e.g. by frozen ones.
    pub fn with_estimates(mut self, estimates: Estimates) -> Self {
        self.env.estimates = estimates;
        self
    }

    /// Makes this node tell its history as [`Output::History`], from its first step on.
    pub fn with_history(mut self) -> Self {
        self.env.step = Some(0);
        self
    }

    /// One step: fires what is due at `now`, then takes the input. What is to be done is pushed on `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.env.out, out);
        self.begin_step();
        self.fire_due();
        self.take(input);
        self.settle();
        std::mem::swap(&mut self.env.out, out);
        // With a bug on purpose it is for the checkers to find it.
        debug_assert!(cfg!(feature = "mutations") || self.check() == Ok(()), "{:?}", self.check());
    }

    /// When to call [`Node::handle`] at the latest, with [`Input::Tick`] if nothing else.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn id(&self) -> &NodeId {
        &self.id
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When it made its last step.
    pub fn now(&self) -> Time {
        self.now
    }

    pub fn estimates(&self) -> &Estimates {
        &self.env.estimates
    }

    /// What must hold between steps; the message names the invariant.
    pub fn check(&self) -> Result<(), String> {
        let mut memory = 0;
        for (number, container) in &self.containers {
            container.check().map_err(|e| format!("container {number}: {e}"))?;
            memory += container.memory_mb;
            if container.leases().keys().any(|f| f.epoch != self.epoch || f.counter > self.counters.fence) {
                return Err(format!("L2_fence_monotonic: container {number} has a lease that was not granted here"));
            }
        }
        if memory != self.memory_used_mb {
            return Err(format!("memory is {memory} MB, counted {} MB", self.memory_used_mb));
        }
        if memory > self.cfg().memory_mb {
            return Err(format!("M1_memory_within_limit: {memory} MB of {} MB", self.cfg().memory_mb));
        }
        for (id, action) in &self.actions {
            for (seq, activation) in &action.queue {
                let known = self.activations.get(activation).is_some_and(|a| a.queued_at(*seq, id));
                if !known {
                    return Err(format!("{activation} waits for {id} and is not known to"));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, input: Input) {
        if self.env.step.is_some()
            && let Some(what) = What::of_input(&input)
        {
            self.tell(|_| what);
        }
        match input {
            Input::Tick => {}
            Input::InvokeRequested { activation, spec, body_bytes, attempt, journaled } => {
                self.handle_invoke(activation, spec, body_bytes, attempt, journaled);
            }
            Input::BodyKept { activation, action, bytes } => self.handle_body_kept(activation, action, bytes),
            Input::BodyDropped { activation } => self.drop_body(activation),
            Input::InvokeCancelled { activation } => self.handle_cancel(activation),
            Input::IntentRequested { container, kind, force } => self.handle_intent_request(container, kind, force),
            Input::VetoRequested { container, round, hold_us } => self.handle_veto_request(container, round, hold_us),
            Input::ReleaseRequested { owner, fence } => self.handle_release_request(&owner, fence),
            Input::DrainRequested { deadline_us, force } => self.handle_drain(deadline_us, force),
            Input::StopRequested { deadline_us } => self.handle_stop(deadline_us),
            Input::HandOverRequested { deadline_us } => self.handle_hand_over(deadline_us),
            Input::ActionChanged { spec } => {
                // Of one that this node has nothing to do with, the registry knows enough.
                if self.actions.contains_key(&spec.action) {
                    self.learn_spec(spec);
                }
            }
            Input::ActionDeleted { action, revision } => self.handle_deleted(&action, &revision),
            Input::PeerUp { peer, epoch } => self.on_peer_up(peer, epoch),
            Input::PeerDown { peer, epoch } => self.on_peer_down(&peer, epoch),
            Input::PeerFacts { peer, epoch, draining, room_mb } => self.on_peer_facts(&peer, epoch, draining, room_mb),
            Input::AdvertReceived { peer, epoch, hash, advert } => self.on_advert(peer, epoch, hash, advert),
            Input::IntentReceived { notice } => self.on_intent(notice),
            Input::ReserveReceived {
                request,
                owner_epoch,
                open_from,
                action,
                revision,
                spec,
                slots,
                wait_us,
                start,
                run,
            } => {
                let reserve = owner::Reserve { request, action, revision, slots, wait_us, start, run };
                self.on_reserve(reserve, owner_epoch, open_from, spec);
            }
            Input::RunReceived {
                request,
                owner_epoch,
                open_from,
                container,
                fence,
                action,
                revision,
                keep,
                attempt,
            } => {
                let run = owner::LeasedRun { request, container, fence, action, revision, keep, attempt };
                self.on_run(run, owner_epoch, open_from);
            }
            Input::ReleaseReceived { holder, holder_epoch, container, fence, keep } => {
                self.on_release(&holder, holder_epoch, &container, fence, keep);
            }
            Input::VetoReceived { from, container, round, hold_us } => self.on_veto(from, container, round, hold_us),
            Input::NoticeReceived { from, from_epoch, hash, queued, slots, start_us, service_us } => {
                self.on_notice(from, from_epoch, hash, home::Plan { queued, slots, start_us, service_us });
            }
            Input::ReserveGranted { request, container, fence, slots, ttl_us } => {
                self.on_granted(&request, container, fence, slots, ttl_us);
            }
            Input::ReserveDenied { request, denial, hint } => self.on_denied(&request, denial, hint),
            Input::ReserveFailed { request, never_sent } => self.on_reserve_failed(&request, never_sent),
            Input::ReserveWithdrawn { request } => self.on_reserve_withdrawn(&request),
            Input::RunAnswered { request, end } => self.on_run_answered(&request, end),
            Input::RecallReceived { owner, owner_epoch, fence } => self.on_recall(owner, owner_epoch, fence),
            Input::NoticeAnswered { hash, advice } => self.on_advice(hash, advice),
            Input::ContainerCreated { container } => self.handle_created(container),
            Input::ContainerReady { container } => self.handle_ready(container),
            Input::ContainerFailed { container, failure } => self.handle_failed(container, failure),
            Input::PauseEnded { container, ok } => self.handle_pause_ended(container, ok),
            Input::ResumeEnded { container, ok } => self.handle_resume_ended(container, ok),
            Input::RemoveEnded { container } => self.handle_remove_ended(container),
            Input::ContainerFound { found, spec } => self.handle_found(found, spec),
            Input::ContainerAdopted { container, paused } => self.handle_adopted(container, paused),
            Input::ContainerDied { container } => self.handle_died(container),
            Input::RunFinished { container, run, end } => self.handle_run_finished(container, run, end),
        }
    }

    fn fire_due(&mut self) {
        while let Some((at, _)) = self.timers.first()
            && *at <= self.now
        {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::GiveUp(activation) => self.give_up(activation),
                Timer::LeaseEnd(container, fence) => self.lease_end(container, fence),
                Timer::HeldEnd(owner, fence) => self.held_end(owner, fence),
                Timer::Idle(container) => self.idle_end(container),
                Timer::Close(container) => self.close_window(container),
                Timer::WaitEnd(request) => self.wait_end(&request),
                Timer::HomeSilent(action) => self.home_silent(&action),
                Timer::Decide(action) => self.decide_due(&action),
                Timer::Forget(action) => self.forget_due(&action),
                Timer::Stage => self.stage_due(),
                Timer::Advert(hash) => self.advert_due(hash),
                Timer::Drain => self.drain_due(),
            }
        }
    }

    /// Brings what the input changed to rest: queues are served, starts begin, adverts follow.
    fn settle(&mut self) {
        // An action may be touched again while it is served, e.g. when a start is given up: each time something has
        // ended that does not come back in this step. Should that ever be wrong, the rest waits for the next look.
        let mut rounds = 0;
        while let Some(action) = self.env.dirty.pop() {
            rounds += 1;
            if rounds > MOST_ROUNDS {
                debug_assert!(false, "{action} is served again and again");
                self.arm_decide(&action);
                continue;
            }
            self.serve(&action);
            self.drain_action(&action);
            self.pump_starts();
            self.refresh_advert(&action);
            self.forget_if_unused(&action);
        }
        self.drain_progress();
    }

    /// Marks an action to be served before the step ends.
    fn touch(&mut self, action: &ActionId) {
        if !self.env.dirty.contains(action) {
            self.env.dirty.push(action.clone());
        }
    }

    fn touch_container(&mut self, number: u64) {
        if let Some(action) = self.containers.get(&number).map(|c| c.action.clone()) {
            self.touch(&action);
        }
    }

    fn arm(&mut self, at: Time, timer: Timer) {
        self.timers.insert((at, timer));
    }

    fn emit(&mut self, output: Output) {
        if self.env.step.is_some()
            && let Some(what) = What::of_output(&output)
        {
            self.tell(|_| what);
        }
        self.env.out.push(output);
    }

    fn note(&mut self, event: Event) {
        self.emit(Output::Event(event));
    }

    fn begin_step(&mut self) {
        let Some(step) = &mut self.env.step else { return };
        *step += 1;
        if *step == 1 {
            self.tell(|node| {
                What::Began(Premises {
                    accepts_us: node.accepts_us(),
                    late_after_us: node.cfg().gossip_interval_us,
                    max_hold_us: node.cfg().max_hold_us,
                    memory_mb: node.cfg().memory_mb,
                })
            });
        }
    }

    /// Tells what happened, if anybody wants to know.
    fn tell(&mut self, what: impl FnOnce(&Node) -> What) {
        let Some(step) = self.env.step else { return };
        let (at, node, epoch) = (self.now, self.id.clone(), self.epoch);
        let record = Record { at, node, epoch, step, what: what(self) };
        self.env.out.push(Output::History(Box::new(record)));
    }

    fn cfg(&self) -> &Config {
        &self.env.cfg
    }

    fn container_id(&self, number: u64) -> ContainerId {
        ContainerId { owner: self.id.clone(), epoch: self.epoch, number }
    }

    /// xorshift: good enough to spread choices.
    fn random(&mut self, below: usize) -> usize {
        let mut x = self.env.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.env.random = x;
        (x % below.max(1) as u64) as usize
    }

    /// The state for an action, made or brought to the newer revision.
    fn learn_spec(&mut self, spec: Arc<ActionSpec>) {
        match self.actions.get_mut(&spec.action) {
            None => {
                let hash = spec.action_hash();
                self.actions.insert(spec.action.clone(), Action::new(spec, hash));
            }
            Some(action) if action.spec.revision < spec.revision => {
                let name = spec.action.clone();
                let old = std::mem::replace(&mut action.hash, spec.action_hash());
                action.spec = spec;
                action.deleted = false;
                action.starts_failed = 0;
                action.home = HomeStep::Unasked;
                let published = action.published.take();
                // They were counted at the old revision's memory.
                self.drop_queued_starts(&name);
                let Some(action) = self.actions.get(&name) else { return };
                let outdated: Vec<u64> = action.containers.iter().copied().collect();
                for number in outdated {
                    if self.containers.get(&number).is_some_and(|c| c.revision < self.actions[&name].spec.revision) {
                        self.retire(number);
                    }
                }
                self.withdraw_advert(old, published);
                self.forget_grants(old);
                self.touch(&name);
            }
            Some(_) => {}
        }
    }

    fn handle_deleted(&mut self, action: &ActionId, revision: &crate::ids::Revision) {
        let Some(state) = self.actions.get_mut(action) else { return };
        if state.spec.revision >= *revision {
            return;
        }
        state.deleted = true;
        let waiting: Vec<ActivationId> = state.queue.values().copied().collect();
        let containers: Vec<u64> = state.containers.iter().copied().collect();
        let requests: Vec<RequestId> = state.waiting.values().cloned().collect();
        for activation in waiting {
            self.refuse(activation, crate::output::Refusal::Deleted);
        }
        for request in requests {
            self.deny_waiting(&request, crate::output::Denial::UnknownAction);
        }
        self.drop_queued_starts(action);
        for container in containers {
            self.retire(container);
        }
        self.touch(action);
    }

    fn forget_due(&mut self, action: &ActionId) {
        if let Some(state) = self.actions.get_mut(action) {
            state.forget_armed = false;
            self.touch(action);
        }
    }

    /// Drops the state of an action that this node has nothing to do with any more.
    fn forget_if_unused(&mut self, action: &ActionId) {
        let now = self.now;
        let Some(state) = self.actions.get_mut(action) else { return };
        state.askers.retain(|_, at| now.since(*at) < 60 * crate::time::SECOND);
        let unused = state.queue.is_empty()
            && state.containers.is_empty()
            && state.held.is_empty()
            && state.reserving.is_empty()
            && state.waiting.is_empty()
            && state.starts_queued == 0
            && state.published.is_none()
            && state.home == HomeStep::Unasked
            // One that is bound may yet return to the queue.
            && !self.activations.values().any(|a| a.action == *action);
        if !unused {
            return;
        }
        // Its arrivals are the forecast that vetoes rest on: kept as long as one may come from it.
        let forecast_until = self.env.estimates.gap(action).map(|(_, last)| last + 2 * self.env.cfg.max_hold_us);
        match forecast_until {
            Some(until) if now < until => {
                if !std::mem::replace(&mut state.forget_armed, true) {
                    self.arm(until, Timer::Forget(action.clone()));
                }
            }
            _ => {
                if let Some(state) = self.actions.remove(action) {
                    self.forget_grants(state.hash);
                }
            }
        }
    }
}

impl Action {
    fn new(spec: Arc<ActionSpec>, hash: ActionHash) -> Self {
        Self {
            spec,
            hash,
            deleted: false,
            queue: BTreeMap::new(),
            containers: BTreeSet::new(),
            held: BTreeSet::new(),
            reserving: BTreeSet::new(),
            waiting: BTreeMap::new(),
            starts_queued: 0,
            starts_failed: 0,
            home: HomeStep::Unasked,
            askers: BTreeMap::new(),
            published: None,
            decide_armed: false,
            forget_armed: false,
        }
    }
}
