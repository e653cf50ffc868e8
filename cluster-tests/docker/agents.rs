//! Agents that die, stand still or go, on a real engine: their containers outlive them, their promises don't.

use std::thread;
use std::time::{Duration, Instant};

use embermesh_proto::v1;
use embermesh_proto::v1::mesh_client::MeshClient;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::engine::{DockerMesh, born, is_here};
use crate::support::api::container_path;
use crate::support::{Agent, Settings, at_once, soon, until};

/// What a busy test machine may add.
const SLACK: Duration = Duration::from_secs(4);

#[test]
fn the_slots_of_a_killed_holder_come_back_within_ttl_and_grace() {
    if !is_here() {
        return;
    }
    const SLOTS: usize = 4;
    let mut mesh = scarce("3s");
    let first = mesh[1].run("scarce", &json!({"ms": 0}));
    soon("the peer holds all slots", || {
        at_once(SLOTS, |_| mesh[2].run("scarce", &json!({"ms": 100})));
        let leased: u64 = mesh[1].granted_leases().iter().filter_map(|lease| lease["slots"].as_u64()).sum();
        (leased == SLOTS as u64).then_some(())
    });
    mesh.agent(2).kill();
    let killed = Instant::now();
    let ran = at_once(SLOTS, |_| mesh[1].run("scarce", &json!({"ms": 30_000, "until": SLOTS})));
    assert!(ran.iter().all(|ran| ran.container() == first.container()));
    assert_eq!(ran.iter().map(|ran| ran.number("running")).max(), Some(SLOTS as u64), "all slots were used at once");
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(3_200) + SLACK, "it took {took:?}");
}

#[test]
fn an_owner_killed_in_mid_run_leaves_its_caller_in_doubt_and_its_next_life_refuses_the_old_fences() {
    if !is_here() {
        return;
    }
    // Its lease outlives the restart.
    let mut mesh = scarce("10s");
    let first = mesh[2].run("scarce", &json!({"ms": 0}));
    assert_eq!(first.node(), "n1");
    let api = *mesh[2];
    let caller = thread::spawn(move || api.invoke("scarce", &json!({"ms": 8_000, "log": "it has begun"})));
    until("it runs", || mesh[1].containers()[0]["busy"] == 1);
    let held = mesh[2].held_leases()[0]["lease_id"].as_str().unwrap().to_owned();
    let [owner_epoch, holder_epoch] = [1, 2].map(|number| mesh[number].status()["epoch"].as_u64().unwrap());
    mesh.agent(1).kill();
    let killed = Instant::now();
    let ran = caller.join().unwrap();
    assert!(killed.elapsed() < SLACK, "told after {:?}", killed.elapsed());
    assert_eq!((ran.status, ran.annotation("indeterminate")), (500, json!(true)), "{}", ran.record);
    assert_eq!(mesh.docker.state(first.container()).as_deref(), Some("running"), "the container outlives its agent");
    let seed = mesh[2].mesh_addr();
    mesh.agent(1).settings.join = vec![seed];
    mesh.agent(1).restart();
    mesh.await_all_live();
    let next = soon("it serves again", || {
        let ran = mesh[2].invoke("scarce", &json!({"ms": 1}));
        (ran.status == 200).then_some(ran)
    });
    assert_eq!((born(&next), next.number("running")), (born(&first), 1), "the same one, and the old run had ended");
    let leases = mesh[2].held_leases();
    assert!(leases.iter().all(|lease| lease["lease_id"] != held.as_str()), "{held} is void: {leases:?}");
    // Whoever still believes in it, and says so under the old life's name or the new one's, is refused.
    let [fence, container]: [u64; 2] =
        [&*held, first.container()].map(|id| id.rsplit('-').next().unwrap().trim_start_matches('L').parse().unwrap());
    let new_epoch = mesh[1].status()["epoch"].as_u64().unwrap();
    assert!(new_epoch > owner_epoch);
    for (number, epoch) in (1..).zip([owner_epoch, new_epoch]) {
        let request = v1::RunRequest {
            request: Some(v1::RequestId { holder: "n2".into(), epoch: holder_epoch, number: 1_000_000 + number }),
            owner_epoch: epoch,
            open_from: 1,
            container: Some(v1::ContainerId { owner: "n1".into(), epoch: owner_epoch, number: container }),
            fence: Some(v1::Fence { epoch: owner_epoch, counter: fence }),
            action: Some(v1::ActionRef {
                namespace: "guest".into(),
                name: "scarce".into(),
                revision_counter: 1,
                revision_node: "n1".into(),
            }),
            keep: 1,
            run: Some(v1::Activation {
                activation_id: number.to_be_bytes().repeat(2),
                attempt: 1,
                body: b"{}".as_slice().into(),
                transaction_id: "old".into(),
            }),
        };
        let reply = send_run(&mesh[1], request);
        assert!(matches!(reply.end, Some(v1::run_reply::End::Refusal(why)) if why != 0), "{epoch}: {reply:?}");
    }
    assert_eq!(mesh[1].containers()[0]["busy"], 0);
}

/// As a peer does.
fn send_run(owner: &Agent, request: v1::RunRequest) -> v1::RunReply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut peer = MeshClient::connect(format!("http://{}", owner.mesh_addr())).await.unwrap();
        peer.run(request).await.unwrap().into_inner()
    })
}

#[test]
fn a_veto_stops_a_removal_and_silence_lets_it_commit() {
    if !is_here() {
        return;
    }
    let mesh = scarce("10s");
    let first = mesh[2].run("scarce", &json!({"ms": 0}));
    let state = || mesh.docker.state(first.container());
    // One that comes too late is not counted; the lease keeps the container all the same.
    let removals = (0..3).map(|_| mesh[1].post(&container_path(first.container(), "remove"), &json!({})).expect(409));
    let vetoed = removals.into_iter().find(|removal| removal["outcome"] == "vetoed").unwrap();
    assert_eq!(vetoed["vetoes"][0]["peer"], json!("n2"), "{vetoed}");
    assert_eq!(state().as_deref(), Some("running"));
    let lease = mesh[2].held_leases()[0]["lease_id"].as_str().unwrap().to_owned();
    mesh[2].post(&format!("/mesh/v1/leases/{lease}/release"), &json!({})).expect(204);
    // Its hold, and what it still forecasts, pass.
    let removed = soon("nobody objects any more", || {
        let answer = mesh[1].post(&container_path(first.container(), "remove"), &json!({}));
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!((&removed["outcome"], &removed["vetoes"]), (&json!("committed"), &json!([])), "{removed}");
    until("it is gone", || state().is_none());
}

#[test]
fn of_copies_that_idle_out_together_one_is_kept_longest() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::with(3, |node| {
        node.set("EMBERMESH_PROTOCOL_PAUSE_GRACE", "300ms")
            .set("EMBERMESH_PROTOCOL_IDLE_TIMEOUT", "8s")
            .set("EMBERMESH_PROTOCOL_TTL", "300ms")
    });
    mesh[1].create_builtin("copied", "sleep", 1);
    for agent in &mesh.agents {
        until("the action is known", || agent.get("/api/v1/namespaces/_/actions/copied").status == 200);
    }
    soon("each node has a copy", || {
        // As many at each as all have slots.
        at_once(6, |n| mesh[n % 3 + 1].run("copied", &json!({"ms": 1_000})));
        mesh.agents.iter().all(|agent| !agent.containers().is_empty()).then_some(())
    });
    mesh.expect_one_kept_longest(Duration::from_secs(8));
}

#[test]
fn a_drain_lets_runs_end_keeps_promises_and_leaves_no_container() {
    if !is_here() {
        return;
    }
    let mesh = scarce("1s");
    mesh[1].create_builtin("promised", "sleep", 1);
    let first = mesh[1].run("promised", &json!({"ms": 0}));
    thread::scope(|scope| {
        let run = scope.spawn(|| mesh[1].run("promised", &json!({"ms": 5_000})));
        until("it runs", || mesh[1].containers().iter().any(|c| c["action"] == "promised" && c["busy"] == 1));
        let promise = || mesh[1].post("/api/v1/namespaces/_/actions/promised", &json!({"ms": 100})).expect(202);
        let ids = [promise(), promise()].map(|answer| answer["activationId"].as_str().unwrap().to_owned());
        let drained = mesh[1].cli(&["drain", "--deadline", "30s"]);
        assert_eq!(drained.status.code(), Some(0), "{drained:?}");
        assert_eq!(run.join().unwrap().container(), first.container());
        for id in ids {
            assert_eq!(mesh[1].record(&id)["response"]["status"], json!("success"));
        }
    });
    let left = mesh.docker.containers().into_iter().filter(|(name, _)| name.contains("-n1-"));
    assert_eq!((mesh[1].containers(), left.collect::<Vec<_>>()), (Vec::new(), Vec::new()));
}

#[test]
fn agents_that_stand_still_for_longer_than_a_lease_lives_wake_and_do_no_harm() {
    if !is_here() {
        return;
    }
    let mesh = scarce("1s");
    let first = mesh[1].run("scarce", &json!({"ms": 0}));
    assert_eq!(mesh[2].run("scarce", &json!({"ms": 0})).container(), first.container());
    // The holder, and then the owner.
    mesh[2].signal(Signal::SIGSTOP);
    until("its leases have ended", || mesh[1].granted_leases().is_empty());
    mesh[2].signal(Signal::SIGCONT);
    assert_eq!(mesh[2].run("scarce", &json!({"ms": 0})).container(), first.container());
    mesh[1].signal(Signal::SIGSTOP);
    until("the holder's belief has ended", || mesh[2].held_leases().is_empty());
    assert_eq!(mesh.docker.state(first.container()).as_deref(), Some("running"));
    mesh[1].signal(Signal::SIGCONT);
    mesh.await_all_live();
    let ran = at_once(6, |n| {
        soon("it is served", || {
            let ran = mesh[n % 2 + 1].invoke("scarce", &json!({"ms": 100}));
            (ran.status == 200).then_some(ran)
        })
    });
    assert!(ran.iter().all(|ran| ran.container() == first.container() && ran.number("running") <= 4), "L0");
}

/// Two nodes and one container of four slots, at `n1`: no other fits.
fn scarce(ttl: &str) -> DockerMesh {
    let mesh = DockerMesh::with(2, |node| {
        let memory = if node.id == "n1" { "384MiB" } else { "128MiB" };
        Settings { memory: memory.to_owned(), ..node }.set("EMBERMESH_PROTOCOL_TTL", ttl)
    });
    let limits = json!({"memory": 256, "concurrency": 4});
    mesh[1].create("scarce", &json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": limits}));
    mesh[1].run("scarce", &json!({"ms": 0}));
    until("the peer knows it", || mesh[2].get("/api/v1/namespaces/_/actions/scarce").status == 200);
    mesh
}
