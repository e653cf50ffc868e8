//! People who use `docker` on an agent's containers, and agents that must not touch people's.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine::{DockerMesh, docker, is_here};
use crate::stock::StockImage;
use crate::support::{container_path, until};

/// Meddles up to three times: a machine that is busy with other tests may stall for a second by itself.
#[track_caller]
fn within_a_second(mut meddle: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    while took.last().is_none_or(|last| *last > Duration::from_secs(1)) {
        assert!(took.len() < 3, "it took {took:?}");
        took.push(meddle());
    }
}

#[test]
fn a_killed_container_is_noticed_within_a_second_and_replaced() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(2);
    mesh[1].create_builtin("mortal", "echo", 1);
    within_a_second(|| {
        let first = mesh[1].run("mortal", &json!({}));
        docker(&["kill", &mesh.docker.name(first.container())]);
        let killed = Instant::now();
        // Docker may be long about the removal.
        let is_over = |c: &Value| c["container_id"] != first.container() || c["state"] == "removing";
        until("the node knows", || mesh[1].containers().iter().all(is_over));
        let took = killed.elapsed();
        let next = mesh[1].run("mortal", &json!({}));
        assert_ne!(next.container(), first.container());
        until("the dead one is removed", || mesh.docker.state(first.container()).is_none());
        took
    });
}

#[test]
fn a_container_that_somebody_pauses_answers_within_a_second() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(1);
    mesh[1].create_builtin("held", "echo", 1);
    let first = mesh[1].run("held", &json!({}));
    within_a_second(|| {
        docker(&["pause", &mesh.docker.name(first.container())]);
        let paused = Instant::now();
        let ran = mesh[1].run("held", &json!({}));
        assert_eq!(ran.container(), first.container());
        paused.elapsed()
    });
}

#[test]
fn a_container_that_somebody_resumes_is_paused_again_and_serves_when_it_is_wanted() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(1);
    mesh[1].create_builtin("rested", "echo", 1);
    let first = mesh[1].run("rested", &json!({}));
    mesh[1].post(&container_path(first.container(), "pause"), &json!({})).expect(200);
    let paused = || mesh.docker.state(first.container()).as_deref() == Some("paused");
    until("it is paused", paused);
    within_a_second(|| {
        docker(&["unpause", &mesh.docker.name(first.container())]);
        let resumed = Instant::now();
        until("it is paused again", paused);
        resumed.elapsed()
    });
    let ran = mesh[1].run("rested", &json!({}));
    assert_eq!((ran.container(), ran.annotation("served")), (first.container(), json!("resumed")));
}

#[test]
fn what_a_killed_agent_left_is_taken_over_by_its_next_start_and_nothing_else_is_touched() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::of(2);
    mesh[1].create_builtin("left", "echo", 1);
    let left = mesh[1].run("left", &json!({})).container().to_owned();
    let image = StockImage::serving("bystander");
    let bystander = format!("{}-bystander", mesh.docker.cluster);
    // It looks much like one of ours.
    let label = format!("embermesh.cluster={}-not", mesh.docker.cluster);
    docker(&["run", "-d", "--name", &bystander, "--label", &label, "--label", "embermesh.node=n1", image.name()]);
    mesh[2].create_builtin("peers", "echo", 1);
    let peers = mesh[2].run("peers", &json!({})).container().to_owned();
    mesh.agent(1).kill();
    assert_eq!(mesh.docker.state(&left).as_deref(), Some("running"), "containers survive their agent");
    let seed = mesh[2].mesh_addr();
    mesh.agent(1).settings.join = vec![seed];
    mesh.agent(1).restart();
    assert_eq!(mesh[1].containers().len(), 1, "it has its own, and nobody else's");
    assert_eq!(mesh[1].run("left", &json!({})).annotation("served"), json!("local"));
    mesh[1].post("/mesh/v1/leave", &json!({})).expect(202);
    mesh.agent(1).expect_clean_end();
    assert_eq!(mesh.docker.state(&left), None);
    assert_eq!(mesh.docker.state(&peers).as_deref(), Some("running"));
    let state = docker(&["inspect", "-f", "{{.State.Running}}", &bystander]);
    docker(&["rm", "-f", &bystander]);
    assert_eq!(state, "true", "somebody's container was touched");
}
