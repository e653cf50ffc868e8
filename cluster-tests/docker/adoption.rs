//! Containers that outlive their agent: left behind by a stop or a crash, and taken over by the next start. That it is
//! the same one is said by the action: the moment at which its process started.

use serde_json::json;

use crate::engine::{DockerMesh, born, docker, is_here};
use crate::stock::StockImage;
use crate::support::api::{action_path, container_path};
use crate::support::{Clients, at_once, soon, until};

/// What a run prints as it begins.
const BEGUN: &str = "it has begun";

#[test]
fn a_clean_stop_leaves_idle_containers_and_the_next_start_serves_with_them() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::where_one_has_room(2);
    let limits = json!({"memory": 256, "concurrency": 4});
    mesh[1].create("kept", &json!({"exec": {"kind": "builtin:1", "main": "echo"}, "limits": limits}));
    let first = mesh[1].run("kept", &json!({}));
    mesh.agent(1).halt();
    assert_eq!(mesh.docker.state(first.container()).as_deref(), Some("running"));
    back(&mut mesh);
    until("it is adopted", || mesh[1].containers()[0]["state"] != "adopting");
    let again = mesh[1].run("kept", &json!({"n": 2}));
    assert_eq!((born(&again), again.annotation("served")), (born(&first), json!("local")), "{}", again.record);
    let shown = mesh[1].containers();
    assert!(shown.len() == 1 && shown[0]["container_id"] != first.container(), "under an id of its own: {shown:?}");
    mesh.await_all_live();
    until("a peer is served by it as well", || born(&mesh[2].run("kept", &json!({}))) == born(&first));
}

#[test]
fn a_run_that_outlives_its_agent_ends_before_its_container_serves_again() {
    if !is_here() {
        return;
    }
    // Only one fits.
    let mut mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_PROTOCOL_MAX_MEMORY_WAIT", "30s"));
    let limits = json!({"memory": 512, "concurrency": 1});
    mesh.agent(1).settings.memory = "512MiB".to_owned();
    mesh.agent(1).halt();
    mesh.agent(1).restart();
    mesh[1].create("long", &json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": limits}));
    let first = mesh[1].run("long", &json!({"ms": 0}));
    let mut hung_up =
        mesh[1].send("POST", &crate::support::api::blocking("long"), br#"{"ms":15000,"log":"it has begun"}"#).unwrap();
    let name = mesh.docker.name(first.container());
    until("it runs", || docker(&["logs", &name]).contains("it has begun"));
    mesh.agent(1).kill();
    std::io::Read::read_to_end(&mut hung_up, &mut Vec::new()).ok();
    mesh.agent(1).restart();
    assert_eq!(mesh[1].containers()[0]["state"], json!("adopting"));
    let next = mesh[1].run("long", &json!({"ms": 0}));
    assert_eq!((born(&next), next.number("running"), next.number("peak")), (born(&first), 1, 1), "it was alone");
}

#[test]
fn a_paused_container_of_a_killed_agent_is_resumed_by_the_next_call() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::of(1);
    mesh[1].create_builtin("frozen", "echo", 1);
    let first = mesh[1].run("frozen", &json!({}));
    mesh[1].post(&container_path(first.container(), "pause"), &json!({})).expect(200);
    until("the engine has paused it", || mesh.docker.state(first.container()).as_deref() == Some("paused"));
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    until("it is adopted", || mesh[1].containers()[0]["state"] == "paused");
    assert_eq!(mesh.docker.state(first.container()).as_deref(), Some("paused"));
    let again = mesh[1].run("frozen", &json!({}));
    assert_eq!((born(&again), again.annotation("served")), (born(&first), json!("resumed")));
}

#[test]
fn a_container_of_an_action_that_changed_meanwhile_is_not_kept() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::of(2);
    mesh[1].create_builtin("changes", "echo", 1);
    let first = mesh[1].run("changes", &json!({}));
    mesh.agent(1).halt();
    let newer = json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": {"memory": 128}});
    mesh[2].put(&format!("{}?overwrite=true", action_path("changes")), &newer).expect(200);
    back(&mut mesh);
    until("the old one is gone", || mesh.docker.state(first.container()).is_none());
    until("it serves the new code", || mesh[1].run("changes", &json!({})).result["slept_ms"] == 0);
}

#[test]
fn what_an_image_runs_can_not_be_told_so_it_is_kept_only_if_it_was_idle_at_a_clean_stop() {
    if !is_here() {
        return;
    }
    let image = StockImage::serving("adopted");
    let mut mesh = DockerMesh::of(1);
    mesh[1].create("stock", &json!({"exec": {"kind": "blackbox", "image": image.name(), "code": "x"}}));
    mesh[1].run("stock", &json!({"n": 1}));
    let before = mesh.docker.containers();
    mesh.agent(1).halt();
    mesh.agent(1).restart();
    let ran = mesh[1].run("stock", &json!({"n": 2}));
    assert_eq!((ran.annotation("served"), mesh.docker.containers()), (json!("local"), before.clone()));
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    until("the one of unknown state is gone", || !mesh.docker.containers().contains(&before[0]));
    assert_eq!(mesh[1].run("stock", &json!({"n": 3})).annotation("served"), json!("cold"));
}

#[test]
fn calls_go_on_through_a_rolling_restart_of_all_nodes() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::of(3);
    mesh[1].create_builtin("steady", "sleep", 8);
    let first = mesh[1].run("steady", &json!({"ms": 0}));
    let clients = Clients::of(&mesh);
    let answered = clients.call("steady", &json!({"ms": 100, "log": BEGUN}), || {
        clients.go_on();
        for number in 1..=3 {
            restart_in_turn(&mut mesh, number);
            clients.moved(number, *mesh[number]);
            clients.go_on();
        }
    });
    let succeeded = answered.all_succeeded(&mesh);
    let begun = |printed: &str, id: &String| printed.matches(&format!("{id}\u{1f}{BEGUN}")).count();
    let printed = soon("all lines are there", || {
        let names = mesh.docker.containers().into_iter().map(|(name, _)| name);
        let printed: String = names.map(|name| docker(&["logs", &name])).collect();
        succeeded.iter().all(|id| begun(&printed, id) > 0).then_some(printed)
    });
    for id in &succeeded {
        assert_eq!(begun(&printed, id), 1, "{id} has run once");
    }
    let ran = at_once(16, |_| mesh[1].run("steady", &json!({"ms": 500})));
    assert!(ran.iter().any(|ran| born(ran) == born(&first)), "the container from before serves on");
}

/// As docs/operations.md says.
fn restart_in_turn(mesh: &mut DockerMesh, number: usize) {
    mesh.agent(number).halt();
    let seed = mesh[number % 3 + 1].mesh_addr();
    mesh.agent(number).settings.join = vec![seed];
    mesh.agent(number).restart();
    until("it is ready", || mesh[number].get("/readyz").status == 200);
    mesh.await_all_live();
}

/// The first node, which knows the second.
fn back(mesh: &mut DockerMesh) {
    let seed = mesh[2].mesh_addr();
    mesh.agent(1).settings.join = vec![seed];
    mesh.agent(1).restart();
}
