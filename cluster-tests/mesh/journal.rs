//! What a 202 promises: an activation that nobody waits for ends in exactly one record, and runs at most once, whatever
//! becomes of its node as long as the data folder is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::api::{action_path, annotation, blocking};
use crate::support::clients::StopWhenDropped;
use crate::support::{Agent, Answer, Clients, Place, Plan, Settings, at_once, soon, until};

#[test]
fn after_a_sigkill_each_accepted_activation_ends_once_and_none_runs_twice() {
    const COUNT: usize = 100;
    let mut mesh = Plan::nodes(1).memory("1GiB").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh[1], &ran, 0.3, false);
    let accepted: BTreeSet<String> =
        at_once(COUNT, |n| accept(&mesh[1], "note", &json!({"n": n}))).into_iter().collect();
    assert_eq!(accepted.len(), COUNT);
    until("some have run, and most have not", || lines(&ran).len() > 5);
    mesh.agent(1).kill();
    let before = lines(&ran).len();
    assert!(before < COUNT, "all had run: nothing is proven");
    mesh.agent(1).restart();
    until("nothing is owed any more", || mesh[1].status()["owed"] == 0);
    let records = records(&mesh[1], "note");
    let ended: BTreeSet<String> = records.iter().map(|record| text(record, "activationId")).collect();
    assert_eq!((records.len(), &ended), (COUNT, &accepted), "one record each");
    let begun = lines(&ran);
    assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len(), "none ran twice: {begun:?}");
    let begun: BTreeSet<String> = begun.into_iter().collect();
    let (mut succeeded, mut unknown) = (0, 0);
    for record in &records {
        let id = text(record, "activationId");
        match record["response"]["status"].as_str().unwrap() {
            "success" => {
                succeeded += 1;
                assert!(begun.contains(&id), "{id} is told as a success and did not run");
            }
            _ => {
                unknown += 1;
                assert_eq!(annotation(record, "indeterminate"), json!(true), "{record}");
            }
        }
    }
    assert!(succeeded > COUNT / 2, "{succeeded} succeeded, {unknown} are indeterminate");
    // And so it stays: what has ended is not owed again.
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    assert_eq!(mesh[1].status()["owed"], 0);
    assert_eq!(lines(&ran).len(), begun.len());
}

#[test]
fn one_that_was_running_when_its_node_was_killed_is_run_again_only_if_it_is_idempotent() {
    let mut mesh = Plan::nodes(1).memory("1GiB").start();
    let (once, twice) = (mesh.place.file("once"), mesh.place.file("twice"));
    create_noting(&mesh[1], &once, 6.0, false);
    create_noting_as(&mesh[1], "again", &twice, 6.0, true);
    let first = accept(&mesh[1], "note", &json!({}));
    let second = accept(&mesh[1], "again", &json!({}));
    until("both run", || lines(&once).len() == 1 && lines(&twice).len() == 1);
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    let record = mesh[1].record(&first);
    assert_eq!(record["response"]["status"], json!("whisk internal error"), "{record}");
    assert_eq!(annotation(&record, "indeterminate"), json!(true));
    let record = mesh[1].record(&second);
    assert_eq!(record["response"]["status"], json!("success"), "{record}");
    assert_eq!((lines(&once), lines(&twice)), (vec![first], vec![second.clone(), second]));
}

#[test]
fn a_run_at_a_peer_is_joined_by_its_origin_after_a_sigkill() {
    let mut mesh = Plan::nodes(2).memory_of(2, "128MiB").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh[1], &ran, 6.0, false);
    mesh[1].create_builtin("fill", "echo", 1);
    // n2's memory is taken: what it accepts runs at n1.
    mesh[2].run("fill", &json!({}));
    let id = accept(&mesh[2], "note", &json!({}));
    until("it runs", || lines(&ran).len() == 1);
    assert!(mesh[1].containers().iter().any(|c| c["action"] == "note" && c["busy"] == 1));
    mesh.agent(2).kill();
    mesh.agent(2).restart();
    let record = mesh[2].record(&id);
    assert_eq!(record["response"]["status"], json!("success"), "{record}");
    assert_eq!((annotation(&record, "node"), lines(&ran)), (json!("n1"), vec![id]));
}

#[test]
fn a_run_on_a_lease_that_was_held_is_joined_as_well() {
    let mut mesh = Plan::nodes(2).memory_of(2, "128MiB").set("EMBERMESH_PROTOCOL_TTL", "8s").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh[1], &ran, 3.0, false);
    mesh[1].create_builtin("fill", "echo", 1);
    mesh[2].run("fill", &json!({}));
    mesh[2].run("note", &json!({}));
    assert_eq!(mesh[2].held_leases().len(), 1);
    let id = accept(&mesh[2], "note", &json!({}));
    until("it runs", || lines(&ran).len() == 2);
    assert_eq!(mesh[1].granted_leases().len(), 1, "no new one was made for it");
    mesh.agent(2).kill();
    mesh.agent(2).restart();
    let record = mesh[2].record(&id);
    assert_eq!(record["response"]["status"], json!("success"), "{record}");
    assert_eq!((annotation(&record, "node"), &lines(&ran)[1..]), (json!("n1"), &[id][..]));
}

#[test]
fn one_whose_peer_is_gone_after_the_restart_is_indeterminate() {
    let mut mesh = Plan::nodes(2).memory_of(2, "128MiB").start();
    let ran = mesh.place.file("ran");
    create_noting(&mesh[1], &ran, 20.0, false);
    mesh[1].create_builtin("fill", "echo", 1);
    mesh[2].run("fill", &json!({}));
    let id = accept(&mesh[2], "note", &json!({}));
    until("it runs", || lines(&ran).len() == 1);
    mesh.agent(2).kill();
    mesh.agent(1).kill();
    mesh.agent(2).restart();
    let record = mesh[2].record(&id);
    assert_eq!(annotation(&record, "indeterminate"), json!(true), "{record}");
    assert_eq!(lines(&ran), [id]);
}

#[test]
fn an_accepted_activation_runs_the_revision_of_its_start_and_ends_as_failed_if_there_is_none() {
    let mut mesh = Plan::nodes(1).memory("128MiB").start();
    for (name, main) in [("busy", "sleep"), ("changed", "fail"), ("doomed", "echo")] {
        mesh[1].create_builtin(name, main, 1);
    }
    accept(&mesh[1], "busy", &json!({"ms": 30_000}));
    until("it runs", || mesh[1].status()["running"] == 1);
    let (changed, doomed) = (accept(&mesh[1], "changed", &json!({})), accept(&mesh[1], "doomed", &json!({})));
    let newer = json!({"exec": {"kind": "builtin:1", "main": "echo"}});
    mesh[1].put(&format!("{}?overwrite=true", action_path("changed")), &newer).expect(200);
    mesh[1].delete(&action_path("doomed")).expect(200);
    let record = mesh[1].record(&doomed);
    assert!(record["response"]["result"]["error"].as_str().unwrap().contains("was deleted"), "{record}");
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    assert_eq!(mesh[1].record(&doomed), record, "an end never changes");
    let record = mesh[1].record(&changed);
    assert_eq!((&record["response"]["status"], &record["version"]), (&json!("success"), &json!("0.0.2")), "{record}");
    until("nothing is owed", || mesh[1].status()["owed"] == 0);
}

#[test]
fn a_blocking_call_that_turned_into_one_that_does_not_wait_survives_as_well() {
    let mut mesh = Plan::nodes(1).memory("128MiB").start();
    let ran = mesh.place.file("ran");
    create_noting_as(&mesh[1], "slow", &ran, 6.0, false);
    let path = format!("{}&timeout=300", blocking("slow"));
    // The first runs when its caller has waited enough, the second waits for the only container.
    let ids = at_once(2, |_| {
        let answer = mesh[1].post(&path, &json!({}));
        text(&answer.expect(202), "activationId")
    });
    assert_eq!(mesh[1].status()["owed"], 2);
    mesh.agent(1).kill();
    mesh.agent(1).restart();
    let records: Vec<Value> = ids.iter().map(|id| mesh[1].record(id)).collect();
    let succeeded = records.iter().filter(|record| record["response"]["status"] == "success").count();
    let unknown = records.iter().filter(|record| annotation(record, "indeterminate") == true).count();
    assert_eq!((succeeded, unknown), (1, 1), "{records:?}");
    assert_eq!(lines(&ran).len(), 2);
}

#[test]
fn a_clean_stop_leaves_what_waits_to_the_next_start() {
    let plan = Plan::nodes(1).memory("128MiB").set("EMBERMESH_PROTOCOL_DRAIN_DEADLINE", "20s");
    let mut mesh = plan.start();
    let ran = mesh.place.file("ran");
    create_noting_as(&mesh[1], "note", &ran, 1.0, false);
    let ids: Vec<String> = (0..8).map(|_| accept(&mesh[1], "note", &json!({}))).collect();
    until("the first runs", || !lines(&ran).is_empty());
    mesh.agent(1).stop();
    let before = lines(&ran).len();
    assert!(before < 8, "the rest was to wait");
    mesh.agent(1).restart();
    for id in &ids {
        let record = mesh[1].record(id);
        assert_eq!(record["response"]["status"], json!("success"), "{record}");
    }
    assert_eq!(lines(&ran).len(), 8);
}

#[test]
fn a_drain_under_load_fails_no_call_and_keeps_every_promise() {
    let mesh = Plan::nodes(3).memory("512MiB").start();
    let ran = mesh.place.file("ran");
    create_noting_as(&mesh[1], "note", &ran, 0.05, false);
    for agent in &mesh.agents {
        until("the action is known", || agent.get(&action_path("note")).status == 200);
    }
    let (stop, promised, answered) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
    let stopped = || stop.load(Ordering::Relaxed);
    let add = |ids: &Mutex<Vec<String>>, id: String| ids.lock().unwrap().push(id);
    let count = |ids: &Mutex<Vec<String>>| ids.lock().unwrap().len();
    // 503 is no failed call if it says when to come back, and somebody else takes it.
    let turned_away = |answer: &Answer| answer.status == 503 && answer.header("retry-after").is_some();
    let promising = || {
        while !stopped() {
            until("not too many wait", || stopped() || mesh[1].status()["owed"].as_u64() < Some(40));
            let answer = mesh[1].post(&action_path("note"), &json!({}));
            if turned_away(&answer) {
                return;
            }
            add(&promised, text(&answer.expect(202), "activationId"));
        }
    };
    let calling = |from: usize| {
        let mut turn = from;
        while !stopped() {
            let answer = soon("some node takes it", || {
                turn += 1;
                let answer = mesh[turn % 3 + 1].post(&blocking("note"), &json!({}));
                (!turned_away(&answer)).then_some(answer)
            });
            add(&answered, text(&answer.expect(200), "activationId"));
        }
    };
    let drained = thread::scope(|scope| {
        let callers: Vec<_> = (0..3).map(|from| scope.spawn(move || calling(from))).collect();
        let promiser = scope.spawn(promising);
        let stopping = StopWhenDropped(&stop);
        until("calls are served and promises made", || count(&promised) > 60 && count(&answered) > 20);
        let drained = mesh[1].cli(&["drain", "--deadline", "60s", "-o", "json"]);
        let so_far = count(&answered);
        until("calls are served elsewhere", || count(&answered) > so_far + 10);
        drop(stopping);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        promiser.join().unwrap();
        drained
    });
    let outcome: Value = serde_json::from_slice(&drained.stdout).unwrap();
    assert_eq!(
        outcome,
        json!({"drained": true, "left": [], "at_peers": 0, "owed": 0, "killed": 0, "given_up": 0}),
        "{drained:?}"
    );
    assert!(mesh[1].containers().is_empty() && mesh[1].status()["owed"] == 0);
    let (promised, answered) = (promised.into_inner().unwrap(), answered.into_inner().unwrap());
    for id in &promised {
        let record = mesh[1].record(id);
        assert_eq!(record["response"]["status"], json!("success"), "{record}");
    }
    let mut begun = lines(&ran);
    begun.sort_unstable();
    let mut expected = [promised, answered].concat();
    expected.sort_unstable();
    assert_eq!(begun, expected, "each ran once, and nothing else did");
}

/// As docs/operations.md says; the nodes' containers end with them.
#[test]
fn a_rolling_restart_of_all_nodes_under_load_fails_no_call_and_runs_each_once() {
    let mut mesh = Plan::nodes(3).memory("512MiB").set("EMBERMESH_PROTOCOL_DRAIN_DEADLINE", "20s").start();
    let ran = mesh.place.file("ran");
    create_noting_as(&mesh[1], "note", &ran, 0.05, false);
    for agent in &mesh.agents {
        until("the action is known", || agent.get(&action_path("note")).status == 200);
    }
    let clients = Clients::of(&mesh);
    let answered = clients.call("note", &json!({}), || {
        clients.go_on();
        for number in 1..=3 {
            mesh.agent(number).stop();
            let seed = mesh[number % 3 + 1].mesh_addr();
            mesh.agent(number).settings.join = vec![seed];
            mesh.agent(number).restart();
            clients.moved(number, *mesh[number]);
            until("it is ready", || mesh[number].get("/readyz").status == 200);
            mesh.await_all_live();
            clients.go_on();
        }
    });
    let succeeded = answered.all_succeeded(&mesh);
    let mut begun = lines(&ran);
    begun.sort_unstable();
    assert_eq!(begun, succeeded, "each ran once, and nothing else did");
}

#[test]
fn a_node_leaves_only_when_it_owes_nothing_unless_it_is_forced() {
    // What the second node has run for the first makes place soon.
    let mut mesh = Plan::nodes(2).memory("128MiB").set("EMBERMESH_PROTOCOL_PAUSE_GRACE", "300ms").start();
    let ran = mesh.place.file("ran");
    create_noting_as(&mesh[1], "note", &ran, 3.0, false);
    let ids: Vec<String> = (0..3).map(|_| accept(&mesh[1], "note", &json!({}))).collect();
    assert_eq!(mesh[1].cli(&["leave"]).status.code(), Some(0));
    let not_ready = mesh[1].get("/readyz").refusal(503);
    assert!(not_ready.contains("leaving"), "{not_ready}");
    let refused = mesh[1].post(&action_path("note"), &json!({}));
    assert_eq!(refused.status, 503, "nothing more is accepted: {refused}");
    mesh.agent(1).expect_clean_end();
    assert_eq!(BTreeSet::from_iter(lines(&ran)), BTreeSet::from_iter(ids), "each has run before it left");

    create_noting_as(&mesh[2], "late", &ran, 30.0, false);
    for _ in 0..2 {
        accept(&mesh[2], "late", &json!({}));
    }
    until("one of them runs", || lines(&ran).len() == 4);
    assert_eq!(mesh[2].cli(&["leave"]).status.code(), Some(0));
    until("it waits", || mesh[2].get("/readyz").status == 503);
    assert_eq!(mesh[2].cli(&["leave", "--force"]).status.code(), Some(0));
    mesh.agent(2).expect_clean_end();
    assert!(mesh[2].log().contains("the next start on this data folder goes on"), "{}", mesh[2].log());
}

#[test]
fn a_damaged_store_is_refused_with_its_path_and_what_to_do() {
    let place = Place::new();
    let settings = Settings::new(&place, "n1");
    let mut agent = settings.clone().start();
    agent.create_builtin("echo", "echo", 1);
    agent.record(&accept(&agent, "echo", &json!({})));
    agent.stop();
    let store = store_file(&settings.data_dir);
    let mut content = fs::read(&store).unwrap();
    content[64..4_096].fill(0xa5);
    fs::write(&store, &content).unwrap();
    fs::remove_file(settings.data_dir.with_extension("log")).unwrap();
    let (code, said) = settings.refused();
    assert_eq!(code, 1, "{said}");
    for words in [&store.display().to_string(), "is damaged", "move it away", "nothing was deleted"] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
    assert_eq!(fs::read(&store).unwrap(), content);
}

/// Its activation id.
#[track_caller]
pub(crate) fn accept(agent: &Agent, action: &str, params: &Value) -> String {
    text(&agent.post(&action_path(action), params).expect(202), "activationId")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}")).to_owned()
}

/// All records of an action, whole.
fn records(agent: &Agent, action: &str) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/_/activations?name={action}&docs=true&limit=200");
    agent.get(&path).expect(200).as_array().unwrap().clone()
}

fn create_noting(agent: &Agent, file: &Path, seconds: f64, idempotent: bool) {
    create_noting_as(agent, "note", file, seconds, idempotent);
}

/// An action that appends its activation id to a file before it does anything else.
fn create_noting_as(agent: &Agent, name: &str, file: &Path, seconds: f64, idempotent: bool) {
    let script = format!(
        r#"#!/bin/sh
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed 's/.*"activation_id":"\([0-9a-f]*\)".*/\1/')
  echo "$id" >>{file}
  sleep {seconds}
  echo "{{\"activation_id\":\"$id\"}}" >&3
done
"#,
        file = file.display()
    );
    let exec = json!({"kind": "actionloop:1", "code": script, "binary": false});
    let annotations = json!([{"key": "idempotent", "value": idempotent}]);
    agent.create(name, &json!({"exec": exec, "limits": {"memory": 128}, "annotations": annotations}));
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn store_file(data_dir: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(data_dir).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|e| e == "redb")).unwrap()
}
