//! Whole nodes with known bugs: the simulator must see them, and make what it sees small.
//!
//! `cargo test -p embermesh-sim --features mutations --test planted -- --nocapture` prints what was seen after how many
//! seeds. Bugs that need rarer orders of events are the gate's (tests/gate.rs).
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
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
    for mutation in SEEN {
        let summary = campaign(mutation).run(0..SEEDS, None, |_, _, _| {}).unwrap();
        match summary.failures.first_key_value() {
            Some((seed, violation)) => println!("{mutation}: seed {seed} of {}: {violation}", summary.seeds),
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
