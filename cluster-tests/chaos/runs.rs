//! Runs that are made of a seed.

use crate::tool::{Tool, verdicts};

/// Promises that only a look at the nodes themselves can judge.
const NOT_TOLD: [&str; 3] =
    ["L1b_beliefs_within_slots", "L3_holder_stops_before_owner_frees", "the history is faithful"];

#[test]
fn five_agents_under_all_faults_keep_every_promise_and_heal() {
    let tool = Tool::new();
    let report = tool.path("report");
    let output = tool.run(&["run", "--duration", "50s", "--report", "report"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    eprintln!("{said}{told}");
    assert_eq!(output.status.code(), Some(0), "{said}{told}");
    let root = nix::unistd::geteuid().is_root();
    let verdicts = verdicts(&report);
    for (name, verdict) in &verdicts {
        let left_out = name == "fault disk";
        let expected = if left_out || NOT_TOLD.contains(&name.as_str()) { "not_judged" } else { "held" };
        assert_eq!(verdict, expected, "{name}");
    }
    assert_eq!(verdicts.iter().any(|(name, _)| name == "fault disk"), !root);
    let faults = std::fs::read_to_string(report.join("faults.jsonl")).unwrap();
    for kind in ["kill", "stop", "partition", "delay", "loss", "engine", "clock"] {
        assert!(faults.contains(&format!("\"kind\":\"{kind}\"")), "no {kind}: {faults}");
    }
    assert_eq!(said.contains("left out: disk"), !root, "{said}");
    assert_eq!(faults.contains("\"kind\":\"disk\""), root, "{faults}");
    assert_eq!(faults.lines().count(), said.matches("over: ").count(), "each was told of");
    // Judged again it comes to the same.
    let again = tool.run(&["check", "report"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(String::from_utf8_lossy(&again.stdout), told);
    let page = std::fs::read_to_string(report.join("timeline.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("cut what goes") && page.contains("every promise"), "{page}");
    for elsewhere in ["http://", "https://", "src=", "<link"] {
        assert!(!page.contains(elsewhere), "the page needs {elsewhere}");
    }
    tool.expect_nothing_left();
}

#[test]
fn containers_killed_and_paused_behind_their_agents_backs_and_a_docker_that_hangs_break_no_promise() {
    if !crate::skip::docker_is_here() {
        return;
    }
    let tool = Tool::new();
    tool.file("scenario.toml", DISTURBED);
    let output = tool.run(&["run", "--scenario", "scenario.toml", "--report", "report"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{said}");
    // What a container that nobody can write from would have noted is not said to hold.
    let verdicts = verdicts(&tool.path("report"));
    let of = |name: &str| verdicts.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    assert_eq!(of("A1_started_at_most_once"), ["not_judged", "held"]);
    let faults = std::fs::read_to_string(tool.path("report").join("faults.jsonl")).unwrap();
    let held = faults.lines().filter(|line| line.contains(" bytes had to wait") && !line.contains(" 0 bytes")).count();
    assert_eq!(held, 1, "{faults}");
    tool.expect_nothing_left();
}

const DISTURBED: &str = "
duration = '20s'
[mesh]
nodes = 3
engine = 'docker'
[workload]
rate = 10
[expect]
successes = 80
[[faults]]
kind = 'engine'
how = 'kill'
at = '6s'
for = '1s'
nodes = ['n1']
[[faults]]
kind = 'engine'
how = 'pause'
at = '9s'
for = '1s'
nodes = ['n1']
[[faults]]
kind = 'kill'
at = '11s'
for = '2s'
nodes = ['n2']
[[faults]]
kind = 'engine'
how = 'stall'
at = '14s'
for = '3s'
nodes = ['n3']
[[faults]]
kind = 'disk'
at = '14s'
for = '2s'
nodes = ['n1']
";
