//! Calls at all nodes while faults come and go, and what has to be true of them afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::api::{Api, blocking};
use crate::support::{Mesh, Ran, until};

/// Slots of the action that counts how many run at once.
const SLOTS: u64 = 2;
/// Longer than any call may take: queue bound, time-out and grace are far below.
const LONGEST: Duration = Duration::from_secs(45);

/// Traffic under way; calls go to every node, again and again.
pub(crate) struct Traffic {
    ledger: PathBuf,
    api: Vec<Api>,
    stop: AtomicBool,
    succeeded: AtomicUsize,
}

/// What came of all calls.
pub(crate) struct Outcome {
    ran: Vec<(Ran, Duration)>,
    ledger: BTreeMap<String, usize>,
}

impl Traffic {
    /// Registers two actions: one that notes each run in a file, one that sees how many run at once.
    pub(crate) fn new(mesh: &Mesh) -> Self {
        let ledger = mesh.place.file("ledger");
        let script = format!(
            r#"#!/bin/sh
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed 's/.*"activation_id":"\([0-9a-f]*\)".*/\1/')
  echo "$id" >>{ledger}
  echo "{{\"id\":\"$id\"}}" >&3
done
"#,
            ledger = ledger.display()
        );
        mesh[1].create("noted", &json!({"exec": {"kind": "actionloop:1", "code": script, "binary": false}}));
        mesh[1].create_builtin("counted", "sleep", SLOTS as u32);
        for agent in &mesh.agents {
            until("the actions are known", || {
                agent.get("/api/v1/namespaces/_/actions?count=true").json()["actions"] == 2
            });
        }
        let api = mesh.agents.iter().map(|agent| **agent).collect();
        Self { ledger, api, stop: AtomicBool::new(false), succeeded: AtomicUsize::new(0) }
    }

    /// Calls while `during` goes on, which may wait for [`Traffic::goes_on`].
    pub(crate) fn run(&self, during: impl FnOnce()) -> Outcome {
        let ran = thread::scope(|scope| {
            let callers: Vec<_> = self
                .api
                .iter()
                .flat_map(|api| [(api, "noted"), (api, "counted")])
                .map(|(api, action)| scope.spawn(move || self.call_again_and_again(*api, action)))
                .collect();
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
            self.stop.store(true, Ordering::Relaxed);
            let ran = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
            if let Err(panic) = caught {
                std::panic::resume_unwind(panic);
            }
            ran
        });
        let mut ledger = BTreeMap::new();
        for id in fs::read_to_string(&self.ledger).unwrap_or_default().lines() {
            *ledger.entry(id.to_owned()).or_default() += 1;
        }
        Outcome { ran, ledger }
    }

    /// Waits until so many more calls have succeeded.
    #[track_caller]
    pub(crate) fn goes_on(&self, calls: usize) {
        let from = self.succeeded.load(Ordering::Relaxed);
        until("calls succeed", || self.succeeded.load(Ordering::Relaxed) >= from + calls);
    }

    fn call_again_and_again(&self, api: Api, action: &str) -> Vec<(Ran, Duration)> {
        let mut ran = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = api.post(&blocking(action), &json!({"ms": 5})).into_ran();
            if answer.status == 200 {
                self.succeeded.fetch_add(1, Ordering::Relaxed);
            }
            ran.push((answer, began.elapsed()));
        }
        ran
    }
}

impl Outcome {
    /// A1, A2, A4, L0: each call answered in time; a success ran exactly once, nothing ran twice, what is said not to
    /// have run has not, and never more ran at once than there are slots.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(self.ran.iter().all(|(_, took)| *took < LONGEST), "A4_every_request_answered");
        for (id, times) in &self.ledger {
            assert_eq!(*times, 1, "A1_started_at_most_once: {id} ran {times} times");
        }
        for (ran, _) in &self.ran {
            let noted = ran.record["name"] == "noted";
            let in_ledger = self.ledger.contains_key(&ran.activation_id);
            match ran.status {
                200 if noted => assert!(in_ledger, "A3: {} succeeded and has not run", ran.activation_id),
                200 => {
                    let running = ran.number("running");
                    assert!(running <= SLOTS, "L0_runs_within_slots: {running} at once");
                    assert_eq!(ran.text("activation_id"), ran.activation_id, "A3_success_is_that_runs_result");
                }
                500 if ran.annotation("indeterminate") == json!(true) => {}
                // The code of an action may be at the other side: then it can't be started here.
                429 | 500 | 503 => {
                    assert!(!in_ledger, "A2: {} is said not to have run: {}", ran.activation_id, ran.record)
                }
                status => panic!("a call ended with {status}: {}", ran.record),
            }
        }
    }

    pub(crate) fn succeeded(&self) -> usize {
        self.ran.iter().filter(|(ran, _)| ran.status == 200).count()
    }

    pub(crate) fn failed(&self) -> usize {
        self.ran.len() - self.succeeded()
    }
}
