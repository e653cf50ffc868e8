//! Links that are cut, both ways and one way: both sides serve, nothing runs twice, and it heals.

use crate::support::{Mesh, until};
use crate::traffic::Traffic;
use crate::{breakable, cut, heal};

#[test]
fn both_sides_of_a_partition_serve_and_nothing_runs_twice() {
    let mesh = breakable(3);
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        traffic.goes_on(60);
        for (at, peers) in [(1, ["n2", "n3"].as_slice()), (2, &["n1"]), (3, &["n1"])] {
            peers.iter().for_each(|peer| cut(&mesh[at], peer, true, true));
        }
        until("each side counts the other as dead", || {
            mesh.sees(1, "n2", "dead") && mesh.sees(1, "n3", "dead") && mesh.sees(2, "n1", "dead")
        });
        until("n2 still sees n3", || mesh.sees(2, "n3", "live"));
        all_serve(&mesh);
        traffic.goes_on(60);
        heal(&mesh);
        mesh.heals("a partition");
        traffic.goes_on(60);
    });
    outcome.check();
    assert!(outcome.succeeded() >= 180, "{} succeeded, {} did not", outcome.succeeded(), outcome.failed());
    expect_no_slot_kept(&mesh);
}

#[test]
fn a_link_that_is_cut_one_way_does_no_harm() {
    let mesh = breakable(3);
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        traffic.goes_on(60);
        // What `n2` sends to `n1` gets lost, on whoever's connection.
        cut(&mesh[2], "n1", true, false);
        cut(&mesh[1], "n2", false, true);
        // `n3` still tells each that the other lives: only calls find out.
        traffic.goes_on(200);
        all_serve(&mesh);
        heal(&mesh);
        mesh.heals("a link that was cut one way");
        traffic.goes_on(60);
    });
    outcome.check();
    assert!(outcome.succeeded() >= 180, "{} succeeded, {} did not", outcome.succeeded(), outcome.failed());
    expect_no_slot_kept(&mesh);
}

#[test]
fn slow_and_lossy_links_lose_nothing() {
    let mesh = breakable(3);
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        for agent in &mesh.agents {
            for peer in ["n1", "n2", "n3"].into_iter().filter(|peer| *peer != agent.id()) {
                let worse = serde_json::json!({"delay_ms": 40, "loss": 0.2, "duplicate": 0.3});
                let link = serde_json::json!({"peer": peer, "send": worse, "receive": {"loss": 0.2}});
                crate::faults(agent, &serde_json::json!({"links": [link]}));
            }
        }
        traffic.goes_on(200);
        heal(&mesh);
        mesh.heals("slow and lossy links");
    });
    outcome.check();
    assert_eq!(outcome.failed(), 0, "a link that is only bad fails no call");
    expect_no_slot_kept(&mesh);
}

/// A call that was on its way when its link was cut may end indeterminate; those after it are served.
#[track_caller]
fn all_serve(mesh: &Mesh) {
    for agent in &mesh.agents {
        until("it serves", || agent.invoke("counted", &serde_json::json!({"ms": 1})).status == 200);
    }
}

/// L7: without new requests all leases end by themselves.
#[track_caller]
fn expect_no_slot_kept(mesh: &Mesh) {
    until("L7_no_slot_leak: all leases have ended", || mesh.agents.iter().all(|a| a.granted_leases().is_empty()));
    for agent in &mesh.agents {
        for container in agent.containers() {
            assert_eq!(container["busy"], 0, "{container}");
        }
    }
}
