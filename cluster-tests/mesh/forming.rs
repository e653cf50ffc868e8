//! Nodes find each other, and containers serve all of them.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::api::{action_path, container_path};
use crate::support::{Mesh, Plan, at_once, distinct, until};

#[test]
fn one_container_serves_all_three_nodes_of_a_mesh() {
    let mesh = Plan::nodes(3).set("EMBERMESH_PROTOCOL_TTL", "10s").start();
    mesh[1].create_builtin("hello", "echo", 4);
    let first = mesh[1].run("hello", &json!({"from": 1}));
    assert_eq!((first.node(), first.annotation("served")), ("n1", json!("cold")));
    for number in [2, 3] {
        mesh.hears_of_container(number, 1);
        let ran = mesh[number].run("hello", &json!({"from": number}));
        assert_eq!((ran.container(), ran.number("pid")), (first.container(), first.number("pid")), "{}", ran.record);
        assert_eq!(ran.text("activation_id"), ran.activation_id);
        assert_eq!(ran.result["echo"], json!({"from": number}), "each gets its own answer");
        assert_ne!(ran.activation_id, first.activation_id);
    }
    let again = mesh[3].run("hello", &json!({}));
    assert_eq!((again.container(), again.annotation("served")), (first.container(), json!("leased")));
}

/// A home that is busy for longer than a node waits for its word is passed over, so what counts is the usual herd.
#[test]
fn ten_nodes_that_call_first_at_the_same_moment_make_about_one_cold_start() {
    const HERDS: usize = 5;
    let mesh = Mesh::of(10);
    let mut used: Vec<usize> = (0..HERDS)
        .map(|herd| {
            let name = format!("herd-{herd}");
            mesh[1].create_builtin(&name, "echo", 20);
            until("all nodes know the action", || {
                mesh.agents.iter().all(|node| node.get(&action_path(&name)).status == 200)
            });
            let ran = at_once(10, |n| mesh.agents[n].run(&name, &json!({"from": n})));
            distinct(ran.iter().map(|ran| ran.container()))
        })
        .collect();
    let started: usize = mesh.agents.iter().map(|node| node.container_folders().len()).sum();
    used.sort_unstable();
    println!("containers that served each of {HERDS} herds of ten: {used:?}; started for them: {started}");
    assert!(used[HERDS / 2] <= 2, "containers that served each herd of ten: {used:?}");
    assert!(started <= HERDS * 10 * 3 / 4, "{started} containers were started for {HERDS} herds");
}

#[test]
fn a_node_that_joins_later_knows_all_actions_and_runs_them() {
    let mut mesh = Mesh::of(1);
    for number in 0..20 {
        mesh[1].create(&format!("action-{number}"), &tells_its_node(number));
    }
    mesh.add("n2");
    until("the newcomer lists all actions", || {
        mesh[2].get("/api/v1/namespaces/_/actions?count=true").json()["actions"] == 20
    });
    // Nobody has a container of it, so that the one who is called starts one, with code that only the other has.
    let ran = mesh[2].run("action-7", &json!({}));
    assert_eq!(ran.node(), "n2");
    let shown = mesh[2].get("/api/v1/namespaces/_/actions/action-13").expect(200);
    assert!(shown["exec"]["code"].as_str().unwrap().ends_with("# 13\n"), "{shown}");
}

#[test]
fn a_node_that_joins_later_learns_actions_that_are_too_large_for_one_message() {
    let mut mesh = Mesh::of(1);
    let large = "x".repeat(1_000_000);
    for number in 0..20 {
        let parameters = json!([{"key": "large", "value": large}]);
        let action = json!({"exec": {"kind": "builtin:1", "main": "echo"}, "parameters": parameters});
        mesh[1].create(&format!("large-{number}"), &action);
    }
    mesh.add("n2");
    until("the newcomer lists all actions", || {
        mesh[2].get("/api/v1/namespaces/_/actions?count=true").json()["actions"] == 20
    });
}

#[test]
fn code_comes_from_any_peer_that_has_it_when_the_node_that_made_the_action_is_gone() {
    let mut mesh = Mesh::of(3);
    mesh[1].create("script", &tells_its_node(1));
    assert_eq!(mesh[2].run("script", &json!({})).node(), "n2", "nobody had a container: it starts where it is called");
    mesh.agent(1).kill();
    let container = mesh[2].containers()[0]["container_id"].clone();
    mesh[2].post(&container_path(container.as_str().unwrap(), "remove"), &json!({"force": true})).expect(200);
    assert_eq!(mesh[3].run("script", &json!({})).node(), "n3");
}

#[test]
fn a_call_at_a_node_without_room_waits_for_a_peers_only_slot_and_gets_it() {
    // The first run lasts longer than a lease, so that its lease has ended when its slot comes free.
    let mesh = Plan::nodes(2).memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let exec = json!({"kind": "builtin:1", "main": "sleep"});
    mesh[1].create("scarce", &json!({"exec": exec, "limits": {"memory": 256}}));
    let first = mesh[1].run("scarce", &json!({"ms": 0}));
    thread::scope(|scope| {
        let mesh = &mesh;
        let running = scope.spawn(move || mesh[2].run("scarce", &json!({"ms": 5000})));
        until("one runs", || mesh[1].containers()[0]["busy"] == 1);
        let began = Instant::now();
        let waited = mesh[2].run("scarce", &json!({"ms": 1}));
        assert!(began.elapsed() < Duration::from_secs(12), "it waited for {:?}", began.elapsed());
        for ran in [running.join().unwrap(), waited] {
            assert_eq!((ran.container(), ran.number("running")), (first.container(), 1));
        }
    });
}

#[test]
fn calls_at_a_node_that_never_ran_the_action_run_at_once_in_a_peers_container() {
    let mesh = Plan::nodes(2).memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let exec = json!({"kind": "builtin:1", "main": "sleep"});
    mesh[1].create("wide", &json!({"exec": exec, "limits": {"memory": 256, "concurrency": 20}}));
    mesh[1].run("wide", &json!({"ms": 0}));
    let ran = at_once(10, |_| mesh[2].run("wide", &json!({"ms": 30_000, "until": 10})));
    assert_eq!(ran.iter().map(|ran| ran.number("peak")).max(), Some(10));
}

/// An action with code of its own.
fn tells_its_node(number: usize) -> Value {
    let script = "#!/bin/sh\nwhile read -r line; do echo \"{\\\"node\\\":\\\"$__EMBERMESH_NODE\\\"}\" >&3; done\n";
    json!({"exec": {"kind": "actionloop:1", "code": format!("{script}# {number}\n"), "binary": false}})
}
