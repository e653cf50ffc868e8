//! One node's containers, used by all: on Docker as on any engine.

use serde_json::json;

use crate::engine::{DockerMesh, is_here};
use crate::support::{at_once, container_path, distinct, until};

#[test]
fn one_container_serves_three_nodes() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(3);
    mesh[1].create_builtin("shared", "echo", 4);
    let first = mesh[1].run("shared", &json!({"from": 1}));
    for number in [2, 3] {
        until("the container is used from here", || {
            let ran = mesh[number].run("shared", &json!({"from": number}));
            ran.container() == first.container() && ran.node() == "n1"
        });
    }
    let ran = at_once(3, |at| mesh[at + 1].run("shared", &json!({"at": at})));
    for (at, ran) in ran.iter().enumerate() {
        assert_eq!(ran.result["echo"], json!({"at": at}));
        assert_eq!(ran.result["started_at_us"], first.result["started_at_us"], "one process served all");
    }
    assert_eq!(distinct(ran.iter().map(|ran| ran.container().to_owned())), 1);
    let own: Vec<_> = mesh.docker.containers();
    assert!(
        own.iter().any(|(name, state)| *name == mesh.docker.name(first.container()) && state == "running"),
        "{own:?}"
    );
    assert_eq!(mesh[2].status()["engine"], "docker");
}

#[test]
fn a_paused_container_is_resumed_for_a_peer() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(2);
    mesh[1].create_builtin("asleep", "echo", 1);
    let first = mesh[1].run("asleep", &json!({}));
    mesh[1].post(&container_path(first.container(), "pause"), &json!({})).expect(200);
    until("it is paused", || mesh.docker.state(first.container()).as_deref() == Some("paused"));
    until("the peer has heard of it", || mesh[2].get("/api/v1/namespaces/_/actions/asleep").status == 200);
    let ran = mesh[2].run("asleep", &json!({}));
    assert!(ran.container() == first.container() || ran.node() == "n2", "{}", ran.record);
    let again = mesh[1].run("asleep", &json!({}));
    assert_eq!(again.container(), first.container());
    assert_eq!(again.result["started_at_us"], first.result["started_at_us"]);
}
