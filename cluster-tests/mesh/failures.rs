//! Agents that are killed: what becomes of their slots, runs, callers and processes.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{HEALED, Mesh, Plan, at_once, soon, until, within};

/// What a busy test machine may add.
const SLACK: Duration = Duration::from_secs(4);

#[test]
fn the_slots_of_a_killed_holder_are_usable_again_within_ttl_and_grace() {
    const SLOTS: usize = 4;
    let (ttl, grace) = (Duration::from_secs(6), Duration::from_millis(200));
    // One container fits, at `n1`: whoever runs, runs in it.
    let mut mesh =
        Plan::nodes(2).set("EMBERMESH_PROTOCOL_TTL", "6s").memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let limits = json!({"memory": 256, "concurrency": SLOTS});
    mesh[1].create("scarce", &json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": limits}));
    let first = mesh[1].run("scarce", &json!({"ms": 0}));
    soon("the peer holds all slots", || {
        at_once(SLOTS, |_| mesh[2].run("scarce", &json!({"ms": 100})));
        let leased: u64 = mesh[1].granted_leases().iter().filter_map(|lease| lease["slots"].as_u64()).sum();
        (leased == SLOTS as u64).then_some(())
    });
    mesh.agent(2).kill();
    let killed = Instant::now();
    let ran = at_once(SLOTS, |_| mesh[1].run("scarce", &json!({"ms": 30_000, "until": SLOTS})));
    let took = killed.elapsed();
    assert!(ran.iter().all(|ran| ran.container() == first.container()));
    assert_eq!(ran.iter().map(|ran| ran.number("running")).max(), Some(SLOTS as u64), "all slots were used at once");
    assert!(took < ttl + grace + SLACK, "it took {took:?}");
    assert!(took > Duration::from_millis(1500), "they came back by expiry, not by anybody's guess: {took:?}");
}

#[test]
fn a_caller_whose_run_is_lost_with_its_owner_is_told_so_promptly_and_the_next_is_served_elsewhere() {
    let mut mesh = Mesh::of(3);
    mesh[1].create_builtin("lost", "sleep", 1);
    let first = mesh[1].run("lost", &json!({"ms": 0}));
    mesh.hears_of_container(2, 1);
    let api = *mesh[2];
    let caller = thread::spawn(move || api.invoke("lost", &json!({"ms": 30_000})));
    until("it runs at the first node", || mesh[1].containers()[0]["busy"] == 1);
    mesh.agent(1).kill();
    let killed = Instant::now();
    let ran = caller.join().unwrap();
    assert!(killed.elapsed() < SLACK, "told after {:?}", killed.elapsed());
    assert_eq!((ran.status, ran.annotation("indeterminate")), (500, json!(true)), "{}", ran.record);
    assert!(ran.error().contains("whether it ran is not known"), "{}", ran.record);
    let record = mesh[2].record(&ran.activation_id);
    assert_eq!(record["response"]["status"], json!("whisk internal error"));

    let next = mesh[2].run("lost", &json!({"ms": 1}));
    assert!(["n2", "n3"].contains(&next.node()) && next.container() != first.container(), "{}", next.record);
    within(HEALED, "the others see that it is dead", || {
        (mesh.sees(2, "n1", "dead") && mesh.sees(3, "n1", "dead")).then_some(())
    });
}

#[test]
fn an_idempotent_run_that_is_lost_with_its_owner_is_made_again_elsewhere() {
    let mut mesh = Mesh::of(2);
    let exec = json!({"kind": "builtin:1", "main": "sleep"});
    mesh[1].create("again", &json!({"exec": exec, "annotations": [{"key": "idempotent", "value": true}]}));
    mesh[1].run("again", &json!({"ms": 0}));
    mesh.hears_of_container(2, 1);
    let api = *mesh[2];
    let caller = thread::spawn(move || api.invoke("again", &json!({"ms": 6000})));
    until("it runs at the first node", || mesh[1].containers()[0]["busy"] == 1);
    mesh.agent(1).kill();
    let ran = caller.join().unwrap();
    assert_eq!((ran.status, ran.node()), (200, "n2"), "{}", ran.record);
    assert_eq!(ran.annotation("indeterminate"), json!(null));
}

#[test]
fn all_descendants_of_a_killed_agent_are_gone_within_a_second() {
    let mut mesh = Mesh::of(1);
    // Children that leave their group, ignore signals and have no parent any more.
    let script = "#!/bin/sh\nsleep 1000 &\nsetsid sleep 1001 &\n(trap '' TERM HUP; setsid sh -c 'sleep 1002; true' &)\nwhile read -r line; do echo '{\"ok\":1}' >&3; done\n";
    mesh[1].create("family", &json!({"exec": {"kind": "actionloop:1", "code": script, "binary": false}}));
    mesh[1].create_builtin("frozen", "sleep", 1);
    mesh[1].run("family", &json!({}));
    let paused = mesh[1].run("frozen", &json!({"ms": 0}));
    mesh[1].post(&format!("/mesh/v1/containers/{}/pause", paused.container()), &json!({})).expect(200);
    let sleeping = |text: &str| mesh.place.processes().iter().any(|p| p.args.contains(text));
    until("all are there", || ["sleep 1000", "sleep 1001", "sleep 1002"].iter().all(|text| sleeping(text)));
    mesh.agent(1).kill();
    within(SLACK, "no descendant is left", || mesh.place.processes().is_empty().then_some(()));
}

#[test]
fn a_killed_agent_comes_back_on_its_folder_with_nothing_of_its_old_containers() {
    let mut mesh = Mesh::of(2);
    mesh[1].create_builtin("back", "echo", 1);
    let before = mesh[1].run("back", &json!({}));
    mesh.agent(1).kill();
    let seed = mesh[2].mesh_addr();
    mesh.agent(1).settings.join = vec![seed];
    mesh.agent(1).restart();
    assert!(mesh[1].container_folders().is_empty(), "what the old one left is cleaned up");
    mesh.heals("a kill");
    let after = mesh[2].run("back", &json!({}));
    assert_ne!(after.container(), before.container());
    assert_eq!(mesh[1].run("back", &json!({})).result["echo"], json!({}));
}

#[test]
fn an_agent_that_was_stopped_for_longer_than_its_leases_serves_on() {
    let mut mesh = Mesh::of(2);
    mesh[1].create_builtin("held", "echo", 2);
    let first = mesh[1].run("held", &json!({}));
    mesh.hears_of_container(2, 1);
    mesh[2].run("held", &json!({}));
    mesh.agent(2).signal(Signal::SIGSTOP);
    until("its leases have ended", || mesh[1].granted_leases().is_empty());
    mesh.agent(2).signal(Signal::SIGCONT);
    mesh.heals("a stop");
    let ran = mesh[2].run("held", &json!({"n": 2}));
    assert_eq!((ran.container(), &ran.result["echo"]), (first.container(), &json!({"n": 2})));
}
