//! Ring 2: the deterministic simulator, as its program plays it. Each seed has a process of its own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use embermesh_sim::simulator::{Campaign, Mode, Summary};

const PROGRAM: &str = env!("CARGO_BIN_EXE_embermesh-sim");
/// Of 200 in all.
const SAFETY_SEEDS: u64 = 140;
const LIVENESS_SEEDS: u64 = 60;

/// Runs that prove nothing must not pass for proof: all of it has to have happened in these seeds.
const REACHED: [&str; 65] = [
    "adopted",
    "adopted with runs in it",
    "answered: cold",
    "answered: indeterminate",
    "answered: leased",
    "answered: leased_new",
    "answered: local",
    "answered: resumed",
    "clock: ahead",
    "clock: behind",
    "clock: right",
    "container died",
    "engine call indeterminate, done",
    "engine call indeterminate, not done",
    "engine call refused",
    "fault: action updated",
    "fault: container killed",
    "fault: crash",
    "fault: crash without any data",
    "fault: crash without the last writes",
    "fault: cut both ways",
    "fault: cut one way",
    "fault: cuts one after another",
    "fault: disk full",
    "fault: drain",
    "fault: drain by force",
    "fault: engine failing",
    "fault: engine slow",
    "fault: engine stalled",
    "fault: engine vague",
    "fault: hold",
    "fault: leave",
    "fault: nobody hears a node",
    "fault: node alone",
    "fault: node hears nobody",
    "fault: pause longer than a lease",
    "fault: pause shorter than a lease",
    "fault: slow link",
    "fault: stop",
    "gossip: late",
    "gossip: lost",
    "gossip: twice",
    "grant repeated",
    "init refused by its container",
    "lease expired",
    "lease granted",
    "lease released",
    "one direction stays cut",
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
    "run joined",
    "run on a lease",
    "run refused by its container",
    "veto counted",
    "veto not counted",
    "wall clock: ahead",
    "wall clock: behind",
];

#[test]
fn processes_that_play_the_same_seed_at_once_write_the_same_trace_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let begin = |seed: &str, mode: &str, name: &str| {
        let path = folder.path().join(name);
        let arguments = ["--seed", seed, "--mode", mode, "--outcome", "--trace", path.to_str().unwrap()];
        let child = Command::new(PROGRAM).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        (child, path)
    };
    let end = |(child, path): (Child, PathBuf)| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        std::fs::read(path).unwrap()
    };
    for (seed, mode) in [("7", "safety"), ("11", "liveness")] {
        let [first, others @ ..] = [1, 2, 3, 4, 5].map(|n| begin(seed, mode, &format!("{mode}-{n}")));
        let first = end(first);
        assert!(first.len() > 100_000, "{} bytes", first.len());
        assert!(others.map(end).iter().all(|other| *other == first), "seed {seed} in {mode} mode differs");
    }
    assert!(end(begin("8", "safety", "other")) != std::fs::read(folder.path().join("safety-1")).unwrap());
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

/// The program's own words of runs in which nothing is wrong.
#[test]
fn seeds_that_nobody_chose_are_played_for_a_while_on_as_many_nodes_as_are_asked_for() {
    let said = |arguments: &[&str]| {
        let output = sim(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    let one = said(&["--seed", "3", "--nodes", "2", "--seconds", "2"]);
    assert!(one.contains("seed 3, Safety mode: 2 nodes, messages up to"), "{one}");
    let many = said(&["--minutes", "0.02", "--nodes", "2", "--seconds", "1", "--jobs", "1"]);
    let last = many.lines().last().unwrap();
    assert!(last.contains(" seeds, 0 failed") && !last.starts_with("0 seeds"), "{many}");
}

#[test]
fn what_it_can_t_play_is_an_error_that_says_what_to_give_instead() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "a time line").unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&[], "--seed <N>"),
        (&["--seeds", "9..3"], "there is no seed from 9 to before 3"),
        (&["--seed", "1", "--nodes", "1"], "2..=9"),
        (&["--minutes", "0"], "`0` is no time"),
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
