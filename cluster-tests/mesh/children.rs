//! What actions' child processes print, which no runtime counts or attributes: none of it is lost.

use serde_json::json;

use crate::concurrency::{found, lines};
use crate::support::api::annotation;
use crate::support::{Agent, Mesh, Plan, soon, until};

#[test]
fn what_a_child_process_prints_is_in_a_record_at_the_node_that_called() {
    if !found_python() {
        return;
    }
    let mesh = mesh_with_room_at_first();
    for (concurrency, expected) in [(1, "stdout: child"), (2, "stdout: [unattributed] child")] {
        for (says, own_lines) in [("pass", 0), ("print('own')", 1)] {
            let name = format!("child-{concurrency}-{own_lines}");
            let code = format!("import os\ndef main(args):\n  {says}\n  os.system('echo child')\n  return {{}}\n");
            create(&mesh[1], &name, &code, concurrency);
            for agent in &mesh.agents {
                // A line that is late for the record of its own run is in that of the next one.
                soon(&format!("{name}: {} has a record with `{expected}`", agent.id()), || {
                    let ran = agent.run(&name, &json!({}));
                    let record = agent.record(&ran.activation_id);
                    assert_eq!(annotation(&record, "node"), json!("n1"), "{record}");
                    let lines = lines(&record);
                    let own = lines.iter().filter(|line| *line == "stdout: own").count();
                    assert_eq!(own, own_lines, "all of its own, and no more: {lines:?}");
                    lines.iter().any(|line| line == expected).then_some(())
                });
            }
        }
    }
}

#[test]
fn what_a_container_prints_while_it_loads_is_in_a_record_though_only_peers_use_it() {
    if !found_python() {
        return;
    }
    // For one container.
    let mesh = Plan::nodes(2).memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let code = "import os\nprint('loading')\nos.system('echo child')\ndef main(args):\n  return {}\n";
    create(&mesh[1], "loads", code, 1);
    let mut seen = Vec::new();
    until("both lines are in records", || {
        let ran = mesh[2].run("loads", &json!({}));
        seen.extend(lines(&mesh[2].record(&ran.activation_id)));
        ["loading", "child"].iter().all(|said| seen.contains(&format!("stdout: [unattributed] {said}")))
    });
    assert_eq!(mesh[1].containers().len(), 1);
}

#[test]
fn what_a_child_process_prints_after_the_last_run_is_logged_when_its_container_is_removed() {
    if !found_python() {
        return;
    }
    let mesh = Mesh::of(1);
    let (go, done) = (mesh.place.file("go"), mesh.place.file("done"));
    let script = format!("until [ -e {} ]; do sleep 0.01; done; echo late; : >{}", go.display(), done.display());
    let code = format!(
        "import os, subprocess\ndef main(args):\n  subprocess.Popen(['sh', '-c', '{script}'])\n  \
         return {{'container': os.environ['__EMBERMESH_CONTAINER']}}\n"
    );
    create(&mesh[1], "leaves", &code, 1);
    let ran = mesh[1].run("leaves", &json!({}));
    assert_eq!(lines(&mesh[1].record(&ran.activation_id)), Vec::<String>::new());
    std::fs::write(go, "").unwrap();
    until("the child has printed its line", || done.exists());
    let path = format!("/mesh/v1/containers/{}/remove", ran.container());
    mesh[1].post(&path, &json!({"force": true})).expect(200);
    until("the agent's log has it", || mesh[1].log().contains("[unattributed] late"));
}

/// Two nodes, the second one without room for a container.
fn mesh_with_room_at_first() -> Mesh {
    Plan::nodes(2).memory_of(2, "128MiB").start()
}

fn create(agent: &Agent, name: &str, code: &str, concurrency: u32) {
    let exec = json!({"kind": "python:3", "code": code, "binary": false});
    agent.create(name, &json!({"exec": exec, "limits": {"memory": 256, "concurrency": concurrency}}));
}

fn found_python() -> bool {
    found("python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 8))"])
}
