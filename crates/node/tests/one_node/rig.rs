//! A node with one warm container that has one slot, and what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use embermesh_node::Node;
use embermesh_node::config::ByteSize;
use embermesh_node::invocation::{InvokeError, Invoked, Wait};
use embermesh_node::store::{ActivationRecord, ActivationStatus};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::engine::EchoEngine;
use crate::node::{Plan, SOON, call_with, invoke, put, start, start_as};
use crate::store::FailingStore;

pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) engine: EchoEngine,
    pub(crate) store: Arc<FailingStore>,
    pub(crate) folder: TempDir,
    pub(crate) cluster: String,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = format!("journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
        let node = start(&folder, &cluster, Arc::new(engine.clone()), &store).await;
        put(&node).await;
        let rig = Self { node, engine, store, folder, cluster };
        rig.runs_at_once().await;
        rig
    }

    pub(crate) async fn call(&self, wait: Wait) -> Result<Invoked, InvokeError> {
        invoke(self.node.clone(), wait).await
    }

    /// Accepted: its id.
    pub(crate) async fn accepted(&self) -> String {
        match self.call(Wait::No).await.unwrap() {
            Invoked::Accepted { activation_id } => activation_id,
            other @ Invoked::Ended(_) => panic!("{other:?}"),
        }
    }

    /// A blocking call finds the one slot free.
    pub(crate) async fn runs_at_once(&self) {
        match self.call(Wait::For(SOON)).await.unwrap() {
            Invoked::Ended(record) => assert_eq!(record.response.status, ActivationStatus::Success),
            other @ Invoked::Accepted { .. } => panic!("{other:?}"),
        }
        assert_eq!(self.engine.started(), 1, "in the container that is there");
    }

    /// Takes the slot until the engine releases it, in a task of its own.
    pub(crate) async fn occupy(&self) -> tokio::task::JoinHandle<()> {
        let node = self.node.clone();
        let running = tokio::spawn(async move {
            node.invoke(call_with(&json!({ "held": true })), Wait::For(SOON)).await.unwrap();
        });
        self.until("the slot is taken", || self.node.status().running == 1).await;
        running
    }

    pub(crate) async fn record(&self, id: &str) -> Option<ActivationRecord> {
        self.node.activation("guest", id).await.unwrap().map(|record| (*record).clone())
    }

    pub(crate) async fn ends_well(&self, id: &str) {
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

    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < until, "not within {SOON:?}: {what}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn troubled(&self) -> bool {
        self.node.not_ready().iter().any(|reason| reason.contains("no space left"))
    }

    pub(crate) async fn end(self) {
        assert_eq!(self.engine.wrongs(), Vec::<String>::new());
        self.node.shutdown().await;
    }
}

/// A node that can start none, and joins the other.
pub(crate) async fn start_peer(rig: &Rig, folder: &TempDir, engine: &EchoEngine, store: &Arc<FailingStore>) -> Node {
    let plan = Plan { id: "n2", memory: ByteSize::mib(128), join: Some(rig.node.mesh_addr()), ..Plan::default() };
    let node = start_as(&plan, folder, &rig.cluster, Arc::new(engine.clone()), store).await;
    rig.until("they know each other", || {
        let live = |node: &Node| node.members().members.iter().filter(|member| member.state == "live").count();
        live(&node) == 2 && live(&rig.node) == 2
    })
    .await;
    node
}
