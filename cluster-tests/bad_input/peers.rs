//! Messages over gRPC that no peer of this version sends: empty ones, unknown values, numbers at their limits.

use std::sync::Arc;
use std::time::Duration;

use embermesh_node::gossip::{Gossip, GossipConfig, UdpDatagrams};
use embermesh_proto::v1;
use embermesh_proto::v1::mesh_client::MeshClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::expect_it_serves;
use crate::support::agent::free_address;
use crate::support::api::action_path;
use crate::support::{Mesh, until};

/// A mesh of two, `n1` with a container of the action `there`, and a client that talks to `n1` as a peer does.
struct Bench {
    client: MeshClient<Channel>,
    runtime: tokio::runtime::Runtime,
    /// Ended after the client has gone: an agent that ends waits for its connections.
    mesh: Mesh,
    container: String,
}

#[test]
fn empty_messages_of_peers_are_refused_or_change_nothing() {
    let mut bench = Bench::new();
    bench.say(async |mut peer| {
        let refusals = [
            peer.reserve(v1::ReserveRequest::default()).await.err(),
            peer.run(v1::RunRequest::default()).await.err(),
            peer.release(v1::ReleaseRequest::default()).await.err(),
            peer.recall(v1::RecallRequest::default()).await.err(),
            peer.intent(v1::IntentRequest::default()).await.err(),
            peer.veto(v1::VetoRequest::default()).await.err(),
            peer.logs(v1::LogsRequest::default()).await.err(),
            peer.inspect(v1::InspectRequest::default()).await.err(),
        ];
        for (number, refusal) in refusals.into_iter().enumerate() {
            let refusal = refusal.unwrap_or_else(|| panic!("message {number} was accepted"));
            assert_eq!(refusal.code(), Code::InvalidArgument, "message {number}: {refusal}");
            assert!(refusal.message().contains('`'), "it names the field: {refusal}");
        }
        peer.notice(v1::NoticeRequest::default()).await.unwrap_err();
        // These have nothing to be wrong.
        peer.sync_actions(v1::SyncActionsRequest::default()).await.unwrap();
        let entry = peer.lookup_action(v1::LookupActionRequest::default()).await.unwrap().into_inner().entry;
        assert!(entry.is_empty());
    });
    assert_eq!(bench.malformed(), 9, "each is counted");
    bench.expect_nothing_changed();
}

#[test]
fn calls_of_another_cluster_are_counted_and_refused_and_teach_nobody_an_action() {
    let mut bench = Bench::new();
    let own = bench.mesh[1].settings.cluster.clone();
    let api = *bench.mesh[1];
    let expect_theirs = |status| assert_eq!(api.get(&action_path("theirs")).status, status);
    bench.say(async |mut peer| {
        let found = v1::LookupActionRequest { namespace: "guest".into(), name: "there".into() };
        let known = peer.lookup_action(found.clone()).await.unwrap().into_inner().entry;
        let mut entry: Value = serde_json::from_slice(&known).unwrap();
        entry["name"] = json!("theirs");
        let sync = v1::SyncActionsRequest { known: Vec::new(), entries: vec![entry.to_string().into_bytes()] };
        let refusals = [
            peer.sync_actions(of("another", sync.clone())).await.err(),
            peer.lookup_action(of("another", found.clone())).await.err(),
            peer.notice(of("another", v1::NoticeRequest { from: "n2".into(), ..Default::default() })).await.err(),
            peer.reserve(of("another", reserve(1, 1, 1, 1, 0))).await.err(),
            peer.run(of("another", run(1, 2, 1, 1, 1))).await.err(),
            peer.identify(of("another", v1::IdentifyRequest::default())).await.err(),
            peer.fetch_code(of("another", v1::FetchCodeRequest::default())).await.err(),
        ];
        for (number, refusal) in refusals.into_iter().enumerate() {
            let refusal = refusal.unwrap_or_else(|| panic!("call {number} was taken"));
            assert_eq!(refusal.code(), Code::InvalidArgument, "call {number}: {refusal}");
            assert!(refusal.message().contains("another") && refusal.message().contains(&own), "{refusal}");
        }
        expect_theirs(404);
        peer.sync_actions(of(&own, sync)).await.unwrap();
        expect_theirs(200);
    });
    assert_eq!(bench.malformed(), 7, "each is counted");
    bench.expect_nothing_changed();
}

#[test]
fn what_nobody_can_read_is_counted_and_what_a_newer_peer_says_is_not() {
    let mut bench = Bench::new();
    let container = v1::ContainerId { owner: "n1".into(), epoch: bench.epoch(1), number: 1 };
    bench.say(async |mut peer| {
        let intent = v1::IntentRequest { container: Some(container), kind: 99, ..Default::default() };
        peer.intent(intent).await.unwrap();
        let known = peer.lookup_action(v1::LookupActionRequest { namespace: "guest".into(), name: "there".into() });
        let mut newer: Value = serde_json::from_slice(&known.await.unwrap().into_inner().entry).unwrap();
        (newer["name"], newer["kind"]) = (json!("newer"), json!("cobol:1"));
        let entries = vec![newer.to_string().into_bytes(), b"rubbish".to_vec(), br#"{"namespace": 7}"#.to_vec()];
        peer.sync_actions(v1::SyncActionsRequest { known: Vec::new(), entries }).await.unwrap();
    });
    assert_eq!(bench.malformed(), 2, "the two that are no actions of any version");
    bench.expect_nothing_changed();
}

#[test]
fn gossiped_values_that_make_no_sense_are_counted_and_dropped() {
    let bench = Bench::new();
    let dropped = || bench.mesh[1].status()["gossip_dropped"].as_u64().unwrap();
    assert_eq!(dropped(), 0);
    let seed = bench.mesh[1].mesh_addr().to_string();
    let config = GossipConfig {
        seeds: vec![seed],
        interval: Duration::from_millis(100),
        ..GossipConfig::new(&bench.mesh[1].settings.cluster, "n9", 1, free_address())
    };
    let stranger = bench.runtime.block_on(async {
        let (events, _) = tokio::sync::mpsc::channel(100);
        let gossip = Gossip::start(config, Arc::new(UdpDatagrams), events).await.unwrap();
        for (key, value) in [("f", "rubbish"), ("a/0", "rubbish"), ("i/0", "rubbish"), ("n", "{"), ("r", "rubbish")] {
            gossip.set(key, value).unwrap();
        }
        gossip
    });
    until("each is counted", || {
        bench.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
        dropped() >= 5
    });
    bench.runtime.block_on(stranger.shutdown());
    bench.expect_nothing_changed();
}

#[test]
fn a_run_without_a_lease_and_one_for_another_epoch_do_not_run() {
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    let holder_epoch = bench.epoch(2);
    bench.say(async |mut peer| {
        for (number, owner_epoch, fence) in [(1, epoch, 1), (2, epoch, u64::MAX), (3, epoch - 1, 1), (4, u64::MAX, 1)] {
            let request = run(holder_epoch, 1_000_000 + number, owner_epoch, epoch, fence);
            let reply = peer.run(request).await.unwrap().into_inner();
            let refused = matches!(reply.end, Some(v1::run_reply::End::Refusal(refusal)) if refusal != 0);
            assert!(refused, "{number}: {reply:?}");
        }
        let request = reserve(holder_epoch, 1_000_010, epoch - 1, 1, 0);
        let reply = peer.reserve(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
        let wrong_epoch = v1::Denial::WrongEpoch as i32;
        let denied = matches!(&reply.reply, Some(v1::reserve_reply::Reply::Denied(d)) if d.denial == wrong_epoch);
        assert!(denied, "{reply:?}");
    });
    bench.expect_nothing_changed();
}

#[test]
fn numbers_at_their_limits_and_unknown_values_harm_nobody() {
    const MOST: u64 = u64::MAX;
    let mut bench = Bench::new();
    let (epoch, peer_epoch) = (bench.epoch(1), bench.epoch(2));
    let container = v1::ContainerId { owner: "n1".into(), epoch, number: 1 };
    let fence = v1::Fence { epoch: MOST, counter: MOST };
    bench.say(async |mut peer| {
        for number in [1, MOST] {
            let own = v1::ContainerId { number, ..container.clone() };
            let theirs = v1::ContainerId { owner: "n2".into(), epoch: peer_epoch, number };
            for at in [&own, &theirs] {
                let container = Some(at.clone());
                peer.veto(v1::VetoRequest {
                    from: "n2".into(),
                    container: container.clone(),
                    round: u32::MAX,
                    hold_us: MOST,
                })
                .await
                .ok();
                for kind in [1, 2, 99] {
                    let intent = v1::IntentRequest {
                        container: container.clone(),
                        action_hash: MOST,
                        round: u32::MAX,
                        kind,
                        urgent: true,
                        window_us: MOST,
                        last_copy: true,
                    };
                    peer.intent(intent).await.ok();
                }
                peer.release(v1::ReleaseRequest {
                    holder: "n2".into(),
                    holder_epoch: peer_epoch,
                    container: container.clone(),
                    fence: Some(fence),
                    keep: u32::MAX,
                })
                .await
                .ok();
            }
            peer.recall(v1::RecallRequest { owner: "n2".into(), owner_epoch: MOST, fence: Some(fence) }).await.ok();
            peer.notice(v1::NoticeRequest {
                from: "n2".into(),
                from_epoch: MOST,
                action_hash: number,
                queued: u32::MAX,
                slots: 0,
                start_us: MOST,
                service_us: MOST,
            })
            .await
            .ok();
            peer.notice(v1::NoticeRequest {
                from: "ghost".into(),
                from_epoch: MOST,
                action_hash: number,
                queued: u32::MAX,
                slots: u32::MAX,
                start_us: MOST,
                service_us: MOST,
            })
            .await
            .ok();
        }
        let mut greedy = reserve(MOST, MOST, epoch, u32::MAX, MOST);
        greedy.request = Some(v1::RequestId { holder: "ghost".into(), epoch: MOST, number: MOST });
        greedy.open_from = MOST;
        // It may be granted what is free, to somebody who never comes back: then that expires.
        peer.reserve(greedy).await.ok();
        let entries = vec![b"rubbish".to_vec(), b"{}".to_vec(), br#"{"namespace": 7}"#.to_vec(), vec![0xff; 10_000]];
        let known = vec![v1::Known { revision_counter: MOST, ..v1::Known::default() }];
        peer.sync_actions(v1::SyncActionsRequest { known, entries }).await.ok();
        for hash in ["../../node.toml", "/etc/passwd", "", &"f".repeat(100_000)] {
            let found = code(&mut peer, hash).await.unwrap_or_default();
            assert!(found.is_empty(), "{hash}: {} bytes", found.len());
        }
        // Over what is taken in at all.
        let entries = vec![vec![b' '; 80 << 20]];
        let refused = peer.sync_actions(v1::SyncActionsRequest { known: Vec::new(), entries }).await.unwrap_err();
        assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Unknown), "{refused}");
    });
    bench.mesh.await_all_live();
    // What the ghost may hold it loses by time.
    until("no lease of a ghost is left", || bench.mesh[1].granted_leases().is_empty());
    bench.expect_that_it_never_ran();
    // The peer may not know yet that there are free slots again.
    assert_eq!(bench.mesh[2].run("there", &json!({"n": 2})).result["echo"], json!({"n": 2}));
    bench.expect_no_panic();
}

impl Bench {
    fn new() -> Self {
        let mesh = Mesh::of(2);
        mesh[1].create_builtin("there", "echo", 4);
        let container = mesh[1].run("there", &json!({})).container().to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = format!("http://{}", mesh[1].mesh_addr());
        let client = runtime.block_on(MeshClient::connect(address)).unwrap();
        Self { client, runtime, mesh, container }
    }

    fn epoch(&self, number: usize) -> u64 {
        self.mesh[number].status()["epoch"].as_u64().unwrap()
    }

    fn say(&mut self, talk: impl AsyncFnOnce(MeshClient<Channel>)) {
        self.runtime.block_on(talk(self.client.clone()));
    }

    /// What the first node has counted.
    fn malformed(&self) -> u64 {
        let metrics = String::from_utf8(self.mesh[1].get("/metrics").body).unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("embermesh_grpc_malformed_total "));
        line.unwrap().parse().unwrap()
    }

    /// The container has run once, is there, and serves both nodes.
    fn expect_nothing_changed(&self) {
        self.expect_that_it_never_ran();
        self.mesh.hears_of_container(2, 1);
        for number in [1, 2] {
            let ran = self.mesh[number].run("there", &json!({ "n": number }));
            assert_eq!((ran.container(), &ran.result["echo"]["n"]), (self.container.as_str(), &json!(number)));
        }
        self.expect_no_panic();
    }

    fn expect_that_it_never_ran(&self) {
        let containers = self.mesh[1].containers();
        assert_eq!(containers[0]["container_id"], json!(self.container));
        assert_eq!((&containers[0]["runs"], &containers[0]["state"]), (&json!(1), &json!("warm")), "{containers:?}");
    }

    fn expect_no_panic(&self) {
        expect_it_serves(&self.mesh);
        assert!(!self.mesh[2].log().contains("panicked"), "{}", self.mesh[2].log());
    }
}

/// The same, as a node of that cluster says it.
fn of<T>(cluster: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("embermesh-cluster", cluster.parse().unwrap());
    request
}

fn reserve(holder_epoch: u64, number: u64, owner_epoch: u64, slots: u32, wait_us: u64) -> v1::ReserveRequest {
    v1::ReserveRequest {
        request: Some(v1::RequestId { holder: "n2".into(), epoch: holder_epoch, number }),
        owner_epoch,
        open_from: 1,
        action: Some(action()),
        slots,
        wait_us,
        start: false,
        run: None,
    }
}

fn run(holder_epoch: u64, number: u64, owner_epoch: u64, container_epoch: u64, counter: u64) -> v1::RunRequest {
    v1::RunRequest {
        request: Some(v1::RequestId { holder: "n2".into(), epoch: holder_epoch, number }),
        owner_epoch,
        open_from: 1,
        container: Some(v1::ContainerId { owner: "n1".into(), epoch: container_epoch, number: 1 }),
        fence: Some(v1::Fence { epoch: container_epoch, counter }),
        action: Some(action()),
        keep: 1,
        run: Some(v1::Activation {
            activation_id: number.to_be_bytes().repeat(2),
            attempt: 1,
            body: b"{\"forged\": true}".as_slice().into(),
            transaction_id: "forged".into(),
        }),
    }
}

fn action() -> v1::ActionRef {
    let (namespace, name, revision_node) = ("guest".into(), "there".into(), "n1".into());
    v1::ActionRef { namespace, name, revision_counter: 1, revision_node }
}

async fn code(peer: &mut MeshClient<Channel>, hash: &str) -> Result<Vec<u8>, Status> {
    let mut chunks = peer.fetch_code(v1::FetchCodeRequest { hash: hash.to_owned() }).await?.into_inner();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        all.extend_from_slice(&chunk.data);
    }
    Ok(all)
}
