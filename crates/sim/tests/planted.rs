//! Whole nodes with known bugs: the simulator must see them, and make what it sees small.
//!
//! `cargo test -p embermesh-sim --features mutations --test planted -- --nocapture` prints what was seen after how many
//! seeds, as a table. Bugs that need rarer orders of events are the gate's (tests/gate.rs).
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use embermesh_sim::simulator::{Campaign, Mode};

/// Seeds before the simulator counts as blind.
const SEEDS: u64 = 40;

const SEEN: [&str; 4] = ["RunTwice", "DuplicateTakesTwoSlots", "VetoIgnored", "RestartForgetsEpoch"];

fn campaign(mutation: &str) -> Campaign {
    Campaign {
        program: PathBuf::from(env!("CARGO_BIN_EXE_embermesh-sim")),
        mode: Mode::Safety,
        nodes: None,
        length: Duration::from_secs(12),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        enough: 1,
        mutation: Some(mutation.to_owned()),
    }
}

#[test]
fn planted_bugs_are_seen_in_whole_nodes_and_made_small() {
    let mut blind = Vec::new();
    println!("| planted bug | simulation |\n| --- | --- |");
    for mutation in SEEN {
        let summary = campaign(mutation).run(0..SEEDS, None, |_, _, _| {}).unwrap();
        match summary.failures.first_key_value() {
            Some((seed, violation)) => {
                let by = violation.split(':').next().unwrap_or_default();
                println!("| {mutation} | {by} (seed {seed}, {} played) |", summary.seeds);
            }
            None => blind.push(mutation),
        }
    }
    assert!(blind.is_empty(), "nothing is seen of {blind:?} in {SEEDS} seeds");
}

#[test]
fn a_failing_seed_is_made_small_and_still_fails_the_same_way() {
    let campaign = campaign(SEEN[0]);
    let summary = campaign.run(0..SEEDS, None, |_, _, _| {}).unwrap();
    let (seed, violation) = summary.failures.first_key_value().unwrap();
    let failure = campaign.minimise(*seed, violation).unwrap();
    assert!(failure.only.len() < failure.of / 2, "{failure:?}");
    let again = campaign.play(*seed, Some(&failure.only), None).unwrap();
    assert_eq!(again.violation.as_ref(), Some(&failure.violation));
    assert!(campaign.reproduction(*seed, Some(&failure.only)).contains("--only"));
}

/// What whoever runs the program gets of a bug.
#[test]
fn the_program_tells_how_to_play_a_failure_again_and_writes_a_time_line_that_can_be_read() {
    let campaign = campaign(SEEN[0]);
    let summary = campaign.run(0..SEEDS, None, |_, _, _| {}).unwrap();
    let (seed, _) = summary.failures.first_key_value().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let range = format!("{seed}..{}", seed + 1);
    let output = Command::new(&campaign.program)
        .args(["--seeds", &range, "--mutation", SEEN[0], "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let after = |what: &str| said.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("{said}"));
    assert!(after("reproduce: ").contains(&format!("--seed {seed} --mode safety")), "{said}");
    assert!(said.contains(&format!("seed {seed}, Safety mode: ")), "what the seed decided: {said}");
    let path = after("time line: ");
    assert!(path.starts_with(folder.path().to_str().unwrap()), "{path}");

    let lines = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines[0].contains(&format!("seed {seed}, Safety mode: ")), "{}", lines[0]);
    assert!(lines.last().unwrap().contains("VIOLATION"), "{:?}", lines.last());
    assert!(lines.len() < 3_000, "{} lines", lines.len());
    let longest = lines.iter().map(|line| line.len()).max();
    assert!(longest < Some(600), "a line of {longest:?} bytes");
}
