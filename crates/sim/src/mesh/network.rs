//! Calls between nodes: the half of the driver that sends requests, carries accepted runs out once, and answers.
//!
//! A call carries one request and its answers, in order; its request may be lost, late or arrive twice, its answers
//! may be lost. What it promises is what a connection promises: the caller is never told a refusal that only a
//! repeated copy met, in another life of the node or after the request was closed; and nothing of a call that it has
//! given up.

use embermesh_core::input::{RemoteEnd, RunEnd};
use embermesh_core::output::{
    Attempt, Denial, Event as Noted, Output, ReserveAnswer, RunAnswer, RunRefusal, SendReserve, SendRun,
};
use embermesh_core::time::MS;
use embermesh_core::{ActivationId, ContainerId, Epoch, Fence, Input, NodeId, RequestId, RunId};

use super::world::{Event, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallId(u64);

pub(crate) struct Call {
    pub(crate) from: usize,
    from_epoch: Epoch,
    pub(crate) to: usize,
    message: Message,
    /// Copies that reached the life that it is meant for.
    reached: u32,
    /// Its connection broke on the way back.
    broken: bool,
    /// Its last answer, or its failure, was told to the caller.
    done: bool,
    /// When the answer before arrives.
    answered_at: u64,
}

#[derive(Clone)]
enum Message {
    Reserve(SendReserve),
    Run(SendRun),
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Granted { container: ContainerId, fence: Fence, slots: u32, ttl_us: u64 },
    Denied { denial: Denial, hint: Option<NodeId> },
    Run(RemoteEnd),
}

/// A run for a peer, under way or ended: what a repeated request joins.
pub(crate) struct PeerRun {
    pub(crate) attempt: Attempt,
    renewed_us: u64,
    calls: Vec<CallId>,
    ended: Option<RemoteEnd>,
}

impl Message {
    fn request(&self) -> &RequestId {
        match self {
            Message::Reserve(m) => &m.request,
            Message::Run(m) => &m.request,
        }
    }

    fn attempt(&self) -> Option<Attempt> {
        match self {
            Message::Reserve(m) => m.run,
            Message::Run(m) => Some(Attempt { activation: m.activation, attempt: m.attempt }),
        }
    }

    fn owner_epoch(&self) -> Epoch {
        match self {
            Message::Reserve(m) => m.owner_epoch,
            Message::Run(m) => m.owner_epoch,
        }
    }
}

impl World {
    pub(crate) fn carry_out(&mut self, host: usize, outputs: Vec<Output>) {
        for output in outputs {
            self.carry_out_one(host, output);
        }
    }

    /// Now and then a driver can't note where a body goes, and takes the activation back.
    ///
    /// `sent`: how often its body was said to leave by now, this time included.
    fn withdraws(&mut self, id: ActivationId, sent: i32) -> bool {
        let may = self.wanted(id).is_some() && self.unsettled(id) <= sent;
        may && self.chance(20)
    }

    fn ask_again(&mut self, host: usize, activation: ActivationId, attempt: u32) {
        self.note("withdrawn");
        let Some(action) = self.wanted(activation).cloned() else { return };
        let Some(spec) = self.hosts[host].registry.iter().find(|spec| spec.action == action).cloned() else { return };
        self.deliver(host, Input::InvokeRequested { activation, spec, body_bytes: 100, attempt, journaled: false });
    }

    fn carry_out_one(&mut self, host: usize, output: Output) {
        let (me, epoch) = (self.hosts[host].id.clone(), self.hosts[host].epoch);
        match output {
            Output::RunLocal { activation, run, container, attempt, .. } if self.withdraws(activation, 0) => {
                self.deliver(host, Input::RunFinished { container, run, end: RunEnd::Withdrawn });
                self.ask_again(host, activation, attempt);
            }
            Output::RunLocal { activation, run, container, .. } => {
                self.start_run(host, container, run, Attempt { activation, attempt: u32::MAX });
            }
            Output::SendRun(send) if self.withdraws(send.activation, 1) => {
                self.deliver(host, Input::RunAnswered { request: send.request, end: RemoteEnd::Withdrawn });
                self.ask_again(host, send.activation, send.attempt);
            }
            Output::SendRun(send) => self.call(host, Message::Run(send)),
            Output::SendReserve(send) => self.call(host, Message::Reserve(send)),
            Output::Refuse { .. } => self.note("refused"),
            Output::Indeterminate { .. } => self.note("indeterminate"),
            Output::SendRelease { to, container, fence, keep } => {
                self.send(
                    host,
                    &to,
                    Input::ReleaseReceived { holder: me, holder_epoch: epoch, container, fence, keep },
                );
            }
            Output::SendRecall { to, fence } => {
                self.note("recall");
                self.send(host, &to, Input::RecallReceived { owner: me, owner_epoch: epoch, fence });
            }
            Output::SendIntent { to, gossip, notice } => {
                for peer in to {
                    self.send(host, &peer, Input::IntentReceived { notice: notice.clone() });
                }
                for peer in (0..self.hosts.len()).filter(|p| gossip && *p != host) {
                    let delay = self.below(100 * MS);
                    self.after(
                        delay,
                        Event::Input { to: peer, input: Input::IntentReceived { notice: notice.clone() } },
                    );
                }
            }
            Output::SendVeto { to, container, round, hold_us } => {
                self.send(host, &to, Input::VetoReceived { from: me, container, round, hold_us });
            }
            Output::SendNotice { to, hash, queued, slots, start_us, service_us } => {
                let from_epoch = epoch;
                self.send(
                    host,
                    &to,
                    Input::NoticeReceived { from: me, from_epoch, hash, queued, slots, start_us, service_us },
                );
            }
            Output::AnswerNotice { to, hash, advice } => self.send(host, &to, Input::NoticeAnswered { hash, advice }),
            Output::AnswerReserve { request, answer } => self.answer_reserve(host, &request, answer),
            Output::AnswerRun { request, answer } => self.answer_run(host, &request, answer),
            Output::StartContainer { container, .. } => self.engine_start(host, container),
            Output::PauseContainer { container } => self.engine_pause(host, container),
            Output::ResumeContainer { container } => self.engine_resume(host, container),
            Output::RemoveContainer { container } => self.engine_remove(host, container),
            Output::PublishAdvert { hash, advert } => {
                self.hosts[host].adverts.insert(hash, advert);
            }
            Output::Event(Noted::HomeAsked { .. }) => self.note("home asked"),
            // The process engine's containers end with their node.
            Output::AdoptContainer { .. } | Output::DiscardFound { .. } => {}
            Output::CameBack { .. } => self.note("came back"),
            Output::IntentAnswer { .. } | Output::Event(_) | Output::History(_) | Output::Drained { .. } => {}
        }
    }

    /// A message of one way: lost, late or twice.
    fn send(&mut self, from: usize, to: &NodeId, input: Input) {
        let Some(to) = self.host_of(to) else { return };
        for _ in 0..self.copies(from, to) {
            let delay = self.delay();
            self.after(delay, Event::Input { to, input: input.clone() });
        }
    }

    fn copies(&mut self, from: usize, to: usize) -> usize {
        if self.is_cut(from, to) || self.chance(60) { 0 } else { 1 + usize::from(self.chance(40)) }
    }

    fn delay(&mut self) -> u64 {
        let usual = 200 + self.below(2 * MS);
        if self.chance(100) {
            usual + self.below(60 * MS)
        } else if self.chance(30) {
            usual + self.below(900 * MS)
        } else {
            usual
        }
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.iter().any(|(x, y, until)| *until > self.now && ((*x, *y) == (a, b) || (*x, *y) == (b, a)))
    }

    fn call(&mut self, from: usize, message: Message) {
        let (to, patience) = match &message {
            Message::Reserve(m) => (m.to.clone(), m.timeout_us),
            Message::Run(m) => (m.to.clone(), m.timeout_us),
        };
        let Some(to) = self.host_of(&to) else { return };
        let id = CallId(self.calls.len() as u64);
        let call = Call {
            from,
            from_epoch: self.hosts[from].epoch,
            to,
            message,
            reached: 0,
            broken: false,
            done: false,
            answered_at: 0,
        };
        self.calls.insert(id, call);
        let unreachable = self.hosts[to].node.is_none() || self.is_cut(from, to);
        let refused = if unreachable { self.below(3) > 0 } else { self.chance(10) };
        if refused {
            let delay = self.delay();
            return self.after(delay, Event::Fails { call: id, never_sent: true });
        }
        for _ in 0..self.copies(from, to) {
            let delay = self.delay();
            self.after(delay, Event::Arrives { call: id });
        }
        self.after(patience + 50 * MS, Event::Fails { call: id, never_sent: false });
    }

    /// The callee is gone: most callers notice soon, the others by their time-out.
    pub(crate) fn break_calls_to(&mut self, host: usize) {
        let open: Vec<CallId> =
            self.calls.iter().filter(|(_, c)| c.to == host && c.reached > 0 && !c.done).map(|(id, _)| *id).collect();
        for call in open {
            let soon = self.below(4 * MS);
            if self.below(4) > 0 {
                self.after(soon, Event::Fails { call, never_sent: false });
            }
        }
    }

    pub(crate) fn call_arrives(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (to, message) = (call.to, call.message.clone());
        if self.hosts[to].node.is_none() {
            return;
        }
        call.reached += u32::from(self.hosts[to].epoch == message.owner_epoch());
        self.hosts[to].parked.entry(message.request().clone()).or_default().push(id);
        let input = match message {
            Message::Reserve(m) => Input::ReserveReceived {
                spec: self.hosts[to].registry.iter().find(|s| s.action == m.action).cloned(),
                request: m.request,
                owner_epoch: m.owner_epoch,
                open_from: m.open_from,
                action: m.action,
                revision: m.revision,
                slots: m.slots,
                wait_us: m.wait_us,
                start: m.start,
                run: m.run,
            },
            Message::Run(m) => Input::RunReceived {
                request: m.request,
                owner_epoch: m.owner_epoch,
                open_from: m.open_from,
                container: m.container,
                fence: m.fence,
                action: m.action,
                revision: m.revision,
                keep: m.keep,
                attempt: Attempt { activation: m.activation, attempt: m.attempt },
            },
        };
        self.deliver(to, input);
    }

    fn answer_reserve(&mut self, host: usize, request: &RequestId, answer: ReserveAnswer) {
        let calls = self.hosts[host].parked.remove(request).unwrap_or_default();
        match answer {
            ReserveAnswer::Denied { denial, hint } => {
                for call in calls {
                    self.reply(call, Reply::Denied { denial, hint: hint.clone() });
                }
            }
            ReserveAnswer::Granted { container, fence, slots, ttl_us, run, first } => {
                for call in &calls {
                    let reply = Reply::Granted { container: container.clone(), fence, slots, ttl_us };
                    self.reply(*call, reply);
                }
                let Some(run) = run else { return };
                let attempt = calls.first().and_then(|c| self.calls.get(c)).and_then(|c| c.message.attempt());
                let Some(attempt) = attempt else { return };
                if first {
                    self.carry_out_run(host, container.number, run, attempt, 0, calls);
                } else {
                    self.join_run(host, run, attempt, calls);
                }
            }
        }
    }

    fn answer_run(&mut self, host: usize, request: &RequestId, answer: RunAnswer) {
        let calls = self.hosts[host].parked.remove(request).unwrap_or_default();
        let attempt = calls.first().and_then(|c| self.calls.get(c)).and_then(|c| c.message.attempt());
        let Some(attempt) = attempt else { return };
        match answer {
            RunAnswer::Accepted { run, container, renewed_us } => {
                self.carry_out_run(host, container, run, attempt, renewed_us, calls);
            }
            RunAnswer::Joined { run, .. } => self.join_run(host, run, attempt, calls),
            RunAnswer::Refused(refusal) => {
                for call in calls {
                    self.reply(call, Reply::Run(RemoteEnd::Refused(refusal)));
                }
            }
        }
    }

    fn carry_out_run(
        &mut self,
        host: usize,
        container: u64,
        run: RunId,
        attempt: Attempt,
        renewed_us: u64,
        calls: Vec<CallId>,
    ) {
        let peer_run = PeerRun { attempt, renewed_us, calls, ended: None };
        self.hosts[host].runs_for_peers.insert(run, peer_run);
        self.start_run(host, container, run, attempt);
    }

    fn join_run(&mut self, host: usize, run: RunId, attempt: Attempt, calls: Vec<CallId>) {
        self.note("run joined");
        let Some(joined) = self.hosts[host].runs_for_peers.get_mut(&run) else { return };
        if joined.attempt != attempt {
            // The judge has its say on it.
            return;
        }
        if let Some(end) = joined.ended {
            for call in calls {
                self.reply(call, Reply::Run(end));
            }
        } else {
            joined.calls.extend(calls);
        }
    }

    /// The container has ended a run: the node is told, then whoever waits for it.
    pub(crate) fn run_ends(&mut self, host: usize, container: u64, run: RunId, end: RunEnd) {
        self.deliver(host, Input::RunFinished { container, run, end });
        let Some(peer_run) = self.hosts[host].runs_for_peers.get_mut(&run) else {
            if end != RunEnd::NeverStarted {
                self.note("answered here");
            }
            return;
        };
        let end = match end {
            RunEnd::NeverStarted => RemoteEnd::Refused(RunRefusal::NotStarted),
            _ => RemoteEnd::Answered { renewed_us: peer_run.renewed_us },
        };
        peer_run.ended = Some(end);
        for call in std::mem::take(&mut peer_run.calls) {
            self.reply(call, Reply::Run(end));
        }
    }

    fn reply(&mut self, id: CallId, reply: Reply) {
        let delay = self.delay();
        let lost = self.chance(80);
        let prompt = self.chance(500);
        let now = self.now;
        let Some(call) = self.calls.get_mut(&id) else { return };
        if call.broken {
            return;
        }
        let (from, to) = (call.from, call.to);
        if lost || self.is_cut(from, to) {
            if let Some(call) = self.calls.get_mut(&id) {
                call.broken = true;
            }
            if prompt {
                self.after(delay, Event::Fails { call: id, never_sent: false });
            }
            return;
        }
        let Some(call) = self.calls.get_mut(&id) else { return };
        let at = call.answered_at.max(now + delay);
        call.answered_at = at;
        self.after(at - now, Event::Reply { call: id, reply });
    }

    pub(crate) fn reply_arrives(&mut self, id: CallId, reply: Reply) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (from, message) = (call.from, call.message.clone());
        // Nobody listens to a call any more that has failed.
        if call.done || self.hosts[from].node.is_none() || self.hosts[from].epoch != call.from_epoch {
            return;
        }
        // A connection delivers once: what a repeated copy is told is not for the caller.
        let told_a_copy = match reply {
            Reply::Denied { denial: Denial::WrongEpoch, .. }
            | Reply::Run(RemoteEnd::Refused(RunRefusal::WrongEpoch)) => call.reached > 0,
            Reply::Denied { denial: Denial::StaleRequest, .. }
            | Reply::Run(RemoteEnd::Refused(RunRefusal::StaleRequest)) => call.reached > 1,
            _ => false,
        };
        if told_a_copy {
            return;
        }
        call.done |= match reply {
            Reply::Granted { .. } => message.attempt().is_none(),
            Reply::Denied { .. } | Reply::Run(_) => true,
        };
        let request = message.request().clone();
        match reply {
            Reply::Granted { container, fence, slots, ttl_us } => {
                self.deliver(from, Input::ReserveGranted { request, container, fence, slots, ttl_us });
            }
            Reply::Denied { denial, hint } => {
                self.deliver(from, Input::ReserveDenied { request, denial, hint });
            }
            Reply::Run(end) => {
                let Some(attempt) = message.attempt() else { return };
                self.run_answered(from, request, attempt, end);
            }
        }
    }

    pub(crate) fn call_fails(&mut self, id: CallId, never_sent: bool) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (from, message) = (call.from, call.message.clone());
        if std::mem::replace(&mut call.done, true)
            || self.hosts[from].node.is_none()
            || self.hosts[from].epoch != call.from_epoch
        {
            return;
        }
        match message {
            Message::Reserve(m) => {
                self.deliver(from, Input::ReserveFailed { request: m.request, never_sent });
            }
            Message::Run(m) => {
                let end = if never_sent { RemoteEnd::NeverSent } else { RemoteEnd::Unknown };
                let attempt = Attempt { activation: m.activation, attempt: m.attempt };
                self.run_answered(from, m.request, attempt, end);
            }
        }
    }
}
