#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::registry::action::ActionEntry;
use crate::store::activation::tests::record;
use crate::store::{ActivationFilter, ActivationSummary, Pruned, RedbStore, Retention};

const DEADLINE: Duration = Duration::from_secs(20);

/// The real store, which can be made to refuse, to hang, or to write and then say that it failed.
#[derive(Debug)]
struct Flaky {
    inner: RedbStore,
    refuse: AtomicBool,
    lie: AtomicBool,
    hang: Mutex<()>,
    commits: AtomicU32,
    tries: AtomicU32,
}

impl Flaky {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: RedbStore::in_memory().unwrap(),
            refuse: AtomicBool::new(false),
            lie: AtomicBool::new(false),
            hang: Mutex::new(()),
            commits: AtomicU32::new(0),
            tries: AtomicU32::new(0),
        })
    }
}

impl Store for Flaky {
    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError> {
        self.inner.load_actions()
    }
    fn put_actions(&self, entries: &[Arc<ActionEntry>]) -> Result<(), StoreError> {
        self.inner.put_actions(entries)
    }
    fn append_activations(&self, records: &[Arc<ActivationRecord>]) -> Result<(), StoreError> {
        self.inner.append_activations(records)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync()
    }
    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError> {
        self.inner.activation(namespace, id)
    }
    fn list_activations(&self, ns: &str, filter: &ActivationFilter) -> Result<Vec<ActivationRecord>, StoreError> {
        self.inner.list_activations(ns, filter)
    }
    fn list_summaries(&self, ns: &str, filter: &ActivationFilter) -> Result<Vec<ActivationSummary>, StoreError> {
        self.inner.list_summaries(ns, filter)
    }
    fn count_activations(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError> {
        self.inner.count_activations(namespace, filter)
    }
    fn prune(&self, now_ms: u64, retention: Retention) -> Result<Pruned, StoreError> {
        self.inner.prune(now_ms, retention)
    }
    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.load_journal()
    }
    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        drop(self.hang.lock().unwrap());
        let failed = || StoreError::Failed { what: "write the journal", reason: "no space left".to_owned() };
        if self.refuse.load(Ordering::SeqCst) {
            return Err(failed());
        }
        self.inner.commit_journal(steps)?;
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.lie.swap(false, Ordering::SeqCst) {
            self.refuse.store(true, Ordering::SeqCst);
            return Err(failed());
        }
        Ok(())
    }
}

/// Holds the store's disk up from a thread of its own, until it is dropped.
struct Held(Option<(std::sync::mpsc::Sender<()>, JoinHandle<()>)>);

impl Held {
    fn of(store: &Arc<Flaky>) -> Self {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let store = Arc::clone(store);
        let thread = thread::spawn(move || {
            let held = store.hang.lock().unwrap();
            tell.send(()).unwrap();
            released.recv().ok();
            drop(held);
        });
        told.recv().unwrap();
        Self(Some((release, thread)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((release, thread)) = self.0.take() {
            drop(release);
            thread.join().unwrap();
        }
    }
}

fn start(store: &Arc<Flaky>) -> Journal {
    start_with(store, JournalOptions { first_pause: Duration::from_millis(5), ..JournalOptions::default() })
}

fn start_with(store: &Arc<Flaky>, options: JournalOptions) -> Journal {
    Journal::start(Arc::clone(store) as Arc<dyn Store>, options).unwrap().0
}

fn kept(id: u64) -> Arc<Kept> {
    Arc::new(Kept {
        id: ActivationId(id.into()),
        namespace: "guest".to_owned(),
        name: "hello".to_owned(),
        version: "0.0.3".to_owned(),
        subject: "guest".to_owned(),
        transaction_id: "t".to_owned(),
        accepted_ms: 1_000 + id,
        params: Bytes::from(format!("{{\"n\": {id}}}")),
    })
}

fn here(attempt: u32) -> Started {
    Started { owner: "n1".to_owned(), epoch: 7, attempt, request: None }
}

fn owed(store: &Flaky) -> Vec<u64> {
    store.load_journal().unwrap().iter().map(|entry| u64::try_from(entry.kept.id.0).unwrap()).collect()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap()
}

#[tokio::test]
async fn what_is_promised_is_there_after_a_restart_until_its_record_takes_its_place() {
    let store = Flaky::new();
    let journal = start(&store);
    let at_peer =
        Started { request: Some(Request::Run(Bytes::from_static(b"run"))), owner: "n2".to_owned(), ..here(1) };
    let reserved = Started { request: Some(Request::Reserve(Bytes::from_static(b"ask"))), ..at_peer.clone() };
    in_time(journal.accept(kept(1), None)).await.unwrap();
    in_time(journal.accept(kept(2), Some(here(0)))).await.unwrap();
    in_time(journal.accept(kept(3), None)).await.unwrap();
    in_time(journal.accept(kept(4), Some(reserved.clone()))).await.unwrap();
    in_time(journal.started(ActivationId(3), here(0))).await.unwrap();
    in_time(journal.started(ActivationId(3), at_peer.clone())).await.unwrap();
    assert_eq!(journal.owed(), 4);
    drop(journal);
    let (journal, entries) = Journal::start(store.clone() as Arc<dyn Store>, JournalOptions::default()).unwrap();
    let expected = [(1, None), (2, Some(here(0))), (3, Some(at_peer)), (4, Some(reserved))];
    assert_eq!(entries, expected.map(|(id, started)| Entry { kept: kept(id), started }));
    assert_eq!(journal.owed(), 4);
    for id in 1..=4 {
        in_time(journal.end(ActivationId(id.into()), record("guest", "hello", id, 5))).await.unwrap();
        assert!(store.activation("guest", &format!("{id:032x}")).unwrap().is_some());
    }
    in_time(journal.emptied()).await;
    assert_eq!(owed(&store), [0; 0]);
}

#[tokio::test]
async fn a_second_end_of_an_activation_changes_nothing() {
    let store = Flaky::new();
    let journal = start(&store);
    in_time(journal.accept(kept(1), None)).await.unwrap();
    in_time(journal.end(ActivationId(1), record("guest", "first", 1, 5))).await.unwrap();
    in_time(journal.end(ActivationId(1), record("guest", "second", 1, 9))).await.unwrap();
    assert_eq!(store.activation("guest", &format!("{:032x}", 1)).unwrap().unwrap().name, "first");
    assert_eq!(store.count_activations("guest", &ActivationFilter::default()).unwrap(), 1);
}

#[tokio::test]
async fn what_gathers_while_the_disk_is_busy_shares_one_transaction() {
    let store = Flaky::new();
    let journal = start(&store);
    let held = store.hang.lock().unwrap();
    let first = journal.accept(kept(0), None);
    eventually(|| store.tries.load(Ordering::SeqCst) == 1);
    let others: Vec<_> = (1..=500).map(|id| journal.accept(kept(id), None)).collect();
    drop(held);
    in_time(first).await.unwrap();
    for other in others {
        in_time(other).await.unwrap();
    }
    assert_eq!(store.commits.load(Ordering::SeqCst), 2);
    assert_eq!(owed(&store).len(), 501);
}

#[tokio::test]
async fn large_bodies_are_spread_over_transactions_and_each_goes_into_one() {
    let store = Flaky::new();
    let journal = start_with(&store, JournalOptions { group_bytes: 1_000, ..JournalOptions::default() });
    let held = store.hang.lock().unwrap();
    let large = |id| {
        let params = Bytes::from(format!("{{\"x\": \"{}\"}}", "y".repeat(if id == 3 { 5_000 } else { 600 })));
        journal.accept(Arc::new(Kept { params, ..(*kept(id)).clone() }), None)
    };
    let all: Vec<_> = (0..6).map(large).collect();
    drop(held);
    for one in all {
        in_time(one).await.unwrap();
    }
    assert_eq!(store.commits.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn a_promise_that_finds_too_many_waiting_is_refused_and_is_not_owed() {
    let store = Flaky::new();
    let journal = start_with(&store, JournalOptions { most_waiting: 2, ..JournalOptions::default() });
    let held = store.hang.lock().unwrap();
    let first = journal.accept(kept(0), None);
    eventually(|| store.tries.load(Ordering::SeqCst) == 1);
    let (second, third) = (journal.accept(kept(1), None), journal.accept(kept(2), None));
    let refused = journal.accept(kept(3), None);
    drop(held);
    assert_eq!(in_time(refused).await, Err(JournalError::Busy { waiting: 2 }));
    for taken in [first, second, third] {
        in_time(taken).await.unwrap();
    }
    assert_eq!((journal.owed(), owed(&store)), (3, vec![0, 1, 2]));
}

#[tokio::test]
async fn a_disk_that_fails_stops_promises_and_ends_wait_until_it_works_again() {
    let store = Flaky::new();
    let journal = start(&store);
    in_time(journal.accept(kept(1), Some(here(0)))).await.unwrap();
    store.refuse.store(true, Ordering::SeqCst);
    let refused = in_time(journal.accept(kept(2), None)).await.unwrap_err();
    assert!(refused.to_string().contains("no space left"), "{refused}");
    assert!(journal.trouble().unwrap().contains("no space left"));
    let tries = store.tries.load(Ordering::SeqCst);
    assert!(in_time(journal.started(ActivationId(1), here(1))).await.is_err(), "refused without a try of its own");
    let ended = tokio::spawn(journal.end(ActivationId(1), record("guest", "hello", 1, 5)));
    eventually(|| store.tries.load(Ordering::SeqCst) > tries + 2);
    assert!(!ended.is_finished() && store.activation("guest", &format!("{:032x}", 1)).unwrap().is_none());
    store.refuse.store(false, Ordering::SeqCst);
    in_time(journal.works()).await;
    in_time(ended).await.unwrap().unwrap();
    assert_eq!((journal.trouble(), journal.owed(), owed(&store)), (None, 0, vec![]));
    in_time(journal.accept(kept(3), None)).await.unwrap();
    assert_eq!(owed(&store), [3]);
}

#[tokio::test]
async fn a_refused_promise_that_reached_the_disk_all_the_same_is_taken_out_again() {
    let store = Flaky::new();
    let journal = start(&store);
    store.lie.store(true, Ordering::SeqCst);
    assert!(in_time(journal.accept(kept(1), None)).await.is_err());
    assert_eq!((owed(&store), journal.owed()), (vec![1], 0));
    store.refuse.store(false, Ordering::SeqCst);
    in_time(journal.works()).await;
    assert_eq!(owed(&store), [0; 0]);
}

#[tokio::test]
async fn an_end_whose_transaction_failed_but_reached_the_disk_is_still_one_end() {
    let store = Flaky::new();
    let journal = start(&store);
    in_time(journal.accept(kept(1), None)).await.unwrap();
    store.lie.store(true, Ordering::SeqCst);
    let ended = tokio::spawn(journal.end(ActivationId(1), record("guest", "hello", 1, 5)));
    eventually(|| journal.trouble().is_some());
    store.refuse.store(false, Ordering::SeqCst);
    in_time(ended).await.unwrap().unwrap();
    assert_eq!(store.count_activations("guest", &ActivationFilter::default()).unwrap(), 1);
    assert_eq!((journal.owed(), owed(&store)), (0, vec![]));
}

#[tokio::test]
async fn one_that_promises_no_more_still_ends_what_it_owes() {
    let store = Flaky::new();
    let journal = start(&store);
    in_time(journal.accept(kept(1), None)).await.unwrap();
    journal.promise_no_more();
    assert_eq!(in_time(journal.accept(kept(2), None)).await, Err(JournalError::Closed));
    in_time(journal.started(ActivationId(1), here(0))).await.unwrap();
    in_time(journal.end(ActivationId(1), record("guest", "hello", 1, 5))).await.unwrap();
    in_time(journal.emptied()).await;
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_nobody_up_and_what_it_writes_late_is_taken_out_again() {
    let store = Flaky::new();
    let patience = Duration::from_secs(2);
    let journal = start_with(&store, JournalOptions { patience, ..JournalOptions::default() });
    in_time(journal.accept(kept(1), None)).await.unwrap();
    let held = Held::of(&store);
    assert_eq!(in_time(journal.accept(kept(2), None)).await, Err(JournalError::Late { patience }));
    assert!(journal.trouble().unwrap().contains("has not answered"), "others are refused at once");
    assert!(matches!(in_time(journal.started(ActivationId(1), here(0))).await, Err(JournalError::Failed(_))));
    drop(held);
    in_time(journal.works()).await;
    eventually(|| owed(&store) == [1] && journal.owed() == 1);
    in_time(journal.accept(kept(3), None)).await.unwrap();
}

#[tokio::test]
async fn closing_writes_what_waits_and_takes_nothing_more() {
    let store = Flaky::new();
    let journal = start(&store);
    let held = store.hang.lock().unwrap();
    let promises: Vec<_> = (0..50).map(|id| journal.accept(kept(id), None)).collect();
    drop(held);
    assert!(journal.close(DEADLINE).await);
    for promise in promises {
        in_time(promise).await.unwrap();
    }
    assert_eq!(in_time(journal.accept(kept(99), None)).await, Err(JournalError::Closed));
    assert_eq!(owed(&store).len(), 50);
}

#[tokio::test]
async fn closing_while_the_disk_fails_says_that_something_is_lost_and_leaves_it_owed() {
    let store = Flaky::new();
    let journal = start(&store);
    in_time(journal.accept(kept(1), None)).await.unwrap();
    store.refuse.store(true, Ordering::SeqCst);
    let ended = tokio::spawn(journal.end(ActivationId(1), record("guest", "hello", 1, 5)));
    eventually(|| journal.trouble().is_some());
    assert!(!journal.close(DEADLINE).await);
    assert!(in_time(ended).await.unwrap().is_err());
    assert_eq!(owed(&store), [1]);
}

#[test]
fn what_came_back_is_nowhere_and_keeps_the_number_of_its_attempt() {
    let store = RedbStore::in_memory().unwrap();
    let accepted = |id, attempt| Step::Accepted(kept(id), Some(here(attempt)));
    let back = |id: u128, attempt| Step::CameBack(ActivationId(id), attempt);
    store.commit_journal(&[accepted(1, 0), accepted(2, 2), accepted(3, 2)]).unwrap();
    store.commit_journal(&[back(1, 0), back(2, 2)]).unwrap();
    let started: Vec<_> = store.load_journal().unwrap().into_iter().map(|entry| entry.started).collect();
    assert_eq!(started, [None, Started::nowhere(2), Some(here(2))]);
    assert!(started[1].as_ref().is_some_and(Started::is_nowhere) && !here(2).is_nowhere());
}

#[test]
fn pruning_records_leaves_the_journal_alone() {
    let store = RedbStore::in_memory().unwrap();
    store.commit_journal(&[Step::Accepted(kept(1), None), Step::Accepted(kept(2), Some(here(0)))]).unwrap();
    store.append_activations(&[Arc::new(record("guest", "old", 9, 5))]).unwrap();
    let pruned = store.prune(1 << 40, Retention { max_age: Duration::ZERO, max_bytes: 0 }).unwrap();
    assert_eq!(pruned.records, 1);
    assert_eq!(store.load_journal().unwrap().len(), 2);
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "still not so after {DEADLINE:?}");
        thread::yield_now();
    }
}
