//! Ring 2: the deterministic simulator, as its program plays it. Each seed has a process of its own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use embermesh_sim::simulator::{Campaign, Mode, Summary};

const PROGRAM: &str = env!("CARGO_BIN_EXE_embermesh-sim");
/// Of 200 in all.
const SAFETY_SEEDS: u64 = 140;
const LIVENESS_SEEDS: u64 = 60;

/// Runs that prove nothing must not pass for proof: all of it has to have happened in these seeds.
const REACHED: [&str; 44] = [
    "adopted",
    "adopted with runs in it",
    "answered: cold",
    "answered: indeterminate",
    "answered: leased",
    "answered: leased_new",
    "answered: local",
    "answered: resumed",
    "container died",
    "engine call indeterminate",
    "engine call refused",
    "fault: action updated",
    "fault: bad gossip",
    "fault: container killed",
    "fault: crash",
    "fault: crash without any data",
    "fault: crash without the last writes",
    "fault: cut",
    "fault: disk full",
    "fault: drain",
    "fault: engine failing",
    "fault: engine stalled",
    "fault: engine vague",
    "fault: hold",
    "fault: leave",
    "fault: pause",
    "fault: slow link",
    "fault: stop",
    "lease expired",
    "lease granted",
    "lease released",
    "promised",
    "promised while its caller waited",
    "refused: draining",
    "refused: no capacity",
    "refused: not kept",
    "refused: queue full",
    "round cancelled by use",
    "round committed",
    "round late",
    "round vetoed",
    "run on a lease",
    "run refused by its container",
    "veto counted",
];

#[test]
fn two_processes_that_play_the_same_seed_write_the_same_trace_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let trace = |seed: &str, mode: &str, name: &str| {
        let path = folder.path().join(name);
        let output = sim(&["--seed", seed, "--mode", mode, "--outcome", "--trace", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        std::fs::read(path).unwrap()
    };
    for (seed, mode) in [("7", "safety"), ("11", "liveness")] {
        let first = trace(seed, mode, &format!("{mode}-1"));
        assert!(first.len() > 100_000, "{} bytes", first.len());
        assert!(first == trace(seed, mode, &format!("{mode}-2")), "seed {seed} in {mode} mode differs");
    }
    assert!(trace("8", "safety", "other") != std::fs::read(folder.path().join("safety-1")).unwrap());
}

#[test]
fn seeds_keep_every_invariant_and_reach_every_part_of_the_protocol() {
    let safety = all_hold(Mode::Safety, SAFETY_SEEDS);
    let liveness = all_hold(Mode::Liveness, LIVENESS_SEEDS);
    let reached = |what: &&&str| !safety.counts.contains_key(**what) && !liveness.counts.contains_key(**what);
    let missing: Vec<_> = REACHED.iter().filter(reached).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}; happened: {:?}, {:?}", safety.counts, liveness.counts);
}

fn all_hold(mode: Mode, seeds: u64) -> Summary {
    let campaign = Campaign {
        program: PathBuf::from(PROGRAM),
        mode,
        nodes: None,
        length: Duration::from_secs(12),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        enough: 3,
        mutation: None,
    };
    let summary = campaign.run(0..seeds, None, |_, _, _| {}).unwrap();
    let failed = summary.failures.iter().map(|(seed, why)| format!("{why}\n{}\n", campaign.reproduction(*seed, None)));
    assert!(summary.failures.is_empty(), "{}", failed.collect::<String>());
    println!("{mode:?}: {} seeds, {:.0} times real time in one process", summary.seeds, summary.speed());
    summary
}

#[test]
fn what_it_can_t_play_is_an_error_that_says_what_to_give_instead() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "a time line").unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&[], "--seed <N>"),
        (&["--seeds", "9..3"], "there is no seed from 9 to before 3"),
        (&["--seed", "1", "--nodes", "1"], "2..=9"),
        (&["--seed", "1", "--only", "3,x"], "`x` is no event's number"),
        (&["--seed", "1", "--mutation", "Nothing"], "Nothing"),
        (&["--seed", "1", "--seconds", "1", "--trace", there.to_str().unwrap()], "can't be written"),
    ];
    for (arguments, said) in cases {
        let output = sim(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    assert_eq!(std::fs::read_to_string(Path::new(&there)).unwrap(), "a time line", "nothing is overwritten");
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}
