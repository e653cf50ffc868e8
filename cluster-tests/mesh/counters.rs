//! What `/metrics` counts moves when it should: at the node where it happened, and by as much.

use std::fs;
use std::thread;

use serde_json::json;

use crate::support::api::container_path;
use crate::support::{Agent, Plan, soon, until};

#[test]
fn vetoes_and_commits_are_counted_where_they_are_made_and_heard() {
    let mesh = Plan::nodes(2).set("EMBERMESH_PROTOCOL_WINDOW", "6s").start();
    let (owner, peer) = (&mesh[1], &mesh[2]);
    owner.create_builtin("wanted", "echo", 8);
    let first = owner.run("wanted", &json!({}));
    let remove = || owner.post(&container_path(first.container(), "remove"), &json!({}));
    thread::scope(|scope| {
        let removal = scope.spawn(remove);
        let intent = soon("the peer hears of the intent", || {
            let intents = peer.get("/mesh/v1/intents").expect(200);
            Some(intents["intents"][0]["intent_id"].as_str()?.to_owned())
        });
        peer.post(&format!("/mesh/v1/intents/{intent}/veto"), &json!({"hold_ms": 100})).expect(204);
        assert_eq!(removal.join().unwrap().expect(409)["outcome"], json!("vetoed"));
    });
    expect(owner, &[("intents_total{outcome=\"vetoed\"}", 1), ("vetoes_total{outcome=\"counted\"}", 1)]);
    expect(peer, &[("vetoes_total{outcome=\"sent\"}", 1)]);
    soon("it commits once the veto is over", || (remove().status == 200).then_some(()));
    expect(owner, &[("intents_total{outcome=\"committed\"}", 1), ("vetoes_total{outcome=\"sent\"}", 0)]);
    expect(peer, &[("intents_total{outcome=\"committed\"}", 0), ("vetoes_total{outcome=\"counted\"}", 0)]);
    for agent in &mesh.agents {
        for direction in ["sent", "received"] {
            assert!(metric(agent, &format!("gossip_bytes_total{{direction=\"{direction}\"}}")) > 0.0);
        }
    }
}

#[test]
fn leases_that_are_denied_granted_and_run_out_and_calls_that_wait_are_counted() {
    // The peer has no room for a container, and the only one has a single slot.
    let mesh = Plan::nodes(2).memory_of(1, "256MiB").memory_of(2, "128MiB").start();
    let (owner, holder) = (&mesh[1], &mesh[2]);
    let gate = mesh.place.file("gate");
    let script = format!(
        "#!/bin/sh\nwhile IFS= read -r line; do\n  until [ -e {} ]; do sleep 0.01; done\n  echo '{{}}' >&3\ndone\n",
        gate.display()
    );
    let exec = json!({"kind": "actionloop:1", "code": script, "binary": false});
    owner.create("gated", &json!({"exec": exec, "limits": {"memory": 256}}));
    thread::scope(|scope| {
        let running = scope.spawn(|| owner.run("gated", &json!({})));
        // As long as the container starts the peer asks for it.
        until("it starts", || !owner.containers().is_empty());
        let queued = scope.spawn(|| holder.run("gated", &json!({})));
        until("the other waits, and the owner has no slot for it", || {
            metric(holder, "queued_activations") == 1.0 && metric(owner, "leases_total{outcome=\"denied\"}") >= 1.0
        });
        expect(owner, &[("leases_total{outcome=\"granted\"}", 0), ("runs_for_peers_total", 0)]);
        fs::write(&gate, "").unwrap();
        running.join().unwrap();
        queued.join().unwrap();
    });
    expect(
        owner,
        &[
            ("activations_total{served=\"cold\"}", 1),
            ("leases_total{outcome=\"granted\"}", 1),
            ("runs_for_peers_total", 1),
            ("queued_activations", 0),
            ("running_activations", 0),
        ],
    );
    expect(
        holder,
        &[
            ("activations_total{served=\"leased_new\"}", 1),
            ("leases_total{outcome=\"granted\"}", 0),
            ("queued_activations", 0),
            ("queue_wait_seconds_count", 1),
        ],
    );
    assert!(metric(holder, "queue_wait_seconds_sum") > 0.0);
    until("the lease runs out", || metric(owner, "leases_total{outcome=\"expired\"}") == 1.0);
    expect(holder, &[("leases_total{outcome=\"expired\"}", 0)]);
}

#[track_caller]
fn expect(agent: &Agent, values: &[(&str, u32)]) {
    for (name, value) in values {
        assert_eq!(metric(agent, name), f64::from(*value), "{name} at {}", agent.id());
    }
}

#[track_caller]
fn metric(agent: &Agent, name: &str) -> f64 {
    let metrics = String::from_utf8(agent.get("/metrics").body).unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix("embermesh_")?.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in:\n{metrics}")).parse().unwrap()
}
