//! Faults that can't be made: nobody asked for them, or they make no sense.

use serde_json::json;

use crate::support::Mesh;
use crate::{breakable, cut};

#[test]
fn an_agent_that_was_not_started_for_it_takes_no_faults() {
    let mesh = Mesh::of(1);
    assert_eq!(mesh[1].status()["fault_injection"], json!(false));
    let refused = mesh[1].post("/mesh/v1/faults", &json!({"engine_stalled": true})).refusal(403);
    assert!(refused.contains("--enable-fault-injection"), "{refused}");
    mesh[1].delete("/mesh/v1/faults").refusal(403);
    let cli = mesh[1].cli(&["chaos", "inject", "stall"]);
    assert_eq!(cli.status.code(), Some(6), "{cli:?}");
    assert!(String::from_utf8_lossy(&cli.stderr).contains("--enable-fault-injection"), "{cli:?}");
}

#[test]
fn an_agent_that_takes_faults_says_so_loudly() {
    let mesh = breakable(1);
    assert!(mesh[1].log().contains("FAULT INJECTION IS ENABLED"));
    assert_eq!(mesh[1].status()["fault_injection"], json!(true));
}

#[test]
fn faults_that_make_no_sense_are_refused_whole() {
    let mesh = breakable(2);
    let link = |peer: &str, loss: f64| json!({"peer": peer, "send": {"loss": loss}});
    for (change, status, said) in [
        (json!({"links": [link("n2", 0.1), link("n9", 0.1)]}), 404, "`n9`"),
        (json!({"links": [link("n2", 0.1), link("n2", 1.5)]}), 400, "`loss` 1.5"),
        (json!({"links": [{"peer": "n2", "send": {"delay_ms": 600_000}}]}), 400, "600000"),
        (json!({"clock_drift_ppm": 2_000_000}), 400, "2000000"),
        (json!({"clock_drifts": 1}), 400, "clock_drifts"),
        (json!({"links": [{"peer": "n2", "sends": {}}]}), 400, "sends"),
    ] {
        let refused = mesh[1].post("/mesh/v1/faults", &change).refusal(status);
        assert!(refused.contains(said), "{refused}");
        let nothing = json!({"links": [], "engine_stalled": false, "clock_drift_ppm": 0});
        assert_eq!(mesh[1].get("/mesh/v1/faults").expect(200), nothing, "nothing of {change} came true");
    }
}

#[test]
fn faults_are_made_shown_and_healed_on_the_command_line() {
    let mesh = breakable(2);
    let chaos = |args: &[&str]| {
        let output = mesh[1].cli(&[&["chaos", "inject"], args].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = chaos(&["link", "n2", "--delay", "50ms", "--loss", "0.25", "--way", "send"]);
    assert!(code == Some(0) && said.contains("delay 50ms, loss 25%") && !said.contains("from"), "{said}");
    let (code, said) = chaos(&["drift", "-5000"]);
    assert!(code == Some(0) && said.contains("-5000 ppm") && said.contains("delay 50ms"), "{said}");
    assert_eq!(chaos(&["heal"]).0, Some(0));
    assert_eq!(chaos(&["show"]), (Some(0), "nothing was made to go wrong\n".to_owned()));
    let (code, said) = chaos(&["partition", "n2", "--for", "300ms"]);
    assert!(code == Some(0) && said.contains("cut") && said.contains("whole again"), "{said}");
    assert_eq!(chaos(&["partition", "n9"]).0, Some(3));
    assert_eq!(chaos(&["partition"]).0, Some(2));
    cut(&mesh[1], "n2", true, true);
    assert!(chaos(&["show"]).1.contains("to 127.0.0.1:"), "by address, whoever answers there");
}
