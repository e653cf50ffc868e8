//! Actions that change or go while they are used.

use serde_json::{Value, json};

use crate::support::api::action_path;
use crate::support::{Mesh, until};

#[test]
fn an_update_ends_the_old_container_and_all_nodes_serve_the_new_code() {
    let mesh = Mesh::of(3);
    mesh[1].create("versioned", &version("one"));
    let old = mesh[1].run("versioned", &json!({}));
    mesh.hears_of_container(3, 1);
    assert_eq!(mesh[3].run("versioned", &json!({})).container(), old.container());

    let path = format!("{}?overwrite=true", action_path("versioned"));
    let updated = mesh[2].put(&path, &version("two")).expect(200);
    assert_eq!(updated["version"], json!("0.0.2"));
    for node in &mesh.agents {
        until("it knows the new code", || node.get(&action_path("versioned")).expect(200)["version"] == "0.0.2");
        let ran = node.run("versioned", &json!({}));
        assert_eq!(ran.text("version"), "two", "{} serves old code", node.id());
        assert_ne!(ran.container(), old.container());
    }
    until("the old container is gone", || !mesh[1].container_folders().contains(&old.container().to_owned()));
    let processes = mesh.place.processes();
    assert!(!processes.iter().any(|p| p.pid as u64 == old.number("pid")), "{processes:?}");
}

#[test]
fn a_deleted_action_is_unknown_at_every_node_and_its_container_goes() {
    let mesh = Mesh::of(3);
    mesh[1].create_builtin("doomed", "echo", 2);
    let ran = mesh[1].run("doomed", &json!({}));
    mesh[3].run("doomed", &json!({}));
    mesh[2].delete(&action_path("doomed")).expect(200);
    for node in &mesh.agents {
        until("it knows that it is gone", || node.get(&action_path("doomed")).status == 404);
        let error = node.get(&action_path("doomed")).refusal(404);
        assert!(error.contains("doomed"), "{error}");
        node.post(&format!("{}?blocking=true", action_path("doomed")), &json!({})).refusal(404);
        node.delete(&action_path("doomed")).refusal(404);
    }
    until("its container is gone", || mesh[1].container_folders().is_empty());
    let processes = mesh.place.processes();
    assert!(!processes.iter().any(|p| p.pid as u64 == ran.number("pid")), "{processes:?}");

    // A new one of the same name has nothing of the old one.
    mesh[3].create_builtin("doomed", "echo", 2);
    let reborn = mesh[1].run("doomed", &json!({}));
    assert_ne!(reborn.container(), ran.container());
}

#[test]
fn a_run_under_way_ends_well_when_its_action_is_deleted() {
    let mesh = Mesh::of(2);
    mesh[1].create_builtin("long", "sleep", 1);
    let first = mesh[1].run("long", &json!({"ms": 0}));
    mesh.hears_of_container(2, 1);
    let ran = std::thread::scope(|scope| {
        let run = scope.spawn(|| mesh[2].run("long", &json!({"ms": 5000})));
        until("it runs", || mesh[1].containers().first().is_some_and(|c| c["busy"] == 1));
        mesh[2].delete(&action_path("long")).expect(200);
        run.join().unwrap()
    });
    assert_eq!((ran.container(), ran.number("slept_ms")), (first.container(), 5000));
    until("its container is gone", || mesh[1].container_folders().is_empty());
}

fn version(version: &str) -> Value {
    let script = format!(
        "#!/bin/sh\nwhile read -r line; do echo \"{{\\\"version\\\":\\\"{version}\\\",\\\"container\\\":\\\"$__EMBERMESH_CONTAINER\\\",\\\"pid\\\":$$}}\" >&3; done\n"
    );
    json!({"exec": {"kind": "actionloop:1", "code": script, "binary": false}})
}
