//! Actions that misbehave: their callers are told, their containers go, and the next call is served.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::api::{action_path, annotation};
use crate::support::{Mesh, Place, Ran, Settings, until};
use crate::{expect_it_serves, expect_words};

#[test]
fn an_action_that_never_answers_init_fails_its_calls_and_its_container_goes() {
    let mesh = Mesh::of(1);
    create(&mesh, "stuck", "hang-init", json!({"timeout": 100}));
    let began = Instant::now();
    let ran = mesh[1].invoke("stuck", &json!({}));
    assert_eq!(ran.status, 502, "{}", ran.record);
    expect_words(ran.error(), &["Initialization", "10000 ms"]);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(mesh[1].record(&ran.activation_id)["response"]["status"], json!("action developer error"));
    until("nothing is left of it", || mesh[1].container_folders().is_empty());
    expect_it_serves(&mesh);
}

#[test]
fn an_action_that_fails_at_init_tells_why() {
    let mesh = Mesh::of(2);
    create(&mesh, "bad", "fail-init", json!({}));
    for number in [1, 2] {
        let ran = mesh[number].invoke("bad", &json!({}));
        assert_eq!(ran.status, 502, "{}", ran.record);
        expect_words(ran.error(), &["Initialization has failed", "told to fail at initialisation"]);
    }
    until("nothing is left of it", || mesh.agents.iter().all(|agent| agent.container_folders().is_empty()));
    expect_it_serves(&mesh);
}

#[test]
fn an_action_that_dies_in_its_run_fails_that_call_and_the_next_has_a_new_container() {
    let mesh = Mesh::of(1);
    create(&mesh, "mortal", "fail", json!({}));
    let before = mesh[1].invoke("mortal", &json!({"how": "error"}));
    let died = fails(&mesh, "mortal", "exit", "action developer error");
    expect_words(died.error(), &["did not produce a valid response"]);
    until("its container is gone", || !mesh[1].container_folders().contains(&before.container().to_owned()));
    let after = mesh[1].invoke("mortal", &json!({"how": "error"}));
    assert_eq!((after.status, after.error()), (502, "told to fail"), "an application error is another thing");
    assert_eq!(after.record["response"]["status"], json!("application error"));
    assert_ne!(after.container(), before.container());
    expect_it_serves(&mesh);
}

#[test]
fn an_action_that_answers_rubbish_fails_that_call() {
    let mesh = Mesh::of(1);
    create(&mesh, "rubbish", "fail", json!({}));
    let ran = fails(&mesh, "rubbish", "rubbish", "action developer error");
    expect_words(ran.error(), &["JSON object or array", "this is"]);
    expect_it_serves(&mesh);
}

#[test]
fn a_result_over_1_mb_is_not_passed_on_and_the_call_is_told_so() {
    let mesh = Mesh::of(2);
    create(&mesh, "big", "fail", json!({}));
    // At its own node and through a lease.
    for number in [1, 2] {
        // The second is more than the container's own proxy takes from the action.
        for bytes in [1 << 20, 5 << 20] {
            let ran = mesh[number].invoke("big", &json!({"how": "big", "bytes": bytes}));
            assert_eq!(ran.status, 502, "{}", ran.record);
            expect_words(ran.error(), &["exceeded the allowed length of 1048576 bytes", "truncated"]);
            assert_eq!(ran.record["response"]["status"], json!("application error"));
        }
    }
    expect_it_serves(&mesh);
}

#[test]
fn a_run_over_its_time_out_is_ended_and_its_container_serves_nobody_again() {
    let mesh = Mesh::of(2);
    create(&mesh, "late", "sleep", json!({"timeout": 2000}));
    let first = mesh[1].run("late", &json!({"ms": 1}));
    // Through a lease: the owner enforces it.
    for number in [2, 1] {
        let began = Instant::now();
        let ran = mesh[number].invoke("late", &json!({"ms": 30_000}));
        assert_eq!(ran.status, 502, "{}", ran.record);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        expect_words(ran.error(), &["exceeded its time limits of 2000 milliseconds"]);
        let next = mesh[number].run("late", &json!({"ms": 1}));
        assert_ne!(next.container(), first.container());
    }
    until("its container is gone", || !mesh[1].container_folders().contains(&first.container().to_owned()));
    expect_it_serves(&mesh);
}

#[test]
fn a_timed_out_run_is_marked_in_its_record() {
    let mesh = Mesh::of(1);
    create(&mesh, "late", "sleep", json!({"timeout": 200}));
    let ran = mesh[1].invoke("late", &json!({"ms": 30_000}));
    assert_eq!(annotation(&mesh[1].record(&ran.activation_id), "timeout"), json!(true), "{}", ran.record);
}

#[test]
fn an_action_that_eats_memory_is_ended_and_others_are_not_touched() {
    let mesh = Mesh::of(1);
    create(&mesh, "greedy", "fail", json!({}));
    create(&mesh, "modest", "echo", json!({}));
    let modest = mesh[1].run("modest", &json!({}));
    let ran = fails(&mesh, "greedy", "memory", "action developer error");
    expect_words(ran.error(), &["did not produce a valid response"]);
    assert_eq!(mesh[1].run("modest", &json!({})).container(), modest.container());
    expect_it_serves(&mesh);
}

#[test]
fn a_missing_interpreter_is_named_when_an_action_needs_it() {
    let place = Place::new();
    let empty = place.file("empty");
    fs::create_dir(&empty).unwrap();
    let agent = Settings::new(&place, "n1").set("PATH", empty.to_str().unwrap()).start();
    for (kind, named) in [("python:3", "python3"), ("nodejs:20", "node")] {
        let action = json!({"exec": {"kind": kind, "code": "def main(args): return {}", "binary": false}});
        let refused = agent.put(&action_path("needy"), &action).refusal(400);
        expect_words(&refused, &[named, "PATH", "Install"]);
        agent.get(&action_path("needy")).refusal(404);
    }
    agent.create_builtin("fine", "echo", 1);
    agent.run("fine", &json!({}));
}

#[test]
fn an_executable_that_can_not_run_fails_its_calls_with_the_cause() {
    let mesh = Mesh::of(1);
    let place = &mesh.place;
    let file = place.file("broken");
    fs::write(&file, "#!/nowhere/at/all\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let created = mesh[1].cli(&["action", "create", "broken", file.to_str().unwrap(), "--kind", "actionloop:1"]);
    assert!(created.status.success(), "{created:?}");
    let ran = mesh[1].invoke("broken", &json!({}));
    assert_eq!(ran.status, 502, "{}", ran.record);
    expect_words(ran.error(), &["Initialization has failed", "No such file"]);
    expect_it_serves(&mesh);
}

#[track_caller]
fn create(mesh: &Mesh, name: &str, main: &str, limits: Value) {
    let mut action = json!({"exec": {"kind": "builtin:1", "main": main}, "limits": {"memory": 128}});
    for (limit, value) in limits.as_object().unwrap() {
        action["limits"][limit] = value.clone();
    }
    mesh[1].create(name, &action);
}

/// A call of the action that fails in that way, with that status in its record.
#[track_caller]
fn fails(mesh: &Mesh, name: &str, how: &str, status: &str) -> Ran {
    let ran = mesh[1].invoke(name, &json!({"how": how}));
    assert_eq!((ran.status, &ran.record["response"]["status"]), (502, &json!(status)), "{}", ran.record);
    assert_eq!(mesh[1].record(&ran.activation_id)["response"], ran.record["response"]);
    ran
}
