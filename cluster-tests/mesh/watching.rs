//! What can be watched: events as they happen, metrics, and the operator's tables.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::agent::BINARY;
use crate::support::{Mesh, Place, Plan, SOON, Settings, soon};

#[test]
fn grpc_tools_find_out_that_the_mesh_port_serves_and_what() {
    let mesh = Mesh::of(1);
    let address = format!("http://{}", mesh[1].mesh_addr());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Channel::from_shared(address).unwrap().connect().await.unwrap();
        let check = HealthCheckRequest { service: "embermesh.v1.Mesh".to_owned() };
        let health = HealthClient::new(channel.clone()).check(check).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving);

        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let asks = tokio_stream::iter([ask]);
        let mut answers = ServerReflectionClient::new(channel).server_reflection_info(asks).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        assert!(list.service.iter().any(|service| service.name == "embermesh.v1.Mesh"), "{list:?}");
    });
}

#[test]
fn events_tell_what_happens_as_it_happens() {
    let mut mesh = Mesh::of(2);
    let events = mesh[1].events();
    mesh[1].create_builtin("seen", "echo", 2);
    let ran = mesh[1].run("seen", &json!({}));
    mesh.hears_of_container(2, 1);
    mesh[2].run("seen", &json!({}));
    mesh[1].post(&format!("/mesh/v1/containers/{}/remove", ran.container()), &json!({"force": true})).expect(200);
    mesh.add("n3");
    let mut seen: Vec<Value> = Vec::new();
    for event in events {
        let joined = event["kind"] == "peer_up" && event["peer"] == "n3";
        seen.push(event);
        if joined {
            break;
        }
    }
    let position = |kind: &str, field: &str, value: &str| {
        let found = seen.iter().position(|event| event["kind"] == kind && event[field] == value);
        found.unwrap_or_else(|| panic!("no {kind} with {field} {value} in {seen:#?}"))
    };
    let order = [
        position("container_starting", "container_id", ran.container()),
        position("container_warm", "container_id", ran.container()),
        position("lease_granted", "peer", "n2"),
        position("container_removed", "container_id", ran.container()),
        position("peer_up", "peer", "n3"),
    ];
    assert!(order.is_sorted(), "{seen:#?}");
    assert!(seen.iter().all(|event| event["node_id"] == "n1" && event["at_ms"].as_u64() > Some(1_600_000_000_000)));
}

#[test]
fn watch_prints_events_as_they_come() {
    let mesh = Mesh::of(1);
    let mut watch = Command::new(BINARY)
        .args(["--api", &format!("http://{}", mesh[1].settings.api), "-o", "json", "watch", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It says nothing when it has begun to listen: calls are made until it has heard enough.
    let mut number = 0;
    let ended = soon("two events are printed", || {
        let name = format!("action-{number}");
        number += 1;
        mesh[1].create_builtin(&name, "echo", 1);
        mesh[1].run(&name, &json!({}));
        watch.try_wait().unwrap()
    });
    assert!(ended.success());
    let lines: Vec<Value> = BufReader::new(watch.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|event| event["node_id"] == "n1" && event["kind"].is_string()), "{lines:?}");
}

#[test]
fn metrics_have_their_documented_names_and_count_what_happened() {
    let mesh = Mesh::of(2);
    mesh[1].create_builtin("counted", "echo", 2);
    let first = mesh[1].run("counted", &json!({}));
    mesh.hears_of_container(2, 1);
    assert_eq!(mesh[2].run("counted", &json!({})).container(), first.container());
    mesh[1].run("counted", &json!({}));
    let text = |number: usize| String::from_utf8(mesh[number].get("/metrics").body).unwrap();
    let (owner, holder) = (text(1), text(2));
    for (metrics, line) in [
        (&owner, "embermesh_activations_total{served=\"cold\"} 1"),
        (&owner, "embermesh_activations_total{served=\"local\"} 1"),
        (&owner, "embermesh_activations_total{served=\"resumed\"} 0"),
        (&owner, "embermesh_activations_total{served=\"refused\"} 0"),
        (&owner, "embermesh_activations_total{served=\"indeterminate\"} 0"),
        (&owner, "embermesh_cold_starts_total 1"),
        (&owner, "embermesh_leases_total{outcome=\"granted\"} 1"),
        (&owner, "embermesh_leases_total{outcome=\"denied\"} 0"),
        (&owner, "embermesh_leases_total{outcome=\"expired\"} "),
        (&owner, "embermesh_runs_for_peers_total 1"),
        (&owner, "embermesh_intents_total{outcome=\"committed\"} 0"),
        (&owner, "embermesh_intents_total{outcome=\"vetoed\"} 0"),
        (&owner, "embermesh_intents_total{outcome=\"cancelled\"} 0"),
        (&owner, "embermesh_vetoes_total{outcome=\"sent\"} 0"),
        (&owner, "embermesh_vetoes_total{outcome=\"counted\"} 0"),
        (&owner, "embermesh_vetoes_total{outcome=\"ignored\"} 0"),
        (&owner, "embermesh_queued_activations 0"),
        (&owner, "embermesh_running_activations 0"),
        (&owner, "embermesh_owed_activations 0"),
        (&owner, "embermesh_containers 1"),
        (&owner, "embermesh_container_memory_bytes 134217728"),
        (&owner, "embermesh_peers 1"),
        (&owner, "embermesh_gossip_bytes_total{direction=\"sent\"} "),
        (&owner, "embermesh_gossip_bytes_total{direction=\"received\"} "),
        (&owner, "embermesh_gossip_dropped_total 0"),
        (&owner, "embermesh_records_dropped_total 0"),
        // Nobody was promised anything: the path of blocking calls has no journal.
        (&owner, "embermesh_journal_commits_total 0"),
        (&owner, "embermesh_journal_steps_total 0"),
        (&owner, "embermesh_invoke_seconds_count 2"),
        (&owner, "embermesh_queue_wait_seconds_count 2"),
        (&owner, "embermesh_cold_start_seconds_count 1"),
        (&holder, "embermesh_activations_total{served=\"leased_new\"} 1"),
        (&holder, "embermesh_activations_total{served=\"cold\"} 0"),
        (&holder, "embermesh_cold_starts_total 0"),
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "no `{line}` in:\n{metrics}");
    }
    let buckets = owner.lines().filter(|line| line.starts_with("embermesh_invoke_seconds_bucket{le=")).count();
    assert!(buckets > 10, "{owner}");
    for name in ["embermesh_activations_total", "embermesh_invoke_seconds"] {
        assert!(owner.contains(&format!("# HELP {name} ")) && owner.contains(&format!("# TYPE {name} ")), "{owner}");
    }
}

#[test]
fn operators_see_the_whole_mesh_from_any_node() {
    let mesh = Plan::nodes(3).set("EMBERMESH_PROTOCOL_TTL", "10s").start();
    mesh[1].create_builtin("shown", "echo", 2);
    let ran = mesh[1].run("shown", &json!({}));
    mesh.hears_of_container(3, 1);
    mesh[3].run("shown", &json!({}));
    let shown = |args: &[&str]| -> Value {
        let output = mesh[2].cli(&[args, &["-o", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let members = shown(&["members"]);
    let members = members["members"].as_array().unwrap();
    let states: Vec<_> = members.iter().map(|member| json!([member["node_id"], member["state"]])).collect();
    assert_eq!(states, ["n1", "n2", "n3"].map(|id| json!([id, "live"])));
    assert_eq!(shown(&["containers"])["containers"], json!([]));
    let all = shown(&["containers", "--all-nodes"]);
    let found = &all["containers"][0];
    assert_eq!(
        (&found["container_id"], &found["node_id"], &found["runs"]),
        (&json!(ran.container()), &json!("n1"), &json!(2)),
        "{all}"
    );
    assert_eq!(all["unreachable"], json!([]));
    let status = shown(&["status"]);
    assert_eq!((&status["node_id"], &status["ready"], &status["peers_live"]), (&json!("n2"), &json!(true), &json!(2)));
    let held = mesh[3].held_leases();
    assert_eq!((&held[0]["owner"], &held[0]["container_id"]), (&json!("n1"), &json!(ran.container())));
}

#[test]
fn a_service_manager_is_told_when_the_agent_is_up_lives_and_goes_down() {
    let place = Place::new();
    let path = place.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut agent =
        Settings::new(&place, "n1").set("NOTIFY_SOCKET", path.to_str().unwrap()).set("WATCHDOG_USEC", "200000").start();
    let told = |what: &str| {
        let mut buffer = [0; 1024];
        loop {
            let bytes = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{what} is not told: {error}"));
            let said = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            if said.lines().any(|line| line == what) {
                return said;
            }
        }
    };
    assert!(told("READY=1").contains("STATUS=node n1 serves"));
    for _ in 0..3 {
        told("WATCHDOG=1");
    }
    agent.signal(Signal::SIGTERM);
    told("STOPPING=1");
    agent.expect_clean_end();
}
