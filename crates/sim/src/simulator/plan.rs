//! All that a simulation does, drawn from its seed before it begins: nodes, clocks, calls and faults. A plan is plain
//! data, so that a failure shrinks to the few events that matter.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use embermesh_node::config::ProtocolSection;

use super::engine::{Fate, Mood};
use super::host::{Loses, name_of};
use super::net::Weather;
use super::random::Random;
use crate::azure::{Draw as _, Shape};

/// Between two arrivals of the workload.
const MEAN_GAP_MS: f64 = 150.0;
/// Runs are so much shorter than the trace's, as leases are than production's.
const SHRUNK: f64 = 10.0;

/// What is demanded of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Faults to the end; nothing that must never happen happens.
    Safety,
    /// Faults, then all heals but perhaps one; what must happen in the end does.
    Liveness,
}

/// What a plan is drawn from.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub mode: Mode,
    /// The seed's choice if not given.
    pub nodes: Option<usize>,
    /// How long calls and faults go on.
    pub length: Duration,
    /// Of the plan's events only those with these numbers.
    pub only: Option<Vec<usize>>,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub length: Duration,
    pub setting: Setting,
    /// Each with its number, in order of time.
    pub events: Vec<(usize, Event)>,
}

#[derive(Debug, Clone)]
pub struct Setting {
    pub protocol: ProtocolSection,
    /// Between two rounds of gossip.
    pub gossip: Duration,
    pub nodes: Vec<NodeSetting>,
    pub actions: Vec<ActionSetting>,
    /// The longest that a message is on its way.
    pub latency_ms: u64,
    /// Containers outlive their agents.
    pub adopts: bool,
    /// In liveness mode: what the first of these sends to the second stays lost.
    pub frozen: Option<(usize, usize)>,
}

#[derive(Debug, Clone, Copy)]
pub struct NodeSetting {
    pub drift_ppm: i64,
    pub wall_off_s: i64,
    pub memory_mb: u64,
}

#[derive(Debug, Clone)]
pub struct ActionSetting {
    pub name: String,
    pub memory_mb: u64,
    pub concurrency: u32,
    pub timeout_ms: u64,
    pub idempotent: bool,
    shape: Shape,
}

#[derive(Debug, Clone)]
pub struct Event {
    /// Since the mesh was ready.
    pub at_ms: u64,
    pub what: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Call {
        node: usize,
        action: usize,
        wait: Waiting,
        work_ms: u64,
        fate: Fate,
    },
    /// What one sends to the other is lost.
    Cut {
        from: usize,
        to: usize,
        ms: u64,
        part_of: Cuts,
    },
    /// Nothing arrives for a while, then everything.
    Hold {
        a: usize,
        b: usize,
        ms: u64,
    },
    /// Messages between two are slow.
    Slow {
        a: usize,
        b: usize,
        latency_ms: u64,
        ms: u64,
    },
    Gossip {
        weather: Weather,
        ms: u64,
    },
    Crash {
        node: usize,
        loses: Loses,
        down_ms: u64,
    },
    /// It is told to end, as by a service manager or an operator.
    Stop {
        node: usize,
        leaves: bool,
        down_ms: u64,
    },
    Pause {
        node: usize,
        ms: u64,
    },
    Engine {
        node: usize,
        mood: Mood,
        ms: u64,
    },
    KillContainer {
        node: usize,
        nth: usize,
    },
    DiskFull {
        node: usize,
        ms: u64,
    },
    Drain {
        node: usize,
        force: bool,
        down_ms: u64,
    },
    Update {
        node: usize,
        action: usize,
    },
}

/// What a cut is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    OneWay,
    BothWays,
    /// One node does not hear the others, is not heard by them, or both.
    Deaf,
    Mute,
    Alone,
    /// Links go one after another, and come back in another order.
    Swizzled,
}

/// How long a caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    ToTheEnd,
    /// Then it is to go on without.
    Until(u64),
    /// Then the caller hangs up.
    HangsUp(u64),
    NotAtAll,
}

impl Plan {
    pub fn draw(options: &Options) -> Self {
        let mut random = Random::new(options.seed, "plan");
        let drawn = random.within(3, 5) as usize;
        let nodes = options.nodes.unwrap_or(drawn);
        let mut setting = Setting::draw(&mut random, nodes, options.mode);
        let length_ms = u64::try_from(options.length.as_millis()).unwrap_or(u64::MAX);
        let mut events = calls(&mut random, &mut setting, length_ms);
        events.extend(faults(&mut random, &setting, length_ms));
        events.sort_by_key(|event| event.at_ms);
        let kept = |number: &usize| options.only.as_ref().is_none_or(|only| only.contains(number));
        let events = events.into_iter().enumerate().filter(|(number, _)| kept(number)).collect();
        Self { seed: options.seed, mode: options.mode, length: options.length, setting, events }
    }
}

impl NodeSetting {
    pub(super) fn wall_off_us(&self) -> i64 {
        self.wall_off_s * 1_000_000
    }
}

impl Setting {
    fn draw(random: &mut Random, nodes: usize, mode: Mode) -> Self {
        let frozen = (mode == Mode::Liveness && nodes > 2 && random.chance(50)).then(|| two(random, nodes));
        Self {
            protocol: protocol(),
            gossip: Duration::from_millis(100),
            nodes: (0..nodes).map(|_| NodeSetting::draw(random)).collect(),
            actions: actions(random),
            latency_ms: random.within(1, 8),
            adopts: random.chance(50),
            frozen,
        }
    }
}

impl NodeSetting {
    /// Clock rates within ρ, often at its ends; wall clocks off by hours.
    fn draw(random: &mut Random) -> Self {
        let drift_ppm = match random.below(4) {
            0 => 10_000,
            1 => -10_000,
            2 => 0,
            _ => random.below(20_001) as i64 - 10_000,
        };
        let wall_off_s = if random.chance(50) { 0 } else { random.below(6 * 3600) as i64 - 3 * 3600 };
        Self { drift_ppm, wall_off_s, memory_mb: [512, 768, 1024, 2048][random.index(4)] }
    }
}

/// Production's numbers, shrunk: a minute of theirs passes in seconds. Margins are little more than ρ
/// takes: the simulation's own steps are a millisecond.
pub(super) fn protocol() -> ProtocolSection {
    let ms = Duration::from_millis;
    ProtocolSection {
        ttl: ms(1_000),
        margin: ms(12),
        grace: ms(13),
        max_lease_age: ms(4_000),
        window: ms(300),
        urgent_window: ms(50),
        max_hold: ms(1_000),
        pause_grace: ms(600),
        concurrent_grace: ms(1_000),
        idle_timeout: ms(2_000),
        queue_per_action: 12,
        wait: ms(300),
        max_memory_wait: ms(2_000),
        drain_deadline: ms(3_000),
        ..ProtocolSection::default()
    }
}

/// As the trace has it (`azure`), so many of them that between one and three get most calls.
fn actions(random: &mut Random) -> Vec<ActionSetting> {
    let count = [20, 100, 300][random.index(3)];
    let drawn = (0..count).map(|rank| {
        let shape = Shape::draw(rank, count, random);
        ActionSetting {
            name: format!("a{}", rank + 1),
            memory_mb: shape.memory_mb.clamp(128.0, 512.0) as u64,
            concurrency: [1, 1, 2, 4][random.index(4)],
            timeout_ms: 1_500,
            idempotent: random.chance(40),
            shape,
        }
    });
    drawn.collect()
}

/// Arrivals as the trace has them, and now and then a herd at one moment. Actions that nobody calls are left out.
fn calls(random: &mut Random, setting: &mut Setting, length_ms: u64) -> Vec<Event> {
    let mut arrivals = Vec::new();
    for (rank, action) in setting.actions.iter().enumerate() {
        let mean_ms = MEAN_GAP_MS / action.shape.share;
        // Somewhere in the first gap, as if it had gone on for ever.
        let mut at_ms = (mean_ms * action.shape.gap(random) * random.unit()) as u64;
        while at_ms < length_ms {
            arrivals.push((at_ms, rank));
            at_ms += (mean_ms * action.shape.gap(random)) as u64 + 1;
        }
    }
    arrivals.sort_unstable();
    let called: BTreeSet<usize> = arrivals.iter().map(|(_, rank)| *rank).collect();
    setting.actions = called.iter().map(|rank| setting.actions[*rank].clone()).collect();
    let mut events = Vec::new();
    for (at_ms, rank) in arrivals {
        let action = called.range(..rank).count();
        let herd = if random.chance(15) { random.within(4, 20) } else { 1 };
        let here = random.index(setting.nodes.len());
        for _ in 0..herd {
            let node = if random.chance(70) { here } else { random.index(setting.nodes.len()) };
            events.push(Event { at_ms, what: call(random, setting, node, action) });
        }
    }
    events
}

fn call(random: &mut Random, setting: &Setting, node: usize, action: usize) -> Op {
    let ActionSetting { shape, timeout_ms, .. } = &setting.actions[action];
    let work_ms = (shape.run_s(random) * 1_000.0 / SHRUNK) as u64;
    // Some are over their time-out.
    let work_ms = if random.chance(1) { timeout_ms + 700 } else { work_ms.clamp(1, timeout_ms - 100) };
    let fate = match random.below(100) {
        0 => Fate::Breaks,
        1..4 => Fate::UnwillingOnce,
        _ => Fate::Answers,
    };
    let wait = match random.below(100) {
        0..55 => Waiting::ToTheEnd,
        55..65 => Waiting::Until(random.within(20, 500)),
        65..72 => Waiting::HangsUp(random.within(1, 400)),
        _ => Waiting::NotAtAll,
    };
    Op::Call { node, action, wait, work_ms, fate }
}

fn faults(random: &mut Random, setting: &Setting, length_ms: u64) -> Vec<Event> {
    let nodes = setting.nodes.len();
    let mut events = Vec::new();
    // Some seeds are stormy, some nearly calm.
    let mean_gap_ms = [400.0, 1_000.0, 2_500.0][random.index(3)];
    let mut at_ms = 0;
    loop {
        at_ms += (random.exponential() * mean_gap_ms) as u64 + 50;
        if at_ms >= length_ms {
            return events;
        }
        let what = fault(random, nodes, setting.actions.len());
        events.extend(what.into_iter().map(|(later_ms, what)| Event { at_ms: at_ms + later_ms, what }));
    }
}

/// One fault, as the events that make it: a whole partition is many cuts.
fn fault(random: &mut Random, nodes: usize, actions: usize) -> Vec<(u64, Op)> {
    let node = random.index(nodes);
    let ms = [random.within(50, 400), random.within(400, 2_000), random.within(2_000, 5_000)][random.index(3)];
    let down_ms = random.within(20, 2_500);
    let now = |what| vec![(0, what)];
    match random.below(100) {
        0..8 => {
            let (from, to) = two(random, nodes);
            now(Op::Cut { from, to, ms, part_of: Cuts::OneWay })
        }
        8..16 => {
            let (a, b) = two(random, nodes);
            let cut = |from, to| (0, Op::Cut { from, to, ms, part_of: Cuts::BothWays });
            vec![cut(a, b), cut(b, a)]
        }
        16..26 => isolated(random, node, nodes, ms),
        26..34 => swizzled(random, nodes, ms),
        34..42 => {
            let (a, b) = two(random, nodes);
            now(Op::Hold { a, b, ms: ms.min(3_000) })
        }
        42..47 => {
            let (a, b) = two(random, nodes);
            now(Op::Slow { a, b, latency_ms: random.within(20, 300), ms })
        }
        47..54 => {
            let weather = Weather { loss: random.below(60), twice: random.below(60), late_ms: random.below(400) };
            now(Op::Gossip { weather, ms })
        }
        54..66 => {
            let loses = match random.below(10) {
                0..5 => Loses::Nothing,
                5..9 => Loses::LastWrites,
                _ => Loses::Everything,
            };
            now(Op::Crash { node, loses, down_ms })
        }
        66..70 => now(Op::Stop { node, leaves: random.chance(30), down_ms }),
        70..76 => now(Op::Pause { node, ms: random.within(300, 4_000) }),
        76..84 => {
            let mood = [Mood::Stalled, Mood::Slow, Mood::Failing, Mood::Vague][random.index(4)];
            now(Op::Engine { node, mood, ms })
        }
        84..90 => now(Op::KillContainer { node, nth: random.index(8) }),
        90..95 => now(Op::DiskFull { node, ms }),
        95..97 => now(Op::Drain { node, force: random.chance(50), down_ms }),
        _ => now(Op::Update { node, action: random.index(actions) }),
    }
}

/// One node alone: for all it sends, all it gets, or both.
fn isolated(random: &mut Random, node: usize, nodes: usize, ms: u64) -> Vec<(u64, Op)> {
    let part_of = [Cuts::Deaf, Cuts::Mute, Cuts::Alone, Cuts::Alone][random.index(4)];
    let mut cuts = Vec::new();
    for other in (0..nodes).filter(|other| *other != node) {
        if part_of != Cuts::Deaf {
            cuts.push((0, Op::Cut { from: node, to: other, ms, part_of }));
        }
        if part_of != Cuts::Mute {
            cuts.push((0, Op::Cut { from: other, to: node, ms, part_of }));
        }
    }
    cuts
}

fn swizzled(random: &mut Random, nodes: usize, ms: u64) -> Vec<(u64, Op)> {
    let mut cuts = Vec::new();
    for _ in 0..random.within(2, 5) {
        let (from, to) = two(random, nodes);
        let ms = random.within(100, ms + 200);
        cuts.push((random.below(800), Op::Cut { from, to, ms, part_of: Cuts::Swizzled }));
    }
    cuts
}

fn two(random: &mut Random, nodes: usize) -> (usize, usize) {
    let first = random.index(nodes);
    let second = (first + 1 + random.index((nodes - 1).max(1))) % nodes;
    (first, second)
}

impl Event {
    pub fn is_fault(&self) -> bool {
        !matches!(self.what, Op::Call { .. })
    }
}

/// What the seed has decided, and no event tells.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, {:?} mode: {}", self.seed, self.mode, self.setting)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes, messages up to {} ms", self.nodes.len(), self.latency_ms)?;
        write!(f, ", containers {} their agents", if self.adopts { "outlive" } else { "end with" })?;
        if let Some((from, to)) = self.frozen {
            write!(f, ", {} to {} stays cut", name_of(from), name_of(to))?;
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let NodeSetting { drift_ppm, wall_off_s, memory_mb } = node;
            write!(f, "; {} {memory_mb} MB, clock {drift_ppm:+} ppm, wall {wall_off_s:+} s", name_of(n))?;
        }
        for action in &self.actions {
            let ActionSetting { name, memory_mb, concurrency, idempotent, shape, .. } = action;
            let again = if *idempotent { ", idempotent" } else { "" };
            let work_ms = shape.median_s * 1_000.0 / SHRUNK;
            write!(f, "; {name} {memory_mb} MB, {concurrency} slots, about {work_ms:.0} ms{again}")?;
        }
        Ok(())
    }
}
