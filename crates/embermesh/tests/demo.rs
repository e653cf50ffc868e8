//! The demo as a new user runs it: real agents, and figures that come from what the actions answered.
#![allow(clippy::unwrap_used)]

#[path = "../../../cluster-tests/support/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One at a time: each wants the machine for itself.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn the_demo_shows_every_step_and_leaves_nothing_running() {
    let (figures, cluster) = demo(&[]);
    assert_eq!(figures["engine"], "process");
    assert!(!running(&cluster), "agents of {cluster} are left");
}

#[test]
fn the_demo_shows_every_step_on_docker_and_leaves_nothing_running() {
    if !skip::docker_is_here() {
        return;
    }
    let (figures, cluster) = demo(&["--docker"]);
    assert_eq!(figures["engine"], "docker");
    assert!(figures["bare_start_ms"]["p50"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(figures["resumed_ms"]["p50"].as_f64() < figures["cold_start_ms"]["p50"].as_f64(), "{figures}");
    assert!(!running(&cluster), "agents of {cluster} are left");
    let docker = |args: &[&str]| Command::new("docker").args(args).stderr(Stdio::null()).output();
    let left = docker(&["ps", "-aq", "--filter", &format!("label=embermesh.cluster={cluster}")]).unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "containers of {cluster} are left");
}

#[test]
fn a_demo_of_which_a_step_can_not_happen_fails_and_says_which() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Its agents allow one activation at a time in a container: no container can be shared by 16.
    let mut demo = command(&["demo", "--json"]);
    let demo = demo.env("EMBERMESH_LIMITS_CONCURRENCY_MAX", "1").spawn().unwrap();
    let cluster = format!("demo-{}", demo.id());
    let output = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("step `reuse`") && said.contains("concurrency"), "{said}");
    assert!(output.stdout.is_empty(), "no figures of what did not happen");
    assert!(!running(&cluster), "something of {cluster} is left");
}

#[test]
fn an_interrupted_demo_fails_and_leaves_nothing_running() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for step in ["start", "reuse"] {
        let mut demo = started(&["demo"]);
        let cluster = format!("demo-{}", demo.id());
        let mut told = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(told.any(|line| line.contains(step)), "it never came to `{step}`");
        let interrupted = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
        let rest: Vec<String> = told.collect();
        assert_eq!(demo.wait().unwrap().code(), Some(1));
        assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
        assert!(!running(&cluster), "something of {cluster} is left");
    }
}

#[test]
fn a_demo_that_is_kept_can_be_talked_to_and_ended_as_it_says() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = started(&["demo", "--keep", "--json"]);
    let cluster = format!("demo-{}", demo.id());
    let output = demo.wait_with_output().unwrap();
    let how = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{how}");
    let commands = |starts: &str| how.lines().map(str::trim).filter(|l| l.starts_with(starts)).collect::<Vec<_>>();
    let talk = commands("embermesh --api ");
    assert_eq!(talk.len(), 3, "{how}");
    for line in talk {
        // Where to; what is said is up to the user.
        let url = line.split_whitespace().nth(2).unwrap();
        let mut members = Command::new(env!("CARGO_BIN_EXE_embermesh"));
        let members = members.args(["--api", url, "-o", "json", "members"]).output().unwrap();
        assert!(members.status.success(), "{line}: {}", String::from_utf8_lossy(&members.stderr));
    }
    let shell = |commands: Vec<&str>| {
        let [command] = commands[..] else { panic!("{how}") };
        assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    };
    shell(commands("kill "));
    let began = Instant::now();
    while running(&cluster) {
        assert!(began.elapsed() < Duration::from_secs(30), "something of {cluster} is left");
        std::thread::sleep(Duration::from_millis(50));
    }
    shell(commands("rm -r "));
}

fn started(args: &[&str]) -> Child {
    command(args).spawn().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embermesh"));
    // Agents take it for a mistyped key.
    command.env_remove("EMBERMESH_REQUIRE_DOCKER");
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Its figures, and the name of its mesh.
fn demo(options: &[&str]) -> (serde_json::Value, String) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let demo = started(&[&["demo", "--json"], options].concat());
    let cluster = format!("demo-{}", demo.id());
    let output = demo.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "it took {:?}: below 30 s is promised of a release build with the machine to itself",
        began.elapsed()
    );
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["cold_start_ms", "local_warm_us", "remote_new_lease_us", "remote_held_lease_us", "grpc_echo_us"] {
        let (p50, p99) = (figures[name]["p50"].as_f64().unwrap(), figures[name]["p99"].as_f64().unwrap());
        assert!(p50 > 0.0 && p99 >= p50, "{name}: {figures}");
    }
    assert!(figures["samples"].as_u64().unwrap() >= 200, "{figures}");
    assert_eq!(figures["reused_remotely"], 2, "{figures}");
    assert_eq!(figures["cold_starts"], 1, "{figures}");
    assert!(figures["herd_cold_starts"].as_u64().unwrap() < 3, "{figures}");
    assert_eq!((&figures["vetoed"], &figures["committed"]), (&1.into(), &1.into()), "{figures}");
    // As many as the killed node had by then: half of the eight at least.
    assert!((4..=8).contains(&figures["slots_recovered"].as_u64().unwrap()), "{figures}");
    (figures, cluster)
}

/// Whether a process is left of it: an agent by its command line, anything in a container by its node's folder, which
/// both the supervisor's command line and the action's environment name.
fn running(cluster: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let read = |what| std::fs::read(entry.path().join(what)).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        String::from_utf8_lossy(&text).split('\0').any(|word| word.contains(cluster))
    })
}
