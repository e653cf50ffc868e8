//! Time, clocks, hosts and the order of events.

use std::collections::BTreeMap;
use std::sync::Arc;

use embermesh_core::history::{Glance, Judge, Record, Violation, What};
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Advert, Attempt, Event as Noted, IntentEnd, IntentKind, ReserveAnswer, RunAnswer};
use embermesh_core::policy::GreedyDual;
use embermesh_core::time::{MS, SECOND};
use embermesh_core::{
    ActionHash, ActionId, ActionSpec, ActivationId, Config, ContainerId, Epoch, Fence, Input, Node, NodeId, Output,
    RequestId, RunId, Time,
};

use super::engine::{Engine, EngineEvent};
use super::network::{Call, CallId, PeerRun, Reply};
use super::plan::{Fate, Op, Setting};
use super::setup::{ACTIONS, Stubborn, config, spec};

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) calm: bool,
    pub(crate) hosts: Vec<Host>,
    pub(crate) events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    random: u64,
    pub(crate) calls: BTreeMap<CallId, Call>,
    /// Pairs that can't reach each other, and until when.
    pub(crate) cuts: Vec<(usize, usize, u64)>,
    pub(crate) bodies: BTreeMap<ActivationId, Body>,
    /// Where each activation was accepted.
    origins: BTreeMap<ActivationId, Origin>,
    judge: Judge,
    /// How often each thing happened.
    pub(crate) seen: BTreeMap<&'static str, u32>,
    pub(crate) violation: Option<Violation>,
    pub(crate) config: Arc<Config>,
    stubborn: bool,
    revision: u64,
    /// Requests of a peer from outside.
    strange: u64,
}

/// A machine with one node on it, through all its lives.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) epoch: Epoch,
    /// None while it is down.
    pub(crate) node: Option<Node>,
    offset: u64,
    rate_ppm: i64,
    pub(crate) stalled_until: u64,
    pub(crate) engine: Engine,
    pub(crate) registry: Vec<Arc<ActionSpec>>,
    pub(crate) adverts: BTreeMap<ActionHash, Advert>,
    pub(crate) gossip_seen: BTreeMap<usize, (Epoch, BTreeMap<ActionHash, Advert>)>,
    /// Calls whose answer is to come, by request.
    pub(crate) parked: BTreeMap<RequestId, Vec<CallId>>,
    pub(crate) runs_for_peers: BTreeMap<RunId, PeerRun>,
}

/// Where an activation was accepted, and whether somebody still waits for it.
struct Origin {
    host: usize,
    action: ActionId,
    cancelled: bool,
}

/// What an activation carries, and what becomes of it in a container.
pub(crate) struct Body {
    pub(crate) service_us: u64,
    pub(crate) fate: Fate,
    pub(crate) tries: u32,
}

pub(crate) enum Event {
    /// Something that reaches whatever life the host is in.
    Input {
        to: usize,
        input: Input,
    },
    /// A copy of a call's request arrives.
    Arrives {
        call: CallId,
    },
    Reply {
        call: CallId,
        reply: Reply,
    },
    /// The caller has waited long enough, or the connection broke.
    Fails {
        call: CallId,
        never_sent: bool,
    },
    Engine {
        host: usize,
        epoch: Epoch,
        event: EngineEvent,
    },
    /// One node takes over what another's gossip says of itself.
    Pull {
        to: usize,
        from: usize,
    },
    Up {
        host: usize,
    },
}

impl World {
    pub(crate) fn new(setting: &Setting) -> Self {
        let registry: Vec<_> = (0..ACTIONS).map(|n| spec(n, 1)).collect();
        let hosts = (0..setting.nodes)
            .map(|n| Host {
                id: NodeId::new(&format!("n{n}")),
                epoch: Epoch(1),
                node: None,
                offset: (n as u64 + 1) * 777 * SECOND,
                rate_ppm: setting.rates[n % setting.rates.len()],
                stalled_until: 0,
                engine: Engine::default(),
                registry: registry.clone(),
                adverts: BTreeMap::new(),
                gossip_seen: BTreeMap::new(),
                parked: BTreeMap::new(),
                runs_for_peers: BTreeMap::new(),
            })
            .collect();
        let mut world = Self {
            now: 0,
            calm: setting.calm,
            hosts,
            events: BTreeMap::new(),
            sequence: 0,
            random: setting.seed | 1,
            calls: BTreeMap::new(),
            cuts: Vec::new(),
            bodies: BTreeMap::new(),
            origins: BTreeMap::new(),
            judge: Judge::with_story(),
            seen: BTreeMap::new(),
            violation: None,
            config: Arc::new(config(setting)),
            stubborn: setting.stubborn,
            revision: 1,
            strange: 0,
        };
        for host in 0..setting.nodes {
            world.up(host);
            for from in (0..setting.nodes).filter(|from| *from != host) {
                let first = world.below(20 * MS);
                world.after(first, Event::Pull { to: host, from });
            }
        }
        world
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        let nodes = self.hosts.len();
        match *op {
            Op::Advance { ms } => self.advance(ms * MS),
            Op::Invoke { node, action, large, service_ms, fate } => {
                self.invoke(node % nodes, action, large, service_ms * MS, fate);
            }
            Op::Cancel { nth } => {
                let known = |(id, host): &(ActivationId, usize)| {
                    self.hosts[*host].node.as_ref().is_some_and(|node| node.knows_activation(*id))
                };
                let open: Vec<_> = self.origins.iter().map(|(id, origin)| (*id, origin.host)).filter(known).collect();
                if let Some((id, host)) = open.get(nth % open.len().max(1)).copied() {
                    if let Some(origin) = self.origins.get_mut(&id) {
                        origin.cancelled = true;
                    }
                    self.deliver(host, Input::InvokeCancelled { activation: id });
                }
            }
            Op::Restart { node, down_ms } => self.restart(node % nodes, down_ms * MS),
            Op::Stall { node, ms } => {
                let until = self.now + ms * MS;
                let host = &mut self.hosts[node % nodes];
                host.stalled_until = host.stalled_until.max(until);
            }
            Op::Cut { a, b, ms } if a % nodes != b % nodes => {
                self.cuts.push((a % nodes, b % nodes, self.now + ms * MS));
            }
            Op::Suspect { observer, peer } => self.suspect(observer % nodes, peer % nodes),
            Op::StaleGossip { observer, peer } => self.stale_gossip(observer % nodes, peer % nodes),
            Op::Kill { node, nth } => self.kill(node % nodes, nth),
            Op::Intent { node, nth, pause, force } => {
                let node = node % nodes;
                let kind = if pause { IntentKind::Pause } else { IntentKind::Remove };
                let numbers: Vec<u64> = self.own_containers(node).map(|c| c.number).collect();
                let container = numbers.get(nth % numbers.len().max(1)).copied().unwrap_or(99);
                self.deliver(node, Input::IntentRequested { container, kind, force });
            }
            Op::VetoHeard { node } => {
                let node = node % nodes;
                let intents = self.hosts[node].node.as_ref().map_or_else(Vec::new, Node::intents);
                if let Some(intent) = intents.first() {
                    let container = intent.notice.container.clone();
                    let round = intent.notice.round;
                    self.deliver(node, Input::VetoRequested { container, round, hold_us: None });
                }
            }
            Op::VetoAstray { from, node, nth, how } => self.veto_astray(from % nodes, node % nodes, nth, how),
            Op::Release { node, nth } => {
                let node = node % nodes;
                let held: Vec<_> =
                    self.hosts[node].node.iter().flat_map(Node::held_leases).map(|l| (l.owner, l.fence)).collect();
                if let Some((owner, fence)) = held.get(nth % held.len().max(1)).cloned() {
                    self.deliver(node, Input::ReleaseRequested { owner, fence });
                }
            }
            Op::ReleaseAstray { from, node } => {
                let (from, node) = (from % nodes, node % nodes);
                let lease = self.hosts[node].node.as_ref().and_then(|n| n.granted_leases().next());
                if let Some(lease) = lease {
                    let (holder, holder_epoch) = (self.hosts[from].id.clone(), Epoch(self.hosts[from].epoch.0 + 1));
                    let (container, fence) = (lease.container, lease.fence);
                    self.deliver(node, Input::ReleaseReceived { holder, holder_epoch, container, fence, keep: 0 });
                }
            }
            Op::Stranger { node, action } => self.stranger(node % nodes, action),
            Op::Update { node, action } => self.update(node % nodes, action),
            Op::Drain { node, force } => {
                self.deliver(node % nodes, Input::DrainRequested { deadline_us: SECOND, force });
            }
            Op::Cut { .. } => {}
        }
    }

    /// The network is whole, stalls pass, and all come back; then time passes until nothing should be left.
    pub(crate) fn heal(&mut self) {
        self.calm = true;
        self.cuts.clear();
        self.advance(16 * SECOND);
        if let Err(violation) = self.judge.at_rest(&self.glance(None)) {
            self.violated(violation);
        }
    }

    pub(crate) fn advance(&mut self, by: u64) {
        let until = self.now + by;
        let mut at_once = 0;
        while self.violation.is_none() {
            let event = self.events.first_key_value().map(|(key, _)| key.0);
            let wake = (0..self.hosts.len()).filter_map(|h| Some((self.wake_at(h)?, h))).min();
            let next = event.unwrap_or(u64::MAX).min(wake.map_or(u64::MAX, |(at, _)| at));
            if next > until {
                break;
            }
            at_once = if next > self.now { 0 } else { at_once + 1 };
            if at_once > 2_000 {
                self.violate("the mesh does not come to rest", "2000 steps in one moment".to_owned());
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                let Some(((_, place), event)) = self.events.pop_first() else { break };
                self.happen(place, event);
            } else if let Some((_, host)) = wake {
                self.deliver(host, Input::Tick);
            }
        }
        self.now = until;
    }

    fn happen(&mut self, place: u64, event: Event) {
        // A stalled node takes nothing until it goes on, and then all in order.
        let stalled = match &event {
            Event::Input { to, .. } | Event::Pull { to, .. } => self.hosts[*to].stalled_until,
            Event::Engine { host, .. } => self.hosts[*host].stalled_until,
            Event::Arrives { call } => self.calls.get(call).map_or(0, |c| self.hosts[c.to].stalled_until),
            Event::Reply { call, .. } | Event::Fails { call, .. } => {
                self.calls.get(call).map_or(0, |c| self.hosts[c.from].stalled_until)
            }
            Event::Up { .. } => 0,
        };
        if stalled > self.now {
            self.events.insert((stalled, place), event);
            return;
        }
        match event {
            Event::Input { to, input } => {
                if let Input::ActionChanged { spec } = &input {
                    self.learn(to, spec);
                }
                self.deliver(to, input);
            }
            Event::Arrives { call } => self.call_arrives(call),
            Event::Reply { call, reply } => self.reply_arrives(call, reply),
            Event::Fails { call, never_sent } => self.call_fails(call, never_sent),
            Event::Engine { host, epoch, event } => {
                if self.hosts[host].epoch == epoch && self.hosts[host].node.is_some() {
                    self.engine_event(host, event);
                }
            }
            Event::Pull { to, from } => self.pull(to, from),
            Event::Up { host } => self.up(host),
        }
    }

    /// Gives a node an input.
    pub(crate) fn deliver(&mut self, host: usize, input: Input) {
        let now = self.clock(host);
        if self.violation.is_some() || self.hosts[host].stalled_until > self.now {
            return;
        }
        let compared = matches!(input, Input::VetoReceived { .. } | Input::ReleaseReceived { .. });
        if compared {
            // What is due fires first, so that the step itself can be compared.
            self.step(host, now, Input::Tick, false);
        }
        self.step(host, now, input, compared);
    }

    /// One step of a node, looked at from all sides.
    fn step(&mut self, host: usize, now: Time, input: Input, compared: bool) {
        let Some(node) = self.hosts[host].node.as_mut() else { return };
        let before = compared.then(|| node.clone());
        let mut outputs = Vec::new();
        node.handle(now, input.clone(), &mut outputs);
        for output in &outputs {
            if let Output::History(record) = output
                && let Err(violation) = self.judge.observe(record)
            {
                return self.violated(violation);
            }
        }
        if let Err(violation) = self.judge.look(&self.glance(before.as_ref().map(|node| (node, &input, host)))) {
            return self.violated(violation);
        }
        self.count(&outputs);
        self.carry_out(host, outputs);
    }

    /// The action of an activation whose caller is still there.
    pub(crate) fn wanted(&self, id: ActivationId) -> Option<&ActionId> {
        self.origins.get(&id).filter(|origin| !origin.cancelled).map(|origin| &origin.action)
    }

    /// Sends of its body of which nothing was heard.
    pub(crate) fn unsettled(&self, id: ActivationId) -> i32 {
        self.judge.ledger().unsettled_sends(id)
    }

    fn glance<'a>(&'a self, step: Option<(&'a Node, &'a Input, usize)>) -> Glance<'a> {
        let up = (0..self.hosts.len()).filter_map(|host| Some((self.hosts[host].node.as_ref()?, self.clock(host))));
        let step = step.and_then(|(before, input, host)| Some((before, input, self.hosts[host].node.as_ref()?)));
        Glance { nodes: up.collect(), step }
    }

    /// What a container sees, which no step of its node tells.
    pub(crate) fn tell(&mut self, host: usize, what: What) {
        let here = &self.hosts[host];
        let record = Record { at: self.clock(host), node: here.id.clone(), epoch: here.epoch, step: 0, what };
        if let Err(violation) = self.judge.observe(&record) {
            self.violated(violation);
        }
    }

    /// Notes how often what happened, so that cases which prove nothing are found out.
    fn count(&mut self, outputs: &[Output]) {
        for output in outputs {
            let what = match output {
                Output::AnswerReserve { answer: ReserveAnswer::Granted { run, first, .. }, .. } => match (run, first) {
                    (_, false) => "the same grant again",
                    (Some(_), _) => "grant with a run",
                    (None, _) => "grant",
                },
                Output::AnswerReserve { .. } => "denied",
                Output::AnswerRun { answer: RunAnswer::Accepted { .. }, .. } => "run on a held lease",
                Output::AnswerRun { answer: RunAnswer::Refused(_), .. } => "run refused",
                Output::Event(Noted::LeaseExpired { .. }) => "lease expired",
                Output::Event(Noted::LeaseReleased { .. }) => "lease released",
                Output::Event(Noted::VetoCounted { .. }) => "veto counted",
                Output::Event(Noted::VetoIgnored { .. }) => "veto ignored",
                Output::Event(Noted::Evicting { .. }) => "urgent",
                Output::Event(Noted::IntentClosed { end, .. }) => match end {
                    IntentEnd::Committed => "round Committed",
                    IntentEnd::Vetoed { .. } => "round Vetoed",
                    IntentEnd::Used => "round Used",
                    IntentEnd::Late => "round Late",
                    IntentEnd::Overtaken => "round Overtaken",
                },
                _ => continue,
            };
            self.note(what);
        }
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn invoke(&mut self, host: usize, action: usize, large: bool, service_us: u64, fate: Fate) {
        let up = self.hosts[host].node.is_some() && self.hosts[host].stalled_until <= self.now;
        if !up {
            return;
        }
        let id = ActivationId(self.bodies.len() as u128 + 1);
        self.bodies.insert(id, Body { service_us, fate, tries: 0 });
        let spec = self.hosts[host].registry[action].clone();
        self.origins.insert(id, Origin { host, action: spec.action.clone(), cancelled: false });
        let body_bytes = if large { 2_000 } else { 100 };
        self.deliver(host, Input::InvokeRequested { activation: id, spec, body_bytes, attempt: 0, journaled: false });
    }

    fn restart(&mut self, host: usize, down_us: u64) {
        if self.hosts[host].node.take().is_none() {
            return;
        }
        self.note("restart");
        let here = &mut self.hosts[host];
        here.engine = Engine::default();
        here.adverts.clear();
        here.gossip_seen.clear();
        here.parked.clear();
        here.runs_for_peers.clear();
        here.stalled_until = 0;
        self.break_calls_to(host);
        self.after(down_us, Event::Up { host });
    }

    fn up(&mut self, host: usize) {
        let seed = self.below(u64::MAX);
        let here = &mut self.hosts[host];
        here.epoch = Epoch(here.epoch.0 + 1);
        let mut node = Node::new(here.id.clone(), here.epoch, self.config.clone(), seed).with_history();
        here.epoch = node.epoch();
        if self.stubborn {
            node = node.with_policies(Arc::new(Stubborn), Arc::new(GreedyDual));
        }
        here.node = Some(node);
        here.stalled_until = 0;
    }

    /// Its leases expire like all others.
    fn stranger(&mut self, host: usize, action: usize) {
        self.strange += 2;
        let number = self.strange;
        let holder = NodeId::new("stranger");
        let request = |number| RequestId { holder: NodeId::new("stranger"), epoch: Epoch(1), number };
        let spec = self.hosts[host].registry[action].clone();
        let owner_epoch = self.hosts[host].epoch;
        let reserve = Input::ReserveReceived {
            request: request(number),
            owner_epoch,
            open_from: number,
            action: spec.action.clone(),
            revision: spec.revision.clone(),
            spec: Some(spec.clone()),
            slots: 1,
            wait_us: 0,
            start: false,
            run: None,
        };
        self.deliver(host, reserve);
        let mut granted = self.hosts[host].node.iter().flat_map(Node::granted_leases);
        let Some(lease) = granted.find(|l| l.holder == holder && l.action == spec.action) else { return };
        drop(granted);
        let fence = Fence { counter: lease.fence.counter + 1_000, ..lease.fence };
        let activation = ActivationId(u128::MAX - u128::from(number));
        let run = Input::RunReceived {
            request: request(number + 1),
            owner_epoch,
            open_from: number + 1,
            container: lease.container.clone(),
            fence,
            action: spec.action.clone(),
            revision: spec.revision.clone(),
            keep: 1,
            attempt: Attempt { activation, attempt: 0 },
        };
        self.deliver(host, run);
        let (container, holder_epoch) = (lease.container, Epoch(1));
        self.deliver(host, Input::ReleaseReceived { holder, holder_epoch, container, fence, keep: 0 });
    }

    fn update(&mut self, host: usize, action: usize) {
        self.revision += 1;
        let newer = spec(action, self.revision);
        for to in 0..self.hosts.len() {
            let delay = if to == host { 0 } else { self.below(100 * MS) };
            let input = Input::ActionChanged { spec: newer.clone() };
            self.after(delay, Event::Input { to, input });
        }
    }

    /// A registry keeps the newest revision of an action, whether the node is up or not.
    fn learn(&mut self, host: usize, newer: &Arc<ActionSpec>) {
        for spec in &mut self.hosts[host].registry {
            if spec.action == newer.action && spec.revision < newer.revision {
                *spec = newer.clone();
            }
        }
    }

    fn veto_astray(&mut self, from: usize, host: usize, nth: usize, how: u8) {
        let own: Vec<_> = self.own_containers(host).collect();
        let Some(mut container) = own.get(nth % own.len().max(1)).cloned() else { return };
        let round = self.open_round(host, container.number).unwrap_or(1);
        let round = match how {
            0 => round + 1,
            1 => round.saturating_sub(1),
            2 => {
                container.epoch = Epoch(container.epoch.0 - 1);
                round
            }
            _ => {
                container.number += 1_000;
                round
            }
        };
        let from = self.hosts[from].id.clone();
        self.deliver(host, Input::VetoReceived { from, container, round, hold_us: 300 * MS });
    }

    /// The host's clock now.
    pub(crate) fn clock(&self, host: usize) -> Time {
        let here = &self.hosts[host];
        let gained = self.now as i128 * i128::from(here.rate_ppm) / 1_000_000;
        Time((i128::from(here.offset + self.now) + gained) as u64)
    }

    /// When the node's next deadline comes, by the true time.
    fn wake_at(&self, host: usize) -> Option<u64> {
        let here = &self.hosts[host];
        let deadline = here.node.as_ref()?.next_deadline()?;
        let local = i128::from(deadline.0) - i128::from(here.offset);
        let rate = 1_000_000 + i128::from(here.rate_ppm);
        let at = (local.max(0) * 1_000_000 + rate - 1) / rate;
        Some((at as u64 + 1).max(here.stalled_until).max(self.now))
    }

    pub(crate) fn own_containers(&self, host: usize) -> impl Iterator<Item = ContainerId> {
        self.hosts[host].node.iter().flat_map(Node::containers).map(|c| c.id)
    }

    pub(crate) fn open_round(&self, host: usize, number: u64) -> Option<u32> {
        let node = self.hosts[host].node.as_ref()?;
        node.containers().find(|c| c.id.number == number)?.container.intent.as_ref().map(|i| i.round)
    }

    pub(crate) fn host_of(&self, id: &NodeId) -> Option<usize> {
        self.hosts.iter().position(|h| h.id == *id)
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 3) % bound.max(1)
    }

    /// True so many times in a thousand, never when all is calm.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        let drawn = self.below(1_000) < per_mille;
        drawn && !self.calm
    }

    fn violate(&mut self, invariant: &'static str, what: String) {
        self.violated(Violation { invariant, what, story: Vec::new() });
    }

    fn violated(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// The remote end of an activation, as its origin's driver takes it.
    pub(crate) fn run_answered(&mut self, host: usize, request: RequestId, attempt: Attempt, end: RemoteEnd) {
        let knows =
            |world: &Self| world.hosts[host].node.as_ref().is_some_and(|n| n.knows_activation(attempt.activation));
        let before = knows(self);
        self.deliver(host, Input::RunAnswered { request, end });
        if before && matches!(end, RemoteEnd::Answered { .. }) && !knows(self) {
            self.note("answered by a peer");
        }
    }
}
