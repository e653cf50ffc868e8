//! The demo as a new user runs it: real agents, and figures that come from what the actions answered.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn the_demo_shows_every_step_and_leaves_nothing_running() {
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_embermesh"));
    command.args(["demo", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let demo = command.spawn().unwrap();
    let cluster = format!("demo-{}", demo.id());
    let output = demo.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(began.elapsed() < Duration::from_secs(120), "it took {:?}", began.elapsed());
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["cold_start_ms", "local_warm_us", "remote_new_lease_us", "remote_held_lease_us", "grpc_echo_us"] {
        let (p50, p99) = (figures[name]["p50"].as_f64().unwrap(), figures[name]["p99"].as_f64().unwrap());
        assert!(p50 > 0.0 && p99 >= p50, "{name}: {figures}");
    }
    assert!(figures["samples"].as_u64().unwrap() >= 200, "{figures}");
    assert_eq!(figures["reused_remotely"], 2, "{figures}");
    assert_eq!(figures["cold_starts"], 1, "{figures}");
    assert!(figures["herd_cold_starts"].as_u64().unwrap() < 3, "{figures}");
    assert_eq!((&figures["vetoed"], &figures["committed"]), (&1.into(), &1.into()), "{figures}");
    assert_eq!(figures["slots_recovered"], 8, "{figures}");
    assert!(!running(&cluster), "agents of {cluster} are left");
}

fn running(cluster: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|word| word == cluster)
    })
}
