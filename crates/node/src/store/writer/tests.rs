#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::registry::action::ActionEntry;
use crate::store::activation::tests::record;
use crate::store::journal::{Entry, Step};
use crate::store::{Pruned, RedbStore};

const DEADLINE: Duration = Duration::from_secs(10);
const KEEP: Retention = Retention { max_age: Duration::from_secs(3600), max_bytes: 1 << 30 };

/// The real store, which can be made to refuse or to hang, and counts its transactions.
#[derive(Debug)]
struct Flaky {
    inner: RedbStore,
    refuse: AtomicBool,
    hang: Mutex<()>,
    appends: AtomicU32,
    syncs: AtomicU32,
    prunes: AtomicU32,
}

impl Flaky {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: RedbStore::in_memory().unwrap(),
            refuse: AtomicBool::new(false),
            hang: Mutex::new(()),
            appends: AtomicU32::new(0),
            syncs: AtomicU32::new(0),
            prunes: AtomicU32::new(0),
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
        self.appends.fetch_add(1, Ordering::SeqCst);
        drop(self.hang.lock().unwrap());
        if self.refuse.load(Ordering::SeqCst) {
            return Err(StoreError::Failed { what: "write", reason: "no space left".to_owned() });
        }
        self.inner.append_activations(records)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.inner.sync()
    }
    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError> {
        self.inner.activation(namespace, id)
    }
    fn list_activations(
        &self,
        namespace: &str,
        filter: &ActivationFilter,
    ) -> Result<Vec<ActivationRecord>, StoreError> {
        self.inner.list_activations(namespace, filter)
    }
    fn list_summaries(&self, namespace: &str, filter: &ActivationFilter) -> Result<Vec<ActivationSummary>, StoreError> {
        self.inner.list_summaries(namespace, filter)
    }
    fn count_activations(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError> {
        self.inner.count_activations(namespace, filter)
    }
    fn prune(&self, now_ms: u64, retention: Retention) -> Result<Pruned, StoreError> {
        self.prunes.fetch_add(1, Ordering::SeqCst);
        self.inner.prune(now_ms, retention)
    }
    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.load_journal()
    }
    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        self.inner.commit_journal(steps)
    }
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn start(store: &Arc<Flaky>, change: impl FnOnce(&mut WriterOptions)) -> RecordWriter {
    let mut options = WriterOptions::new(KEEP);
    change(&mut options);
    RecordWriter::start(Arc::clone(store) as Arc<dyn Store>, options).unwrap()
}

fn id(number: u64) -> String {
    format!("{number:032x}")
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "still not so after {DEADLINE:?}");
        thread::yield_now();
    }
}

#[test]
fn a_record_is_found_at_once_and_after_it_was_written() {
    let store = Flaky::new();
    let writer = start(&store, |_| {});
    let held = store.hang.lock().unwrap();
    writer.record(record("guest", "hello", 1, now_ms()));
    assert_eq!(writer.get("guest", &id(1)).unwrap().unwrap().name, "hello");
    assert!(writer.get("other", &id(1)).unwrap().is_none());
    assert!(writer.get("guest", &id(2)).unwrap().is_none());
    assert!(store.inner.activation("guest", &id(1)).unwrap().is_none());
    drop(held);
    assert!(writer.flush(DEADLINE));
    assert!(store.inner.activation("guest", &id(1)).unwrap().is_some());
}

#[test]
fn records_are_written_in_groups_and_in_order() {
    let store = Flaky::new();
    let writer = start(&store, |o| o.batch_records = 100);
    let now = now_ms();
    let held = store.hang.lock().unwrap();
    for number in 0..1_000 {
        writer.record(record("guest", "hello", number, now));
    }
    drop(held);
    assert!(writer.flush(DEADLINE));
    assert_eq!(writer.stats(), WriterStats { written: 1_000, ..WriterStats::default() });
    let appends = store.appends.load(Ordering::SeqCst);
    assert!((10..=12).contains(&appends), "{appends} transactions");
    let filter = ActivationFilter { limit: 2_000, descending: false, ..ActivationFilter::default() };
    let ids: Vec<_> = writer.list("guest", &filter).unwrap().into_iter().map(|r| r.activation_id).collect();
    assert_eq!(ids, (0..1_000).map(id).collect::<Vec<_>>());
}

#[test]
fn without_a_flush_records_are_written_and_synced_by_themselves() {
    let store = Flaky::new();
    let writer = start(&store, |o| {
        o.batch_delay = Duration::from_millis(1);
        o.sync_interval = Duration::from_millis(1);
    });
    writer.record(record("guest", "hello", 1, now_ms()));
    eventually(|| store.inner.activation("guest", &id(1)).unwrap().is_some());
    eventually(|| store.syncs.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_list_shows_what_was_just_recorded() {
    let store = Flaky::new();
    let writer = start(&store, |o| {
        o.batch_delay = Duration::from_secs(3600);
        o.sync_interval = Duration::from_secs(3600);
    });
    writer.record(record("guest", "hello", 1, now_ms()));
    let filter = ActivationFilter::default();
    assert_eq!(writer.list_summaries("guest", &filter).unwrap().len(), 1);
    assert_eq!(writer.count("guest", &filter).unwrap(), 1);
    assert_eq!(store.syncs.load(Ordering::SeqCst), 0, "a list needs no disk");
}

#[test]
fn a_full_queue_drops_and_counts_but_never_waits() {
    let store = Flaky::new();
    let writer = start(&store, |o| {
        o.queue_records = 10;
        o.batch_records = 4;
    });
    let now = now_ms();
    let held = store.hang.lock().unwrap();
    for number in 0..25 {
        writer.record(record("guest", "hello", number, now));
    }
    let stats = writer.stats();
    assert_eq!((stats.dropped, stats.queued), (15, 10));
    assert!(writer.get("guest", &id(24)).unwrap().is_some(), "a dropped record is found while it is recent");
    drop(held);
    assert!(writer.flush(DEADLINE));
    assert_eq!(writer.stats(), WriterStats { written: 10, dropped: 15, ..WriterStats::default() });
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    let store = Flaky::new();
    let writer = start(&store, |o| o.queue_bytes = 100_000);
    let _held = store.hang.lock().unwrap();
    for number in 0..10 {
        let mut large = record("guest", "hello", number, now_ms());
        large.logs = vec!["x".repeat(30_000)];
        writer.record(large);
    }
    let stats = writer.stats();
    assert_eq!((stats.queued, stats.dropped), (3, 7));
    assert!(stats.queued_bytes <= 100_000);
}

#[test]
fn a_store_that_refuses_costs_records_and_nothing_else() {
    let store = Flaky::new();
    let writer = start(&store, |_| {});
    store.refuse.store(true, Ordering::SeqCst);
    writer.record(record("guest", "hello", 1, now_ms()));
    eventually(|| writer.stats().dropped == 1);
    assert_eq!(store.appends.load(Ordering::SeqCst), MAX_TRIES);
    assert!(writer.get("guest", &id(1)).unwrap().is_some());
    store.refuse.store(false, Ordering::SeqCst);
    writer.record(record("guest", "hello", 2, now_ms()));
    assert!(writer.flush(DEADLINE));
    assert_eq!(writer.stats(), WriterStats { written: 1, dropped: 1, ..WriterStats::default() });
}

#[test]
fn memory_holds_a_bounded_number_of_recent_records() {
    let store = Flaky::new();
    let writer = start(&store, |o| o.recent_records = 5);
    for number in 0..50 {
        writer.record(record("guest", "hello", number, now_ms()));
    }
    assert!(writer.flush(DEADLINE));
    let state = writer.shared.lock();
    assert_eq!((state.recent.len(), state.by_id.len()), (5, 5));
    let bytes: usize = state.recent.iter().map(|r| r.approximate_bytes()).sum();
    assert_eq!(state.recent_bytes, bytes);
    drop(state);
    assert!(writer.get("guest", &id(0)).unwrap().is_some(), "from the store");
}

#[test]
fn a_flush_that_can_not_finish_says_so() {
    let store = Flaky::new();
    let writer = start(&store, |_| {});
    let held = store.hang.lock().unwrap();
    writer.record(record("guest", "hello", 1, now_ms()));
    assert!(!writer.flush(Duration::from_millis(20)));
    drop(held);
    assert!(writer.flush(DEADLINE));
}

#[test]
fn close_writes_what_is_left_and_later_records_are_dropped() {
    let store = Flaky::new();
    let writer = start(&store, |o| {
        o.batch_delay = Duration::from_secs(3600);
        o.batch_records = 10;
    });
    for number in 0..25 {
        writer.record(record("guest", "hello", number, now_ms()));
    }
    assert!(writer.close(DEADLINE));
    assert_eq!(writer.stats().written, 25);
    writer.record(record("guest", "hello", 99, now_ms()));
    assert_eq!(writer.stats().dropped, 1);
    assert!(writer.flush(DEADLINE), "nothing is left to be written");
}

#[test]
fn after_close_the_file_can_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let writer = RecordWriter::start(Arc::new(RedbStore::open(&path).unwrap()), WriterOptions::new(KEEP)).unwrap();
    writer.record(record("guest", "hello", 1, now_ms()));
    assert!(writer.close(DEADLINE));
    drop(writer);
    assert!(RedbStore::open(&path).unwrap().activation("guest", &id(1)).unwrap().is_some());
}

#[test]
fn a_dropped_writer_still_writes_what_it_took() {
    let store = Flaky::new();
    let writer = start(&store, |o| o.batch_delay = Duration::from_secs(3600));
    writer.record(record("guest", "hello", 1, now_ms()));
    drop(writer);
    eventually(|| store.inner.activation("guest", &id(1)).unwrap().is_some());
}

#[test]
fn old_records_are_removed_by_the_thread() {
    let store = Flaky::new();
    store.inner.append_activations(&[Arc::new(record("guest", "old", 1, 1_000))]).unwrap();
    let _writer = start(&store, |_| {});
    eventually(|| store.inner.activation("guest", &id(1)).unwrap().is_none());
    assert_eq!(store.prunes.load(Ordering::SeqCst), 1);
}
