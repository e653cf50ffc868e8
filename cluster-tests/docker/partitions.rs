//! Links that are cut, with traffic at all nodes: both sides serve, nothing runs twice, and it heals.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::engine::{DockerMesh, is_here};
use crate::notes::{self, Notes};
use crate::support::api::blocking;
use crate::support::clients::StopWhenDropped;
use crate::support::{Agent, Mesh, Ran, until};

const ACTION: &str = "noted";
const SLOTS: u64 = 2;

#[test]
fn both_sides_of_a_partition_serve_and_the_action_says_that_nothing_ran_twice() {
    if !is_here() {
        return;
    }
    under_traffic(|mesh, traffic| {
        for (at, peers) in [(1, ["n2", "n3"].as_slice()), (2, &["n1"]), (3, &["n1"])] {
            peers.iter().for_each(|peer| cut(&mesh[at], peer, true, true));
        }
        until("each side counts the other as dead", || {
            [(1, "n2"), (1, "n3"), (2, "n1")]
                .iter()
                .all(|(at, peer)| mesh[*at].member_state(peer).as_deref() == Some("dead"))
        });
        until("n2 still sees n3", || mesh.sees(2, "n3", "live"));
        all_serve(mesh);
        traffic.goes_on(60);
    });
}

#[test]
fn a_link_that_is_cut_one_way_does_no_harm_and_the_action_says_so() {
    if !is_here() {
        return;
    }
    under_traffic(|mesh, traffic| {
        // What `n2` sends to `n1` gets lost, on whoever's connection.
        cut(&mesh[2], "n1", true, false);
        cut(&mesh[1], "n2", false, true);
        // `n3` still tells each that the other lives: only calls find out.
        traffic.goes_on(200);
        all_serve(mesh);
    });
}

/// Cuts links as `cuts` says while calls are made at all nodes, heals them, and looks at what the calls told and the
/// action noted.
fn under_traffic(cuts: impl FnOnce(&Mesh, &Traffic)) {
    let mesh = DockerMesh::with(3, |node| node.arg("--enable-fault-injection"));
    notes::create(&mesh, ACTION, SLOTS);
    let traffic = Traffic::default();
    let ran = traffic.run(&mesh, || {
        traffic.goes_on(60);
        cuts(&mesh, &traffic);
        mesh.agents.iter().for_each(|agent| _ = agent.delete("/mesh/v1/faults").expect(204));
        mesh.heals("its links were cut");
        traffic.goes_on(60);
    });
    until("L7_no_slot_leak: all leases have ended", || mesh.agents.iter().all(|a| a.granted_leases().is_empty()));
    let notes = Notes::of(&mesh.agents);
    notes.expect_each_once_within(SLOTS);
    let begun = notes.begun();
    for ran in &ran {
        let has_run = begun.contains_key(ran.activation_id.as_str());
        match ran.status {
            200 => {
                assert!(has_run, "A3: {} succeeded and has not run", ran.activation_id);
                assert_eq!(ran.text("activation_id"), ran.activation_id, "A3_success_is_that_runs_result");
            }
            500 if ran.annotation("indeterminate") == json!(true) => {}
            429 | 500 | 503 => assert!(!has_run, "A2: it is said not to have run: {}", ran.record),
            status => panic!("a call ended with {status}: {}", ran.record),
        }
    }
}

/// Calls at all nodes, again and again.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    succeeded: AtomicUsize,
}

impl Traffic {
    /// Calls while `during` goes on; what came of all of them.
    fn run(&self, mesh: &Mesh, during: impl FnOnce()) -> Vec<Ran> {
        thread::scope(|scope| {
            // At each node as many as one container has slots.
            let nodes = mesh.agents.iter().flat_map(|agent| [**agent; SLOTS as usize]);
            let callers: Vec<_> = nodes
                .map(|api| {
                    scope.spawn(move || {
                        let mut all = Vec::new();
                        while !self.stop.load(Ordering::Relaxed) {
                            let ran = api.post(&blocking(ACTION), &notes::params(5)).into_ran();
                            self.succeeded.fetch_add(usize::from(ran.status == 200), Ordering::Relaxed);
                            all.push(ran);
                        }
                        all
                    })
                })
                .collect();
            let stopping = StopWhenDropped(&self.stop);
            during();
            drop(stopping);
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        })
    }

    /// Waits until so many more calls have succeeded.
    #[track_caller]
    fn goes_on(&self, calls: usize) {
        let from = self.succeeded.load(Ordering::Relaxed);
        until("calls succeed", || self.succeeded.load(Ordering::Relaxed) >= from + calls);
    }
}

/// A call that was on its way when its link was cut may end indeterminate; those after it are served.
#[track_caller]
fn all_serve(mesh: &Mesh) {
    for agent in &mesh.agents {
        until("it serves", || agent.invoke(ACTION, &notes::params(1)).status == 200);
    }
}

/// Cuts the link to a peer at this end.
#[track_caller]
fn cut(at: &Agent, peer: &str, send: bool, receive: bool) {
    let link = json!({"peer": peer, "send": {"cut": send}, "receive": {"cut": receive}});
    at.post("/mesh/v1/faults", &json!({"links": [link]})).expect(200);
}
