//! One node's containers, used by all: on Docker as on any engine.

use serde_json::json;

use crate::engine::{DockerMesh, born, is_here};
use crate::support::{Ran, at_once, container_path, until};

#[test]
fn one_container_serves_three_nodes() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(3);
    // A node that stood still for longer than it takes for peers to count as dead starts a container of its own.
    let first = (1..=3).find_map(|number| serves_three_nodes(&mesh, &format!("shared-{number}"))).unwrap();
    let own: Vec<_> = mesh.docker.containers();
    assert!(
        own.iter().any(|(name, state)| *name == mesh.docker.name(first.container()) && state == "running"),
        "{own:?}"
    );
    assert_eq!(mesh[2].status()["engine"], "docker");
}

/// What the first node's container said first; none if another one came to be.
fn serves_three_nodes(mesh: &DockerMesh, name: &str) -> Option<Ran> {
    mesh[1].create_builtin(name, "echo", 4);
    let first = mesh[1].run(name, &json!({"from": 1}));
    for number in [2, 3] {
        mesh.hears_of_container(number, 1);
        let ran = mesh[number].run(name, &json!({"from": number}));
        if ran.container() != first.container() {
            return None;
        }
    }
    let ran = at_once(3, |at| mesh[at + 1].run(name, &json!({"at": at})));
    for (at, ran) in ran.iter().enumerate() {
        assert_eq!(ran.result["echo"], json!({"at": at}));
    }
    // One process served all.
    let by_first = |ran: &Ran| ran.container() == first.container() && born(ran) == born(&first);
    ran.iter().all(by_first).then_some(first)
}

#[test]
fn a_paused_container_is_resumed_for_a_peer() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::where_one_has_room(2);
    let exec = json!({"kind": "builtin:1", "main": "echo"});
    mesh[1].create("asleep", &json!({"exec": exec, "limits": {"memory": 256}}));
    let first = mesh[1].run("asleep", &json!({}));
    mesh[1].post(&container_path(first.container(), "pause"), &json!({})).expect(200);
    until("it is paused", || mesh.docker.state(first.container()).as_deref() == Some("paused"));
    until("the peer has heard of it", || mesh[2].get("/api/v1/namespaces/_/actions/asleep").status == 200);
    mesh.hears_of_container(2, 1);
    let ran = mesh[2].run("asleep", &json!({}));
    assert_eq!((ran.container(), ran.annotation("served")), (first.container(), json!("leased_new")), "{}", ran.record);
    let again = mesh[1].run("asleep", &json!({}));
    assert_eq!(again.container(), first.container());
    assert_eq!(again.result["started_at_us"], first.result["started_at_us"]);
}
