//! One node over a store whose disk fails at chosen steps: what was promised is kept, what was not is not run, and calls
//! that somebody waits for go on.
#![allow(clippy::unwrap_used)]

mod engine;
mod node;
mod store;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::ActivationId;
use embermesh_node::Node;
use embermesh_node::config::ByteSize;
use embermesh_node::invocation::{InvokeError, Invoked, Wait};
use embermesh_node::store::journal::{Kept, Step};
use embermesh_node::store::{ActivationRecord, ActivationStatus, Store};
use futures::poll;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use engine::EchoEngine;
use node::{Plan, QUEUE, SOON, invoke, put, put_with_slots, start, start_as};
use store::{FailingStore, Fails};

/// A node with one warm container that has one slot.
struct Rig {
    node: Node,
    engine: EchoEngine,
    store: Arc<FailingStore>,
    folder: TempDir,
    cluster: String,
}

impl Rig {
    async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = format!("journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
        let node = start(&folder, &cluster, Arc::new(engine.clone()), &store).await;
        put(&node).await;
        let rig = Self { node, engine, store, folder, cluster };
        rig.runs_at_once().await;
        rig
    }

    async fn call(&self, hold_ms: u64, wait: Wait) -> Result<Invoked, InvokeError> {
        invoke(self.node.clone(), hold_ms, wait).await
    }

    /// Accepted: its id.
    async fn accepted(&self, hold_ms: u64) -> String {
        match self.call(hold_ms, Wait::No).await.unwrap() {
            Invoked::Accepted { activation_id } => activation_id,
            other @ Invoked::Ended(_) => panic!("{other:?}"),
        }
    }

    /// A blocking call finds the one slot free.
    async fn runs_at_once(&self) {
        match self.call(0, Wait::For(SOON)).await.unwrap() {
            Invoked::Ended(record) => assert_eq!(record.response.status, ActivationStatus::Success),
            other @ Invoked::Accepted { .. } => panic!("{other:?}"),
        }
        assert_eq!(self.engine.started(), 1, "in the container that is there");
    }

    /// Takes the slot for that long, in a task of its own.
    async fn occupy(&self, hold_ms: u64) -> tokio::task::JoinHandle<()> {
        let node = self.node.clone();
        let running = tokio::spawn(async move {
            invoke(node, hold_ms, Wait::For(SOON)).await.unwrap();
        });
        self.until("the slot is taken", || self.node.status().running == 1).await;
        running
    }

    async fn record(&self, id: &str) -> Option<ActivationRecord> {
        self.node.activation("guest", id).await.unwrap().map(|record| (*record).clone())
    }

    async fn ends_well(&self, id: &str) {
        let until = Instant::now() + SOON;
        loop {
            if let Some(record) = self.record(id).await {
                assert_eq!(record.response.status, ActivationStatus::Success, "{record:?}");
                return;
            }
            assert!(Instant::now() < until, "{id} has no record");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < until, "not within {SOON:?}: {what}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn troubled(&self) -> bool {
        self.node.not_ready().iter().any(|reason| reason.contains("no space left"))
    }

    async fn end(self) {
        assert_eq!(self.engine.wrongs(), Vec::<String>::new());
        self.node.shutdown().await;
    }
}

/// A node that can start none, and joins the other.
async fn start_peer(rig: &Rig, folder: &TempDir, engine: &EchoEngine, store: &Arc<FailingStore>) -> Node {
    let plan = Plan { id: "n2", memory: ByteSize::mib(128), join: Some(rig.node.mesh_addr()), ..Plan::default() };
    let node = start_as(&plan, folder, &rig.cluster, Arc::new(engine.clone()), store).await;
    rig.until("they know each other", || {
        let live = |node: &Node| node.members().members.iter().filter(|member| member.state == "live").count();
        live(&node) == 2 && live(&rig.node) == 2
    })
    .await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_promised_is_refused_and_does_not_run() {
    let rig = Rig::new().await;
    rig.store.fail(Fails::Accepted);
    let refused = rig.call(0, Wait::No).await.unwrap_err();
    assert!(matches!(&refused, InvokeError::NotKept { reason } if reason.contains("no space left")), "{refused}");
    assert!(rig.troubled());
    rig.runs_at_once().await;
    assert_eq!(rig.engine.runs(), 2, "the two that somebody waited for");
    rig.store.fail(Fails::Nothing);
    rig.until("it is ready again", || !rig.troubled()).await;
    let id = rig.accepted(0).await;
    rig.ends_well(&id).await;
    assert_eq!(rig.engine.runs_of(&id), 1);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_note_its_start_gives_its_slot_back_and_runs_once_when_the_disk_works() {
    let rig = Rig::new().await;
    let busy = rig.occupy(300).await;
    let ids = [rig.accepted(0).await, rig.accepted(0).await];
    rig.store.fail(Fails::Everything);
    busy.await.unwrap();
    rig.until("the disk's failure is seen", || rig.troubled()).await;
    for _ in 0..5 {
        rig.runs_at_once().await;
    }
    assert_eq!(ids.each_ref().map(|id| rig.engine.runs_of(id)), [0, 0]);
    assert_eq!(rig.node.status().owed, 2);
    rig.store.fail(Fails::Nothing);
    for id in &ids {
        rig.ends_well(id).await;
        assert_eq!(rig.engine.runs_of(id), 1);
    }
    rig.until("nothing is owed", || rig.node.status().owed == 0).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_shown_only_once_it_is_on_disk() {
    let rig = Rig::new().await;
    rig.store.fail(Fails::Ended);
    let id = rig.accepted(0).await;
    rig.until("it has run, and its end could not be written", || rig.engine.runs_of(&id) == 1 && rig.troubled()).await;
    assert!(rig.record(&id).await.is_none());
    assert_eq!(rig.node.status().owed, 1);
    rig.runs_at_once().await;
    rig.store.fail(Fails::Nothing);
    rig.ends_well(&id).await;
    assert_eq!(rig.engine.runs_of(&id), 1);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_wait_is_over_while_the_disk_fails_is_told_so_and_never_begins() {
    let rig = Rig::new().await;
    let busy = rig.occupy(800).await;
    rig.store.fail(Fails::Everything);
    let told = rig.call(0, Wait::For(Duration::from_millis(50))).await.unwrap_err();
    let InvokeError::NotPromised { activation_id, reason } = told else { panic!("{told}") };
    assert!(reason.contains("no space left"), "{reason}");
    rig.store.fail(Fails::Nothing);
    busy.await.unwrap();
    rig.runs_at_once().await;
    assert_eq!((rig.engine.runs_of(&activation_id), rig.node.status().queued), (0, 0));
    rig.until("nothing is owed", || rig.node.status().owed == 0).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_before_anything_is_promised() {
    let rig = Rig::new().await;
    let _busy = rig.occupy(400).await;
    for _ in 0..QUEUE {
        rig.accepted(0).await;
    }
    let refused = rig.call(0, Wait::No).await.unwrap_err();
    assert!(matches!(refused, InvokeError::QueueFull { .. }), "{refused}");
    assert_eq!(rig.node.status().owed, u64::from(QUEUE));
    rig.until("all have ended", || rig.node.status().owed == 0).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_life_of_a_node_runs_what_the_one_before_owed() {
    let rig = Rig::new().await;
    let busy = rig.occupy(300).await;
    let ids: Vec<String> = [rig.accepted(0).await, rig.accepted(0).await, rig.accepted(0).await].into();
    let Rig { node, engine, store, folder, cluster } = rig;
    node.shutdown().await;
    busy.await.unwrap();
    assert_eq!(node.status().owed, 3);
    drop(node);
    let node = start(&folder, &cluster, Arc::new(engine.clone()), &store).await;
    let rig = Rig { node, engine, store, folder, cluster };
    for id in &ids {
        rig.ends_well(id).await;
        assert_eq!(rig.engine.runs_of(id), 1);
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_has_run_is_known_after_a_restart_whatever_was_asked_of_that_peer_since() {
    let rig = Rig::new().await;
    let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
    let node = start_peer(&rig, &folder, &engine, &store).await;
    let calls = async |node: &Node| {
        for _ in 0..3 {
            let ended = invoke(node.clone(), 0, Wait::For(SOON)).await.unwrap();
            let Invoked::Ended(record) = ended else { panic!("{ended:?}") };
            assert_eq!(record.response.status, ActivationStatus::Success);
        }
    };
    // It runs at the peer, whose answer does not come to the disk.
    store.fail(Fails::Ended);
    let Invoked::Accepted { activation_id: id } = invoke(node.clone(), 0, Wait::No).await.unwrap() else { panic!() };
    rig.until("it has run", || rig.engine.runs_of(&id) == 1).await;
    calls(&node).await;
    node.shutdown().await;
    assert_eq!(node.status().owed, 1);
    drop(node);
    store.fail(Fails::Nothing);
    let node = start_peer(&rig, &folder, &engine, &store).await;
    calls(&node).await;
    let until = Instant::now() + SOON;
    let record = loop {
        match node.activation("guest", &id).await.unwrap() {
            Some(record) => break record,
            None => assert!(Instant::now() < until, "{id} has no record"),
        }
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!((record.response.status, rig.engine.runs_of(&id)), (ActivationStatus::Success, 1), "{record:?}");
    assert_eq!((engine.started(), engine.wrongs()), (0, Vec::new()));
    node.shutdown().await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_runs_a_thousand_promises_of_the_life_before_in_the_containers_that_it_has() {
    let rig = Rig::new().await;
    put_with_slots(&rig.node, 500).await;
    let Rig { node, engine, store, folder, cluster } = rig;
    node.shutdown().await;
    drop(node);
    let owed: Vec<Step> = (1..=1_000).map(|id| Step::Accepted(promise(id), None)).collect();
    store.commit_journal(&owed).unwrap();
    let before = (engine.started(), engine.runs());
    let plan = Plan { queue: 1_000, ..Plan::default() };
    let node = start_as(&plan, &folder, &cluster, Arc::new(engine.clone()), &store).await;
    let outcome = node.drain(Some(SOON), false).await.unwrap();
    assert!(outcome.drained, "{outcome:?}");
    assert_eq!((engine.started() - before.0, engine.runs() - before.1), (1, 1_000));
    let failed = (1..=1_000_u128).filter(|id| {
        let record = store.activation("guest", &ActivationId(*id).to_string()).unwrap();
        record.is_none_or(|record| record.response.status != ActivationStatus::Success)
    });
    assert_eq!(failed.collect::<Vec<_>>(), []);
    assert_eq!(engine.wrongs(), Vec::<String>::new());
    node.shutdown().await;
}

/// On one thread: what is not polled stands still.
#[tokio::test]
async fn a_202_that_is_given_while_a_drain_begins_is_finished() {
    let rig = Rig::new().await;
    let busy = rig.occupy(300).await;
    let wait = Duration::from_millis(20);
    let mut late = pin!(invoke(rig.node.clone(), 0, Wait::For(wait)));
    assert!(poll!(&mut late).is_pending());
    sleep(wait).await;
    // Its wait is over; before that is noted anywhere the drain begins, and refuses what waits.
    assert!(poll!(&mut late).is_pending());
    let node = rig.node.clone();
    let mut drain = pin!(node.drain(Some(SOON), false));
    assert!(poll!(&mut drain).is_pending());
    let accepted = late.await.unwrap();
    let Invoked::Accepted { activation_id } = accepted else { panic!("{accepted:?}") };
    let outcome = drain.await.unwrap();
    assert!(outcome.drained, "{outcome:?}");
    busy.await.unwrap();
    rig.ends_well(&activation_id).await;
    assert_eq!(rig.engine.runs_of(&activation_id), 1);
    rig.end().await;
}

fn promise(id: u128) -> Arc<Kept> {
    Arc::new(Kept {
        id: ActivationId(id),
        namespace: "guest".to_owned(),
        name: node::ACTION.to_owned(),
        version: "0.0.1".to_owned(),
        subject: "guest".to_owned(),
        transaction_id: "t".to_owned(),
        accepted_ms: 1,
        params: Bytes::from_static(b"{}"),
    })
}
