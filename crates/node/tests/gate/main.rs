//! The half of the mutation gate that needs a real node: bugs planted in the driver, one after the other, each of which
//! one of these rings must see; the code as it ships they must not flag. The other half is `crates/sim/tests/gate.rs`.
//!
//! `cargo test --workspace --features embermesh-node/mutations,embermesh-sim/mutations --test gate -- --nocapture`
//! prints both tables.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the simulation uses more of it")]
#[path = "../one_node/engine.rs"]
mod engine;
#[allow(dead_code, reason = "the journal's tests use more of it")]
#[path = "../one_node/node.rs"]
mod node;
mod outliving;
#[allow(dead_code, reason = "the journal's tests use more of it")]
#[path = "../one_node/store.rs"]
mod store;

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::mutations::{Mutation, set};
use embermesh_node::Node;
use embermesh_node::invocation::{Invoked, Wait};
use embermesh_node::registry::action::ActionEntry;
use embermesh_node::store::Store;
use embermesh_proto::v1;
use embermesh_proto::v1::mesh_client::MeshClient;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::transport::Endpoint;

use engine::EchoEngine;
use node::{ACTION, Plan, SOON, invoke, put, start, start_as};
use outliving::Outliving;
use store::{FailingStore, Fails};

/// How long a node waits for an engine that does not remove what it should.
const DRAIN: Duration = Duration::from_millis(300);

/// What a ring has to say of a bug: which promise is broken.
type Verdict = Result<(), String>;

#[test]
fn each_bug_planted_in_the_driver_is_caught_and_the_code_as_it_ships_is_not_flagged() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    set(None);
    let flagged: Vec<_> = runtime.block_on(rings(0)).into_iter().flatten().collect();
    let mut blind = Vec::new();
    println!("| planted bug | journal | copies | restart |\n| --- | --- | --- | --- |");
    for (round, mutation) in (1..).zip(Mutation::DRIVER) {
        set(Some(mutation));
        let caught = runtime.block_on(rings(round));
        set(None);
        println!("| {mutation:?} | {} |", caught.each_ref().map(|c| c.as_deref().unwrap_or("-")).join(" | "));
        if caught.iter().all(Option::is_none) {
            blind.push(mutation);
        }
    }
    assert!(flagged.is_empty(), "the code as it ships is flagged: {flagged:?}");
    assert!(blind.is_empty(), "nothing sees {blind:?}");
}

/// Each ring plays one case, which shows its bug if there is one.
async fn rings(round: usize) -> [Option<String>; 3] {
    let (journal, copies, restart) = tokio::join!(journal(round), copies(round), restart(round));
    [journal, copies, restart].map(|verdict| verdict.err().map(|promise| format!("{promise} (1 case)")))
}

/// A node of its own for each ring and round.
struct Rig {
    node: Node,
    engine: EchoEngine,
    store: Arc<FailingStore>,
    entry: Arc<ActionEntry>,
    _folder: TempDir,
}

impl Rig {
    /// With one warm container that has one slot.
    async fn new(ring: &str, round: usize) -> Self {
        let cluster = format!("gate-{}-{ring}-{round}", std::process::id());
        let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
        let node = start(&folder, &cluster, Arc::new(engine.clone()), &store).await;
        let entry = put(&node).await;
        invoke(node.clone(), Wait::For(SOON)).await.unwrap();
        Self { node, engine, store, entry, _folder: folder }
    }
}

/// A disk that fails: what was acknowledged all the same has to be on it.
async fn journal(round: usize) -> Verdict {
    let rig = Rig::new("journal", round).await;
    rig.store.fail(Fails::Accepted);
    let told = invoke(rig.node.clone(), Wait::No).await;
    let kept = rig.store.load_journal().unwrap();
    rig.store.fail(Fails::Nothing);
    rig.node.shutdown().await;
    match told {
        Ok(Invoked::Accepted { activation_id }) if !kept.iter().any(|e| e.kept.id.to_string() == activation_id) => {
            Err("A5_accepted_has_one_outcome".to_owned())
        }
        _ => Ok(()),
    }
}

/// One Reserve with a body arrives twice: its activation runs once, and never beside itself.
async fn copies(round: usize) -> Verdict {
    const ACTIVATION: u128 = 0xc0de;
    let rig = Rig::new("copies", round).await;
    let message = v1::ReserveRequest {
        request: Some(v1::RequestId { holder: "n9".to_owned(), epoch: 1, number: 1 }),
        owner_epoch: rig.node.epoch().0,
        open_from: 1,
        action: Some(v1::ActionRef {
            namespace: "guest".to_owned(),
            name: ACTION.to_owned(),
            revision_counter: rig.entry.revision.counter,
            revision_node: rig.entry.revision.node_id.clone(),
        }),
        slots: 1,
        wait_us: 0,
        start: false,
        run: Some(v1::Activation {
            activation_id: ACTIVATION.to_be_bytes().to_vec(),
            attempt: 0,
            body: br#"{"held": true}"#.to_vec().into(),
            transaction_id: "t".to_owned(),
        }),
    };
    let ends = tokio::join!(reserve(&rig.node, message.clone()), reserve(&rig.node, message), async {
        // Time for the other to arrive.
        sleep(Duration::from_millis(100)).await;
        rig.engine.release();
    });
    let runs = rig.engine.runs_of(&format!("{ACTIVATION:032x}"));
    let wrongs = rig.engine.wrongs();
    rig.node.shutdown().await;
    assert!(runs > 0, "the ring proves nothing: {ends:?}");
    match wrongs.first() {
        Some(wrong) => Err(wrong.split(':').next().unwrap_or(wrong).to_owned()),
        None if runs > 1 => Err("A1_started_at_most_once".to_owned()),
        None => Ok(()),
    }
}

/// Sends it and listens to the end of its answer.
async fn reserve(node: &Node, message: v1::ReserveRequest) -> Result<usize, tonic::Status> {
    let channel = Endpoint::from_shared(format!("http://{}", node.mesh_addr())).unwrap().connect().await.unwrap();
    let mut answers = MeshClient::new(channel).reserve(message).await?.into_inner();
    let mut count = 0;
    while answers.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// A node ends while its engine has still to remove a container of a deleted action; its next life has to.
async fn restart(round: usize) -> Verdict {
    let cluster = format!("gate-{}-restart-{round}", std::process::id());
    let (folder, engine, store) = (tempfile::tempdir().unwrap(), Outliving::default(), FailingStore::new());
    let node = start_as(
        &Plan { drain_deadline: DRAIN, ..Plan::default() },
        &folder,
        &cluster,
        Arc::new(engine.clone()),
        &store,
    )
    .await;
    put(&node).await;
    invoke(node.clone(), Wait::For(SOON)).await.unwrap();
    node.delete_action("guest", ACTION).await.unwrap();
    node.shutdown().await;
    drop(node);
    engine.agent_is_gone();
    assert_eq!(engine.left(), 1, "the ring proves nothing: no container outlived its agent");
    // Returns when all that was found is settled.
    let node = start(&folder, &cluster, Arc::new(engine.next_life()), &store).await;
    let orphans = engine.left();
    node.shutdown().await;
    if orphans > 0 { Err("O1_no_orphan".to_owned()) } else { Ok(()) }
}
