//! Nodes that go, as their operators want it.

use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::api::{action_path, blocking};
use crate::support::{Mesh, Place, Plan, SOON, Settings, until};

#[test]
fn a_draining_node_refuses_new_work_lets_runs_end_and_says_so() {
    let mesh = Mesh::of(2);
    mesh[1].create_builtin("last", "sleep", 2);
    let first = mesh[1].run("last", &json!({"ms": 0}));
    thread::scope(|scope| {
        let run = scope.spawn(|| mesh[1].run("last", &json!({"ms": 8000})));
        until("it runs", || mesh[1].containers()[0]["busy"] == 1);
        let drain = scope.spawn(|| mesh[1].cli(&["drain", "--deadline", "60s"]));
        until("it is not ready", || mesh[1].get("/readyz").status == 503);
        assert_eq!(mesh[1].get("/readyz").json()["not_ready"], json!(["draining"]));
        assert_eq!(mesh[1].get("/livez").status, 200);
        let refused = mesh[1].post(&blocking("last"), &json!({}));
        assert!(refused.refusal(503).contains("drain"), "{refused}");
        assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok()), "{refused}");
        until("its peer knows", || mesh[2].member_state("n1").as_deref() == Some("draining"));
        assert_eq!(mesh[1].containers()[0]["state"], json!("retiring"));
        let elsewhere = mesh[2].run("last", &json!({"ms": 1}));
        assert_eq!(elsewhere.node(), "n2", "nothing is granted on what retires");
        let ran = run.join().unwrap();
        assert_eq!((ran.container(), ran.number("slept_ms")), (first.container(), 8000));
        let drained = drain.join().unwrap();
        assert_eq!(drained.status.code(), Some(0), "{drained:?}");
    });
    assert!(mesh[1].containers().is_empty() && mesh[1].container_folders().is_empty());
}

#[test]
fn a_drain_tells_what_is_left_at_its_deadline_and_kills_it_only_when_forced() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("long", "sleep", 1);
    let first = mesh[1].run("long", &json!({"ms": 0}));
    let api = *mesh[1];
    let caller = thread::spawn(move || api.invoke("long", &json!({"ms": 30_000})));
    until("it runs", || mesh[1].containers()[0]["busy"] == 1);
    let drained = mesh[1].cli(&["drain", "--deadline", "300ms", "-o", "json"]);
    assert_eq!(drained.status.code(), Some(5), "{drained:?}");
    let outcome: Value = serde_json::from_slice(&drained.stdout).unwrap();
    assert_eq!(
        outcome,
        json!({"drained": false, "left": [first.container()], "at_peers": 0, "owed": 0, "killed": 0, "given_up": 0})
    );
    assert_eq!(mesh[1].containers()[0]["busy"], json!(1), "it runs on");
    let forced = mesh[1].cli(&["drain", "--deadline", "300ms", "--force"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    let ran = caller.join().unwrap();
    assert_eq!(ran.status, 502, "{}", ran.record);
    until("nothing is left", || mesh[1].container_folders().is_empty());
}

#[test]
fn a_drain_tells_of_calls_that_run_at_peers_and_ends_when_they_have() {
    let mesh = Plan::nodes(2).memory_of(2, "128MiB").start();
    let action = json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": {"memory": 256}});
    mesh[1].create("far", &action);
    mesh[1].run("far", &json!({"ms": 0}));
    thread::scope(|scope| {
        let run = scope.spawn(|| mesh[2].run("far", &json!({"ms": 8000})));
        until("it runs at the peer", || mesh[1].containers()[0]["busy"] == 1);
        let drained = mesh[2].cli(&["drain", "--deadline", "300ms", "-o", "json"]);
        assert_eq!(drained.status.code(), Some(5), "{drained:?}");
        let outcome: Value = serde_json::from_slice(&drained.stdout).unwrap();
        assert_eq!(
            outcome,
            json!({"drained": false, "left": [], "at_peers": 1, "owed": 0, "killed": 0, "given_up": 0})
        );
        let drained = mesh[2].cli(&["drain", "--deadline", "60s"]);
        assert_eq!(drained.status.code(), Some(0), "{drained:?}");
        assert_eq!(run.join().unwrap().number("slept_ms"), 8000);
    });
}

#[test]
fn a_node_that_leaves_ends_with_0_and_is_shown_as_left() {
    let mut mesh = Mesh::of(3);
    mesh[1].create_builtin("moves", "echo", 4);
    assert_eq!(mesh[1].run("moves", &json!({})).node(), "n1");
    let left = mesh[1].cli(&["leave"]);
    assert_eq!(left.status.code(), Some(0), "{left:?}");
    mesh.agent(1).expect_clean_end();
    for number in [2, 3] {
        until("it is shown as left", || mesh[number].member_state("n1").as_deref() == Some("left"));
    }
    let next = mesh[2].run("moves", &json!({}));
    assert_eq!(next.node(), "n2");
    mesh.hears_of_container(3, 2);
    assert_eq!(mesh[3].run("moves", &json!({})).container(), next.container());
}

#[test]
fn a_sigterm_at_any_moment_of_an_agents_start_leaves_a_folder_that_starts_again() {
    let place = Place::new();
    for after_ms in [0, 5, 15, 30, 60, 120, 250] {
        let settings = Settings::new(&place, "n1");
        let mut agent = settings.spawn();
        thread::sleep(Duration::from_millis(after_ms));
        agent.signal(Signal::SIGTERM);
        let status = agent.wait(SOON);
        // Before it has come to watch for signals it ends by the signal itself.
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGTERM as i32);
        assert!(status.success() || by_signal, "after {after_ms} ms: {status}\n{}", agent.log());
        place.expect_no_processes();
    }
    let mut agent = Settings::new(&place, "n1").start();
    agent.create_builtin("fine", "echo", 1);
    agent.run("fine", &json!({}));
    agent.stop();
}

#[test]
fn a_sigterm_while_a_container_starts_ends_it_as_well() {
    let mut mesh = Mesh::of(1);
    mesh[1].create_builtin("stuck", "hang-init", 1);
    mesh[1].post(&action_path("stuck"), &json!({})).expect(202);
    until("it initialises", || mesh[1].containers().first().is_some_and(|c| c["state"] == "initializing"));
    assert!(!mesh[1].container_folders().is_empty());
    mesh.agent(1).stop();
    mesh.place.expect_no_processes();
}

#[test]
fn a_second_signal_ends_an_agent_at_once_and_its_containers_with_it() {
    let mut mesh = Plan::nodes(1).set("EMBERMESH_PROTOCOL_DRAIN_DEADLINE", "60s").start();
    mesh[1].create_builtin("long", "sleep", 1);
    mesh[1].post(&action_path("long"), &json!({"ms": 60_000})).expect(202);
    until("it runs", || mesh[1].containers().first().is_some_and(|c| c["busy"] == 1));
    mesh.agent(1).signal(Signal::SIGTERM);
    until("it goes down", || mesh[1].log().contains("a second signal ends it at once"));
    mesh.agent(1).signal(Signal::SIGTERM);
    let status = mesh.agent(1).wait(Duration::from_secs(20));
    assert!(status.success(), "{status}");
    mesh.place.expect_no_processes();
    // What it could not tidy up the next start does.
    mesh.agent(1).restart();
    assert!(fs::read_dir(mesh[1].data_dir().join("containers")).unwrap().next().is_none());
}
