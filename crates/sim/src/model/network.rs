//! Messages under way, and the half of the driver that sends, answers, and carries accepted runs out once.
//!
//! A call has one request and its answers, in order. A lost part of it fails it; a repeated request is told apart, for
//! a connection delivers once and what a copy is told is not for the caller.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use embermesh_core::history::What;
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Attempt, Output, ReserveAnswer, RunAnswer};
use embermesh_core::{Epoch, Input, NodeId, RequestId, RunId};

use super::setting::Seen;
use super::state::{Op, State};

/// A message on its way to a host; kept in the order of `key`, so that the order of sending makes no difference.
#[derive(Debug, Clone)]
pub(super) struct Flying {
    pub(super) to: usize,
    pub(super) message: Arc<Message>,
    pub(super) key: u64,
    /// Deadlines that have passed since it was sent.
    pub(super) lag: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Message {
    OneWay(Input),
    /// A Reserve or a Run of another host. A `copy` is the same once more, for whose answer nobody listens.
    Call {
        from: usize,
        request: RequestId,
        input: Input,
        copy: bool,
    },
    Reply {
        request: RequestId,
        for_epoch: Epoch,
        input: Input,
    },
}

/// A run for a peer, under way or ended: what a repeated request joins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PeerRun {
    pub(super) request: RequestId,
    renewed_us: u64,
    /// Its caller listens.
    waits: bool,
    pub(super) ended: Option<RemoteEnd>,
}

impl State {
    pub(super) fn carry_out(&mut self, host: usize, outputs: Vec<Output>) {
        for output in outputs {
            self.carry_out_one(host, output);
        }
    }

    fn carry_out_one(&mut self, host: usize, output: Output) {
        let (me, epoch) = (self.hosts[host].id.clone(), self.hosts[host].epoch);
        match output {
            Output::RunLocal { run, container, .. } => self.begin_run(host, container, run),
            Output::SendRun(m) => {
                let (to, request) = (m.to, m.request.clone());
                let input = Input::RunReceived {
                    request: m.request,
                    owner_epoch: m.owner_epoch,
                    open_from: m.open_from,
                    container: m.container,
                    fence: m.fence,
                    action: m.action,
                    revision: m.revision,
                    keep: m.keep,
                    attempt: Attempt { activation: m.activation, attempt: m.attempt },
                };
                self.call(host, &to, request, input);
            }
            Output::SendReserve(m) => {
                let (to, request) = (m.to, m.request.clone());
                let input = Input::ReserveReceived {
                    spec: self.specs.iter().find(|s| s.action == m.action).cloned(),
                    request: m.request,
                    owner_epoch: m.owner_epoch,
                    open_from: m.open_from,
                    action: m.action,
                    revision: m.revision,
                    slots: m.slots,
                    wait_us: m.wait_us,
                    start: m.start,
                    run: m.run,
                };
                self.call(host, &to, request, input);
            }
            Output::SendRelease { to, container, fence, keep } => {
                self.send(&to, Input::ReleaseReceived { holder: me, holder_epoch: epoch, container, fence, keep });
            }
            Output::SendRecall { to, fence } => {
                self.send(&to, Input::RecallReceived { owner: me, owner_epoch: epoch, fence });
            }
            Output::SendIntent { to, gossip, notice } => {
                let ids: Vec<NodeId> = self.hosts.iter().map(|h| h.id.clone()).collect();
                for id in ids.iter().filter(|id| **id != me && (gossip || to.contains(id))) {
                    self.send(id, Input::IntentReceived { notice: notice.clone() });
                }
            }
            Output::SendVeto { to, container, round, hold_us } => {
                self.send(&to, Input::VetoReceived { from: me, container, round, hold_us });
            }
            Output::SendNotice { to, hash, queued, slots, start_us, service_us } => {
                let from_epoch = epoch;
                self.send(
                    &to,
                    Input::NoticeReceived { from: me, from_epoch, hash, queued, slots, start_us, service_us },
                );
            }
            Output::AnswerNotice { to, hash, advice } => self.send(&to, Input::NoticeAnswered { hash, advice }),
            Output::AnswerReserve { request, answer } => self.answer_reserve(host, request, answer),
            Output::AnswerRun { request, answer } => self.answer_run(host, request, answer),
            Output::StartContainer { container, .. } => self.engine_has(host, container, Op::Start),
            Output::PauseContainer { container } => self.engine_has(host, container, Op::Pause),
            Output::ResumeContainer { container } => self.engine_has(host, container, Op::Resume),
            Output::RemoveContainer { container } => self.engine_has(host, container, Op::Remove),
            Output::PublishAdvert { hash, advert } => {
                self.hosts[host].shows.insert(hash, advert);
            }
            // Containers end with their node.
            Output::AdoptContainer { .. }
            | Output::DiscardFound { .. }
            | Output::Refuse { .. }
            | Output::Indeterminate { .. }
            | Output::CameBack { .. }
            | Output::IntentAnswer { .. }
            | Output::Event(_)
            | Output::History(_)
            | Output::Drained { .. } => {}
        }
    }

    fn engine_has(&mut self, host: usize, container: u64, op: Op) {
        self.hosts[host].ops.insert((container, op), 0);
    }

    fn begin_run(&mut self, host: usize, container: u64, run: RunId) {
        self.engine_has(host, container, Op::Run(run));
        self.tell(host, What::Entered { container, run });
    }

    fn send(&mut self, to: &NodeId, input: Input) {
        if let Some(to) = self.host_of(to) {
            self.fly(to, Message::OneWay(input));
        }
    }

    fn call(&mut self, from: usize, to: &NodeId, request: RequestId, input: Input) {
        if let Some(to) = self.host_of(to) {
            self.fly(to, Message::Call { from, request, input, copy: false });
        }
    }

    pub(super) fn fly(&mut self, to: usize, message: Message) {
        let mut hasher = DefaultHasher::new();
        (to, &message).hash(&mut hasher);
        let key = hasher.finish();
        let at = self.flying.partition_point(|f| (f.key, f.lag) < (key, 0));
        self.flying.insert(at, Flying { to, message: Arc::new(message), key, lag: 0 });
    }

    fn answer_reserve(&mut self, host: usize, request: RequestId, answer: ReserveAnswer) {
        let listens = self.hosts[host].parked.remove(&request);
        match answer {
            ReserveAnswer::Denied { denial, hint } => {
                if listens {
                    let input = Input::ReserveDenied { request: request.clone(), denial, hint };
                    self.reply(request, input);
                }
            }
            ReserveAnswer::Granted { container, fence, slots, ttl_us, run, first } => {
                let number = container.number;
                if listens {
                    let input = Input::ReserveGranted { request: request.clone(), container, fence, slots, ttl_us };
                    self.reply(request.clone(), input);
                }
                match run {
                    Some(run) if first => self.run_for_peer(host, number, run, request, 0, listens),
                    Some(run) => self.join(host, run, request, listens),
                    None => {}
                }
            }
        }
    }

    fn answer_run(&mut self, host: usize, request: RequestId, answer: RunAnswer) {
        let listens = self.hosts[host].parked.remove(&request);
        match answer {
            RunAnswer::Accepted { run, container, renewed_us } => {
                self.run_for_peer(host, container, run, request, renewed_us, listens);
            }
            RunAnswer::Joined { run } => self.join(host, run, request, listens),
            RunAnswer::Refused(refusal) if listens => {
                let end = RemoteEnd::Refused(refusal);
                self.reply(request.clone(), Input::RunAnswered { request, end });
            }
            RunAnswer::Refused(_) => {}
        }
    }

    fn run_for_peer(
        &mut self,
        host: usize,
        container: u64,
        run: RunId,
        request: RequestId,
        renewed_us: u64,
        waits: bool,
    ) {
        self.hosts[host].runs.insert(run, PeerRun { request, renewed_us, waits, ended: None });
        self.begin_run(host, container, run);
    }

    fn join(&mut self, host: usize, run: RunId, request: RequestId, listens: bool) {
        let Some(joined) = self.hosts[host].runs.get_mut(&run).filter(|_| listens) else { return };
        match joined.ended {
            Some(end) => self.reply(request.clone(), Input::RunAnswered { request, end }),
            None => joined.waits = true,
        }
    }

    /// The container has ended a run for a peer; the node knows already.
    pub(super) fn peer_run_ended(&mut self, host: usize, run: RunId, never_started: bool) {
        let Some(ended) = self.hosts[host].runs.get_mut(&run) else { return };
        let end = if never_started {
            RemoteEnd::Refused(embermesh_core::output::RunRefusal::NotStarted)
        } else {
            RemoteEnd::Answered { renewed_us: ended.renewed_us }
        };
        ended.ended = Some(end);
        let request = ended.request.clone();
        if std::mem::take(&mut ended.waits) {
            self.reply(request.clone(), Input::RunAnswered { request, end });
        }
    }

    fn reply(&mut self, request: RequestId, input: Input) {
        if let Some(to) = self.host_of(&request.holder) {
            let for_epoch = request.epoch;
            self.fly(to, Message::Reply { request, for_epoch, input });
        }
    }

    /// Answers of one call arrive in order: the grant first.
    pub(super) fn may_arrive(&self, flying: &Flying) -> bool {
        match &*flying.message {
            Message::Reply { request, input: Input::RunAnswered { .. }, .. } => !self.flying.iter().any(|f| {
                matches!(&*f.message, Message::Reply { request: r, input: Input::ReserveGranted { .. }, .. } if r == request)
            }),
            _ => true,
        }
    }

    pub(super) fn arrive(&mut self, flying: Flying) {
        let Flying { to, message, .. } = flying;
        match Arc::unwrap_or_clone(message) {
            Message::OneWay(input) => self.step(to, input),
            Message::Call { request, input, copy, .. } => {
                if self.hosts[to].node.is_none() {
                    if !copy {
                        self.fails(&request, &input, true);
                    }
                    return;
                }
                if !copy {
                    self.hosts[to].parked.insert(request);
                }
                self.step(to, input);
            }
            Message::Reply { for_epoch, input, .. } => {
                if self.hosts[to].epoch == for_epoch {
                    self.step(to, input);
                }
            }
        }
    }

    /// Part of a call is lost, and with it the call; of what wants no answer nobody hears.
    pub(super) fn lose(&mut self, flying: Flying) {
        let (request, input) = match Arc::unwrap_or_clone(flying.message) {
            Message::Call { request, input, .. } | Message::Reply { request, input, .. } => (request, input),
            Message::OneWay(_) => return,
        };
        self.break_off(&request);
        self.fails(&request, &input, false);
    }

    /// Nobody listens to what is still to come for this request.
    fn break_off(&mut self, request: &RequestId) {
        self.flying.retain(|f| !matches!(&*f.message, Message::Reply { request: r, .. } if r == request));
        for host in &mut self.hosts {
            host.parked.remove(request);
            for run in host.runs.values_mut().filter(|run| run.request == *request) {
                run.waits = false;
            }
        }
    }

    /// Tells the caller that its call has failed.
    fn fails(&mut self, request: &RequestId, input: &Input, never_sent: bool) {
        let request = request.clone();
        let end = if never_sent { RemoteEnd::NeverSent } else { RemoteEnd::Unknown };
        let failure = match input {
            Input::ReserveReceived { .. } | Input::ReserveGranted { .. } | Input::ReserveDenied { .. } => {
                Input::ReserveFailed { request: request.clone(), never_sent }
            }
            _ => Input::RunAnswered { request: request.clone(), end },
        };
        self.reply(request, failure);
    }

    pub(super) fn crash(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        let Some(node) = here.node.take() else { return };
        here.ops.clear();
        here.shows.clear();
        here.sees.clear();
        let parked = std::mem::take(&mut here.parked);
        let runs = std::mem::take(&mut here.runs);
        if node.granted_leases().next().is_some() {
            self.reached(Seen::RestartWithLease);
        }
        let waiting = runs.into_values().filter(|run| run.waits).map(|run| run.request);
        // Which of the two a call is, its caller knows: an end without a grant fails a Reserve as well.
        for request in parked.into_iter().chain(waiting) {
            let failure = Input::RunAnswered { request: request.clone(), end: RemoteEnd::Unknown };
            self.reply(request, failure);
        }
    }

    pub(super) fn host_of(&self, id: &NodeId) -> Option<usize> {
        self.hosts.iter().position(|h| h.id == *id)
    }
}
