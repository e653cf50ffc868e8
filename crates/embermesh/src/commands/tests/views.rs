//! Each table and each JSON shape that operators and their scripts see.

use embermesh_node::views::{
    Container, Containers, Intent, Intents, Lease, Leases, Member, Members, Served, Status, VetoView,
};
use serde::Serialize;

use super::*;

/// What a command prints when the node answers with that view: the table, then the JSON.
async fn shown(line: &str, view: &impl Serialize) -> (Ran, Ran) {
    let server = TestServer::saying(200, &serde_json::to_string(view).unwrap()).await;
    let table = run_line(&server.url, line).await;
    let json = run_line(&server.url, &format!("{line} -o json")).await;
    assert_eq!((table.exit, json.exit), (Exit::Ok, Exit::Ok));
    (table, json)
}

fn member(node_id: &str, is_self: bool) -> Member {
    Member {
        node_id: node_id.to_owned(),
        instance: "0195f3c4-0000-4000-8000-000000000001".to_owned(),
        epoch: 1_718_000_000_000_000,
        mesh_addr: "127.0.0.1:7411".to_owned(),
        api_addr: if is_self { "127.0.0.1:3233".to_owned() } else { String::new() },
        state: if is_self { "live" } else { "draining" }.to_owned(),
        version: "0.1.0".to_owned(),
        memory_mb: if is_self { 4_096 } else { 65_536 },
        rtt_us: if is_self { 0 } else { 230 },
        is_self,
    }
}

fn container(container_id: &str, state: &str) -> Container {
    Container {
        container_id: container_id.to_owned(),
        node_id: "n1".to_owned(),
        namespace: "guest".to_owned(),
        action: "hello".to_owned(),
        revision: "3@n1".to_owned(),
        state: state.to_owned(),
        slots: 4,
        busy: u32::from(state == "warm"),
        leased: 2,
        idle_ms: 12_300,
        memory_mb: 256,
        runs: 1_204,
        intent: (state == "paused").then(|| format!("{container_id}-r1")),
    }
}

fn lease(lease_id: &str, owner: &str, holder: &str) -> Lease {
    Lease {
        lease_id: lease_id.to_owned(),
        owner: owner.to_owned(),
        holder: holder.to_owned(),
        container_id: format!("{owner}-7-1"),
        namespace: "guest".to_owned(),
        action: "hello".to_owned(),
        slots: 2,
        busy: 1,
        expires_in_ms: 4_812,
    }
}

#[tokio::test]
async fn members_as_table_and_json() {
    let (table, json) = shown("members", &Members { members: vec![member("n1", true), member("n2", false)] }).await;
    insta::assert_snapshot!(table.answers, @r"
    NODE       STATE     MESH            API             VERSION   MEMORY    RTT             EPOCH
    n1 (self)  live      127.0.0.1:7411  127.0.0.1:3233    0.1.0  4096 MB      -  1718000000000000
    n2         draining  127.0.0.1:7411  -                 0.1.0  64.0 GB  230µs  1718000000000000
    ");
    insta::assert_snapshot!(json.answers, @r#"
    {
      "members": [
        {
          "node_id": "n1",
          "instance": "0195f3c4-0000-4000-8000-000000000001",
          "epoch": 1718000000000000,
          "mesh_addr": "127.0.0.1:7411",
          "api_addr": "127.0.0.1:3233",
          "state": "live",
          "version": "0.1.0",
          "memory_mb": 4096,
          "rtt_us": 0,
          "self": true
        },
        {
          "node_id": "n2",
          "instance": "0195f3c4-0000-4000-8000-000000000001",
          "epoch": 1718000000000000,
          "mesh_addr": "127.0.0.1:7411",
          "api_addr": "",
          "state": "draining",
          "version": "0.1.0",
          "memory_mb": 65536,
          "rtt_us": 230,
          "self": false
        }
      ]
    }
    "#);
}

#[tokio::test]
async fn containers_as_table_and_json() {
    let view = Containers {
        containers: vec![container("n1-7-1", "warm"), container("n1-7-12", "paused")],
        unreachable: vec!["n3".to_owned()],
    };
    let (table, json) = shown("containers --all-nodes", &view).await;
    insta::assert_snapshot!(table.answers, @r"
    CONTAINER  NODE  ACTION       REVISION  STATE   BUSY  LEASED   IDLE  MEMORY  RUNS  INTENT
    n1-7-1     n1    guest/hello  3@n1      warm     1/4       2      -  256 MB  1204  -
    n1-7-12    n1    guest/hello  3@n1      paused   0/4       2  12.3s  256 MB  1204  n1-7-12-r1
    ");
    insta::assert_snapshot!(table.remarks, @"n3 did not answer in time: its containers are missing here");
    insta::assert_snapshot!(json.answers, @r#"
    {
      "containers": [
        {
          "container_id": "n1-7-1",
          "node_id": "n1",
          "namespace": "guest",
          "action": "hello",
          "revision": "3@n1",
          "state": "warm",
          "slots": 4,
          "busy": 1,
          "leased": 2,
          "idle_ms": 12300,
          "memory_mb": 256,
          "runs": 1204,
          "intent": null
        },
        {
          "container_id": "n1-7-12",
          "node_id": "n1",
          "namespace": "guest",
          "action": "hello",
          "revision": "3@n1",
          "state": "paused",
          "slots": 4,
          "busy": 0,
          "leased": 2,
          "idle_ms": 12300,
          "memory_mb": 256,
          "runs": 1204,
          "intent": "n1-7-12-r1"
        }
      ],
      "unreachable": [
        "n3"
      ]
    }
    "#);
}

#[tokio::test]
async fn leases_as_table_and_json() {
    let view = Leases { held: vec![lease("n2-9-L4", "n2", "n1")], granted: vec![lease("n1-7-L12", "n1", "n3")] };
    let (table, json) = shown("leases", &view).await;
    insta::assert_snapshot!(table.answers, @r"
    LEASE     SIDE     OWNER  HOLDER  CONTAINER  ACTION       BUSY  EXPIRES
    n2-9-L4   held     n2     n1      n2-7-1     guest/hello   1/2     4.8s
    n1-7-L12  granted  n1     n3      n1-7-1     guest/hello   1/2     4.8s
    ");
    insta::assert_snapshot!(json.answers, @r#"
    {
      "held": [
        {
          "lease_id": "n2-9-L4",
          "owner": "n2",
          "holder": "n1",
          "container_id": "n2-7-1",
          "namespace": "guest",
          "action": "hello",
          "slots": 2,
          "busy": 1,
          "expires_in_ms": 4812
        }
      ],
      "granted": [
        {
          "lease_id": "n1-7-L12",
          "owner": "n1",
          "holder": "n3",
          "container_id": "n1-7-1",
          "namespace": "guest",
          "action": "hello",
          "slots": 2,
          "busy": 1,
          "expires_in_ms": 4812
        }
      ]
    }
    "#);
}

#[tokio::test]
async fn intents_as_table_and_json() {
    let intent = |urgent, vetoes| Intent {
        intent_id: "n1-7-1-r1".to_owned(),
        owner: "n1".to_owned(),
        container_id: "n1-7-1".to_owned(),
        namespace: "guest".to_owned(),
        action: "hello".to_owned(),
        kind: "remove".to_owned(),
        urgent,
        round: 1,
        closes_in_ms: 640,
        vetoes,
    };
    let vetoes =
        vec![VetoView { peer: "n2".to_owned(), hold_ms: 12_000 }, VetoView { peer: "n3".to_owned(), hold_ms: 500 }];
    let (table, json) = shown("intents", &Intents { intents: vec![intent(false, vetoes), intent(true, vec![])] }).await;
    insta::assert_snapshot!(table.answers, @r"
    INTENT     KIND             OWNER  CONTAINER  ACTION       ROUND  CLOSES  VETOES
    n1-7-1-r1  remove           n1     n1-7-1     guest/hello      1   640ms  n2 for 12s, n3 for 500ms
    n1-7-1-r1  remove (urgent)  n1     n1-7-1     guest/hello      1   640ms  -
    ");
    insta::assert_snapshot!(json.answers, @r#"
    {
      "intents": [
        {
          "intent_id": "n1-7-1-r1",
          "owner": "n1",
          "container_id": "n1-7-1",
          "namespace": "guest",
          "action": "hello",
          "kind": "remove",
          "urgent": false,
          "round": 1,
          "closes_in_ms": 640,
          "vetoes": [
            {
              "peer": "n2",
              "hold_ms": 12000
            },
            {
              "peer": "n3",
              "hold_ms": 500
            }
          ]
        },
        {
          "intent_id": "n1-7-1-r1",
          "owner": "n1",
          "container_id": "n1-7-1",
          "namespace": "guest",
          "action": "hello",
          "kind": "remove",
          "urgent": true,
          "round": 1,
          "closes_in_ms": 640,
          "vetoes": []
        }
      ]
    }
    "#);
}

#[tokio::test]
async fn status_as_table_and_json() {
    let view = Status {
        node_id: "n1".to_owned(),
        instance: "0195f3c4-0000-4000-8000-000000000001".to_owned(),
        epoch: 1_718_000_000_000_000,
        version: "0.1.0".to_owned(),
        cluster: "default".to_owned(),
        engine: "process".to_owned(),
        mesh_addr: "127.0.0.1:7411".to_owned(),
        api_addr: "127.0.0.1:3233".to_owned(),
        uptime_ms: 7_500_000,
        ready: false,
        not_ready: vec!["draining".to_owned(), "no gossip for 5 s".to_owned()],
        draining: true,
        fault_injection: true,
        peers_live: 2,
        joining: vec!["127.0.0.1:7499".to_owned()],
        containers: 3,
        memory_mb: 4_096,
        memory_used_mb: 768,
        queued: 1,
        running: 2,
        owed: 5,
        actions: 4,
        gossip_bytes_sent: 1_234_567,
        gossip_bytes_received: 999,
        gossip_dropped: 0,
        gossip_restarts: 1,
        served: Served { local: 100, leased: 20, cold: 3, cold_starts: 3, leases_granted: 7, ..Served::default() },
    };
    let (table, json) = shown("status", &view).await;
    insta::assert_snapshot!(table.answers, @r"
    node           n1
    ready          no: draining; no gossip for 5 s
    draining       yes
    faults         can be made on purpose: see `embermesh chaos inject show`
    up for         2h05m
    version        0.1.0
    cluster        default
    engine         process
    mesh address   127.0.0.1:7411
    API address    127.0.0.1:3233
    instance       0195f3c4-0000-4000-8000-000000000001
    epoch          1718000000000000
    peers live     2
    still joining  127.0.0.1:7499
    actions        4
    containers     3
    memory         768 MB of 4096 MB
    activations    2 running, 1 queued, 5 owed
    served         100 local, 20 leased, 0 resumed, 3 cold, 0 refused
    cold starts    3
    leases         7 granted, 0 denied, 0 expired
    intents        0 committed, 0 vetoed, 0 cancelled
    gossip         1234 kB sent, 999 B received, 0 messages dropped, 1 restarts
    ");
    insta::assert_snapshot!(json.answers, @r#"
    {
      "node_id": "n1",
      "instance": "0195f3c4-0000-4000-8000-000000000001",
      "epoch": 1718000000000000,
      "version": "0.1.0",
      "cluster": "default",
      "engine": "process",
      "mesh_addr": "127.0.0.1:7411",
      "api_addr": "127.0.0.1:3233",
      "uptime_ms": 7500000,
      "ready": false,
      "not_ready": [
        "draining",
        "no gossip for 5 s"
      ],
      "draining": true,
      "fault_injection": true,
      "peers_live": 2,
      "joining": [
        "127.0.0.1:7499"
      ],
      "containers": 3,
      "memory_mb": 4096,
      "memory_used_mb": 768,
      "queued": 1,
      "running": 2,
      "owed": 5,
      "actions": 4,
      "gossip_bytes_sent": 1234567,
      "gossip_bytes_received": 999,
      "gossip_dropped": 0,
      "gossip_restarts": 1,
      "served": {
        "local": 100,
        "leased": 20,
        "resumed": 0,
        "cold": 3,
        "refused": 0,
        "cold_starts": 3,
        "leases_granted": 7,
        "leases_denied": 0,
        "leases_expired": 0,
        "intents_committed": 0,
        "intents_vetoed": 0,
        "intents_cancelled": 0
      }
    }
    "#);
}

#[tokio::test]
async fn empty_lists_say_so_and_still_print_an_empty_list() {
    let cases = [
        ("members", r#"{"members":[]}"#, "NODE", "no member"),
        ("containers", r#"{"containers":[],"unreachable":[]}"#, "CONTAINER", "no container"),
        ("leases", r#"{"held":[],"granted":[]}"#, "LEASE", "neither holds"),
        ("intents", r#"{"intents":[]}"#, "INTENT", "no open intent"),
        ("action list", "[]", "ACTION", "no actions"),
        ("activation list", "[]", "ACTIVATION", "no activations"),
    ];
    for (line, body, heading, words) in cases {
        let server = TestServer::saying(200, body).await;
        let table = run_line(&server.url, line).await;
        assert!(table.answers.starts_with(heading) && table.answers.lines().count() == 1, "{table:?}");
        assert!(table.remarks.contains(words), "{table:?}");
        let json = run_line(&server.url, &format!("{line} -o json")).await;
        let printed: serde_json::Value = serde_json::from_str(&json.answers).unwrap();
        assert_eq!(printed, serde_json::from_str::<serde_json::Value>(body).unwrap());
        assert_eq!((table.exit, json.exit), (Exit::Ok, Exit::Ok));
    }
}

#[tokio::test]
async fn fields_that_a_newer_node_adds_are_printed_too() {
    let server = TestServer::saying(200, r#"{"members":[],"zone":{"b":1,"a":2}}"#).await;
    let ran = run_line(&server.url, "members -o json").await;
    insta::assert_snapshot!(ran.answers, @r#"
    {
      "members": [],
      "zone": {
        "b": 1,
        "a": 2
      }
    }
    "#);
}
