//! Runs that are ended from outside, while an agent is held stopped.

use std::io::{BufRead as _, BufReader};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tool::{Tool, processes_of, until};

const SCENARIO: &str = "
duration = '60s'
[mesh]
nodes = 3
[[faults]]
kind = 'stop'
at = '1s'
for = '50s'
nodes = ['n2']
";

#[test]
fn ctrl_c_ends_everything_and_leaves_nothing() {
    let tool = Tool::new();
    let mut run = stopped_in_the_middle(&tool);
    signal(&run, Signal::SIGINT);
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert!(!tool.path("report").exists(), "a report of half a run");
    tool.expect_nothing_left();
}

#[test]
fn a_run_that_is_killed_takes_its_agents_along_stopped_ones_too() {
    let tool = Tool::new();
    let mut run = stopped_in_the_middle(&tool);
    assert!(processes_of(&tool.path("tmp").display().to_string()).len() >= 3);
    signal(&run, Signal::SIGKILL);
    run.wait().unwrap();
    tool.expect_no_processes();
}

/// A run of which one agent is stopped.
fn stopped_in_the_middle(tool: &Tool) -> Child {
    tool.file("scenario.toml", SCENARIO);
    let mut run = tool.start(&["run", "--scenario", "scenario.toml", "--report", "report"]);
    let mut said = BufReader::new(run.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("stop n2") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended before anything was stopped");
    }
    // Nobody reads on; it must not end for that.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let mark = tool.path("tmp").display().to_string();
    until("an agent is stopped", || stopped(&mark));
    run
}

/// Whether a process with the mark is stopped.
fn stopped(mark: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries.into_iter().any(|path| {
        let args = std::fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        args.contains(mark) && stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

fn signal(run: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(run.id()).unwrap()), signal).unwrap();
}
