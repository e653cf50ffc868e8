//! One node at a time: each transition and each refusal, told by what goes in and what comes out.

#![allow(clippy::unwrap_used)]

mod adopt;
mod drain;
mod holder;
mod home;
mod intents;
mod ladder;
mod origin;
mod owner;
mod peers;
mod recall;
mod revisions;
mod starts;

use super::*;
use crate::container::Lifecycle;
use crate::ids::{ContainerId, Revision, RunId};
use crate::input::RunEnd;
use crate::output::{Advert, Attempt, ReserveAnswer, RunAnswer, SendReserve, SendRun};
use crate::time::{MS, Micros, SECOND};

/// One node with its clock.
struct Rig {
    node: Node,
    now: Time,
}

/// A Reserve of a peer; [`Default`] asks for one slot and waits for nothing.
struct Ask {
    number: u64,
    epoch: u64,
    owner_epoch: u64,
    open_from: u64,
    revision: u64,
    slots: u32,
    wait_us: Micros,
    start: bool,
    run: Option<u128>,
}

impl Default for Ask {
    fn default() -> Self {
        let (number, epoch, owner_epoch, open_from, revision) = (1, 1, 1, 0, 1);
        Self { number, epoch, owner_epoch, open_from, revision, slots: 1, wait_us: 0, start: false, run: None }
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        config.validate().unwrap();
        Self { node: Node::new(NodeId::new("n1"), Epoch(1), Arc::new(config), 1), now: Time(100 * SECOND) }
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.node.handle(self.now, input, &mut out);
        out
    }

    /// Lets time pass, the node waking at each of its deadlines.
    fn pass(&mut self, by: Micros) -> Vec<Output> {
        let until = self.now + by;
        let mut out = Vec::new();
        while let Some(at) = self.node.next_deadline()
            && at <= until
        {
            self.now = self.now.max(at);
            out.extend(self.tell(Input::Tick));
        }
        self.now = until;
        out.extend(self.tell(Input::Tick));
        out
    }

    fn invoke(&mut self, id: u128, spec: &Arc<ActionSpec>) -> Vec<Output> {
        self.invoke_sized(id, spec, 100)
    }

    fn invoke_sized(&mut self, id: u128, spec: &Arc<ActionSpec>, body_bytes: u64) -> Vec<Output> {
        let (activation, spec) = (ActivationId(id), spec.clone());
        self.tell(Input::InvokeRequested { activation, spec, body_bytes, attempt: 0, journaled: false })
    }

    fn invoke_journaled(&mut self, id: u128, spec: &Arc<ActionSpec>, body_bytes: u64, attempt: u32) -> Vec<Output> {
        let (activation, spec) = (ActivationId(id), spec.clone());
        self.tell(Input::InvokeRequested { activation, spec, body_bytes, attempt, journaled: true })
    }

    fn finish(&mut self, container: u64, run: RunId, end: RunEnd) -> Vec<Output> {
        self.tell(Input::RunFinished { container, run, end })
    }

    fn created(&mut self, container: u64) {
        self.tell(Input::ContainerCreated { container });
    }

    fn ready(&mut self, container: u64) -> Vec<Output> {
        self.tell(Input::ContainerReady { container })
    }

    /// A warm, idle container that has served one run; to be called before there are peers.
    fn warm(&mut self, spec: &Arc<ActionSpec>) -> u64 {
        let out = self.invoke(u128::MAX, spec);
        let container = started(&out).unwrap();
        self.created(container);
        self.pass(300 * MS);
        let out = self.ready(container);
        let (_, run) = ran(&out).unwrap();
        self.finish(container, run, RunEnd::Answered);
        container
    }

    /// Two warm containers, both idle since now.
    fn warm_pair(&mut self, spec: &Arc<ActionSpec>) -> [u64; 2] {
        let elder = self.warm(spec);
        let (_, run) = ran(&self.invoke(1, spec)).unwrap();
        let mut out = self.invoke(2, spec);
        // Only when it has waited in vain.
        out.extend(self.pass(5 * SECOND));
        let other = started(&out).unwrap();
        self.created(other);
        let (_, other_run) = ran(&self.ready(other)).unwrap();
        self.finish(elder, run, RunEnd::Answered);
        self.finish(other, other_run, RunEnd::Answered);
        [elder, other]
    }

    fn peer(&mut self, name: &str) {
        self.tell(Input::PeerUp { peer: NodeId::new(name), epoch: Epoch(1) });
    }

    fn advert(&mut self, name: &str, spec: &ActionSpec, advert: Advert) -> Vec<Output> {
        let (peer, hash) = (NodeId::new(name), spec.action_hash());
        self.tell(Input::AdvertReceived { peer, epoch: Epoch(1), hash, advert })
    }

    /// A node that can start nothing itself: what it runs, it runs at peers.
    fn without_memory() -> Self {
        Self::with(Config { memory_mb: 64, ..Config::default() })
    }

    /// What `n2` is answered at once, if it is.
    fn reserve(&mut self, spec: &Arc<ActionSpec>, ask: Ask) -> Option<ReserveAnswer> {
        answered(&self.reserve_out("n2", spec, ask))
    }

    fn reserve_out(&mut self, holder: &str, spec: &Arc<ActionSpec>, ask: Ask) -> Vec<Output> {
        self.tell(Input::ReserveReceived {
            request: RequestId { holder: NodeId::new(holder), epoch: Epoch(ask.epoch), number: ask.number },
            owner_epoch: Epoch(ask.owner_epoch),
            open_from: ask.open_from,
            action: spec.action.clone(),
            revision: revision(ask.revision),
            spec: Some(spec.clone()),
            slots: ask.slots,
            wait_us: ask.wait_us,
            start: ask.start,
            run: ask.run.map(attempt),
        })
    }

    /// A run of `n2` on a lease that was granted here.
    fn run(&mut self, spec: &ActionSpec, number: u64, container: u64, fence: Fence, keep: u32) -> RunAnswer {
        let input = self.run_input(spec, number, container, fence, keep);
        run_answered(&self.tell(input)).unwrap()
    }

    fn run_input(&self, spec: &ActionSpec, number: u64, container: u64, fence: Fence, keep: u32) -> Input {
        Input::RunReceived {
            request: request("n2", number),
            owner_epoch: Epoch(1),
            open_from: 0,
            container: own(container),
            fence,
            action: spec.action.clone(),
            revision: spec.revision.clone(),
            keep,
            attempt: attempt(u128::from(number)),
        }
    }

    /// A lease of `n2` on a container of the action.
    fn granted(&mut self, spec: &Arc<ActionSpec>, ask: Ask) -> Fence {
        match self.reserve(spec, ask) {
            Some(ReserveAnswer::Granted { fence, .. }) => fence,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, container: u64, fence: Fence, keep: u32) -> Vec<Output> {
        let (holder, holder_epoch) = (NodeId::new("n2"), Epoch(1));
        self.tell(Input::ReleaseReceived { holder, holder_epoch, container: own(container), fence, keep })
    }

    /// A lease of `slots` at `n2`, held here and without a run on it: made for `id`, whose run has ended.
    fn held(&mut self, id: u128, spec: &Arc<ActionSpec>, slots: u32) -> Fence {
        self.peer("n2");
        self.advert("n2", spec, FREE);
        let out = self.invoke(id, spec);
        let reserve = reserved(&out).unwrap();
        let fence = self.grant_held(&reserve, slots);
        self.run_ended(&reserve.request, 0);
        fence
    }

    fn grant_held(&mut self, reserve: &SendReserve, slots: u32) -> Fence {
        let fence = Fence { epoch: Epoch(1), counter: reserve.request.number };
        self.tell(granted_by("n2", reserve, fence, slots));
        fence
    }

    fn run_ended(&mut self, request: &RequestId, renewed_us: Micros) -> Vec<Output> {
        let end = crate::input::RemoteEnd::Answered { renewed_us };
        self.tell(Input::RunAnswered { request: request.clone(), end })
    }

    fn state(&self, container: u64) -> Option<Lifecycle> {
        self.node.containers().find(|c| c.id.number == container).map(|c| c.container.state())
    }

    fn free(&self, container: u64) -> u32 {
        self.node.containers().find(|c| c.id.number == container).map_or(0, |c| c.container.free())
    }
}

const FREE: Advert = Advert { warm: 1, paused: 0, starting: 0, free_bucket: 3 };

fn spec(concurrency: u32) -> Arc<ActionSpec> {
    named("ns", "a", concurrency)
}

fn named(namespace: &str, name: &str, concurrency: u32) -> Arc<ActionSpec> {
    Arc::new(ActionSpec {
        action: ActionId::new(namespace, name),
        revision: revision(1),
        concurrency,
        memory_mb: 256,
        timeout_us: 60 * SECOND,
        idempotent: false,
        image: "image".into(),
    })
}

fn newer(spec: &ActionSpec) -> Arc<ActionSpec> {
    Arc::new(ActionSpec { revision: revision(spec.revision.counter + 1), ..spec.clone() })
}

fn revision(counter: u64) -> Revision {
    Revision { counter, node: NodeId::new("n9") }
}

fn request(holder: &str, number: u64) -> RequestId {
    RequestId { holder: NodeId::new(holder), epoch: Epoch(1), number }
}

fn attempt(activation: u128) -> Attempt {
    Attempt { activation: ActivationId(activation), attempt: 0 }
}

/// A container of the node under test.
fn own(number: u64) -> ContainerId {
    ContainerId { owner: NodeId::new("n1"), epoch: Epoch(1), number }
}

fn granted_by(owner: &str, reserve: &SendReserve, fence: Fence, slots: u32) -> Input {
    let container = ContainerId { owner: NodeId::new(owner), epoch: Epoch(1), number: 5 };
    Input::ReserveGranted { request: reserve.request.clone(), container, fence, slots, ttl_us: 5 * SECOND }
}

fn started(out: &[Output]) -> Option<u64> {
    out.iter().find_map(|o| match o {
        Output::StartContainer { container, .. } => Some(*container),
        _ => None,
    })
}

fn starts(out: &[Output]) -> usize {
    out.iter().filter(|o| matches!(o, Output::StartContainer { .. })).count()
}

/// The activation and the run that begin in an own container.
fn ran(out: &[Output]) -> Option<(ActivationId, RunId)> {
    out.iter().find_map(|o| match o {
        Output::RunLocal { activation, run, .. } => Some((*activation, *run)),
        _ => None,
    })
}

fn reserved(out: &[Output]) -> Option<SendReserve> {
    out.iter().find_map(|o| match o {
        Output::SendReserve(send) => Some(send.clone()),
        _ => None,
    })
}

fn sent_run(out: &[Output]) -> Option<SendRun> {
    out.iter().find_map(|o| match o {
        Output::SendRun(send) => Some(send.clone()),
        _ => None,
    })
}

fn answered(out: &[Output]) -> Option<ReserveAnswer> {
    out.iter().find_map(|o| match o {
        Output::AnswerReserve { answer, .. } => Some(answer.clone()),
        _ => None,
    })
}

fn run_answered(out: &[Output]) -> Option<RunAnswer> {
    out.iter().find_map(|o| match o {
        Output::AnswerRun { answer, .. } => Some(answer.clone()),
        _ => None,
    })
}

fn refused(out: &[Output]) -> Vec<(u128, crate::output::Refusal)> {
    let refusals = out.iter().filter_map(|o| match o {
        Output::Refuse { activation, refusal, .. } => Some((activation.0, *refusal)),
        _ => None,
    });
    refusals.collect()
}

fn noted(out: &[Output], found: impl Fn(&Event) -> bool) -> bool {
    out.iter().any(|o| matches!(o, Output::Event(event) if found(event)))
}

/// The runs' own names for what a denial says.
fn denial(answer: Option<ReserveAnswer>) -> Option<crate::output::Denial> {
    match answer {
        Some(ReserveAnswer::Denied { denial, .. }) => Some(denial),
        _ => None,
    }
}

/// A model checker holds nodes as values.
#[test]
fn a_node_is_a_value_that_can_be_copied_compared_and_hashed() {
    fn value<T: Clone + Eq + Hash + Send>() {}
    value::<Node>();
    let mut rig = Rig::new();
    let before = rig.node.clone();
    rig.invoke(1, &spec(1));
    assert_ne!(rig.node, before);
}

#[test]
#[should_panic(expected = "memory is 0 MB, counted 1 MB")]
fn each_step_of_a_debug_build_ends_with_the_nodes_own_check() {
    let mut rig = Rig::new();
    rig.node.memory_used_mb = 1;
    rig.tell(Input::Tick);
}

#[test]
fn the_check_names_the_invariant_that_is_broken() {
    let mut rig = Rig::with(Config { memory_mb: 256, ..Config::default() });
    let container = rig.warm(&spec(1));
    rig.node.containers.get_mut(&container).unwrap().memory_mb = 300;
    rig.node.memory_used_mb = 300;
    assert!(rig.node.check().unwrap_err().starts_with("M1_memory_within_limit"));
}

#[test]
fn a_clock_that_goes_back_does_not_take_the_node_with_it() {
    let mut rig = Rig::new();
    rig.tell(Input::Tick);
    let now = rig.node.now;
    rig.now = Time(1);
    rig.tell(Input::Tick);
    assert_eq!(rig.node.now, now);
}
