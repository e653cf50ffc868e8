//! One real node with one action, over an engine and a store of the test's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use embermesh_node::blocking::Blocking;
use embermesh_node::clock::Clock;
use embermesh_node::config::{ByteSize, EngineSection, ListenSection, NodeConfig, NodeSection, ProtocolSection};
use embermesh_node::containers::Engine;
use embermesh_node::data_dir::DataDir;
use embermesh_node::gossip::UdpDatagrams;
use embermesh_node::invocation::{Call, InvokeError, Invoked, Wait};
use embermesh_node::net::HostNet;
use embermesh_node::registry::action::{ActionEntry, Kind};
use embermesh_node::registry::{ActionChange, LimitsChange};
use embermesh_node::{Node, Parts, StartError};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::store::FailingStore;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const ACTION: &str = "one-slot";
pub(crate) const QUEUE: u32 = 5;

/// An action whose containers have one slot.
pub(crate) async fn put(node: &Node) -> Arc<ActionEntry> {
    put_with_slots(node, 1).await
}

pub(crate) async fn put_with_slots(node: &Node, slots: u32) -> Arc<ActionEntry> {
    let change = ActionChange {
        kind: Some(Kind::Builtin),
        main: Some("echo".to_owned()),
        limits: LimitsChange { concurrency: Some(slots), ..LimitsChange::default() },
        ..ActionChange::default()
    };
    node.put_action("guest", ACTION, change, None, true).await.unwrap()
}

pub(crate) async fn invoke(node: Node, wait: Wait) -> Result<Invoked, InvokeError> {
    node.invoke(call_with(&json!({})), wait).await
}

pub(crate) fn call_with(params: &serde_json::Value) -> Call {
    Call {
        namespace: "guest".to_owned(),
        name: ACTION.to_owned(),
        params: Bytes::from(params.to_string()),
        transaction_id: "t".to_owned(),
        subject: "guest".to_owned(),
    }
}

/// How a node is started.
pub(crate) struct Plan {
    pub(crate) id: &'static str,
    /// For containers; one of its action takes all of the usual.
    pub(crate) memory: ByteSize,
    pub(crate) join: Option<SocketAddr>,
    pub(crate) queue: u32,
    pub(crate) drain_deadline: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        let drain_deadline = ProtocolSection::default().drain_deadline;
        Self { id: "n1", memory: ByteSize::mib(256), join: None, queue: QUEUE, drain_deadline }
    }
}

/// With room for one container of its action.
pub(crate) async fn start(folder: &TempDir, cluster: &str, engine: Arc<dyn Engine>, store: &Arc<FailingStore>) -> Node {
    start_as(&Plan::default(), folder, cluster, engine, store).await
}

pub(crate) async fn start_as(
    plan: &Plan,
    folder: &TempDir,
    cluster: &str,
    engine: Arc<dyn Engine>,
    store: &Arc<FailingStore>,
) -> Node {
    // A port that was free may be taken by the time it is used.
    for _ in 0..8 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = NodeConfig {
            node: NodeSection {
                id: plan.id.to_owned(),
                data_dir: folder.path().to_owned(),
                cluster: cluster.to_owned(),
                ..NodeSection::default()
            },
            listen: ListenSection {
                mesh: free,
                api: SocketAddr::from(([127, 0, 0, 1], 0)),
                ..ListenSection::default()
            },
            join: plan.join.iter().map(SocketAddr::to_string).collect(),
            engine: EngineSection { memory: Some(plan.memory), ..EngineSection::default() },
            protocol: ProtocolSection {
                queue_per_action: plan.queue,
                drain_deadline: plan.drain_deadline,
                ..ProtocolSection::default()
            },
            ..NodeConfig::default()
        };
        let parts = Parts {
            engine: engine.clone(),
            store: store.clone(),
            net: Arc::new(HostNet),
            datagrams: Arc::new(UdpDatagrams),
            clock: Clock::default(),
            data_dir: data_dir(folder, plan.id, cluster).await,
            faults: None,
            blocking: Blocking::Threads,
            history: None,
        };
        match Node::start(config, parts).await {
            Ok(node) => return node,
            Err(StartError::Listen { .. } | StartError::Gossip(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no free port");
}

/// A life before may still be on its way out.
async fn data_dir(folder: &TempDir, id: &str, cluster: &str) -> DataDir {
    let until = Instant::now() + SOON;
    loop {
        match DataDir::open(folder.path(), id, cluster) {
            Ok(open) => return open,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}
