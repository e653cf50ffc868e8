#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::activation::tests::record;
use super::*;
use crate::registry::action::{KeyValue, Kind, Limits, Revision};

/// redb's.
const PAGE: usize = 4096;

fn action(name: &str, counter: u64) -> Arc<ActionEntry> {
    Arc::new(ActionEntry {
        namespace: "guest".to_owned(),
        name: name.to_owned(),
        revision: Revision { counter, node_id: "n1".to_owned() },
        deleted: false,
        version: "0.0.1".to_owned(),
        kind: Kind::Builtin,
        main: "echo".to_owned(),
        code_hash: None,
        image: None,
        code_bytes: 0,
        limits: Limits::default(),
        parameters: vec![KeyValue { key: "p".to_owned(), value: serde_json::json!({"deep": [1, null]}) }],
        annotations: Vec::new(),
        updated_ms: 5,
        further: std::collections::BTreeMap::new(),
    })
}

/// Three actions' records in two namespaces; ids and starts rise together, 10 ms apart.
fn filled() -> RedbStore {
    let store = RedbStore::in_memory().unwrap();
    let records: Vec<_> = (0..30)
        .map(|n| {
            let namespace = if n % 3 == 2 { "other" } else { "guest" };
            Arc::new(record(namespace, if n % 2 == 0 { "even" } else { "odd" }, n, n * 10))
        })
        .collect();
    store.append_activations(&records).unwrap();
    store
}

fn starts(store: &RedbStore, namespace: &str, change: impl FnOnce(&mut ActivationFilter)) -> Vec<u64> {
    let mut filter = ActivationFilter { limit: 1_000, ..ActivationFilter::default() };
    change(&mut filter);
    let whole: Vec<_> = store.list_activations(namespace, &filter).unwrap().iter().map(|r| r.summary()).collect();
    let summaries = store.list_summaries(namespace, &filter).unwrap();
    assert_eq!(whole, summaries);
    summaries.iter().map(|summary| summary.start_ms).collect()
}

#[test]
fn actions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.put_actions(&[action("a", 1), action("b", 1)]).unwrap();
    store.put_actions(&[action("a", 2)]).unwrap();
    drop(store);
    let mut entries = RedbStore::open(&path).unwrap().load_actions().unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(entries, [(*action("a", 2)).clone(), (*action("b", 1)).clone()]);
}

#[test]
fn activations_survive_a_restart_after_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.append_activations(&[Arc::new(record("guest", "hello", 7, 1_000))]).unwrap();
    store.sync().unwrap();
    // As a crash would leave it: no orderly close.
    let copy = dir.path().join("copy.redb");
    fs::copy(&path, &copy).unwrap();
    let found = RedbStore::open(&copy).unwrap().activation("guest", &format!("{:032x}", 7)).unwrap().unwrap();
    assert_eq!(found.summary(), record("guest", "hello", 7, 1_000).summary());
    assert_eq!(found.response.result.unwrap().get(), "{\"n\":7}");
}

#[test]
fn an_activation_is_found_in_its_namespace_only() {
    let store = filled();
    assert!(store.activation("guest", &format!("{:032x}", 4)).unwrap().is_some());
    assert!(store.activation("other", &format!("{:032x}", 4)).unwrap().is_none());
    assert!(store.activation("guest", "no such id").unwrap().is_none());
}

#[test]
fn an_outcome_that_is_stored_never_changes() {
    let store = RedbStore::in_memory().unwrap();
    store.append_activations(&[Arc::new(record("guest", "first", 1, 10))]).unwrap();
    store.append_activations(&[Arc::new(record("guest", "second", 1, 20))]).unwrap();
    assert_eq!(store.activation("guest", &format!("{:032x}", 1)).unwrap().unwrap().name, "first");
    assert_eq!(store.count_activations("guest", &ActivationFilter::default()).unwrap(), 1);
}

#[test]
fn lists_are_newest_first_and_bounded() {
    let store = filled();
    assert_eq!(starts(&store, "guest", |f| f.limit = 4), [280, 270, 250, 240]);
    assert_eq!(starts(&store, "guest", |f| (f.limit, f.skip) = (2, 3)), [240, 220]);
    assert_eq!(starts(&store, "guest", |f| (f.limit, f.descending) = (3, false)), [0, 10, 30]);
    assert_eq!(starts(&store, "guest", |f| f.limit = 0), [0u64; 0]);
    assert_eq!(starts(&store, "guest", |f| f.skip = 100), [0u64; 0]);
    assert_eq!(starts(&store, "nobody", |_| {}), [0u64; 0]);
}

#[test]
fn lists_are_filtered_by_name_and_by_both_ends_of_time() {
    let store = filled();
    assert_eq!(starts(&store, "other", |f| f.name = Some("even".to_owned())), [260, 200, 140, 80, 20]);
    assert_eq!(starts(&store, "guest", |f| (f.since_ms, f.upto_ms) = (Some(100), Some(150))), [150, 130, 120, 100]);
    let both = |f: &mut ActivationFilter| {
        (f.since_ms, f.upto_ms, f.name) = (Some(100), Some(150), Some("odd".to_owned()));
    };
    assert_eq!(starts(&store, "guest", both), [150, 130]);
    assert_eq!(starts(&store, "guest", |f| (f.since_ms, f.upto_ms) = (Some(9), Some(5))), [0u64; 0]);
    assert_eq!(starts(&store, "guest", |f| f.name = Some("eve".to_owned())), [0u64; 0]);
}

#[test]
fn counting_uses_the_filter_but_not_its_limit() {
    let store = filled();
    let count = |filter| store.count_activations("guest", &filter).unwrap();
    assert_eq!(count(ActivationFilter { limit: 1, ..ActivationFilter::default() }), 20);
    assert_eq!(count(ActivationFilter { name: Some("even".to_owned()), ..ActivationFilter::default() }), 10);
    assert_eq!(count(ActivationFilter { skip: 5, ..ActivationFilter::default() }), 15);
}

#[test]
fn pruning_by_age_removes_the_oldest_from_every_index() {
    let store = filled();
    // Records end 5 ms after their start: those that ended before 105 go.
    let retention = Retention { max_age: Duration::from_millis(1_000), max_bytes: u64::MAX };
    let pruned = store.prune(1_105, retention).unwrap();
    assert_eq!(pruned.records, 10);
    assert!(pruned.bytes > 10 * 100);
    assert_eq!(starts(&store, "guest", |f| f.descending = false)[0], 100);
    assert_eq!(starts(&store, "other", |f| (f.descending, f.name) = (false, Some("odd".to_owned())))[0], 110);
    assert!(store.activation("guest", &format!("{:032x}", 0)).unwrap().is_none());
    assert_eq!(store.prune(1_105, retention).unwrap(), Pruned::default());
}

#[test]
fn pruning_by_size_keeps_the_newest() {
    let store = filled();
    let all = store.prune(0, Retention { max_age: Duration::MAX, max_bytes: 0 }).unwrap();
    assert_eq!(all.records, 30);
    let store = filled();
    let retention = Retention { max_age: Duration::MAX, max_bytes: all.bytes / 2 };
    let pruned = store.prune(0, retention).unwrap();
    assert!((14..=16).contains(&pruned.records), "{pruned:?}");
    assert!(all.bytes - pruned.bytes <= retention.max_bytes);
    let left = starts(&store, "guest", |_| {}).len() + starts(&store, "other", |_| {}).len();
    assert_eq!(left as u64, 30 - pruned.records);
    assert_eq!(starts(&store, "guest", |f| f.limit = 1), [280]);
}

#[test]
fn more_than_one_batch_is_pruned_in_one_call() {
    let store = RedbStore::in_memory().unwrap();
    let records: Vec<_> = (0..2_500).map(|n| Arc::new(record("guest", "a", n, 10))).collect();
    store.append_activations(&records).unwrap();
    let pruned = store.prune(10_000, Retention { max_age: Duration::from_secs(1), max_bytes: u64::MAX }).unwrap();
    assert_eq!(pruned.records, 2_500);
}

#[test]
fn a_list_ends_at_its_bound_in_bytes_but_shows_at_least_one() {
    let store = RedbStore::in_memory().unwrap();
    for n in 0..4 {
        let mut large = record("guest", "a", n, n);
        large.logs = vec!["x".repeat(30_000)];
        store.append_activations(&[Arc::new(large)]).unwrap();
    }
    let shown =
        |max_bytes| store.list::<ActivationRecord>("guest", &ActivationFilter::default(), max_bytes).unwrap().len();
    assert_eq!((shown(100_000), shown(70_000), shown(10)), (3, 2, 1));
    assert_eq!(store.list_summaries("guest", &ActivationFilter::default()).unwrap().len(), 4);
}

#[test]
fn damage_anywhere_in_the_file_is_an_error_or_does_no_harm_but_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.put_actions(&(0..300).map(|n| action(&format!("a{n}"), n)).collect::<Vec<_>>()).unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut errors = 0;
    for page in (0..whole.len() / PAGE).step_by(5) {
        let mut content = whole.clone();
        for byte in &mut content[page * PAGE..][..PAGE] {
            *byte = byte.wrapping_mul(31).wrapping_add(0x5a);
        }
        fs::write(&path, &content).unwrap();
        match RedbStore::open(&path).and_then(|store| store.load_actions()) {
            Ok(actions) => assert_eq!(actions.len(), 300, "page {page}"),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 0);
}

fn refused(path: &Path) -> StoreError {
    let before = fs::read(path).unwrap();
    let error = RedbStore::open(path).unwrap_err();
    assert_eq!(fs::read(path).unwrap().len(), before.len(), "the file stays");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("move it away"), "{text}");
    error
}

#[test]
fn a_file_that_is_no_store_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("text", &b"these are my notes"[..]), ("zeros", &[0; 65_536]), ("byte", b"r")] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), StoreError::Corrupt { .. }), "{name}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_store_that_was_cut_short_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.put_actions(&(0..200).map(|n| action(&format!("a{n}"), n)).collect::<Vec<_>>()).unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    for length in [100, 4_096, whole.len() / 2, whole.len() - 5_000] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(refused(&path), StoreError::Corrupt { .. }), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn a_store_with_a_damaged_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(9)).unwrap();
    file.write_all(&[0xff; 4_000]).unwrap();
    refused(&path);
}

#[test]
fn a_store_of_a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("schema", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = RedbStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 9, known: 2, .. }), "{error}");
}

#[test]
fn a_store_in_use_or_out_of_reach_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let _held = RedbStore::open(&path).unwrap();
    assert!(matches!(RedbStore::open(&path).unwrap_err(), StoreError::InUse { .. }));
    let error = RedbStore::open(dir.path().join("no/such/store.redb")).unwrap_err();
    assert!(matches!(&error, StoreError::Open { .. }) && error.to_string().contains("no/such"), "{error}");
    assert!(matches!(RedbStore::open(dir.path()).unwrap_err(), StoreError::Open { .. }));
}

fn owed(store: &RedbStore) -> Vec<u128> {
    store.load_journal().unwrap().iter().map(|entry| entry.kept.id.0).collect()
}

fn promise(id: u128) -> journal::Step {
    journal::Step::Accepted(
        Arc::new(journal::Kept {
            id: embermesh_core::ActivationId(id),
            namespace: "guest".to_owned(),
            name: "hello".to_owned(),
            version: "0.0.1".to_owned(),
            subject: "guest".to_owned(),
            transaction_id: "t".to_owned(),
            accepted_ms: 5,
            params: bytes::Bytes::from(vec![b' '; 3_000]),
        }),
        None,
    )
}

fn end(id: u64) -> journal::Step {
    journal::Step::Ended(embermesh_core::ActivationId(id.into()), Arc::new(record("guest", "hello", id, 5)))
}

/// A disk with a cache that a crash empties, and that fails when it is told to.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<std::sync::Mutex<DiskState>>);

#[derive(Debug, Clone, Default)]
struct DiskState {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order: a crash may keep any of them.
    since: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs that still work.
    left: Option<u32>,
}

impl Disk {
    fn fail_after(&self, calls: u32) {
        self.0.lock().unwrap().left = Some(calls);
    }

    /// What a crash leaves: what was synced, and of what came after every one that `keeps` chooses.
    fn crashed(&self, mut keeps: impl FnMut(usize) -> bool) -> Self {
        let state = self.0.lock().unwrap();
        let mut image = state.durable.clone();
        for (number, (at, data)) in state.since.iter().enumerate() {
            if keeps(number) {
                image.resize(image.len().max(at + data.len()), 0);
                image[*at..at + data.len()].copy_from_slice(data);
            }
        }
        // The file's length is metadata, which may be there before the data.
        image.resize(image.len().max(state.cached.len()), 0);
        let state = DiskState { cached: image.clone(), durable: image, ..DiskState::default() };
        Self(Arc::new(std::sync::Mutex::new(state)))
    }

    fn open(&self) -> Result<RedbStore, StoreError> {
        RedbStore::on(self.clone())
    }
}

impl DiskState {
    fn may(&mut self) -> std::io::Result<()> {
        match &mut self.left {
            Some(0) => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let state = self.0.lock().unwrap();
        let end = std::io::ErrorKind::UnexpectedEof;
        out.copy_from_slice(state.cached.get(at..at + out.len()).ok_or(end)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.lock().unwrap().cached.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
    fn sync_data(&self) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.may()?;
        state.durable = state.cached.clone();
        state.since.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let mut state = self.0.lock().unwrap();
        state.may()?;
        let missing = (at + data.len()).saturating_sub(state.cached.len());
        let len = state.cached.len() + missing;
        state.cached.resize(len, 0);
        state.cached[at..at + data.len()].copy_from_slice(data);
        state.since.push((at, data.to_vec()));
        Ok(())
    }
}

#[test]
fn a_crash_at_any_write_keeps_what_was_committed_and_each_activation_is_owed_or_ended() {
    let mut failures = 0;
    for calls in 0..200 {
        let disk = Disk::default();
        let store = disk.open().unwrap();
        store.commit_journal(&[promise(1), promise(2), promise(3)]).unwrap();
        disk.fail_after(calls);
        // 2 ends, then 4 is promised while 1 ends: what was answered well must be there.
        let mut committed = 0;
        for steps in [vec![end(2)], vec![promise(4), end(1)]] {
            match store.commit_journal(&steps) {
                Ok(()) => committed += 1,
                Err(_) => break,
            }
        }
        failures += u32::from(committed < 2);
        for kept in 0..4 {
            // None, all, and two mixtures of what was not synced.
            let after = disk.crashed(|number| [false, true, number % 2 == 0, number % 3 == 1][kept]).open().unwrap();
            let owed = owed(&after);
            let ended = |id: u64| after.activation("guest", &format!("{id:032x}")).unwrap().is_some();
            let at = format!("failed after {calls} calls, crash {kept}, owed {owed:?}");
            for id in [1, 2] {
                assert_ne!(owed.contains(&u128::from(id)), ended(id), "{id} is owed or has ended, never both: {at}");
            }
            assert!(owed.contains(&3) && !ended(3), "{at}");
            assert!(committed < 1 || ended(2), "{at}");
            assert!(committed < 2 || (ended(1) && owed.contains(&4)), "{at}");
            assert_eq!(owed.contains(&4), ended(1), "one transaction: {at}");
        }
        drop(store);
        if committed == 2 {
            break;
        }
    }
    assert!(failures > 5, "only {failures} crash points were met");
}

#[test]
fn a_store_that_met_an_io_error_is_opened_again_by_the_next_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.commit_journal(&[promise(1)]).unwrap();
    store.note_io_error();
    store.commit_journal(&[promise(2)]).unwrap();
    assert_eq!(owed(&store), [1, 2]);
    drop(store);
    assert_eq!(owed(&RedbStore::open(&path).unwrap()), [1, 2]);
}

#[test]
fn a_store_of_the_version_before_the_journal_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    store.put_actions(&[action("a", 1)]).unwrap();
    drop(store);
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("schema", 1).unwrap();
    let tables: Vec<_> = transaction.list_tables().unwrap().collect();
    for table in tables {
        if ["journal", "started"].contains(&redb::TableHandle::name(&table)) {
            assert!(transaction.delete_table(table).unwrap());
        }
    }
    transaction.commit().unwrap();
    drop(database);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.load_actions().unwrap().len(), 1);
    store.commit_journal(&[promise(1)]).unwrap();
    assert_eq!(owed(&store), [1]);
}
