//! Clocks that run fast or slow.

use serde_json::json;

use crate::support::until;
use crate::traffic::Traffic;
use crate::{breakable, faults, heal};

#[test]
fn clocks_that_drift_apart_within_the_promised_bound_fail_nothing() {
    let mesh = breakable(3);
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        traffic.goes_on(30);
        faults(&mesh[1], &json!({"clock_drift_ppm": 5_000}));
        faults(&mesh[2], &json!({"clock_drift_ppm": -5_000}));
        traffic.goes_on(300);
        heal(&mesh);
        traffic.goes_on(30);
    });
    outcome.check();
    assert_eq!(outcome.failed(), 0);
}

#[test]
fn a_holder_whose_clock_runs_at_half_its_rate_does_no_harm() {
    // Far beyond the bound: it uses leases that have long ended. Their owner does not.
    let mesh = breakable(2);
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        traffic.goes_on(30);
        faults(&mesh[2], &json!({"clock_drift_ppm": -500_000}));
        traffic.goes_on(300);
        heal(&mesh);
    });
    outcome.check();
    until("all leases have ended", || mesh.agents.iter().all(|agent| agent.granted_leases().is_empty()));
}
