//! What a warm call takes between the API and its container: nothing that another task, a disk or a peer has to do.

use std::pin::pin;
use std::task::Poll;
use std::thread;

use embermesh_node::Node;
use embermesh_node::invocation::{Invoked, Wait};
use futures::poll;
use serde_json::json;

use crate::engine::EchoEngine;
use crate::node::{SOON, call_with};
use crate::rig::{Rig, start_peer};
use crate::store::FailingStore;

/// During some of them the node has something else to do, which is counted too.
const CALLS: u32 = 50;

/// The calls are made by the test's own thread, the rest of the node runs on the runtime's.
#[tokio::test(flavor = "multi_thread")]
async fn a_warm_call_enters_the_core_twice_and_waits_for_no_other_task_and_no_disk() {
    let rig = Rig::new().await;
    rig.store.take_users();
    let reading = reading(&rig.node);
    let mut fewest = u64::MAX;
    for _ in 0..CALLS {
        let before = entered(&rig.node);
        let mut call = pin!(rig.node.invoke(call_with(&json!({ "at_once": true })), Wait::For(SOON)));
        let ended = poll!(&mut call);
        assert!(matches!(ended, Poll::Ready(Ok(Invoked::Ended(_)))), "it waits for something: {ended:?}");
        fewest = fewest.min(entered(&rig.node) - before - reading);
    }
    assert_eq!(fewest, 2, "for its slot, and to give it back");
    assert!(!rig.store.take_users().contains(&thread::current().id()), "it waited for the disk");
    assert_eq!(rig.engine.runs(), 1 + CALLS);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_a_held_lease_enters_its_holders_core_twice() {
    let rig = Rig::new().await;
    let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
    let holder = start_peer(&rig, &folder, &engine, &store).await;
    let reading = reading(&holder);
    let mut fewest = u64::MAX;
    for _ in 0..CALLS {
        let before = entered(&holder);
        let ended = holder.invoke(call_with(&json!({ "at_once": true })), Wait::For(SOON)).await.unwrap();
        let entered = entered(&holder) - before - reading;
        let Invoked::Ended(record) = ended else { panic!("{ended:?}") };
        let served = record.annotations.iter().find(|annotation| annotation.key == "served").unwrap();
        if served.value == "leased" {
            fewest = fewest.min(entered);
        }
    }
    assert_eq!(fewest, 2, "to send it on its lease, and to take its answer");
    assert_eq!(engine.started(), 0);
    holder.shutdown().await;
    rig.end().await;
}

/// What asking takes by itself.
fn reading(node: &Node) -> u64 {
    (0..CALLS).map(|_| entered(node).abs_diff(entered(node))).min().unwrap()
}

fn entered(node: &Node) -> u64 {
    let metrics = node.render_metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("embermesh_core_entered_total "));
    line.unwrap().parse().unwrap()
}
