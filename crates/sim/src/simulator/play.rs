//! Carries a plan out: brings the mesh up, lets calls and faults come, and demands at the end what the mode says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use embermesh_node::invocation::{Call, Wait};
use embermesh_node::registry::action::{KeyValue, Kind};
use embermesh_node::registry::{ActionChange, LimitsChange};
use serde_json::json;

use super::engine::{Mood, Parameters};
use super::host::{Loses, name_of};
use super::net::Weather;
use super::plan::{ActionSetting, Cuts, Mode, NodeSetting, Op, Plan, Setting, Waiting};
use super::world::{Missed, World};
use super::{Outcome, host_calls};

pub const NAMESPACE: &str = "guest";
/// Joining, and all actions everywhere.
const READY: Duration = Duration::from_secs(20);
/// The nodes themselves are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longer than any call may wait for its end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nothing that has failed is tried again later than that (an exchange of actions; a removal sooner).
const NEXT_TRY: Duration = Duration::from_secs(30);
/// How often the end is looked for.
const SETTLED_EVERY: Duration = Duration::from_millis(100);

/// What is to be done next, and when; the number keeps those of one moment in order.
type Agenda = BTreeMap<(Duration, usize), Due>;

#[derive(Debug)]
enum Due {
    Event(Op),
    Mends(Op),
}

struct Play {
    world: World,
    plan: Plan,
    agenda: Agenda,
    /// The next number for the agenda.
    next: usize,
    calls: u64,
    /// Nodes that are down until somebody starts them.
    down: Vec<bool>,
    moods: Vec<u32>,
    disks: Vec<u32>,
    weather: u32,
}

/// Plays a plan on a thread of its own.
pub fn play(plan: &Plan, keeps_trace: bool) -> Outcome {
    let began = Instant::now();
    let (seed, plan) = (plan.seed, plan.clone());
    let mut outcome =
        host_calls::on_a_thread_of_the_seed(seed, move || match World::start(seed, &plan.setting, keeps_trace) {
            Ok(world) => Play::new(world, plan).run(),
            Err(error) => Outcome { violation: Some(format!("no simulation: {error}")), ..Outcome::default() },
        });
    outcome.real_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}

impl Play {
    fn new(world: World, plan: Plan) -> Self {
        let nodes = world.nodes();
        Self {
            world,
            plan,
            agenda: Agenda::new(),
            next: 0,
            calls: 0,
            down: vec![false; nodes],
            moods: vec![0; nodes],
            disks: vec![0; nodes],
            weather: 0,
        }
    }

    fn run(mut self) -> Outcome {
        let violation = self.play().err();
        let witness = self.world.witness().clone();
        if let Some(violation) = &violation {
            witness.say(&format!("VIOLATION {violation}"));
        }
        Outcome {
            violation,
            simulated_ms: u64::try_from(self.world.elapsed().as_millis()).unwrap_or(u64::MAX),
            real_ms: 0,
            calls: self.calls,
            records: witness.records(),
            counts: witness.counts(),
            trace_hash: witness.trace_hash(),
            trace: witness.take_trace(),
        }
    }

    fn play(&mut self) -> Result<(), Missed> {
        self.tell_what_is_decided();
        let all: Vec<usize> = (0..self.world.nodes()).collect();
        self.world.until("all nodes run", READY, |world| world.running() == all)?;
        self.world.until("all see all", READY, |world| world.agree_on_live(&all))?;
        self.create_actions()?;
        let ready = self.world.elapsed();
        self.world.witness().say("the mesh is ready");
        for (number, event) in std::mem::take(&mut self.plan.events) {
            let at = ready + Duration::from_millis(event.at_ms);
            self.agenda.insert((at, number), Due::Event(event.what));
            self.next = self.next.max(number + 1);
        }
        let mut look = ready;
        while self.world.elapsed() < ready + self.plan.length {
            self.do_what_is_due();
            self.world.step()?;
            if self.world.elapsed() >= look {
                look += LOOK_EVERY;
                self.look()?;
            }
        }
        match self.plan.mode {
            Mode::Safety => Ok(()),
            Mode::Liveness => self.settle(),
        }
    }

    /// What no event will show.
    fn tell_what_is_decided(&self) {
        let witness = self.world.witness();
        self.plan.to_string().split("; ").for_each(|line| witness.say(line));
        for NodeSetting { drift_ppm, wall_off_s, .. } in &self.plan.setting.nodes {
            for (name, off) in [("clock", drift_ppm), ("wall clock", wall_off_s)] {
                let how = ["behind", "right", "ahead"][(off.signum() + 1) as usize];
                witness.note(&format!("{name}: {how}"));
            }
        }
        if self.plan.setting.frozen.is_some() {
            witness.note("one direction stays cut");
        }
    }

    fn create_actions(&mut self) -> Result<(), Missed> {
        for (n, action) in self.plan.setting.actions.clone().into_iter().enumerate() {
            let at = n % self.world.nodes();
            let (name, change) = (action.name.clone(), change_of(&action));
            let made = self.world.begin(at, move |node| async move {
                node.put_action(NAMESPACE, &name, change, None, false).await.map(drop)
            });
            let made = self.world.end("an action is made", READY, made)?;
            made.map_err(|error| format!("an action can't be made: {error}"))?;
        }
        let names = self.plan.setting.actions.len();
        let everywhere = |world: &World| {
            (0..world.nodes()).all(|n| world.node(n).is_some_and(|node| node.actions(NAMESPACE, 0, 100).len() >= names))
        };
        self.world.until("all nodes know all actions", READY, everywhere).map(drop)
    }

    fn do_what_is_due(&mut self) {
        let now = self.world.elapsed();
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= now
        {
            let ((_, number), due) = entry.remove_entry();
            match due {
                Due::Event(op) => self.event(number, op),
                Due::Mends(op) => self.mend(&op),
            }
        }
    }

    /// Does it, and notes when it is over.
    fn event(&mut self, number: usize, op: Op) {
        if let Op::Call { node, action, wait, work_ms, fate } = op {
            let parameters = Parameters {
                call: number as u64 + 1,
                action: self.plan.setting.actions[action].name.clone(),
                work_ms,
                fate,
            };
            return self.call(node, action, wait, parameters);
        }
        self.world.witness().say(&format!("FAULT {number}: {op:?}"));
        self.world.witness().note(&format!("fault: {}", self.name_of(&op)));
        if let Some(ms) = self.begin(&op) {
            let at = self.world.elapsed() + Duration::from_millis(ms);
            self.agenda.insert((at, self.next), Due::Mends(op));
            self.next += 1;
        }
    }

    fn name_of(&self, op: &Op) -> &'static str {
        let ttl_ms = self.plan.setting.protocol.ttl.as_millis();
        match op {
            Op::Call { .. } => "none",
            Op::Cut { part_of: Cuts::OneWay, .. } => "cut one way",
            Op::Cut { part_of: Cuts::BothWays, .. } => "cut both ways",
            Op::Cut { part_of: Cuts::Deaf, .. } => "node hears nobody",
            Op::Cut { part_of: Cuts::Mute, .. } => "nobody hears a node",
            Op::Cut { part_of: Cuts::Alone, .. } => "node alone",
            Op::Cut { part_of: Cuts::Swizzled, .. } => "cuts one after another",
            Op::Hold { .. } => "hold",
            Op::Slow { .. } => "slow link",
            Op::Gossip { .. } => "bad gossip",
            Op::Crash { loses: Loses::Nothing, .. } => "crash",
            Op::Crash { loses: Loses::LastWrites, .. } => "crash without the last writes",
            Op::Crash { loses: Loses::Everything, .. } => "crash without any data",
            Op::Stop { leaves: true, .. } => "leave",
            Op::Stop { leaves: false, .. } => "stop",
            Op::Pause { ms, .. } if u128::from(*ms) > ttl_ms => "pause longer than a lease",
            Op::Pause { .. } => "pause shorter than a lease",
            Op::Engine { mood: Mood::Stalled, .. } => "engine stalled",
            Op::Engine { mood: Mood::Slow, .. } => "engine slow",
            Op::Engine { mood: Mood::Failing, .. } => "engine failing",
            Op::Engine { .. } => "engine vague",
            Op::KillContainer { .. } => "container killed",
            Op::DiskFull { .. } => "disk full",
            Op::Drain { force: true, .. } => "drain by force",
            Op::Drain { .. } => "drain",
            Op::Update { .. } => "action updated",
        }
    }

    /// How long it lasts; nothing if it is over, or was not possible.
    fn begin(&mut self, op: &Op) -> Option<u64> {
        match *op {
            Op::Call { .. } => None,
            Op::Cut { from, to, ms, .. } => {
                self.world.cut(from, to, true);
                Some(ms)
            }
            Op::Hold { a, b, ms } => {
                self.world.hold(a, b, true);
                Some(ms)
            }
            Op::Slow { a, b, latency_ms, ms } => {
                self.world.set_latency(a, b, Duration::from_millis(latency_ms));
                Some(ms)
            }
            Op::Gossip { weather, ms } => {
                self.weather += 1;
                self.world.set_weather(weather);
                Some(ms)
            }
            Op::Crash { node, loses, down_ms } => {
                if self.down[node] {
                    return None;
                }
                self.down[node] = true;
                self.world.crash(node, loses);
                self.check_promises();
                Some(down_ms)
            }
            Op::Stop { node, leaves, down_ms } => {
                if self.is_away(node) {
                    return None;
                }
                self.down[node] = true;
                if leaves {
                    self.world.begin(node, |node| async move { node.leave(true) });
                } else {
                    self.world.host(node).stop();
                }
                // It needs its time to end; whatever is left of it then goes with the restart.
                let drain = self.plan.setting.protocol.drain_deadline;
                Some(u64::try_from(drain.as_millis()).unwrap_or(0) + 2_000 + down_ms)
            }
            Op::Pause { node, ms } => {
                if self.is_away(node) {
                    return None;
                }
                self.world.pause(node, true);
                Some(ms)
            }
            Op::Engine { node, mood, ms } => {
                self.moods[node] += 1;
                self.world.engine(node).set_mood(mood);
                Some(ms)
            }
            Op::KillContainer { node, nth } => {
                self.world.engine(node).kill(nth);
                None
            }
            Op::DiskFull { node, ms } => {
                self.disks[node] += 1;
                self.world.fill_disk(node, true);
                Some(ms)
            }
            Op::Drain { node, force, down_ms } => {
                if self.is_away(node) {
                    return None;
                }
                self.world.begin(node, move |node| async move { node.drain(None, force).await.map(drop).ok() });
                Some(down_ms)
            }
            Op::Update { node, action } => {
                if !self.is_away(node) {
                    self.update(node, action);
                }
                None
            }
        }
    }

    fn mend(&mut self, op: &Op) {
        self.world.witness().say(&format!("over: {op:?}"));
        match *op {
            Op::Call { .. } | Op::KillContainer { .. } | Op::Update { .. } => {}
            Op::Cut { from, to, .. } => self.world.cut(from, to, false),
            Op::Hold { a, b, .. } => self.world.hold(a, b, false),
            Op::Slow { a, b, .. } => {
                let usual = Duration::from_millis(self.plan.setting.latency_ms);
                self.world.set_latency(a, b, usual);
            }
            Op::Gossip { .. } => {
                self.weather -= 1;
                if self.weather == 0 {
                    self.world.set_weather(Weather::default());
                }
            }
            Op::Crash { node, .. } | Op::Stop { node, .. } => self.start_again(node),
            // What was drained serves again after a restart.
            Op::Drain { node, .. } => {
                if !self.down[node] {
                    self.world.crash(node, Loses::Nothing);
                    self.check_promises();
                    self.start_again(node);
                }
            }
            Op::Pause { node, .. } => self.world.pause(node, false),
            Op::Engine { node, .. } => {
                self.moods[node] -= 1;
                if self.moods[node] == 0 {
                    self.world.engine(node).set_mood(Mood::Well);
                }
            }
            Op::DiskFull { node, .. } => {
                self.disks[node] -= 1;
                if self.disks[node] == 0 {
                    self.world.fill_disk(node, false);
                }
            }
        }
    }

    fn start_again(&mut self, node: usize) {
        self.down[node] = false;
        // What is left of one that had not ended in time.
        self.world.crash(node, Loses::Nothing);
        if self.disks[node] > 0 {
            self.world.fill_disk(node, true);
        }
        self.world.restart(node);
    }

    fn is_away(&self, node: usize) -> bool {
        self.down[node] || self.world.is_paused(node) || self.world.node(node).is_none()
    }

    fn call(&mut self, node: usize, action: usize, wait: Waiting, parameters: Parameters) {
        if self.is_away(node) {
            self.world.witness().note("call to a node that is away");
            return;
        }
        let number = parameters.call;
        let ActionSetting { name, idempotent, .. } = self.plan.setting.actions[action].clone();
        self.calls += 1;
        let witness = self.world.witness().clone();
        witness.calls(number, node, idempotent);
        witness.say(&format!(
            "call {number} of {name} at {}: {} ms, {:?}, {wait:?}",
            name_of(node),
            parameters.work_ms,
            parameters.fate
        ));
        let call = Call {
            namespace: NAMESPACE.to_owned(),
            name,
            params: Bytes::from(json!(parameters).to_string()),
            transaction_id: format!("call-{number}"),
            subject: NAMESPACE.to_owned(),
        };
        let waits = match wait {
            Waiting::ToTheEnd | Waiting::HangsUp(_) => Wait::For(PATIENCE),
            Waiting::Until(ms) => Wait::For(Duration::from_millis(ms)),
            Waiting::NotAtAll => Wait::No,
        };
        self.world.begin(node, move |own| async move {
            let invoked = own.invoke(call, waits);
            let result = match wait {
                Waiting::HangsUp(ms) => match tokio::time::timeout(Duration::from_millis(ms), invoked).await {
                    Ok(result) => result,
                    Err(_) => {
                        witness.say(&format!("call {number}: its caller hangs up"));
                        witness.give_up(|call, _| call == number);
                        return;
                    }
                },
                _ => invoked.await,
            };
            witness.ended(number, node, waits != Wait::No, &result);
        });
    }

    fn update(&mut self, node: usize, action: usize) {
        let action = &self.plan.setting.actions[action];
        let (name, change) = (action.name.clone(), change_of(action));
        self.world.begin(node, move |node| async move {
            node.put_action(NAMESPACE, &name, change, None, true).await.map(drop).ok()
        });
    }

    fn look(&mut self) -> Result<(), Missed> {
        self.world.witness().look(&self.world.cores());
        self.check_promises();
        self.world.witness().wrongs().map_or(Ok(()), Err)
    }

    /// Whatever was promised is owed or has its record, on disk, at any moment.
    fn check_promises(&self) {
        let witness = self.world.witness();
        for (id, call, at) in witness.promised() {
            if !self.world.host(at).store().answers_for(id) {
                let lost = format!(
                    "A5_accepted_has_one_outcome: call {call} ({id}) was promised by {} and is neither owed nor ended",
                    name_of(at)
                );
                witness.wrong(lost);
            }
        }
    }

    /// All heals but what is to stay, nobody calls any more: then everything has to come to its end.
    fn settle(&mut self) -> Result<(), Missed> {
        self.world.witness().say("all heals");
        for (_, due) in std::mem::take(&mut self.agenda) {
            if let Due::Mends(op) = due {
                self.mend(&op);
            }
        }
        if let Some((from, to)) = self.plan.setting.frozen {
            self.world.cut(from, to, true);
            self.world.witness().say(&format!("what {} sends to {} stays lost", name_of(from), name_of(to)));
        }
        let (began, patience) = (self.world.elapsed(), settles_within(&self.plan.setting));
        let mut look = began;
        loop {
            self.world.step()?;
            if self.world.elapsed() < look {
                continue;
            }
            look += SETTLED_EVERY;
            self.look()?;
            let took = self.world.elapsed() - began;
            let Err(unsettled) = self.settled() else {
                let within = [5, 10, 20, 40].into_iter().find(|s| took.as_secs() < *s);
                let within = within.unwrap_or(patience.as_secs());
                self.world.witness().note(&format!("settled within {within:>2} s"));
                return Ok(());
            };
            if took > patience {
                return Err(format!(
                    "not settled {patience:?} after the last fault: {unsettled}\n{}",
                    self.world.describe()
                ));
            }
        }
    }

    /// What has not come true yet.
    fn settled(&self) -> Result<(), String> {
        let all: Vec<usize> = (0..self.world.nodes()).collect();
        if self.world.running() != all {
            return Err(format!("only {:?} run", self.world.running()));
        }
        if !self.world.agree_on_live(&all) {
            return Err("G3_views_converge: not all see all".to_owned());
        }
        let names = |node: usize| self.world.node(node).map(|node| node.actions(NAMESPACE, 0, 100));
        if all.windows(2).any(|pair| names(pair[0]) != names(pair[1])) {
            return Err("G3_views_converge: not all know the same actions".to_owned());
        }
        if let Some(call) = self.world.witness().unanswered() {
            return Err(format!("A4_every_request_answered: call {call} has no answer"));
        }
        if let Some(owes) = all.iter().find(|node| self.world.host(**node).store().owes()) {
            return Err(format!("A5_accepted_has_one_outcome: {} still owes", name_of(*owes)));
        }
        self.world.witness().at_rest(&self.world.cores()).map_err(|v| format!("{}: {}", v.invariant, v.what))?;
        for node in all {
            if let Some(container) = self.world.engine(node).containers().first() {
                return Err(format!("O1_no_orphan: {} still has {container}", name_of(node)));
            }
        }
        Ok(())
    }
}

/// After the last fault, one after the other: what failed is tried again, a full queue is run down, the last lease is over,
/// and its container goes after all the pauses and vetoes that there can be.
fn settles_within(setting: &Setting) -> Duration {
    let protocol = &setting.protocol;
    let longest_ms = setting.actions.iter().map(|action| action.timeout_ms).max().unwrap_or(0);
    let queue = Duration::from_millis(longest_ms) * protocol.queue_per_action;
    let waits = protocol.max_memory_wait + protocol.drain_deadline;
    let leases = protocol.max_lease_age + protocol.ttl + protocol.grace;
    let idle = protocol.concurrent_grace + protocol.idle_timeout + (protocol.window + protocol.max_hold) * 2;
    NEXT_TRY + waits + queue + leases + idle
}

fn change_of(action: &ActionSetting) -> ActionChange {
    ActionChange {
        kind: Some(Kind::Builtin),
        main: Some("echo".to_owned()),
        limits: LimitsChange {
            memory: Some(action.memory_mb),
            timeout: Some(action.timeout_ms),
            concurrency: Some(action.concurrency),
            logs: None,
        },
        annotations: Some(vec![KeyValue { key: "idempotent".to_owned(), value: json!(action.idempotent) }]),
        ..ActionChange::default()
    }
}
