//! Containers that outlive their agent: left behind by a stop or a crash, and taken over by the next start. That it is
//! the same one is said by the action: the moment at which its process started.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::engine::{DockerMesh, docker, is_here};
use crate::stock::StockImage;
use crate::support::api::{action_path, container_path};
use crate::support::{Ran, soon, until};

#[test]
fn a_clean_stop_leaves_idle_containers_and_the_next_start_serves_with_them() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::of(2);
    mesh[1].create_builtin("kept", "echo", 4);
    let first = mesh[1].run("kept", &json!({}));
    mesh.agent(1).halt();
    assert_eq!(mesh.docker.state(first.container()).as_deref(), Some("running"));
    back(&mut mesh);
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
        mesh[1].send("POST", &crate::support::api::blocking("long"), br#"{"ms":4000,"log":"it has begun"}"#).unwrap();
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
    assert_eq!(mesh[1].containers()[0]["state"], json!("paused"));
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
    mesh[1].create_builtin("steady", "echo", 8);
    let first = mesh[1].run("steady", &json!({}));
    // Each restart takes other ports.
    let apis = std::sync::Mutex::new(mesh.agents.iter().map(|agent| **agent).collect::<Vec<_>>());
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let goes_on = || {
        let from = served.load(Ordering::Relaxed);
        until("calls are served", || served.load(Ordering::Relaxed) >= from + 10);
    };
    thread::scope(|scope| {
        // A client as operators set them up: refused with `Retry-After`, or not connected, it goes to the next node.
        let client = scope.spawn(|| {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let body = json!({"n": answered}).to_string();
                let path = crate::support::api::blocking("steady");
                let mut turn = answered;
                let taken = soon("some node takes it", || {
                    let nodes = apis.lock().unwrap().clone();
                    turn += 1;
                    let answer = nodes[turn % nodes.len()].try_call("POST", &path, body.as_bytes()).ok()?;
                    (answer.status != 503).then_some(answer)
                });
                let ran = taken.into_ran();
                assert_eq!((ran.status, &ran.result["echo"]["n"]), (200, &json!(answered)), "{}", ran.record);
                answered += 1;
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Also when this fails: nobody waits for a client that nobody stops.
        let stopping = Stop(&stop);
        goes_on();
        for number in 1..=3 {
            mesh.agent(number).halt();
            let seed = mesh[number % 3 + 1].mesh_addr();
            mesh.agent(number).settings.join = vec![seed];
            mesh.agent(number).restart();
            apis.lock().unwrap()[number - 1] = *mesh[number];
            until("it is ready", || mesh[number].get("/readyz").status == 200);
            mesh.await_all_live();
            goes_on();
        }
        drop(stopping);
        client.join().unwrap();
    });
    assert_eq!(born(&mesh[1].run("steady", &json!({}))), born(&first), "by the same container as before");
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The first node, which knows the second.
fn back(mesh: &mut DockerMesh) {
    let seed = mesh[2].mesh_addr();
    mesh.agent(1).settings.join = vec![seed];
    mesh.agent(1).restart();
}

fn born(ran: &Ran) -> u64 {
    ran.number("started_at_us")
}
