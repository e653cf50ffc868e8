#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::gate::Gate;
use crate::lines::Captured;
use crate::sdk::HandlerTarget;
use crate::server::{Answer, Server};

const ID: &str = "0123456789abcdef0123456789abcdef";

async fn started(init: Value, concurrency: u32) -> (Arc<Server>, Answer, Captured) {
    let (out, _, lines) = Captured::pair(true);
    let gate = Gate::new(concurrency);
    let server = Server::new(gate.clone(), lines, Box::new(HandlerTarget::new(Examples::new(), gate)));
    let answer = server.init(Bytes::from(json!({ "value": init }).to_string())).await;
    (server, answer, out)
}

async fn run(main: &str, params: Value) -> (Answer, Value) {
    let (server, init, _) = started(json!({ "main": main }), 1).await;
    assert_eq!(init.status, 200, "{main}");
    let answer = server.run(Bytes::from(json!({"value": params, "activation_id": ID}).to_string())).await;
    let body = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    (answer, body)
}

#[tokio::test]
async fn echo_returns_its_parameters_and_the_proof_of_where_it_ran() {
    let (answer, body) = run("echo", json!({"a": [1, {"b": null}]})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(body["echo"], json!({"a": [1, {"b": null}]}));
    assert_eq!(body["pid"], json!(std::process::id()));
    assert_eq!((&body["running"], &body["peak"], &body["activation_id"]), (&json!(1), &json!(1), &json!(ID)));
    assert!(body["started_at_us"].as_u64().unwrap() > 1_600_000_000_000_000);
}

#[tokio::test]
async fn a_note_is_written_when_it_begins_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes");
    let (answer, body) = run("note", json!({"file": file, "ms": 1, "n": 7})).await;
    assert_eq!((answer.status, &body["n"]), (200, &json!(7)), "{body}");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|l| (&l["event"], &l["n"], &l["activation_id"], &l["running"])).collect();
    let (n, id, one) = (json!(7), json!(ID), json!(1));
    assert_eq!(events, [(&json!("begin"), &n, &id, &one), (&json!("end"), &n, &id, &one)]);
    let (answer, body) = run("note", json!({"file": "/nowhere/notes"})).await;
    assert!(answer.status != 200 && body["error"].as_str().unwrap().contains("/nowhere/notes"), "{body}");
}

#[tokio::test]
async fn sleeps_that_wait_for_one_another_see_each_other_running() {
    let (server, ..) = started(json!({"main": "sleep"}), 8).await;
    let one = || {
        let server = server.clone();
        tokio::spawn(async move { server.run(Bytes::from_static(br#"{"value":{"ms":600000,"until":8}}"#)).await })
    };
    let runs: Vec<_> = (0..8).map(|_| one()).collect();
    for run in runs {
        let body: Value = serde_json::from_slice(&run.await.unwrap().body).unwrap();
        assert_eq!(body["peak"], json!(8));
    }
    assert_eq!(server.gate.running(), 0);
}

#[tokio::test]
async fn a_sleep_that_waits_for_others_in_vain_ends_after_its_time() {
    let began = Instant::now();
    let (_, body) = run("sleep", json!({"ms": 30, "until": 2})).await;
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert_eq!(body["slept_ms"], json!(30));
}

#[tokio::test]
async fn cpu_is_busy_for_as_long_as_it_is_told() {
    let before = std::time::Instant::now();
    let (_, body) = run("cpu", json!({"ms": 30})).await;
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert!(body["rounds"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn fail_fails_in_each_way_that_can_be_answered() {
    let (answer, body) = run("fail", json!({"how": "error"})).await;
    assert_eq!((answer.status, &body["error"]), (200, &json!("told to fail")));
    assert_eq!(body["activation_id"], json!(ID), "an application error has its proof too");
    let (answer, body) = run("fail", json!({"how": "exception"})).await;
    assert_eq!((answer.status, &body["error"]), (502, &json!("told to fail with an exception")));
    let (answer, body) = run("fail", json!({"how": "panic"})).await;
    assert_eq!(answer.status, 502, "{body}");
    let (answer, body) = run("fail", json!({"how": "rubbish"})).await;
    assert_eq!((answer.status, body), (200, Value::Null), "what was answered is not JSON");
    let (answer, _) = run("fail", json!({"how": "big", "bytes": 1_100_000})).await;
    assert!(answer.status == 200 && answer.body.len() > 1_100_000);
    let (_, body) = run("fail", json!({"how": "differently"})).await;
    assert!(body["error"].as_str().unwrap().contains("rubbish"), "{body}");
}

#[tokio::test]
async fn log_writes_a_text_or_so_many_lines() {
    for (log, expected) in [(json!("one\ntwo"), 2), (json!(3), 3)] {
        let (answer, _) = run("echo", json!({ "log": log })).await;
        assert_eq!(answer.log_lines, Some(expected), "{log}");
    }
}

#[tokio::test]
async fn an_unknown_name_is_refused_with_those_that_exist() {
    let (_, answer, _) = started(json!({"main": "ecko"}), 1).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let error = body["error"].as_str().unwrap();
    assert!(
        answer.status == 502 && error.contains("ecko") && error.contains("echo, sleep, cpu, note, fail"),
        "{error}"
    );
}

#[tokio::test]
async fn fail_init_fails_by_name_and_by_parameter() {
    for init in [json!({"main": "fail-init"}), json!({"main": "echo", "env": {"init": "fail-init"}})] {
        let (server, answer, _) = started(init, 1).await;
        assert_eq!(answer.status, 502);
        let run = server.run(Bytes::from_static(b"{}")).await;
        assert_eq!(run.status, 502, "a container that did not start runs nothing");
    }
}

#[tokio::test]
async fn hang_init_never_answers() {
    let hung = tokio::time::timeout(Duration::from_millis(100), started(json!({"main": "hang-init"}), 1)).await;
    assert!(hung.is_err());
}
