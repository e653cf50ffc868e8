//! One run, from the mesh's start to the verdicts.

use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::NODES;
use crate::ground::{self, Containers, End, Ground};
use crate::nemesis::{Made, Nemesis};
use crate::packets::Packets;
use crate::plan::{Fault, plan};
use crate::report::{Report, Verdict};
use crate::support::{Agent, Network};
use crate::traffic::{ACTIONS, BLOCKING, Traffic, records};

const SECONDS: u64 = 45;
/// How long it may take to heal before that is given up; the judgement allows less.
const HEALS_WITHIN: Duration = Duration::from_secs(60);
const HEALED_WITHIN: &str = "10s";
const AT_REST_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For an agent to say what it has.
const ASKED: Duration = Duration::from_secs(2);
/// What a run of any length has to show.
const JUDGED: [&str; 10] = [
    "A2_A3_outcomes_are_true",
    "A4_every_request_answered",
    "A5_accepted_has_one_outcome",
    "G3_views_converge",
    "L7_no_slot_leak",
    "O1_no_orphan",
    "agents stay up",
    "calls came when due",
    "expectations",
    "faults were made",
];
/// What actions have to write down for that.
const NOTED: [&str; 2] = ["A1_started_at_most_once", "L0_runs_within_slots"];

/// Moments of the run, in milliseconds since its calls began.
#[derive(Debug, Default)]
struct Moments {
    faults_ended: u64,
    healed: Option<u64>,
    not_healed: Vec<String>,
    calls_ended: u64,
    at_rest: Option<u64>,
    not_at_rest: Vec<String>,
}

/// What a run is made of.
struct Run {
    seed: u64,
    length: Duration,
    docker: bool,
    /// Calls a second.
    rate: f64,
    faults: Vec<Fault>,
    /// How to do the same again.
    again: String,
}

impl Run {
    fn of(containers: Containers) -> Self {
        let (seed, seconds) = (setting("SEED").unwrap_or_else(any_seed), setting("SECONDS").unwrap_or(SECONDS));
        let docker = containers == Containers::Docker;
        let (length, name) = (Duration::from_secs(seconds), if docker { "docker" } else { "process" });
        let again = format!(
            "EMBERMESH_NEMESIS_SEED={seed} EMBERMESH_NEMESIS_SECONDS={seconds} \
             cargo test -p embermesh --test nemesis {name} -- --nocapture"
        );
        // Docker takes a quarter of a second to start a container.
        let rate = if docker { 10.0 } else { 30.0 };
        Self { seed, length, docker, rate, faults: plan(seed, length, docker), again }
    }
}

/// Panics with the report's folder unless every promise holds; an error tells what this host lacks.
pub(crate) fn run(containers: Containers) -> Result<(), String> {
    let run = Run::of(containers);
    // Past the harness, which shows what tests print only if they fail.
    io::stderr().write_all(format!("{}\n", run.again).as_bytes()).unwrap();
    let (network, packets) = host(run.seed)?;
    let report = Report::new();
    ground::keep_mounts_private();
    let mut ground = Ground::new(network, containers, &report.histories());
    let notes = (!run.docker).then(|| report.notes());
    let traffic = Traffic::new(&ground.mesh, notes, run.rate, run.seed);
    let nemesis = Nemesis::new(&mut ground, &traffic, packets, report.histories(), run.seed);
    let (mut moments, made, astray) = shake(nemesis, &traffic, &run);
    rest(&ground, &traffic, &mut moments);
    report.write_lines("records.jsonl", &records(&ground.mesh));
    let mut end = ground.end();
    end.astray.extend(astray);
    let panics = report.keep_logs(&ground.mesh);
    report.write_lines("faults.jsonl", &made);
    report.write_lines("requests.jsonl", &traffic.done());
    report.write_scenario(&scenario(&run));
    report.write_run(told(&run, &traffic, moments, end, panics));
    expect_all_held(&report, &run);
    Ok(())
}

#[track_caller]
fn expect_all_held(report: &Report, run: &Run) {
    let verdicts = report.judge();
    for Verdict { name, verdict, seen } in &verdicts {
        eprintln!("{name:<40} {verdict:<10} {seen}");
    }
    let violated: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.verdict == "violated").collect();
    assert!(violated.is_empty(), "not everything holds, by {}:\n{violated:#?}", run.again);
    for name in JUDGED.into_iter().chain(NOTED.into_iter().filter(|_| !run.docker)) {
        assert!(verdicts.iter().any(|v| v.name == name && v.verdict == "held"), "{name} was not judged");
    }
}

/// As `run.json` has it.
fn told(run: &Run, traffic: &Traffic, moments: Moments, end: End, panics: Vec<String>) -> Value {
    json!({
        "began_unix_ms": traffic.began_unix_us() / 1_000,
        "nodes": (1..=NODES).map(|n| format!("n{n}")).collect::<Vec<_>>(),
        "again": run.again,
        "left_out": {},
        "faults_ended_ms": moments.faults_ended,
        "healed_ms": moments.healed,
        "not_healed": moments.not_healed,
        "calls_ended_ms": moments.calls_ended,
        "held_back": traffic.held_back(),
        "not_at_rest": moments.not_at_rest,
        "at_rest_ms": moments.at_rest,
        "agents_astray": end.astray,
        "left_behind": end.left_behind,
        "panics": panics,
    })
}

/// What this host lacks, or a network with queues in it.
fn host(seed: u64) -> Result<(Network, Packets), String> {
    if !geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    for tool in ["ip -V", "iptables -V", "nsenter -V", "unshare -V"] {
        let mut words = tool.split(' ');
        let name = words.next().unwrap_or_default();
        let ran = Command::new(name).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.map_err(|error| format!("`{name}` can't be run ({error}): install iproute2, iptables and util-linux"))?;
    }
    let network = Network::new(NODES).ok_or("network namespaces can't be made")?;
    if !network.try_at(1, "iptables -A OUTPUT -d 10.9.0.250 -j NFQUEUE --queue-num 9 --queue-bypass") {
        return Err("this kernel has no NFQUEUE".to_owned());
    }
    network.at(1, "iptables -F OUTPUT");
    let packets = Packets::serve(&network, seed).map_err(|error| format!("NFQUEUE can't be served: {error}"))?;
    Ok((network, packets))
}

/// Calls and faults, until everything has healed and all calls have ended.
fn shake(mut nemesis: Nemesis<'_>, traffic: &Traffic, run: &Run) -> (Moments, Vec<Made>, Vec<String>) {
    let mut moments = Moments::default();
    thread::scope(|scope| {
        scope.spawn(|| traffic.flow(scope));
        let caught = catch_unwind(AssertUnwindSafe(|| {
            nemesis.rage(&run.faults);
            moments.faults_ended = traffic.now_ms();
            moments.not_healed = heal(&mut nemesis, traffic);
            moments.healed = moments.not_healed.is_empty().then(|| traffic.now_ms());
            while u128::from(traffic.now_ms()) < run.length.as_millis() {
                thread::sleep(LOOK_EVERY);
            }
        }));
        traffic.stop();
        if let Err(panic) = caught {
            resume_unwind(panic);
        }
    });
    moments.calls_ended = traffic.now_ms();
    let (made, astray) = nemesis.into_made();
    (moments, made, astray)
}

/// Waits until every agent is ready and knows every other, and every action is served at every node; what is missing in
/// the end.
fn heal(nemesis: &mut Nemesis<'_>, traffic: &Traffic) -> Vec<String> {
    let began = Instant::now();
    loop {
        let over = nemesis.is_over();
        let missing: Vec<String> = nemesis.ground.mesh.agents.iter().filter_map(not_whole).collect();
        if over && missing.is_empty() {
            break;
        }
        if began.elapsed() > HEALS_WITHIN {
            return missing;
        }
        thread::sleep(LOOK_EVERY);
    }
    let served = |node: usize, action: usize| {
        while !traffic.probe(node, action) {
            if began.elapsed() > HEALS_WITHIN {
                return Some(format!("no call of {} succeeds at n{}", ACTIONS[action].0, node + 1));
            }
            thread::sleep(LOOK_EVERY);
        }
        None
    };
    let pairs = (0..NODES).flat_map(|node| (0..ACTIONS.len()).map(move |action| (node, action)));
    thread::scope(|scope| {
        let probes: Vec<_> = pairs.map(|(node, action)| scope.spawn(move || served(node, action))).collect();
        probes.into_iter().filter_map(|probe| probe.join().unwrap()).collect()
    })
}

/// What a node is not, or does not know.
fn not_whole(agent: &Agent) -> Option<String> {
    let Some(status) = ask(agent, "/mesh/v1/status") else { return Some(format!("{} does not answer", agent.id())) };
    if status["ready"] != true {
        return Some(format!("{} is not ready: {}", agent.id(), status["not_ready"]));
    }
    let members = ask(agent, "/mesh/v1/members").unwrap_or_default();
    let live = members["members"].as_array().into_iter().flatten().filter(|member| member["state"] == "live").count();
    (live != NODES).then(|| format!("{} counts {live} of {NODES} nodes as live", agent.id()))
}

/// Waits until no node has a lease, a run or a waiting call.
fn rest(ground: &Ground, traffic: &Traffic, moments: &mut Moments) {
    let began = Instant::now();
    loop {
        moments.not_at_rest = ground.mesh.agents.iter().flat_map(busy).collect();
        if moments.not_at_rest.is_empty() {
            moments.at_rest = Some(traffic.now_ms());
            return;
        }
        if began.elapsed() > AT_REST_WITHIN {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn busy(agent: &Agent) -> Vec<String> {
    let id = agent.id();
    let asked = ["status", "leases", "containers"].map(|what| ask(agent, &format!("/mesh/v1/{what}")));
    let [Some(status), Some(leases), Some(containers)] = asked else { return vec![format!("{id} does not tell")] };
    let counts = ["queued", "running", "owed"].into_iter().filter(|what| status[*what] != 0);
    let mut found: Vec<String> = counts.map(|what| format!("{} {what} at {id}", status[what])).collect();
    for side in ["granted", "held"] {
        let leases = leases[side].as_array().into_iter().flatten();
        found.extend(leases.map(|lease| format!("lease {} {side} at {id}", lease["lease_id"])));
    }
    let taken = containers["containers"].as_array().into_iter().flatten();
    let taken = taken.filter(|container| container["busy"] != 0 || container["leased"] != 0);
    found.extend(taken.map(|c| format!("{} with {} busy and {} leased", c["container_id"], c["busy"], c["leased"])));
    found
}

fn ask(agent: &Agent, path: &str) -> Option<Value> {
    let answer = agent.try_call_within(ASKED, "GET", path, b"").ok()?;
    (answer.status == 200).then(|| answer.json())
}

/// As `embermesh chaos run` would be told it, as near as that comes.
fn scenario(run: &Run) -> Value {
    let action = |(name, concurrency, ms, weight): (&str, u32, [u64; 2], u64)| json!({"name": name, "concurrency": concurrency, "ms": ms, "weight": weight});
    json!({
        "duration": format!("{}s", run.length.as_secs()),
        "seed": run.seed,
        "mesh": {
            "nodes": NODES,
            "engine": if run.docker { "docker" } else { "process" },
            "memory": ground::MEMORY,
        },
        "workload": {
            "rate": run.rate,
            "blocking": BLOCKING,
            "actions": ACTIONS.map(action),
        },
        "expect": {
            "healed_within": HEALED_WITHIN,
            // A third of what is called, whatever happens.
            "successes": (run.rate * run.length.as_secs_f64() / 3.0) as u64,
        },
        "faults": run.faults.iter().map(Fault::in_scenario).collect::<Vec<_>>(),
    })
}

fn setting(name: &str) -> Option<u64> {
    let name = format!("EMBERMESH_NEMESIS_{name}");
    let value = std::env::var(&name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name} is {value}: {error}")))
}

/// Another one each time, short enough to be typed.
fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(since.subsec_nanos() ^ std::process::id()) % 1_000_000
}
