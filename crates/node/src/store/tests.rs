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
    assert!(matches!(error, StoreError::NewerSchema { found: 9, known: 1, .. }), "{error}");
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
