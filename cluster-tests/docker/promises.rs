//! What a 202 promises, on a real engine: containers outlive their agent, and so do the runs in them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::engine::{DockerMesh, is_here};
use crate::notes::{self, Notes};
use crate::support::api::{action_path, annotation, blocking};
use crate::support::clients::StopWhenDropped;
use crate::support::{Answer, at_once, soon, until};

#[test]
fn after_a_sigkill_each_accepted_activation_ends_once_and_none_runs_twice() {
    if !is_here() {
        return;
    }
    const COUNT: usize = 100;
    const SLOTS: u64 = 4;
    // One container, which survives its agent, and no room for a second.
    let mut mesh = DockerMesh::with(1, |node| crate::support::Settings { memory: "128MiB".to_owned(), ..node });
    notes::create(&mesh, "note", SLOTS);
    let accept = |_| text(&mesh[1].post(&action_path("note"), &notes::params(400)).expect(202), "activationId");
    let accepted: BTreeSet<String> = at_once(COUNT, accept).into_iter().collect();
    assert_eq!(accepted.len(), COUNT);
    until("some have run", || Notes::of(&mesh.agents).ended() > 5);
    mesh.agent(1).kill();
    // What had begun goes on, and ends unheard.
    soon("nothing runs any more", || {
        let notes = Notes::of(&mesh.agents);
        (notes.ended() == notes.begun().len()).then_some(())
    });
    let before = Notes::of(&mesh.agents);
    assert!(before.begun().len() < COUNT, "all had run: nothing is proven");
    mesh.agent(1).restart();
    until("nothing is owed any more", || mesh[1].status()["owed"] == 0);

    let path = "/api/v1/namespaces/_/activations?name=note&docs=true&limit=200";
    let records = mesh[1].get(path).expect(200).as_array().unwrap().clone();
    let ended: BTreeSet<String> = records.iter().map(|record| text(record, "activationId")).collect();
    assert_eq!((records.len(), &ended), (COUNT, &accepted), "one record each");
    let notes = Notes::of(&mesh.agents);
    notes.expect_each_once_within(SLOTS);
    let (begun, mut unknown, mut unseen) = (notes.begun(), 0, 0);
    for record in &records {
        let id = text(record, "activationId");
        if record["response"]["status"] == "success" {
            assert!(begun.contains_key(id.as_str()), "{id} is told as a success and did not run");
            continue;
        }
        assert_eq!(annotation(record, "indeterminate"), json!(true), "{record}");
        unknown += 1;
        unseen += u64::from(!before.begun().contains_key(id.as_str()));
        assert_eq!(begun.contains_key(id.as_str()), before.begun().contains_key(id.as_str()), "{id} ran again");
    }
    assert!(unknown < COUNT / 2, "{unknown} are indeterminate");
    // Noted as begun, and killed on the way to the container.
    assert!(unseen <= SLOTS, "{unseen} of {unknown} indeterminate ones were not running");
}

#[test]
fn a_drain_under_load_fails_no_call_and_keeps_every_promise() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(3);
    notes::create(&mesh, "note", 4);
    let (stop, promised, served) = (AtomicBool::new(false), Mutex::new(Vec::new()), Mutex::new(0));
    let stopped = || stop.load(Ordering::Relaxed);
    // 503 is no failed call if it says when to come back, and somebody else takes it.
    let turned_away = |answer: &Answer| answer.status == 503 && answer.header("retry-after").is_some();
    let promising = || {
        while !stopped() {
            until("not too many wait", || stopped() || mesh[1].status()["owed"].as_u64() < Some(20));
            let answer = mesh[1].post(&action_path("note"), &json!({"ms": 50}));
            if turned_away(&answer) {
                return;
            }
            promised.lock().unwrap().push(text(&answer.expect(202), "activationId"));
        }
    };
    let calling = |from: usize| {
        let mut turn = from;
        while !stopped() {
            let answer = soon("some node takes it", || {
                turn += 1;
                let answer = mesh[turn % 3 + 1].post(&blocking("note"), &json!({"ms": 50}));
                (!turned_away(&answer)).then_some(answer)
            });
            let ran = answer.into_ran();
            assert_eq!((ran.status, ran.text("activation_id")), (200, &*ran.activation_id), "{}", ran.record);
            *served.lock().unwrap() += 1;
        }
    };
    let drained = thread::scope(|scope| {
        let callers: Vec<_> = (0..3).map(|from| scope.spawn(move || calling(from))).collect();
        let promiser = scope.spawn(promising);
        let stopping = StopWhenDropped(&stop);
        until("calls are served and promises made", || {
            promised.lock().unwrap().len() > 40 && *served.lock().unwrap() > 20
        });
        let drained = mesh[1].cli(&["drain", "--deadline", "60s", "-o", "json"]);
        let so_far = *served.lock().unwrap();
        until("calls are served elsewhere", || *served.lock().unwrap() > so_far + 10);
        drop(stopping);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        promiser.join().unwrap();
        drained
    });
    let outcome: Value = serde_json::from_slice(&drained.stdout).unwrap();
    let all = json!({"drained": true, "left": [], "at_peers": 0, "owed": 0, "killed": 0, "given_up": 0});
    assert_eq!(outcome, all, "{drained:?}");
    for id in promised.into_inner().unwrap() {
        let record = mesh[1].record(&id);
        assert_eq!(record["response"]["status"], json!("success"), "{record}");
        assert_eq!(text(&record["response"]["result"], "activation_id"), id);
    }
    let own = mesh.docker.name("n1-");
    let left: Vec<_> = mesh.docker.containers().into_iter().filter(|(name, _)| name.starts_with(&own)).collect();
    assert_eq!((mesh[1].containers(), left), (Vec::new(), Vec::new()));
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}")).to_owned()
}
