//! Intents to pause and remove containers, and the vetoes of peers.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Mesh, Plan, Ran, at_once, until};

#[test]
fn a_peer_with_forecast_demand_vetoes_a_remove_intent() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_WINDOW", "4s").start();
    let first = warm_at_first(&mesh);
    for _ in 0..3 {
        // The pace that makes the forecast.
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(mesh[2].run("wanted", &json!({})).container(), first.container());
    }
    // Only the forecast is to speak: no lease, no queue.
    until("its lease is over", || mesh[2].held_leases().is_empty());
    assert!(mesh[2].status()["queued"] == 0);
    let outcome = remove(&mesh, &first).expect(409);
    expect_veto_of_n2(&outcome);
    // It is there, and serves on.
    assert_eq!(mesh[2].run("wanted", &json!({})).container(), first.container());
}

#[test]
fn a_peer_that_holds_a_lease_vetoes_a_remove_intent() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_TTL", "10s").set("EMBERMESH_PROTOCOL_WINDOW", "4s").start();
    let first = warm_at_first(&mesh);
    assert_eq!(mesh[2].run("wanted", &json!({})).container(), first.container());
    assert_eq!(mesh[2].held_leases().len(), 1);
    expect_veto_of_n2(&remove(&mesh, &first).expect(409));
    assert_eq!(mesh[2].run("wanted", &json!({})).container(), first.container());
}

#[test]
fn a_peer_with_a_queue_vetoes_a_remove_intent() {
    // The peer has no room for a container, and the only one has a single slot: what it can't run it queues.
    let plan = Plan::nodes(2).set("EMBERMESH_PROTOCOL_TTL", "5s").set("EMBERMESH_PROTOCOL_WINDOW", "4s");
    let mesh = plan.memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let action = json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": {"memory": 256}});
    mesh[1].create("wanted", &action);
    let first = mesh[1].run("wanted", &json!({"ms": 0}));
    thread::scope(|scope| {
        let call = |ms: u64| mesh[2].run("wanted", &json!({"ms": ms}));
        let running = scope.spawn(move || call(8_000));
        until("one runs", || mesh[1].containers()[0]["busy"] == 1);
        let queued = scope.spawn(move || call(1));
        until("the other waits", || mesh[2].status()["queued"] == 1);
        expect_veto_of_n2(&remove(&mesh, &first).expect(409));
        for ran in [running.join().unwrap(), queued.join().unwrap()] {
            assert_eq!(ran.container(), first.container());
        }
    });
}

#[test]
fn a_remove_intent_that_nobody_opposes_commits() {
    let mesh = Mesh::of(3);
    let first = warm_at_first(&mesh);
    let outcome = remove(&mesh, &first).expect(200);
    assert_eq!((&outcome["outcome"], &outcome["vetoes"]), (&json!("committed"), &json!([])), "{outcome}");
    until("it is gone", || mesh[1].container_folders().is_empty());
    let gone = nix::sys::signal::kill(Pid::from_raw(first.number("pid") as i32), None);
    assert_eq!(gone, Err(nix::errno::Errno::ESRCH), "its process is gone");
    assert_ne!(mesh[1].run("wanted", &json!({})).container(), first.container());
}

#[test]
fn a_container_in_use_is_not_removed_unless_forced_and_then_its_run_ends_first() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("wanted", "sleep", 1);
    let first = mesh[1].run("wanted", &json!({"ms": 0}));
    let ran = thread::scope(|scope| {
        let run = scope.spawn(|| mesh[1].run("wanted", &json!({"ms": 6000})));
        until("it runs", || mesh[1].containers()[0]["busy"] == 1);
        let outcome = remove(&mesh, &first).expect(409);
        assert_eq!(outcome["outcome"], json!("cancelled"), "{outcome}");
        let path = format!("/mesh/v1/containers/{}/remove", first.container());
        let outcome = mesh[1].post(&path, &json!({"force": true})).expect(200);
        assert_eq!(outcome["outcome"], json!("retired"), "{outcome}");
        run.join().unwrap()
    });
    assert_eq!((ran.container(), ran.number("slept_ms")), (first.container(), 6000));
    assert!(mesh[1].container_folders().is_empty());
}

#[test]
fn an_idle_container_is_paused_resumed_by_a_call_and_removed_in_the_end() {
    // No second one fits, which a start would otherwise be cheap enough for.
    let mesh = Plan::nodes(1)
        .memory("128MiB")
        .set("EMBERMESH_PROTOCOL_PAUSE_GRACE", "300ms")
        .set("EMBERMESH_PROTOCOL_IDLE_TIMEOUT", "8s")
        .start();
    mesh[1].create_builtin("idle", "echo", 1);
    let first = mesh[1].run("idle", &json!({}));
    let is_stopped = || {
        let processes = mesh.place.processes();
        processes.iter().any(|p| p.pid as u64 == first.number("pid") && p.state == 'T')
    };
    until("its process is stopped", is_stopped);
    until("it is shown as paused", || mesh[1].containers()[0]["state"] == "paused");
    let again = mesh[1].run("idle", &json!({}));
    assert_eq!((again.container(), again.number("pid")), (first.container(), first.number("pid")));
    assert_eq!(again.annotation("served"), json!("resumed"));
    until("it is removed", || mesh[1].container_folders().is_empty());
}

#[test]
fn of_copies_that_idle_out_together_one_is_kept_longest() {
    let mesh = Plan::nodes(3)
        .set("EMBERMESH_PROTOCOL_PAUSE_GRACE", "300ms")
        .set("EMBERMESH_PROTOCOL_IDLE_TIMEOUT", "12s")
        .set("EMBERMESH_PROTOCOL_TTL", "300ms")
        .start();
    mesh[1].create_builtin("copied", "sleep", 1);
    crate::support::soon("each node has a copy", || {
        // As many at each as all have slots.
        at_once(6, |n| mesh[n % 3 + 1].run("copied", &json!({"ms": 400})));
        mesh.agents.iter().all(|agent| !agent.containers().is_empty()).then_some(())
    });
    mesh.expect_one_kept_longest(Duration::from_secs(12));
}

#[test]
fn a_veto_by_hand_keeps_a_container() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_WINDOW", "6s").start();
    let first = warm_at_first(&mesh);
    thread::scope(|scope| {
        let removal = scope.spawn(|| remove(&mesh, &first));
        let intent = crate::support::soon("the peer hears of the intent", || {
            let intents = mesh[2].get("/mesh/v1/intents").expect(200);
            Some(intents["intents"][0]["intent_id"].as_str()?.to_owned())
        });
        let vetoed = mesh[2].cli(&["veto", &intent, "--hold", "20s"]);
        assert!(vetoed.status.success(), "{vetoed:?}");
        expect_veto_of_n2(&removal.join().unwrap().expect(409));
    });
    let removed = mesh[1].cli(&["remove", first.container()]);
    assert_eq!(removed.status.code(), Some(4), "while the veto holds nothing opens: {removed:?}");
}

#[test]
fn a_removal_whose_window_a_stalled_owner_missed_is_followed_into_its_next_round() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_WINDOW", "2s").start();
    let first = warm_at_first(&mesh);
    mesh[2].create_builtin("waits", "sleep", 1);
    assert_eq!(mesh[2].run("waits", &json!({"ms": 0})).node(), "n2");
    thread::scope(|scope| {
        let removal = scope.spawn(|| remove(&mesh, &first));
        until("the peer hears of the intent", || {
            let intents = mesh[2].get("/mesh/v1/intents").expect(200);
            intents["intents"].as_array().is_some_and(|open| !open.is_empty())
        });
        mesh[1].signal(Signal::SIGSTOP);
        mesh[2].run("waits", &json!({"ms": 2_500}));
        mesh[1].signal(Signal::SIGCONT);
        let outcome = removal.join().unwrap().expect(200);
        assert_eq!(outcome["outcome"], json!("committed"), "{outcome}");
        let (container, round) = outcome["intent_id"].as_str().unwrap().rsplit_once("-r").unwrap();
        // It may be late once more.
        assert!(container == first.container() && round.parse::<u32>().unwrap() >= 2, "{outcome}");
    });
}

/// An action with eight slots, in one container, at `n1`.
fn warm_at_first(mesh: &Mesh) -> Ran {
    mesh[1].create_builtin("wanted", "echo", 8);
    let first = mesh[1].run("wanted", &json!({}));
    assert_eq!(first.node(), "n1");
    mesh.hears_of_container(2, 1);
    first
}

fn remove(mesh: &Mesh, ran: &Ran) -> crate::support::Answer {
    mesh[1].post(&format!("/mesh/v1/containers/{}/remove", ran.container()), &json!({}))
}

fn expect_veto_of_n2(outcome: &Value) {
    assert_eq!((&outcome["outcome"], &outcome["vetoes"][0]["peer"]), (&json!("vetoed"), &json!("n2")), "{outcome}");
    assert!(outcome["reason"].as_str().unwrap().contains("n2 vetoed for"), "{outcome}");
}
