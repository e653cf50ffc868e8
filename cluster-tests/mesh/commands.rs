//! The operator's commands against real agents: what they print is what the nodes say, field by field.

use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::concurrency::lines;
use crate::support::agent::{BINARY, free_address};
use crate::support::api::annotation;
use crate::support::{Agent, Mesh, Plan, soon, until};

#[test]
fn actions_are_created_changed_shown_called_and_deleted_by_command() {
    let mesh = Mesh::of(1);
    let agent = &mesh[1];
    let options = ["--concurrency", "4", "--memory", "128", "--param", "greeting", "hi"];
    let created = told(agent, &[&["action", "create", "hello", "builtin:echo"], &options[..]].concat());
    assert_eq!(created, "created action guest/hello (builtin:1, version 0.0.1)\n");
    assert_eq!(exit_code(agent, &["action", "create", "hello", "builtin:echo"]), 4, "it is there already");
    let updated = told(agent, &["action", "update", "hello", "--timeout", "5000"]);
    assert_eq!(updated, "updated action guest/hello (builtin:1, version 0.0.2)\n");
    let shown = told(agent, &["action", "get", "hello"]);
    for (name, value) in [
        ("action", "guest/hello"),
        ("version", "0.0.2"),
        ("kind", "builtin:1"),
        ("main", "echo"),
        ("concurrency", "4"),
        ("memory", "128 MB"),
        ("timeout", "5s"),
        ("parameters", "greeting=\"hi\""),
    ] {
        assert_eq!(detail(&shown, name), value, "{shown}");
    }
    let action = json_of(agent, &["action", "get", "hello"]);
    assert_eq!(
        (&action["exec"]["kind"], &action["limits"]["timeout"]),
        (&json!("builtin:1"), &json!(5000)),
        "{action}"
    );
    let listed = told(agent, &["action", "list"]);
    assert_eq!(row(&listed, "guest/hello")[1..7], ["builtin:1", "0.0.2", "4", "128", "MB", "5s"], "{listed}");
    assert_eq!(json_of(agent, &["action", "list"])[0]["name"], json!("hello"));

    let file = mesh.place.file("params.json");
    std::fs::write(&file, r#"{"greeting": "hey", "n": 1}"#).unwrap();
    let file = file.to_str().unwrap();
    let result = |args: &[&str]| -> Value {
        let printed = told(agent, &[&["invoke", "hello", "--result"], args].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    };
    assert_eq!(result(&["-p", "n", "-5"])["echo"], json!({"greeting": "hi", "n": -5}));
    assert_eq!(result(&["--param-file", file, "-p", "n", "2"])["echo"], json!({"greeting": "hey", "n": 2}));

    assert_eq!(told(agent, &["action", "delete", "hello"]), "deleted action hello\n");
    for args in [&["action", "get", "hello"][..], &["action", "delete", "hello"], &["invoke", "hello"]] {
        assert_eq!(exit_code(agent, args), 3, "{args:?}");
    }
    assert_eq!(json_of(agent, &["action", "list"]), json!([]));
}

#[test]
fn what_became_of_an_activation_is_shown_by_command() {
    let mesh = Mesh::of(1);
    let agent = &mesh[1];
    agent.create_builtin("talk", "echo", 1);
    let called = json_of(agent, &["invoke", "talk", "-p", "log", "said"]);
    let id = called["activationId"].as_str().unwrap();
    let record = agent.record(id);
    assert_eq!(lines(&record), ["stdout: said"]);
    let shown = told(agent, &["activation", "get", id]);
    for (name, value) in [
        ("activation", id),
        ("action", "guest/talk (0.0.1)"),
        ("status", "success"),
        ("served", "cold"),
        ("node", "n1"),
        ("log lines", "1"),
    ] {
        assert_eq!(detail(&shown, name), value, "{shown}");
    }
    assert!(detail(&shown, "start").starts_with("cold, init ") && detail(&shown, "began").starts_with("20"), "{shown}");
    assert_eq!(json_of(agent, &["activation", "get", id]), record);
    assert_eq!(annotation(&record, "served"), json!("cold"));
    assert!(told(agent, &["activation", "logs", id]).ends_with("stdout: said\n"));
    assert_eq!(json_of(agent, &["activation", "logs", id])["logs"], record["logs"]);
    let result: Value = serde_json::from_str(&told(agent, &["activation", "result", id])).unwrap();
    assert_eq!(result, record["response"]["result"]);

    agent.create_builtin("wrong", "fail", 1);
    assert_eq!(exit_code(agent, &["invoke", "wrong"]), 1, "the action failed");
    let accepted = json_of(agent, &["invoke", "talk", "--async"]);
    let later = accepted["activationId"].as_str().unwrap();
    agent.record(later);
    let listed = told(agent, &["activation", "list", "--name", "talk"]);
    assert_eq!(row(&listed, id)[1..4], ["talk", "0.0.1", "success"], "{listed}");
    assert_eq!(row(&listed, later)[1..5], ["talk", "0.0.1", "success", "warm"], "{listed}");
    assert!(!listed.contains("wrong"), "{listed}");
    let newest = json_of(agent, &["activation", "list", "--limit", "1"]);
    assert_eq!((&newest[0]["activationId"], &newest[0]["statusCode"]), (&json!(later), &json!(0)));
    assert_eq!(exit_code(agent, &["activation", "get", &"0".repeat(32)]), 3);
}

#[test]
fn containers_leases_and_intents_are_shown_and_ended_by_command() {
    // A lease that does not run out while it is looked at.
    let plan = Plan::nodes(2).set("EMBERMESH_PROTOCOL_TTL", "30s").set("EMBERMESH_PROTOCOL_GRACE", "1s");
    let mesh = plan.set("EMBERMESH_PROTOCOL_WINDOW", "6s").start();
    let (owner, holder) = (&mesh[1], &mesh[2]);
    owner.create_builtin("shared", "echo", 8);
    let first = owner.run("shared", &json!({}));
    let container = first.container();
    mesh.hears_of_container(2, 1);
    assert_eq!(holder.run("shared", &json!({})).container(), container);

    let listed = told(holder, &["containers", "--all-nodes"]);
    let shown = row(&listed, container);
    assert_eq!(
        (&shown[..3], &shown[4..7]),
        (&[container, "n1", "guest/shared"][..], &["warm", "0/8", "1"][..]),
        "{listed}"
    );
    assert!(shown[3].ends_with("@n1"), "{listed}");
    let shown = json_of(owner, &["containers"]);
    assert_eq!((&shown["containers"][0]["runs"], &shown["containers"][0]["slots"]), (&json!(2), &json!(8)), "{shown}");
    let lease = json_of(holder, &["leases"])["held"][0]["lease_id"].as_str().unwrap().to_owned();
    for (agent, side) in [(holder, "held"), (owner, "granted")] {
        let listed = told(agent, &["leases"]);
        assert_eq!(row(&listed, &lease)[1..6], [side, "n1", "n2", container, "guest/shared"], "{listed}");
    }

    assert_eq!(told(holder, &["release", &lease]), format!("released lease {lease}\n"));
    assert_eq!(exit_code(holder, &["release", &lease]), 3, "it is gone");
    until("its owner has heard of it", || owner.granted_leases().is_empty());

    thread::scope(|scope| {
        let removal = scope.spawn(|| json_when(owner, &["remove", container], 4));
        let intent = soon("the peer hears of the intent", || {
            let listed = json_of(holder, &["intents"]);
            Some(listed["intents"][0]["intent_id"].as_str()?.to_owned())
        });
        let listed = told(holder, &["intents"]);
        assert_eq!(row(&listed, &intent)[1..4], ["remove", "n1", container], "{listed}");
        let vetoed = told(holder, &["veto", &intent, "--hold", "1s"]);
        assert_eq!(vetoed, format!("vetoed intent {intent}, to hold for 1s\n"));
        let outcome = removal.join().unwrap();
        assert_eq!((&outcome["intent_id"], &outcome["outcome"]), (&json!(intent), &json!("vetoed")), "{outcome}");
        assert_eq!(outcome["vetoes"], json!([{"peer": "n2", "hold_ms": 1000}]));
        until("it is closed", || exit_code(holder, &["veto", &intent]) == 3);
    });
    let paused = soon("a pause commits once the veto is over", || ok(owner, &["pause", container]));
    assert_eq!((detail(&paused, "kind"), detail(&paused, "outcome")), ("pause", "committed"), "{paused}");
    until("it is paused", || row(&told(owner, &["containers"]), container)[4] == "paused");
    let removed = soon("a removal commits", || ok(owner, &["remove", container]));
    assert_eq!((detail(&removed, "container"), detail(&removed, "outcome")), (container, "committed"), "{removed}");
    until("it is gone", || json_of(owner, &["containers"])["containers"] == json!([]));
    assert_eq!(exit_code(owner, &["remove", container]), 3);
}

#[test]
fn every_command_exits_5_when_nobody_answers() {
    let nobody = format!("http://{}", free_address());
    for args in [&["status"][..], &["action", "list"], &["invoke", "hello"], &["drain"], &["remove", "n1-1-1"]] {
        let output = Command::new(BINARY).args(["--api", &nobody]).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{args:?}: {said}");
        assert!(said.contains(&nobody), "{args:?}: {said}");
    }
}

/// What a command printed, if it succeeded.
fn ok(agent: &Agent, args: &[&str]) -> Option<String> {
    let output = agent.cli(args);
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// The same, of one that has to.
#[track_caller]
fn told(agent: &Agent, args: &[&str]) -> String {
    let output = agent.cli(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json_of(agent: &Agent, args: &[&str]) -> Value {
    json_when(agent, args, 0)
}

#[track_caller]
fn json_when(agent: &Agent, args: &[&str], code: i32) -> Value {
    let output = agent.cli(&[args, &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn exit_code(agent: &Agent, args: &[&str]) -> i32 {
    agent.cli(args).status.code().unwrap()
}

/// The value at that name, of a thing in detail.
#[track_caller]
fn detail<'a>(printed: &'a str, name: &str) -> &'a str {
    let value = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
    value.unwrap_or_else(|| panic!("no {name} in:\n{printed}")).trim()
}

/// The words of a table's row that begins with that.
#[track_caller]
fn row<'a>(printed: &'a str, first: &str) -> Vec<&'a str> {
    let row = printed.lines().map(|line| line.split_whitespace().collect()).find(|row: &Vec<_>| row[0] == first);
    row.unwrap_or_else(|| panic!("no row of {first} in:\n{printed}"))
}
