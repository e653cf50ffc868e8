//! Meshes of real agents under faults that are made on purpose, with traffic throughout. What is proven is proven by
//! what actions answer and write down: which activations ran where, and how many at once.
#![allow(clippy::unwrap_used)]

mod clocks;
mod engines;
mod namespaces;
mod partitions;
mod refusals;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use support::{Agent, Mesh, Plan};

/// A mesh whose agents take faults. `EMBERMESH_FAULT_SEED` makes the dice fall as they did, by which datagrams are lost.
fn breakable(count: usize) -> Mesh {
    let given = std::env::var("EMBERMESH_FAULT_SEED").ok();
    let seed = given.unwrap_or_else(|| (std::process::id() ^ UNIX_EPOCH.elapsed().unwrap().subsec_nanos()).to_string());
    eprintln!("EMBERMESH_FAULT_SEED={seed}");
    Plan::nodes(count).arg("--enable-fault-injection").arg("--fault-seed").arg(&seed).start()
}

/// Cuts the link to a peer at this end.
#[track_caller]
fn cut(at: &Agent, peer: &str, send: bool, receive: bool) {
    let link = json!({"peer": peer, "send": {"cut": send}, "receive": {"cut": receive}});
    faults(at, &json!({"links": [link]}));
}

#[track_caller]
fn faults(at: &Agent, change: &Value) {
    at.post("/mesh/v1/faults", change).expect(200);
}

#[track_caller]
fn heal(mesh: &Mesh) {
    for agent in &mesh.agents {
        agent.delete("/mesh/v1/faults").expect(204);
    }
}
