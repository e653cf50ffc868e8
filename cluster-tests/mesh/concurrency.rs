//! How much runs at once in a container, as its action says.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Mesh, Plan, Ran, at_once, distinct, skipped};

#[test]
fn two_hundred_activations_run_at_once_in_one_container_that_allows_it() {
    let mesh = Mesh::of(1);
    mesh[1].create_builtin("wide", "sleep", 200);
    let first = mesh[1].run("wide", &json!({"ms": 0}));
    let ran = at_once(200, |_| mesh[1].run("wide", &json!({"ms": 30_000, "until": 200})));
    assert!(ran.iter().all(|ran| ran.container() == first.container()), "one container served all");
    assert_eq!(ran.iter().map(|ran| ran.number("peak")).max(), Some(200));
    assert_eq!(distinct(ran.iter().map(|ran| ran.text("activation_id"))), 200);
    assert!(ran.iter().all(|ran| ran.activation_id == ran.text("activation_id")), "nobody got another's answer");
}

#[test]
fn containers_without_concurrency_never_run_two_activations_at_once() {
    let mesh = Plan::nodes(3).memory("384MiB").start();
    mesh[1].create_builtin("narrow", "sleep", 1);
    let ran = at_once(200, |n| mesh.agents[n % 3].run("narrow", &json!({"ms": 10})));
    assert!(ran.iter().all(|ran| (ran.number("running"), ran.number("peak")) == (1, 1)), "{:?}", peaks(&ran));
    let containers = distinct(ran.iter().map(|ran| ran.container()));
    assert!((2..=9).contains(&containers), "{containers} containers, three fit into each node");
    assert!(ran.iter().all(|ran| ran.activation_id == ran.text("activation_id")), "nobody got another's answer");
}

#[test]
fn python_calls_run_at_once_in_one_container_each_with_its_own_id_and_log_lines() {
    if !found("python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 8))"]) {
        return;
    }
    let code = r#"
import os, sys, time, threading
inside, peak, lock = 0, 0, threading.Lock()
def main(args):
    global inside, peak
    with lock:
        inside += 1
        peak = max(peak, inside)
    print("begin", args["n"], os.environ["__OW_ACTIVATION_ID"])
    end = time.monotonic() + 30
    while peak < args["meet"] and time.monotonic() < end:
        time.sleep(0.01)
    print("end", args["n"], file=sys.stderr)
    with lock:
        inside -= 1
    return {"n": args["n"], "id": os.environ["__OW_ACTIVATION_ID"], "container": os.environ["__EMBERMESH_CONTAINER"], "peak": peak}
"#;
    own_ids_and_lines("python:3", code);
}

#[test]
fn nodejs_calls_run_at_once_in_one_container_each_with_its_own_id_and_log_lines() {
    if !found("node", &["-e", "process.exit(process.versions.node.split('.')[0] >= 17 ? 0 : 1)"]) {
        return;
    }
    let code = r#"
let inside = 0, peak = 0;
async function main({ n, meet }) {
  peak = Math.max(peak, ++inside);
  console.log('begin', n, process.env.__OW_ACTIVATION_ID);
  const end = Date.now() + 30000;
  while (peak < meet && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10));
  console.error('end', n);
  inside--;
  return { n, id: process.env.__OW_ACTIVATION_ID, container: process.env.__EMBERMESH_CONTAINER, peak };
}
"#;
    own_ids_and_lines("nodejs:default", code);
}

#[test]
fn an_actionloop_executable_is_served_one_call_at_a_time_through_the_mesh() {
    let mesh = Mesh::of(2);
    let script = r#"#!/bin/sh
while IFS= read -r line; do
  echo "serving in $$"
  printf '{"container":"%s","pid":%s,"request":%s}\n' "$__EMBERMESH_CONTAINER" $$ "$line" >&3
done
"#;
    let action = |concurrency: u32| json!({"exec": {"kind": "actionloop:1", "code": script, "binary": false}, "limits": {"concurrency": concurrency}});
    let refused = mesh[1].put("/api/v1/namespaces/_/actions/wide", &action(2)).refusal(400);
    assert!(refused.contains("concurrency 2") && refused.contains("use 1"), "{refused}");

    mesh[1].create("loop", &action(1));
    let first = mesh[1].run("loop", &json!({"n": 1}));
    mesh.hears_of_container(2, 1);
    let second = mesh[2].run("loop", &json!({"n": 2}));
    assert_eq!((second.container(), second.number("pid")), (first.container(), first.number("pid")));
    assert_eq!(second.result["request"]["value"], json!({"n": 2}));
    assert_eq!(second.result["request"]["activation_id"], json!(second.activation_id));
    assert_eq!(lines(&mesh[2].record(&second.activation_id)), [format!("stdout: serving in {}", second.number("pid"))]);
}

/// Twelve calls at two nodes that wait for one another: all in one container, none with another's id or lines.
fn own_ids_and_lines(kind: &str, code: &str) {
    // Only one fits, at the first node.
    let mesh = Plan::nodes(2).memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let limits = json!({"concurrency": 50, "memory": 256});
    let action = json!({"exec": {"kind": kind, "code": code, "binary": false}, "limits": limits});
    mesh[1].create("talk", &action);
    let first = mesh[1].run("talk", &json!({"n": 100, "meet": 1}));
    mesh[2].run("talk", &json!({"n": 100, "meet": 1}));
    let ran = at_once(12, |n| (n, mesh.agents[n % 2].run("talk", &json!({"n": n, "meet": 12}))));
    for (n, ran) in &ran {
        assert_eq!((&ran.result["n"], ran.text("id")), (&json!(n), ran.activation_id.as_str()));
        assert_eq!(ran.container(), first.container(), "one container serves all");
        let expected = [format!("stderr: end {n}"), format!("stdout: begin {n} {}", ran.activation_id)];
        let mut lines = lines(&mesh.agents[n % 2].record(&ran.activation_id));
        // Two streams have no order between them.
        lines.sort_unstable();
        assert_eq!(lines, expected);
    }
    let peak = ran.iter().map(|(_, ran)| ran.number("peak")).max();
    assert_eq!(peak, Some(12), "all ran at once, as they saw themselves");
}

/// A record's log lines without their times.
pub(crate) fn lines(record: &Value) -> Vec<String> {
    let lines = record["logs"].as_array().unwrap();
    lines.iter().map(|line| line.as_str().unwrap().split_once(' ').unwrap().1.trim_start().to_owned()).collect()
}

fn peaks(ran: &[Ran]) -> Vec<(u64, u64)> {
    ran.iter().map(|ran| (ran.number("running"), ran.number("peak"))).filter(|seen| *seen != (1, 1)).collect()
}

/// Whether that interpreter is here and new enough.
pub(crate) fn found(program: &str, question: &[&str]) -> bool {
    let found = Command::new(program).args(question).status().is_ok_and(|status| status.success());
    if !found {
        skipped(&format!("there is no {program} that is new enough"));
    }
    found
}
