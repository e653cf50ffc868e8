//! What is kept of activations, and what becomes of callers who don't wait.

use std::fs;

use serde_json::json;

use crate::concurrency::lines;
use crate::support::api::{action_path, annotation, blocking};
use crate::support::{Mesh, Plan, soon, until};

#[test]
fn log_lines_of_a_run_at_a_peer_are_in_the_record_at_the_origin() {
    let mesh = Mesh::of(2);
    mesh[1].create_builtin("talk", "echo", 4);
    let first = mesh[1].run("talk", &json!({}));
    mesh.hears_of_container(2, 1);
    let ran = mesh[2].run("talk", &json!({"log": "said far away"}));
    assert_eq!(ran.container(), first.container());
    let record = mesh[2].record(&ran.activation_id);
    assert_eq!(lines(&record), ["stdout: said far away"]);
    assert_eq!(record["response"], ran.record["response"]);
    let logs = mesh[2].get(&format!("/api/v1/namespaces/_/activations/{}/logs", ran.activation_id)).expect(200);
    assert_eq!(logs["logs"], record["logs"]);
}

#[test]
fn a_call_that_does_not_wait_is_answered_202_and_leaves_its_record() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("later", "sleep", 1);
    let accepted = mesh[1].post(&action_path("later"), &json!({"ms": 300, "log": "done"}));
    let id = accepted.expect(202)["activationId"].as_str().unwrap().to_owned();
    assert_eq!(accepted.header("x-openwhisk-activation-id"), Some(id.as_str()));
    let record = mesh[1].record(&id);
    assert_eq!((&record["response"]["status"], &record["name"]), (&json!("success"), &json!("later")));
    assert_eq!(record["response"]["result"]["activation_id"], json!(id));
    assert_eq!(lines(&record), ["stdout: done"]);
}

#[test]
fn a_call_that_waits_too_long_turns_into_one_that_does_not() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("slow", "sleep", 1);
    let accepted = mesh[1].post(&format!("{}&timeout=100", blocking("slow")), &json!({"ms": 3000}));
    let id = accepted.expect(202)["activationId"].as_str().unwrap().to_owned();
    let record = mesh[1].record(&id);
    assert_eq!(record["response"]["result"]["slept_ms"], json!(3000), "{record}");
}

#[test]
fn actions_and_activations_survive_a_restart() {
    let mut mesh = Mesh::of(1);
    mesh[1].create_builtin("kept", "echo", 3);
    let before = mesh[1].run("kept", &json!({"n": 1, "log": "remember this"}));
    let kept = mesh[1].record(&before.activation_id);
    let (status, action) = (mesh[1].status(), mesh[1].get(&action_path("kept")).expect(200));
    mesh.agent(1).stop();
    mesh.agent(1).restart();
    assert_eq!(mesh[1].get(&action_path("kept")).expect(200), action);
    assert_eq!(mesh[1].record(&before.activation_id), kept);
    let after = mesh[1].status();
    assert_eq!(after["instance"], status["instance"]);
    assert!(after["epoch"].as_u64() > status["epoch"].as_u64(), "{after}");
    let again = mesh[1].run("kept", &json!({}));
    assert_ne!(again.container(), before.container(), "a new container has a new id");
}

#[test]
fn actions_survive_a_sigkill_right_after_they_were_changed() {
    let mut mesh = Mesh::of(1);
    mesh[1].create_builtin("doomed", "echo", 1);
    mesh[1].create_builtin("kept", "echo", 7);
    mesh[1].delete(&action_path("doomed")).expect(200);
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    mesh[1].get(&action_path("doomed")).refusal(404);
    assert_eq!(mesh[1].get(&action_path("kept")).expect(200)["limits"]["concurrency"], json!(7));
    assert_eq!(mesh[1].run("kept", &json!({"n": 3})).result["echo"], json!({"n": 3}));
}

#[test]
fn a_caller_that_hangs_up_while_it_waits_in_the_queue_is_not_served() {
    let mesh = Plan::nodes(1).memory("256MiB").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh, &ran);
    mesh[1].run("note", &json!({"n": 0, "s": 0}));
    let busy = mesh[1].send("POST", &blocking("note"), br#"{"n":1,"s":6}"#).unwrap();
    until("the first is running", || notes(&ran).contains(&"begin 1".to_owned()));
    let waiting = mesh[1].send("POST", &blocking("note"), br#"{"n":2,"s":0}"#).unwrap();
    until("the second is queued", || mesh[1].status()["queued"] == 1);
    drop(waiting);
    until("it has left the queue", || mesh[1].status()["queued"] == 0);
    assert!(
        !notes(&ran).contains(&"end 1".to_owned()),
        "the first still runs, so that the second could not have begun"
    );
    mesh[1].run("note", &json!({"n": 3, "s": 0}));
    assert_eq!(notes(&ran), ["begin 0", "end 0", "begin 1", "end 1", "begin 3", "end 3"]);
    drop(busy);
}

#[test]
fn a_run_goes_on_when_its_caller_hangs_up_and_its_record_is_kept() {
    let mesh = Plan::nodes(1).memory("256MiB").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh, &ran);
    let caller = mesh[1].send("POST", &blocking("note"), br#"{"n":1,"s":3}"#).unwrap();
    until("it is running", || notes(&ran).contains(&"begin 1".to_owned()));
    drop(caller);
    let id = soon("its record is listed", || {
        let list = mesh[1].get("/api/v1/namespaces/_/activations?name=note").json();
        Some(list[0]["activationId"].as_str()?.to_owned())
    });
    assert_eq!(notes(&ran), ["begin 1", "end 1"]);
    let record = mesh[1].record(&id);
    assert_eq!(record["response"]["status"], json!("success"), "{record}");
    assert_eq!(annotation(&record, "timeout"), json!(false));
}

/// An action that notes what it does in a file, one call at a time; only one container of it fits.
fn create_noting(mesh: &Mesh, file: &std::path::Path) {
    let script = format!(
        r#"#!/bin/sh
value() {{ printf '%s' "$1" | sed "s/.*\"$2\":\([0-9.]*\).*/\1/"; }}
while IFS= read -r line; do
  n=$(value "$line" n)
  echo "begin $n" >>{file}
  sleep "$(value "$line" s)"
  echo "end $n" >>{file}
  echo "{{\"n\":$n}}" >&3
done
"#,
        file = file.display()
    );
    let exec = json!({"kind": "actionloop:1", "code": script, "binary": false});
    mesh[1].create("note", &json!({"exec": exec, "limits": {"memory": 256}}));
}

fn notes(file: &std::path::Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}
