//! Over a disk that fails at chosen steps: what was promised is kept, what was not is not run, and calls that somebody
//! waits for go on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::ActivationId;
use embermesh_node::Node;
use embermesh_node::invocation::{InvokeError, Invoked, Wait};
use embermesh_node::store::journal::{Kept, Request, Started, Step};
use embermesh_node::store::{ActivationStatus, Store};
use embermesh_proto::v1;
use futures::poll;
use prost::Message as _;
use tokio::time::{Instant, sleep};

use crate::engine::EchoEngine;
use crate::node::{self, Plan, QUEUE, SOON, invoke, put_with_slots, start, start_as};
use crate::rig::{Rig, start_peer};
use crate::store::{FailingStore, Fails};

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_promised_is_refused_and_does_not_run() {
    let rig = Rig::new().await;
    rig.store.fail(Fails::Accepted);
    let refused = rig.call(Wait::No).await.unwrap_err();
    assert!(matches!(&refused, InvokeError::NotKept { reason } if reason.contains("no space left")), "{refused}");
    assert!(rig.troubled());
    rig.runs_at_once().await;
    assert_eq!(rig.engine.runs(), 2, "the two that somebody waited for");
    rig.store.fail(Fails::Nothing);
    rig.until("it is ready again", || !rig.troubled()).await;
    let id = rig.accepted().await;
    rig.ends_well(&id).await;
    assert_eq!(rig.engine.runs_of(&id), 1);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_note_its_start_gives_its_slot_back_and_runs_once_when_the_disk_works() {
    let rig = Rig::new().await;
    let busy = rig.occupy().await;
    let ids = [rig.accepted().await, rig.accepted().await];
    rig.store.fail(Fails::Everything);
    rig.engine.release();
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
async fn a_start_that_failed_to_be_noted_and_is_on_disk_all_the_same_is_taken_back_there() {
    let rig = Rig::new().await;
    let busy = rig.occupy().await;
    let id = rig.accepted().await;
    rig.store.fail(Fails::EverythingTooLate);
    rig.engine.release();
    busy.await.unwrap();
    rig.until("the disk's failure is seen", || rig.troubled()).await;
    rig.until("its next life would run it", || rig.store.load_journal().unwrap()[0].started.is_none()).await;
    assert_eq!(rig.engine.runs_of(&id), 0);
    rig.store.fail(Fails::Nothing);
    rig.ends_well(&id).await;
    assert_eq!(rig.engine.runs_of(&id), 1);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_shown_only_once_it_is_on_disk() {
    let rig = Rig::new().await;
    rig.store.fail(Fails::Ended);
    let id = rig.accepted().await;
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
    let busy = rig.occupy().await;
    rig.store.fail(Fails::Everything);
    let told = rig.call(Wait::For(Duration::from_millis(50))).await.unwrap_err();
    let InvokeError::NotPromised { activation_id, reason } = told else { panic!("{told}") };
    assert!(reason.contains("no space left"), "{reason}");
    rig.store.fail(Fails::Nothing);
    rig.engine.release();
    busy.await.unwrap();
    rig.runs_at_once().await;
    assert_eq!((rig.engine.runs_of(&activation_id), rig.node.status().queued), (0, 0));
    rig.until("nothing is owed", || rig.node.status().owed == 0).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_before_anything_is_promised() {
    let rig = Rig::new().await;
    let _busy = rig.occupy().await;
    for _ in 0..QUEUE {
        rig.accepted().await;
    }
    let refused = rig.call(Wait::No).await.unwrap_err();
    assert!(matches!(refused, InvokeError::QueueFull { .. }), "{refused}");
    assert_eq!(rig.node.status().owed, u64::from(QUEUE));
    rig.engine.release();
    rig.until("all have ended", || rig.node.status().owed == 0).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_life_of_a_node_runs_what_the_one_before_owed() {
    let rig = Rig::new().await;
    let busy = rig.occupy().await;
    let ids: Vec<String> = [rig.accepted().await, rig.accepted().await, rig.accepted().await].into();
    let Rig { node, engine, store, folder, cluster } = rig;
    tokio::join!(node.shutdown(), async {
        let until = Instant::now() + SOON;
        while !node.status().draining {
            assert!(Instant::now() < until, "it does not go down");
            sleep(Duration::from_millis(2)).await;
        }
        engine.release();
    });
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
            let ended = invoke(node.clone(), Wait::For(SOON)).await.unwrap();
            let Invoked::Ended(record) = ended else { panic!("{ended:?}") };
            assert_eq!(record.response.status, ActivationStatus::Success);
        }
    };
    // It runs at the peer, whose answer does not come to the disk.
    store.fail(Fails::Ended);
    let Invoked::Accepted { activation_id: id } = invoke(node.clone(), Wait::No).await.unwrap() else { panic!() };
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
async fn what_a_peer_is_known_not_to_have_run_is_noted_so_before_it_is_asked_for_again() {
    let rig = Rig::new().await;
    let (folder, engine, store) = (tempfile::tempdir().unwrap(), EchoEngine::default(), FailingStore::new());
    let revision = rig.node.find_action("guest", node::ACTION).await.unwrap().revision.clone();
    let request = v1::RunRequest {
        request: Some(v1::RequestId { holder: "n2".to_owned(), epoch: 1, number: 1 }),
        owner_epoch: rig.node.epoch().0,
        open_from: 1,
        container: Some(v1::ContainerId { owner: "n1".to_owned(), epoch: rig.node.epoch().0, number: 1 }),
        fence: Some(v1::Fence { epoch: rig.node.epoch().0, counter: 1 }),
        action: Some(v1::ActionRef {
            namespace: "guest".to_owned(),
            name: node::ACTION.to_owned(),
            revision_counter: revision.counter,
            revision_node: revision.node_id,
        }),
        keep: 0,
        run: None,
    };
    let request = Some(Request::Run(Bytes::from(request.encode_to_vec())));
    let started = Started { owner: "n1".to_owned(), epoch: rig.node.epoch().0, attempt: 0, request };
    store.commit_journal(&[Step::Accepted(promise(7), Some(started))]).unwrap();
    let node = start_peer(&rig, &folder, &engine, &store).await;
    let id = ActivationId(7).to_string();
    rig.until("it has run", || rig.engine.runs_of(&id) == 1).await;
    assert_eq!(store.taken_back(), [ActivationId(7)]);
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
    let busy = rig.occupy().await;
    let wait = Duration::from_millis(20);
    let mut late = pin!(invoke(rig.node.clone(), Wait::For(wait)));
    assert!(poll!(&mut late).is_pending());
    sleep(wait).await;
    // Its wait is over; before that is noted anywhere the drain begins, and refuses what waits.
    assert!(poll!(&mut late).is_pending());
    let node = rig.node.clone();
    let mut drain = pin!(node.drain(Some(SOON), false));
    assert!(poll!(&mut drain).is_pending());
    let accepted = late.await.unwrap();
    let Invoked::Accepted { activation_id } = accepted else { panic!("{accepted:?}") };
    rig.engine.release();
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
