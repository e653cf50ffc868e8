//! What can happen next, and how it does.

use embermesh_core::history::What;
use embermesh_core::input::RunEnd;
use embermesh_core::output::IntentKind;
use embermesh_core::{ActivationId, Epoch, Input, RunId};

use super::network::Message;
use super::state::{Facts, Host, Op, State};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Time goes on to the next deadline of any node, which is met.
    Advance,
    /// The same, but this node sleeps through it.
    Stall {
        host: usize,
    },
    Arrive {
        nth: usize,
    },
    Lose {
        nth: usize,
    },
    Repeat {
        nth: usize,
    },
    /// A call of the engine ends.
    Engine {
        host: usize,
        nth: usize,
    },
    /// A run ends otherwise than with an answer.
    RunFails {
        host: usize,
        nth: usize,
        end: RunEnd,
    },
    /// Gossip shows `to` how `from` is.
    Pull {
        to: usize,
        from: usize,
    },
    /// Gossip shows `to` how `from` was in its life before.
    StalePull {
        to: usize,
        from: usize,
    },
    Invoke {
        host: usize,
        action: usize,
    },
    Intent {
        container: u64,
        kind: IntentKind,
    },
    Crash {
        host: usize,
    },
    Up {
        host: usize,
    },
}

impl State {
    pub(super) fn moves(&self, moves: &mut Vec<Move>) {
        if self.is_over() {
            return;
        }
        let hosts = 0..self.hosts.len();
        for (nth, flying) in self.flying.iter().enumerate() {
            // Of equal messages one stands for all.
            if nth > 0 && (self.flying[nth - 1].key, self.flying[nth - 1].lag) == (flying.key, flying.lag) {
                continue;
            }
            if self.may_arrive(flying) {
                moves.push(Move::Arrive { nth });
            }
            let failure = matches!(
                &*flying.message,
                Message::Reply { input: Input::ReserveFailed { .. }, .. }
                    | Message::Reply {
                        input: Input::RunAnswered { end: embermesh_core::input::RemoteEnd::Unknown, .. },
                        ..
                    }
            );
            if self.faults.lose > 0 && !failure {
                moves.push(Move::Lose { nth });
            }
            let repeats = matches!(*flying.message, Message::OneWay(_) | Message::Call { copy: false, .. });
            if self.faults.repeat > 0 && repeats {
                moves.push(Move::Repeat { nth });
            }
        }
        for host in hosts.clone() {
            let here = &self.hosts[host];
            for (nth, (_, op)) in here.ops.keys().enumerate() {
                moves.push(Move::Engine { host, nth });
                if matches!(op, Op::Run(_)) && self.faults.run > 0 {
                    for end in [RunEnd::Lost, RunEnd::NeverStarted] {
                        moves.push(Move::RunFails { host, nth, end });
                    }
                }
            }
            if self.invokes[host] > 0 && here.node.is_some() && !self.is_mirrored(host) {
                moves.extend((0..self.specs.len()).map(|action| Move::Invoke { host, action }));
            }
            if here.node.is_none() {
                moves.push(Move::Up { host });
            } else if self.faults.crash > 0 {
                moves.push(Move::Crash { host });
            }
        }
        if self.slow_gossip || !hosts.clone().any(|host| self.wake_at(host).is_some()) {
            moves.extend(self.pulls().map(|(to, from)| Move::Pull { to, from }));
        }
        if self.faults.stale > 0 {
            let newer = |from: &usize| self.hosts[*from].epoch > Epoch(2);
            for from in hosts.clone().filter(newer) {
                moves.extend(hosts.clone().filter(|to| *to != from).map(|to| Move::StalePull { to, from }));
            }
        }
        if self.faults.operator > 0
            && let Some(node) = &self.hosts[0].node
        {
            for view in node.containers().filter(|c| c.container.intent.is_none()) {
                let container = view.id.number;
                moves.extend([IntentKind::Pause, IntentKind::Remove].map(|kind| Move::Intent { container, kind }));
            }
        }
        if self.may_wait() && hosts.clone().any(|host| self.wake_at(host).is_some()) {
            moves.push(Move::Advance);
            if self.faults.stall > 0 {
                let due = self.next_moment();
                moves.extend(hosts.filter(|h| self.wake_at(*h) == due).map(|host| Move::Stall { host }));
            }
        }
    }

    pub(super) fn make(&mut self, what: Move) {
        match what {
            Move::Advance => self.advance(None),
            Move::Stall { host } => {
                self.faults.stall -= 1;
                self.advance(Some(host));
            }
            Move::Arrive { nth } => {
                let flying = self.flying.remove(nth);
                self.arrive(flying);
            }
            Move::Lose { nth } => {
                self.faults.lose -= 1;
                let flying = self.flying.remove(nth);
                self.lose(flying);
            }
            Move::Repeat { nth } => {
                self.faults.repeat -= 1;
                let (to, mut message) = (self.flying[nth].to, Message::clone(&self.flying[nth].message));
                if let Message::Call { copy, .. } = &mut message {
                    *copy = true;
                }
                self.fly(to, message);
            }
            Move::Engine { host, nth } => self.end_op(host, nth, RunEnd::Answered),
            Move::RunFails { host, nth, end } => {
                self.faults.run -= 1;
                self.end_op(host, nth, end);
            }
            Move::Pull { to, from } => self.pull(to, from),
            Move::StalePull { to, from } => {
                self.faults.stale -= 1;
                let (peer, epoch) = (self.hosts[from].id.clone(), Epoch(self.hosts[from].epoch.0 - 1));
                let hash = self.specs[0].action_hash();
                let advert = embermesh_core::output::Advert { warm: 1, paused: 0, starting: 0, free_bucket: 1 };
                self.step(to, Input::PeerUp { peer: peer.clone(), epoch });
                self.step(to, Input::AdvertReceived { peer, epoch, hash, advert });
            }
            Move::Invoke { host, action } => self.invoke(host, action),
            Move::Intent { container, kind } => {
                self.faults.operator -= 1;
                self.step(0, Input::IntentRequested { container, kind, force: false });
            }
            Move::Crash { host } => {
                self.faults.crash -= 1;
                self.crash(host);
            }
            Move::Up { host } => self.up(host),
        }
        self.settle();
    }

    /// Whether all that is under way may take until after the next deadline.
    fn may_wait(&self) -> bool {
        let ops = self.hosts.iter().flat_map(|host| &host.ops);
        let mut ops = ops.map(|((_, op), lag)| (matches!(op, Op::Run(_)), *lag));
        self.flying.iter().all(|f| f.lag < self.delays.message)
            && ops.all(|(run, lag)| lag < if run { self.delays.run } else { self.delays.engine })
    }

    fn next_moment(&self) -> Option<u64> {
        (0..self.hosts.len()).filter_map(|host| self.wake_at(host)).min()
    }

    /// All nodes notice the time, so that their last steps tell them apart no more than they must.
    fn advance(&mut self, sleeps: Option<usize>) {
        // A node that sleeps through its deadline keeps it; the next moment is that of another, or a while later.
        let others = (0..self.hosts.len()).filter(|h| Some(*h) != sleeps).filter_map(|host| self.wake_at(host));
        let Some(due) = others.min().or_else(|| Some(self.next_moment()? + 2_000)) else { return };
        self.now = self.now.max(due);
        for lag in self.flying.iter_mut().map(|f| &mut f.lag) {
            *lag += 1;
        }
        for lag in self.hosts.iter_mut().flat_map(|h| h.ops.values_mut()) {
            *lag += 1;
        }
        for host in (0..self.hosts.len()).filter(|host| Some(*host) != sleeps) {
            self.step(host, Input::Tick);
        }
        if !self.slow_gossip {
            let new: Vec<_> = self.pulls().filter(|(to, _)| Some(*to) != sleeps).collect();
            for (to, from) in new {
                self.pull(to, from);
            }
        }
    }

    pub(super) fn invoke(&mut self, host: usize, action: usize) {
        self.invokes[host] -= 1;
        self.invoked[host] += 1;
        // Named by its origin alone, so that it makes no difference who was first.
        let activation = ActivationId(16 * host as u128 + u128::from(self.invoked[host]));
        let body_bytes = if self.large { 2_000 } else { 10 };
        self.step(
            host,
            Input::InvokeRequested {
                activation,
                spec: self.specs[action].clone(),
                body_bytes,
                attempt: 0,
                journaled: false,
            },
        );
    }

    fn end_op(&mut self, host: usize, nth: usize, end: RunEnd) {
        if let Some((container, op)) = self.hosts[host].ops.keys().nth(nth).copied() {
            self.engine(host, container, op, end);
        }
    }

    pub(super) fn engine(&mut self, host: usize, container: u64, op: Op, end: RunEnd) {
        self.hosts[host].ops.remove(&(container, op));
        match op {
            Op::Start => {
                self.step(host, Input::ContainerCreated { container });
                self.step(host, Input::ContainerReady { container });
            }
            Op::Pause => self.step(host, Input::PauseEnded { container, ok: true }),
            Op::Resume => self.step(host, Input::ResumeEnded { container, ok: true }),
            Op::Remove => {
                let inside: Vec<_> = self.hosts[host].ops.keys().filter(|(c, _)| *c == container).copied().collect();
                for (_, op) in inside {
                    self.hosts[host].ops.remove(&(container, op));
                    if let Op::Run(run) = op {
                        self.end_run(host, container, run, RunEnd::Lost);
                    }
                }
                self.step(host, Input::RemoveEnded { container });
            }
            Op::Run(run) => self.end_run(host, container, run, end),
        }
    }

    fn end_run(&mut self, host: usize, container: u64, run: RunId, end: RunEnd) {
        if matches!(end, RunEnd::Answered | RunEnd::NeverStarted) {
            self.tell(host, What::Left { container, run });
        }
        self.step(host, Input::RunFinished { container, run, end });
        self.peer_run_ended(host, run, end == RunEnd::NeverStarted);
    }

    /// Whom gossip has something new to show, and of whom.
    pub(super) fn pulls(&self) -> impl Iterator<Item = (usize, usize)> {
        let pairs = (0..self.hosts.len()).flat_map(|to| (0..self.hosts.len()).map(move |from| (to, from)));
        pairs.filter(|(to, from)| {
            let known = self.hosts[*to].sees.get(from);
            to != from && self.hosts[*to].node.is_some() && known != Some(&facts(&self.hosts[*from]))
        })
    }

    pub(super) fn pull(&mut self, to: usize, from: usize) {
        let peer = self.hosts[from].id.clone();
        let new = facts(&self.hosts[from]);
        let known = self.hosts[to].sees.insert(from, new.clone());
        let epoch = new.epoch;
        if !new.up {
            return self.step(to, Input::PeerDown { peer, epoch });
        }
        let before = known.filter(|k| k.epoch == epoch).map(|k| k.adverts).unwrap_or_default();
        self.step(to, Input::PeerUp { peer: peer.clone(), epoch });
        let room_mb = new.room_mb;
        self.step(to, Input::PeerFacts { peer: peer.clone(), epoch, draining: false, room_mb });
        for (hash, advert) in new.adverts {
            if before.get(&hash) != Some(&advert) {
                self.step(to, Input::AdvertReceived { peer: peer.clone(), epoch, hash, advert });
            }
        }
    }
}

fn facts(host: &Host) -> Facts {
    match &host.node {
        Some(node) => Facts {
            epoch: host.epoch,
            up: true,
            room_mb: host.capacity_mb().saturating_sub(node.memory_used_mb()),
            adverts: host.shows.clone(),
        },
        None => Facts { epoch: host.epoch, up: false, room_mb: 0, adverts: Default::default() },
    }
}
