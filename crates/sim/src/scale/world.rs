//! Nodes, time, the network and the engine: the half of the driver that carries outputs out, over a network that loses
//! nothing and an engine that never fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use embermesh_core::container::Lifecycle;
use embermesh_core::input::{RemoteEnd, RunEnd};
use embermesh_core::output::{Advert, Attempt, Event as Noted, Output, ReserveAnswer, RunAnswer, Served};
use embermesh_core::time::{MS, SECOND};
use embermesh_core::{ActionHash, ActivationId, Config, Epoch, Input, Micros, Node, NodeId, RequestId, RunId, Time};

use super::gossip::{Domain, Key, News, Told};
use super::tally::{Report, Spread};
use super::workload::Workload;
use super::{Random, Setting};

/// How often a node tells how much room it has, and in what steps: as `embermesh-node` does.
const FACTS_EVERY: Micros = 500 * MS;
const ROOM_STEP_MB: u64 = 128;
const EPOCH: Epoch = Epoch(1);

pub(super) struct World<'a> {
    setting: &'a Setting,
    now: u64,
    hosts: Vec<Host>,
    domains: Vec<Domain>,
    members: usize,
    workload: Workload,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// Activations under way.
    bodies: BTreeMap<ActivationId, Body>,
    /// Requests under way, by who asked.
    asked: BTreeMap<(usize, u64), Asked>,
    activations: u128,
    random: Random,
    counting: bool,
    report: Report,
}

struct Host {
    node: Node,
    /// The earliest moment at which it is woken.
    wakes_at: u64,
    /// Own adverts by key number.
    slots: BTreeMap<usize, ActionHash>,
    intents: u64,
    facts: String,
    memory_mb: u64,
}

struct Body {
    runs_us: u64,
    arrived: u64,
    counted: bool,
}

struct Asked {
    attempt: Option<Attempt>,
    /// It went where gossip showed a free slot.
    shown: bool,
    served: &'static str,
}

enum Event {
    Input {
        to: usize,
        input: Input,
    },
    Wake {
        host: usize,
    },
    Facts {
        host: usize,
    },
    /// A run in a container ends; whoever asked for it is told.
    RunEnds {
        host: usize,
        container: u64,
        run: RunId,
        activation: ActivationId,
        ask: Option<Caller>,
    },
}

/// Who waits for the end of a run at a peer.
struct Caller {
    request: RequestId,
    renewed_us: Micros,
}

impl<'a> World<'a> {
    pub(super) fn new(setting: &'a Setting) -> Self {
        let members = setting.nodes / setting.cells;
        let workload = Workload::new(setting);
        let copies = workload.copies(setting.containers);
        let used: u64 = workload.actions.iter().zip(&copies).map(|(a, n)| a.spec.memory_mb * *n as u64).sum();
        // Room for a few more than there are: what starts beyond that has to evict.
        let memory_mb = used * 115 / 100 / setting.nodes as u64 + 1_024;
        let config = Arc::new(Config { memory_mb, adverts_per_peer: setting.adverts, ..Config::default() });
        let hosts = (0..setting.nodes).map(|n| Host {
            node: Node::new(name(n), EPOCH, config.clone(), setting.seed ^ ((n as u64 + 1) << 20)),
            wakes_at: u64::MAX,
            slots: BTreeMap::new(),
            intents: 0,
            facts: String::new(),
            memory_mb,
        });
        let domains = (0..setting.cells).map(|cell| {
            let names = (cell * members..(cell + 1) * members).map(|n| name(n).as_str().to_owned());
            Domain::new(names.collect(), setting.seed + cell as u64)
        });
        let mut world = Self {
            setting,
            now: 0,
            hosts: hosts.collect(),
            domains: domains.collect(),
            members,
            workload,
            events: BTreeMap::new(),
            sequence: 0,
            bodies: BTreeMap::new(),
            asked: BTreeMap::new(),
            activations: 0,
            random: Random::new(setting.seed, 4),
            counting: false,
            report: Report {
                nodes: setting.nodes,
                cells: setting.cells,
                seconds: setting.seconds,
                ..Report::default()
            },
        };
        world.form();
        world.adopt(&copies);
        world
    }

    /// Everybody knows everybody of the same domain.
    fn form(&mut self) {
        for host in 0..self.hosts.len() {
            let cell = host / self.members;
            for peer in (cell * self.members..(cell + 1) * self.members).filter(|p| *p != host) {
                self.step(host, Input::PeerUp { peer: name(peer), epoch: EPOCH });
            }
            self.publish(host, Key::REGISTRY, "0123456789abcdef".to_owned(), News::Other);
            let first = self.random.below(FACTS_EVERY);
            self.after(first, Event::Facts { host });
        }
    }

    /// Containers outlived an earlier life of their nodes: so all are warm, and none was started in vain.
    fn adopt(&mut self, copies: &[usize]) {
        let mut places = vec![Vec::new(); self.setting.cells];
        for (action, count) in copies.iter().enumerate() {
            let cell = self.workload.actions[action].cell;
            places[cell].extend(std::iter::repeat_n(action, *count));
        }
        for (cell, mut actions) in places.into_iter().enumerate() {
            for last in (1..actions.len()).rev() {
                actions.swap(last, self.random.below(last as u64 + 1) as usize);
            }
            for (nth, action) in actions.into_iter().enumerate() {
                let host = cell * self.members + nth % self.members;
                let spec = self.workload.actions[action].spec.clone();
                self.step(host, Input::ContainerFound { found: nth as u64, spec });
            }
        }
    }

    pub(super) fn play(mut self) -> Report {
        let from = self.setting.warm_up_s * SECOND;
        let until = from + self.setting.seconds * SECOND;
        self.go_on_until(from);
        self.count(true);
        self.go_on_until(until);
        self.count(false);
        // What has arrived may end; nothing more is counted but that.
        self.settle(until + 120 * SECOND);
        let mut spread = Spread::default();
        for domain in &mut self.domains {
            spread.add(std::mem::take(&mut domain.spread));
        }
        spread.us = until - from;
        self.report.spread = spread;
        self.report.containers = self.hosts.iter().map(|host| host.node.containers().count()).sum();
        self.report
    }

    fn count(&mut self, counting: bool) {
        self.counting = counting;
        for domain in &mut self.domains {
            domain.count(counting);
        }
    }

    fn go_on_until(&mut self, until: u64) {
        while let Some(next) = self.next_at().filter(|at| *at <= until) {
            self.now = self.now.max(next);
            if self.workload.next_at() == next {
                self.arrive();
            } else {
                self.happen(next);
            }
        }
        self.now = until;
    }

    /// Without further arrivals, until all that was counted has ended.
    fn settle(&mut self, until: u64) {
        let open = |world: &Self| world.bodies.values().any(|body| body.counted);
        while open(self) {
            let Some(next) = self.next_but_calls().filter(|at| *at <= until) else { return };
            self.now = self.now.max(next);
            self.happen(next);
        }
    }

    fn next_at(&self) -> Option<u64> {
        let other = self.next_but_calls().unwrap_or(u64::MAX);
        Some(other.min(self.workload.next_at())).filter(|at| *at < u64::MAX)
    }

    fn next_but_calls(&self) -> Option<u64> {
        let event = self.events.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
        let gossip = self.domains.iter().map(Domain::next_at).min().unwrap_or(u64::MAX);
        Some(event.min(gossip)).filter(|at| *at < u64::MAX)
    }

    /// The one thing that is next, calls apart.
    fn happen(&mut self, at: u64) {
        if let Some(cell) = self.domains.iter().position(|domain| domain.next_at() == at) {
            for told in self.domains[cell].step() {
                self.told(cell, told);
            }
            return;
        }
        let Some((_, event)) = self.events.pop_first() else { return };
        match event {
            Event::Input { to, input } => self.hear(to, input),
            Event::Wake { host } => {
                if self.hosts[host].wakes_at <= self.now {
                    self.hosts[host].wakes_at = u64::MAX;
                    self.step(host, Input::Tick);
                }
            }
            Event::Facts { host } => {
                self.publish_facts(host);
                self.after(FACTS_EVERY, Event::Facts { host });
            }
            Event::RunEnds { host, container, run, activation, ask } => {
                self.step(host, Input::RunFinished { container, run, end: RunEnd::Answered });
                match ask {
                    None => self.ended(activation),
                    Some(Caller { request, renewed_us }) => {
                        let to = index(&request.holder);
                        let end = RemoteEnd::Answered { renewed_us };
                        self.send(to, Input::RunAnswered { request, end });
                    }
                }
            }
        }
    }

    /// A call comes to any node. Where that is not of the action's cell, it passes it on to one that is.
    fn arrive(&mut self) {
        let Some((nth, runs_us)) = self.workload.next() else { return };
        let action = &self.workload.actions[nth];
        let (spec, cell) = (action.spec.clone(), action.cell);
        let at = self.random.below(self.hosts.len() as u64) as usize;
        let passed_on = at / self.members != cell;
        let host = if passed_on { cell * self.members + self.random.below(self.members as u64) as usize } else { at };
        self.activations += 1;
        let activation = ActivationId(self.activations);
        self.bodies.insert(activation, Body { runs_us, arrived: self.now, counted: self.counting });
        if self.counting {
            self.report.arrived += 1;
            let idle = |c: &embermesh_core::node::ContainerView<'_>| match c.container.state() {
                Lifecycle::Warm => c.container.free() > 0,
                state => state == Lifecycle::Paused,
            };
            let has = self.hosts[host].node.containers().any(|c| c.container.action == spec.action && idle(&c));
            self.report.none_here += u64::from(!has);
        }
        let input = Input::InvokeRequested { activation, spec, body_bytes: 200, attempt: 0, journaled: false };
        if passed_on {
            self.tell_messages(2);
            let delay = self.delay();
            self.after(delay, Event::Input { to: host, input });
        } else {
            self.step(host, input);
        }
    }

    /// What gossip tells a node.
    fn told(&mut self, cell: usize, told: Told) {
        let (to, peer) = (cell * self.members + told.to, name(cell * self.members + told.of));
        if let Some(hash) = told.gone {
            let advert = Advert::default();
            self.step(to, Input::AdvertReceived { peer: peer.clone(), epoch: EPOCH, hash, advert });
        }
        let input = match told.news {
            News::Advert(hash, advert) => Input::AdvertReceived { peer, epoch: EPOCH, hash, advert },
            News::Facts { draining, room_mb } => Input::PeerFacts { peer, epoch: EPOCH, draining, room_mb },
            News::Intent(notice) => Input::IntentReceived { notice },
            News::Other => return,
        };
        self.step(to, input);
    }

    /// A message of a peer, or something of the node's own.
    fn hear(&mut self, to: usize, input: Input) {
        match &input {
            Input::ReserveGranted { request, .. } => {
                let asked = self.asked.get(&(to, request.number));
                if asked.is_some_and(|asked| asked.attempt.is_none()) {
                    self.asked.remove(&(to, request.number));
                }
            }
            Input::ReserveDenied { request, .. } => {
                let asked = self.asked.remove(&(to, request.number));
                if self.counting && asked.is_some_and(|asked| asked.shown) {
                    self.report.stale += 1;
                }
            }
            Input::RunAnswered { request, end } => {
                let asked = self.asked.remove(&(to, request.number));
                if let (Some(Asked { attempt: Some(attempt), served, .. }), RemoteEnd::Answered { .. }) = (asked, end) {
                    self.served(served);
                    self.ended(attempt.activation);
                }
            }
            _ => {}
        }
        self.step(to, input);
    }

    fn step(&mut self, host: usize, input: Input) {
        let mut outputs = Vec::new();
        self.hosts[host].node.handle(Time(self.now), input, &mut outputs);
        self.report.steps += u64::from(self.counting);
        for output in outputs {
            self.carry_out(host, output);
        }
        if let Some(Time(at)) = self.hosts[host].node.next_deadline()
            && at < self.hosts[host].wakes_at
        {
            self.hosts[host].wakes_at = at;
            self.after(at.saturating_sub(self.now), Event::Wake { host });
        }
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        match output {
            Output::RunLocal { activation, run, container, served, .. } => {
                self.served(match served {
                    Served::Cold => "started for it",
                    Served::Resumed => "resumed for it",
                    _ => "own container",
                });
                self.begin(host, container, run, activation, None);
            }
            Output::SendRun(m) => {
                let attempt = Attempt { activation: m.activation, attempt: m.attempt };
                let served = if m.served == Served::NewLease { "new lease" } else { "held lease" };
                let asked = Asked { attempt: Some(attempt), shown: false, served };
                self.asked.insert((host, m.request.number), asked);
                let input = Input::RunReceived {
                    request: m.request,
                    owner_epoch: m.owner_epoch,
                    open_from: m.open_from,
                    container: m.container,
                    fence: m.fence,
                    action: m.action,
                    revision: m.revision,
                    keep: m.keep,
                    attempt,
                };
                self.send(index(&m.to), input);
            }
            Output::SendReserve(m) => {
                let shown = m.wait_us == 0 && !m.start;
                self.report.asked += u64::from(self.counting && shown);
                let asked = Asked { attempt: m.run, shown, served: "new lease" };
                self.asked.insert((host, m.request.number), asked);
                let spec = self.workload.spec(&m.action);
                let input = Input::ReserveReceived {
                    request: m.request,
                    owner_epoch: m.owner_epoch,
                    open_from: m.open_from,
                    action: m.action,
                    revision: m.revision,
                    spec,
                    slots: m.slots,
                    wait_us: m.wait_us,
                    start: m.start,
                    run: m.run,
                };
                self.send(index(&m.to), input);
            }
            Output::AnswerReserve { request, answer } => self.answer_reserve(host, request, answer),
            Output::AnswerRun { request, answer } => self.answer_run(host, request, answer),
            Output::Refuse { activation, .. } => {
                if self.bodies.remove(&activation).is_some_and(|body| body.counted) {
                    self.report.refused += 1;
                }
            }
            Output::Indeterminate { activation } => {
                if self.bodies.remove(&activation).is_some_and(|body| body.counted) {
                    self.report.indeterminate += 1;
                }
            }
            Output::PublishAdvert { hash, advert } => self.publish_advert(host, hash, advert),
            Output::Event(Noted::Evicting { .. }) => self.report.evicted += u64::from(self.counting),
            Output::StartContainer { container, .. } => {
                self.report.started += u64::from(self.counting);
                let create = 100 * MS + self.random.below(150 * MS);
                let init = 50 * MS + self.random.below(150 * MS);
                self.after(create, Event::Input { to: host, input: Input::ContainerCreated { container } });
                self.after(create + init, Event::Input { to: host, input: Input::ContainerReady { container } });
            }
            Output::AdoptContainer { container, .. } => {
                self.step(host, Input::ContainerAdopted { container, paused: false });
            }
            Output::PauseContainer { container } => {
                self.engine(host, 10 * MS, Input::PauseEnded { container, ok: true })
            }
            Output::ResumeContainer { container } => {
                self.engine(host, 10 * MS, Input::ResumeEnded { container, ok: true });
            }
            Output::RemoveContainer { container } => self.engine(host, 40 * MS, Input::RemoveEnded { container }),
            other => self.tell_peers(host, other),
        }
    }

    /// Messages that nobody waits for; each is acknowledged.
    fn tell_peers(&mut self, host: usize, output: Output) {
        let me = name(host);
        match output {
            Output::SendRelease { to, container, fence, keep } => {
                let input = Input::ReleaseReceived { holder: me, holder_epoch: EPOCH, container, fence, keep };
                self.send_acknowledged(&to, input);
            }
            Output::SendRecall { to, fence } => {
                self.send_acknowledged(&to, Input::RecallReceived { owner: me, owner_epoch: EPOCH, fence });
            }
            Output::SendIntent { to, gossip, notice } => {
                if gossip {
                    self.hosts[host].intents += 1;
                    let key = Key::intent(self.hosts[host].intents);
                    self.publish(host, key, notice.to_string(), News::Intent(notice.clone()));
                }
                for peer in to {
                    self.send_acknowledged(&peer, Input::IntentReceived { notice: notice.clone() });
                }
            }
            Output::SendVeto { to, container, round, hold_us } => {
                self.send_acknowledged(&to, Input::VetoReceived { from: me, container, round, hold_us });
            }
            Output::SendNotice { to, hash, queued, slots, start_us, service_us } => {
                let from_epoch = EPOCH;
                let input = Input::NoticeReceived { from: me, from_epoch, hash, queued, slots, start_us, service_us };
                self.send(index(&to), input);
            }
            Output::AnswerNotice { to, hash, advice } => self.send(index(&to), Input::NoticeAnswered { hash, advice }),
            _ => {}
        }
    }

    fn answer_reserve(&mut self, host: usize, request: RequestId, answer: ReserveAnswer) {
        let to = index(&request.holder);
        match answer {
            ReserveAnswer::Denied { denial, hint } => {
                self.send(to, Input::ReserveDenied { request, denial, hint });
            }
            ReserveAnswer::Granted { container, fence, slots, ttl_us, run, .. } => {
                let attempt = self.asked.get(&(to, request.number)).and_then(|asked| asked.attempt);
                let number = container.number;
                let granted = Input::ReserveGranted { request: request.clone(), container, fence, slots, ttl_us };
                self.send(to, granted);
                if let (Some(run), Some(attempt)) = (run, attempt) {
                    let caller = Caller { request, renewed_us: 0 };
                    self.begin(host, number, run, attempt.activation, Some(caller));
                }
            }
        }
    }

    fn answer_run(&mut self, host: usize, request: RequestId, answer: RunAnswer) {
        let to = index(&request.holder);
        match answer {
            RunAnswer::Accepted { run, container, renewed_us } => {
                let attempt = self.asked.get(&(to, request.number)).and_then(|asked| asked.attempt);
                let Some(attempt) = attempt else { return };
                self.begin(host, container, run, attempt.activation, Some(Caller { request, renewed_us }));
            }
            // Nothing is sent twice here.
            RunAnswer::Joined { .. } => {}
            RunAnswer::Refused(refusal) => {
                self.send(to, Input::RunAnswered { request, end: RemoteEnd::Refused(refusal) });
            }
        }
    }

    fn begin(&mut self, host: usize, container: u64, run: RunId, activation: ActivationId, ask: Option<Caller>) {
        let Some(body) = self.bodies.get(&activation) else { return };
        if body.counted {
            self.report.waited_us.push(self.now - body.arrived);
        }
        let runs_us = body.runs_us;
        self.after(runs_us, Event::RunEnds { host, container, run, activation, ask });
    }

    fn served(&mut self, how: &'static str) {
        if self.counting {
            *self.report.served.entry(how).or_insert(0) += 1;
        }
    }

    fn ended(&mut self, activation: ActivationId) {
        if self.bodies.remove(&activation).is_some_and(|body| body.counted) {
            self.report.answered += 1;
        }
    }

    fn publish_advert(&mut self, host: usize, hash: ActionHash, advert: Advert) {
        let slots = &mut self.hosts[host].slots;
        let had = slots.iter().find(|(_, h)| **h == hash).map(|(slot, _)| *slot);
        let Some(slot) = had.or_else(|| (0..self.setting.adverts).find(|slot| !slots.contains_key(slot))) else {
            return;
        };
        if advert == Advert::default() {
            slots.remove(&slot);
        } else {
            slots.insert(slot, hash);
        }
        self.report.published += u64::from(self.counting);
        self.publish(host, Key::advert(slot), format!("{hash},{advert}"), News::Advert(hash, advert));
    }

    fn publish_facts(&mut self, host: usize) {
        let here = &mut self.hosts[host];
        let room_mb = here.memory_mb.saturating_sub(here.node.memory_used_mb()) / ROOM_STEP_MB * ROOM_STEP_MB;
        let text = format!("0,{room_mb}");
        if here.facts != text {
            here.facts.clone_from(&text);
            self.publish(host, Key::FACTS, text, News::Facts { draining: false, room_mb });
        }
    }

    fn publish(&mut self, host: usize, key: Key, text: String, news: News) {
        self.domains[host / self.members].set(self.now, host % self.members, key, text, news);
    }

    fn engine(&mut self, host: usize, takes: u64, input: Input) {
        let takes = takes / 2 + self.random.below(takes);
        self.after(takes, Event::Input { to: host, input });
    }

    fn send_acknowledged(&mut self, to: &NodeId, input: Input) {
        self.tell_messages(1);
        self.send(index(to), input);
    }

    fn send(&mut self, to: usize, input: Input) {
        self.tell_messages(1);
        let delay = self.delay();
        self.after(delay, Event::Input { to, input });
    }

    fn tell_messages(&mut self, count: u64) {
        self.report.messages += if self.counting { count } else { 0 };
    }

    fn delay(&mut self) -> u64 {
        200 + self.random.below(100)
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }
}

fn name(index: usize) -> NodeId {
    NodeId::new(&format!("n{index}"))
}

fn index(name: &NodeId) -> usize {
    name.as_str()[1..].parse().unwrap_or_default()
}
