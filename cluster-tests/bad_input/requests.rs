//! Bad calls of the API and the command line.

use serde_json::json;

use crate::support::api::{action_path, blocking};
use crate::support::{Mesh, Plan};
use crate::{expect_it_serves, expect_words};

#[test]
fn an_unknown_action_is_named_and_the_command_exits_3() {
    let mesh = Mesh::of(2);
    for refused in [
        mesh[1].get(&action_path("nowhere")),
        mesh[1].delete(&action_path("nowhere")),
        mesh[1].post(&blocking("nowhere"), &json!({})),
        mesh[1].post(&action_path("nowhere"), &json!({})),
    ] {
        expect_words(&refused.refusal(404), &["guest/nowhere"]);
    }
    let output = mesh[1].cli(&["invoke", "nowhere"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    expect_words(&String::from_utf8_lossy(&output.stderr), &["nowhere"]);
    expect_it_serves(&mesh);
}

#[test]
fn an_unknown_activation_and_one_that_is_no_id_are_told_apart() {
    let mesh = Mesh::of(1);
    let path = |id: &str| format!("/api/v1/namespaces/_/activations/{id}");
    let unknown = "0123456789abcdef0123456789abcdef";
    for part in ["", "/logs", "/result"] {
        expect_words(&mesh[1].get(&path(&format!("{unknown}{part}"))).refusal(404), &[unknown, "not known here"]);
    }
    expect_words(&mesh[1].get(&path("xyz")).refusal(400), &["`xyz`", "32 digits"]);
    assert_eq!(mesh[1].cli(&["activation", "get", unknown]).status.code(), Some(3));
}

#[test]
fn an_unknown_container_a_foreign_one_and_one_that_is_no_id_are_told_apart() {
    let mesh = Mesh::of(2);
    mesh[2].create_builtin("there", "echo", 1);
    let theirs = mesh[2].run("there", &json!({})).container().to_owned();
    let path = |id: &str, what: &str| format!("/mesh/v1/containers/{id}/{what}");
    let unknown = theirs.replace("n2-", "n1-");
    for what in ["pause", "remove"] {
        let refusal = |id: &str, status: u16| mesh[1].post(&path(id, what), &json!({})).refusal(status);
        expect_words(&refusal(&unknown, 404), &[&unknown, "on this node"]);
        expect_words(&refusal(&theirs, 409), &[&theirs, "n2", "ask there"]);
        expect_words(&refusal("rubbish", 400), &["rubbish"]);
    }
    let output = mesh[1].cli(&["remove", &unknown]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(mesh[2].run("there", &json!({})).container(), theirs, "it has not been touched");
}

#[test]
fn an_unknown_lease_and_one_that_is_no_id_are_told_apart() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_TTL", "10s").start();
    mesh[1].create_builtin("there", "echo", 1);
    mesh[1].run("there", &json!({}));
    mesh.hears_of_container(2, 1);
    mesh[2].run("there", &json!({}));
    let held = mesh[2].held_leases()[0]["lease_id"].as_str().unwrap().to_owned();
    let release = |number: usize, id: &str| mesh[number].post(&format!("/mesh/v1/leases/{id}/release"), &json!({}));
    expect_words(&release(1, &held).refusal(404), &[&held, "holds no lease"]);
    expect_words(&release(1, "L1").refusal(400), &["L1"]);
    assert_eq!(mesh[1].cli(&["release", &held]).status.code(), Some(3));
    release(2, &held).expect(204);
    release(2, &held).refusal(404);
}

#[test]
fn a_veto_of_no_open_intent_changes_nothing() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("there", "echo", 1);
    let container = mesh[1].run("there", &json!({})).container().to_owned();
    let veto = |id: &str| mesh[1].post(&format!("/mesh/v1/intents/{id}/veto"), &json!({"hold_ms": 60_000}));
    let intent = format!("{container}-r1");
    expect_words(&veto(&intent).refusal(404), &[&intent, "no open intent"]);
    veto("rubbish").refusal(400);
    assert_eq!(mesh[1].cli(&["veto", &intent]).status.code(), Some(3));
    let removed = mesh[1].post(&format!("/mesh/v1/containers/{container}/remove"), &json!({})).expect(200);
    assert_eq!(removed["outcome"], json!("committed"));
}

#[test]
fn malformed_json_is_refused_with_what_is_wrong_and_where() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("there", "echo", 1);
    let put = |body: &[u8]| mesh[1].call("PUT", &action_path("new"), body).refusal(400);
    let post = |body: &[u8]| mesh[1].call("POST", &blocking("there"), body).refusal(400);
    expect_words(&put(b"{\"exec\": "), &["the action", "line 1"]);
    expect_words(&put(b"{\"exec\": {\"kind\": 7}}"), &["the action", "string", "line 1"]);
    expect_words(&post(b"{\"a\": 1"), &["the parameters", "line 1"]);
    expect_words(&post(b"[1, 2]"), &["the parameters", "object"]);
    expect_words(&post(b"{} {}"), &["the parameters"]);
    expect_words(&post(b"{\"a\": \"\xff\xfe\"}"), &["the parameters", "UTF-8"]);
    // Well formed, if hardly sensible: that is for the action to judge.
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let ran = mesh[1].call("POST", &blocking("there"), deep.as_bytes()).into_ran();
    assert_eq!(ran.status, 502, "{}", ran.record);
    expect_words(ran.error(), &["the parameters", "recursion limit"]);
    let drain = mesh[1].call("POST", "/mesh/v1/drain", b"{\"dead_line_ms\": 5}").refusal(400);
    expect_words(&drain, &["dead_line_ms", "deadline_ms"]);
    expect_it_serves(&mesh);
}

#[test]
fn a_query_that_makes_no_sense_is_refused_with_its_name_and_value() {
    let mesh = Mesh::of(1);
    let actions = |query: &str| mesh[1].get(&format!("/api/v1/namespaces/_/actions?{query}")).refusal(400);
    expect_words(&actions("limit=201"), &["`limit`", "201", "from 0 to 200"]);
    expect_words(&actions("skip=-1"), &["`skip`", "-1"]);
    let blocking = mesh[1].post(&format!("{}?blocking=perhaps", action_path("x")), &json!({})).refusal(400);
    expect_words(&blocking, &["`blocking`", "perhaps", "true or false"]);
    expect_words(&mesh[1].get("/no/such/path").refusal(404), &["/no/such/path"]);
    mesh[1].call("PATCH", "/mesh/v1/status", b"").refusal(405);
}

#[test]
fn parameters_over_1_mb_are_refused_and_those_just_under_it_are_not() {
    let mesh = Mesh::of(2);
    mesh[1].create_builtin("there", "echo", 2);
    mesh[1].run("there", &json!({}));
    let params = |bytes: usize| json!({"x": "x".repeat(bytes - r#"{"x":""}"#.len())});
    for number in [1, 2] {
        let refused = mesh[number].post(&blocking("there"), &params((1 << 20) + 1));
        expect_words(&refused.refusal(413), &["the parameters", "1048577 bytes", "1048576 are allowed"]);
        let huge = mesh[number].call("POST", &blocking("there"), &vec![b' '; 20 << 20]);
        expect_words(&huge.refusal(413), &["the parameters", "20971520 bytes"]);
        // The answer holds more than the parameters, so that these are to stay a little under the limit.
        let echoed = mesh[number].run("there", &params((1 << 20) - 1000));
        assert_eq!(echoed.result["echo"], params((1 << 20) - 1000));
    }
    expect_it_serves(&mesh);
}

#[test]
fn code_over_48_mb_is_refused_and_48_mb_are_taken() {
    let mesh = Mesh::of(1);
    let action = |bytes: usize| {
        let mut code = String::from("#!/bin/sh\nwhile read -r line; do echo '{\"ok\":1}' >&3; done\nexit\n#");
        code.extend(std::iter::repeat_n('x', bytes - code.len()));
        json!({"exec": {"kind": "actionloop:1", "code": code, "binary": false}, "limits": {"memory": 256}})
    };
    let most = 48 << 20;
    let refused = mesh[1].put(&action_path("large"), &action(most + 1)).refusal(413);
    expect_words(&refused, &["50331649", "50331648"]);
    let larger = mesh[1].put(&action_path("large"), &action(80 << 20)).refusal(413);
    expect_words(&larger, &["bytes", "allowed"]);
    mesh[1].get(&action_path("large")).refusal(404);
    mesh[1].put(&action_path("large"), &action(most)).expect(200);
    assert_eq!(mesh[1].run("large", &json!({})).result, json!({"ok": 1}));
}

#[test]
fn an_unknown_kind_is_named_with_those_that_exist() {
    let mesh = Mesh::of(1);
    let put = |exec: serde_json::Value| mesh[1].put(&action_path("new"), &json!({ "exec": exec })).refusal(400);
    expect_words(&put(json!({"kind": "cobol:85", "code": "x"})), &["`cobol:85`", "python:3", "nodejs:20"]);
    expect_words(&put(json!({"kind": "builtin:1", "main": "ecko"})), &["ecko", "echo"]);
    expect_words(&put(json!({"kind": "python:3"})), &["code"]);
    expect_words(&put(json!({"kind": "python:3", "code": "%%%", "binary": true})), &["base64"]);
    mesh[1].get(&action_path("new")).refusal(404);
}

#[test]
fn limits_and_names_out_of_range_are_refused_with_the_range() {
    let mesh = Mesh::of(1);
    let put = |name: &str, limits: serde_json::Value| {
        let action = json!({"exec": {"kind": "builtin:1"}, "limits": limits});
        mesh[1].put(&action_path(name), &action).refusal(400)
    };
    expect_words(&put("new", json!({"memory": 127})), &["memory", "127", "128"]);
    expect_words(&put("new", json!({"memory": 513})), &["memory", "513", "512"]);
    expect_words(&put("new", json!({"timeout": 99})), &["timeout", "99", "100"]);
    expect_words(&put("new", json!({"concurrency": 501})), &["concurrency", "501", "500"]);
    expect_words(&put("new", json!({"concurrency": 0})), &["concurrency", "0"]);
    expect_words(&put("new%0Aline", json!({})), &["name"]);
    mesh[1].create_builtin("new", "echo", 1);
    let exists = mesh[1].put(&action_path("new"), &json!({"exec": {"kind": "builtin:1"}})).refusal(409);
    expect_words(&exists, &["new"]);
}

#[test]
fn a_page_of_another_site_may_not_call() {
    use std::io::{Read, Write};
    let mesh = Mesh::of(1);
    let mut stream = std::net::TcpStream::connect(mesh[1].settings.api).unwrap();
    stream
        .write_all(b"POST /mesh/v1/leave HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("evil.example"), "{answer}");
    expect_it_serves(&mesh);
}
