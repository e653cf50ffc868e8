#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};

use super::action::KeyValue;
use super::*;
use crate::store::RedbStore;
use crate::store::journal::{Entry, Step};

fn limits() -> RegistryLimits {
    RegistryLimits::from(&LimitsSection::default())
}

fn registry_of(node_id: &str) -> Registry {
    Registry::load(Arc::new(RedbStore::in_memory().unwrap()), node_id, 1, limits()).unwrap()
}

fn echo() -> ActionChange {
    ActionChange { kind: Some(Kind::Builtin), main: Some("echo".to_owned()), ..ActionChange::default() }
}

fn python() -> ActionChange {
    let code = CodeRef { hash: crate::store::code::hash(b"def main(): pass"), bytes: 16 };
    ActionChange { kind: Some(Kind::Python), code: Some(code), ..ActionChange::default() }
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value }
}

fn create(change: ActionChange) -> Result<Arc<ActionEntry>, RegistryError> {
    registry_of("n1").create("guest", "a", change, 1)
}

fn with_limits(set: impl FnOnce(&mut LimitsChange)) -> Result<Arc<ActionEntry>, RegistryError> {
    let mut change = python();
    set(&mut change.limits);
    create(change)
}

#[test]
fn a_new_action_has_the_first_version_and_the_defaults() {
    let registry = registry_of("n1");
    let entry = registry.create("guest", "hello", echo(), 77).unwrap();
    assert_eq!((entry.version.as_str(), entry.updated_ms, entry.deleted), ("0.0.1", 77, false));
    assert_eq!(entry.revision, Revision { counter: 1, node_id: "n1".to_owned() });
    assert_eq!(entry.limits, action::Limits::default());
    assert!(Arc::ptr_eq(&registry.get("guest", "hello").unwrap(), &entry));
    assert!(registry.get("guest", "hell").is_none() && registry.get("other", "hello").is_none());
}

#[test]
fn a_node_that_has_lost_what_it_knew_gives_no_revision_out_again() {
    let life = |epoch| Registry::load(Arc::new(RedbStore::in_memory().unwrap()), "n1", epoch, limits()).unwrap();
    let before = life(1_000).create("guest", "a", echo(), 1).unwrap();
    let lost = life(2_000);
    let again = lost.create("guest", "a", python(), 2).unwrap();
    assert!(again.revision > before.revision, "{} after {}", again.revision, before.revision);
    let next = lost.update("guest", "a", echo(), false, 3).unwrap();
    assert!(next.revision > again.revision);
}

#[test]
fn creating_what_exists_is_a_conflict_and_changes_nothing() {
    let registry = registry_of("n1");
    let first = registry.create("guest", "a", echo(), 1).unwrap();
    let error = registry.create("guest", "a", python(), 2).unwrap_err();
    assert!(matches!(error, RegistryError::Conflict { .. }), "{error}");
    assert_eq!(registry.get("guest", "a").unwrap(), first);
}

#[test]
fn updating_what_is_missing_is_an_error_unless_it_may_be_made() {
    let registry = registry_of("n1");
    let error = registry.update("guest", "a", echo(), false, 1).unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { .. }) && error.to_string().contains("`guest/a`"), "{error}");
    assert_eq!(registry.update("guest", "a", echo(), true, 1).unwrap().version, "0.0.1");
}

#[test]
fn an_update_merges_and_raises_the_patch_version() {
    let registry = registry_of("n1");
    let mut first = python();
    first.main = Some("go".to_owned());
    first.limits.memory = Some(128);
    first.parameters = Some(vec![pair("p", json!(1)), pair("q", json!(2))]);
    first.annotations = Some(vec![pair("kept", json!(1)), pair("changed", json!(1))]);
    let before = registry.create("guest", "a", first, 1).unwrap();
    let change = ActionChange {
        limits: LimitsChange { timeout: Some(5_000), ..LimitsChange::default() },
        parameters: Some(vec![pair("q", json!(3))]),
        annotations: Some(vec![pair("changed", json!(2)), pair("new", json!(3))]),
        ..ActionChange::default()
    };
    let after = registry.update("guest", "a", change, false, 2).unwrap();
    assert_eq!((after.version.as_str(), after.revision.counter), ("0.0.2", 2));
    assert_eq!((after.kind, &after.main, &after.code_hash), (Kind::Python, &before.main, &before.code_hash));
    assert_eq!((after.limits.memory, after.limits.timeout), (128, 5_000));
    assert_eq!(after.parameters, [pair("q", json!(3))]);
    assert_eq!(after.annotations, [pair("kept", json!(1)), pair("changed", json!(2)), pair("new", json!(3))]);
}

#[test]
fn a_change_of_kind_drops_the_old_kinds_main_and_built_ins_have_no_code() {
    let registry = registry_of("n1");
    registry.create("guest", "a", echo(), 1).unwrap();
    assert_eq!(registry.update("guest", "a", python(), false, 2).unwrap().main, "");
    let back = ActionChange { kind: Some(Kind::Builtin), ..ActionChange::default() };
    let entry = registry.update("guest", "a", back, false, 3).unwrap();
    assert_eq!((&entry.code_hash, entry.code_bytes), (&None, 0));
}

#[test]
fn a_deleted_action_is_gone_but_its_tombstone_stays() {
    let registry = registry_of("n1");
    let mut change = python();
    change.parameters = Some(vec![pair("secret", json!("s"))]);
    let entry = registry.create("guest", "a", change, 1).unwrap();
    let deleted = registry.delete("guest", "a", 2).unwrap();
    assert_eq!(deleted.last, entry);
    assert!(deleted.tombstone.deleted && deleted.tombstone.revision > entry.revision);
    assert!(deleted.tombstone.parameters.is_empty() && deleted.tombstone.code_hash.is_none());
    assert!(registry.get("guest", "a").is_none());
    assert_eq!(registry.get_any("guest", "a").unwrap(), deleted.tombstone);
    assert_eq!((registry.count("guest"), registry.total()), (0, 0));
    assert!(registry.list("guest", 0, 10).is_empty() && registry.namespaces().is_empty());
    assert!(matches!(registry.delete("guest", "a", 3).unwrap_err(), RegistryError::NotFound { .. }));
    let again = registry.create("guest", "a", echo(), 4).unwrap();
    assert_eq!((again.revision.counter, again.version.as_str()), (3, "0.0.1"));
}

#[test]
fn the_registry_is_the_same_after_a_restart() {
    let store = Arc::new(RedbStore::in_memory().unwrap());
    let registry = Registry::load(store.clone(), "n1", 1, limits()).unwrap();
    registry.create("guest", "a", echo(), 1).unwrap();
    registry.create("guest", "b", python(), 2).unwrap();
    registry.delete("guest", "a", 3).unwrap();
    let again = Registry::load(store, "n1", 1, limits()).unwrap();
    assert_eq!(again.digest(), registry.digest());
    assert_eq!(again.get_any("guest", "a"), registry.get_any("guest", "a"));
    assert_eq!(again.list("guest", 0, 9), registry.list("guest", 0, 9));
}

#[test]
fn what_the_store_refuses_is_not_visible() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path().join("s")).unwrap();
    let registry = Registry::load(Arc::new(Refusing(store)), "n1", 1, limits()).unwrap();
    let digest = registry.digest();
    assert!(matches!(registry.create("guest", "a", echo(), 1).unwrap_err(), RegistryError::Store(_)));
    let foreign = create(echo()).unwrap();
    assert!(matches!(registry.merge((*foreign).clone()).unwrap_err(), RegistryError::Store(_)));
    assert!(registry.merge_all(vec![(*foreign).clone()]).is_err());
    assert!(registry.get_any("guest", "a").is_none());
    assert_eq!(registry.digest(), digest);
}

#[test]
fn lists_show_what_changed_last_first() {
    let registry = registry_of("n1");
    for (name, at) in [("a", 1), ("b", 3), ("c", 2), ("d", 3)] {
        registry.create("guest", name, echo(), at).unwrap();
    }
    registry.create("other", "z", echo(), 9).unwrap();
    let names = |skip, limit| -> Vec<_> {
        registry.list("guest", skip, limit).iter().map(|entry| entry.name.clone()).collect()
    };
    assert_eq!(names(0, 10), ["b", "d", "c", "a"]);
    assert_eq!(names(1, 2), ["d", "c"]);
    assert_eq!(names(4, 10), [""; 0]);
    assert_eq!((registry.count("guest"), registry.total()), (4, 5));
    assert_eq!(registry.namespaces(), ["guest", "other"]);
}

#[test]
fn of_two_revisions_the_larger_wins_whatever_comes_first() {
    let (a, b) = (registry_of("n1"), registry_of("n2"));
    let of_a = a.create("guest", "x", echo(), 1).unwrap();
    let of_b = b.create("guest", "x", python(), 1).unwrap();
    assert_eq!(of_a.revision.counter, of_b.revision.counter);
    assert_eq!(a.merge((*of_b).clone()).unwrap(), Merge::Newer(of_b.clone()));
    assert_eq!(b.merge((*of_a).clone()).unwrap(), Merge::Older(of_b.clone()));
    assert_eq!(b.merge((*of_b).clone()).unwrap(), Merge::Same(of_b.clone()));
    assert_eq!(a.get("guest", "x"), Some(of_b));
    assert_eq!(a.digest(), b.digest());
    let next = a.update("guest", "x", echo(), false, 2).unwrap();
    assert_eq!(next.revision.counter, 2);
}

#[test]
fn a_deletion_reaches_a_peer_and_an_older_entry_does_not_come_back() {
    let (a, b) = (registry_of("n1"), registry_of("n2"));
    let entry = a.create("guest", "x", echo(), 1).unwrap();
    b.merge((*entry).clone()).unwrap();
    let deleted = a.delete("guest", "x", 2).unwrap();
    b.merge((*deleted.tombstone).clone()).unwrap();
    assert!(b.get("guest", "x").is_none());
    assert_eq!(b.merge((*entry).clone()).unwrap(), Merge::Older(deleted.tombstone));
    assert!(b.get("guest", "x").is_none());
}

#[test]
fn the_digest_depends_on_what_is_known_and_not_on_the_way_there() {
    let (a, b) = (registry_of("n1"), registry_of("n1"));
    assert_eq!(a.digest(), 0);
    let one = a.create("guest", "1", echo(), 1).unwrap();
    let after_one = a.digest();
    let two = a.create("guest", "2", echo(), 1).unwrap();
    let one_again = a.update("guest", "1", echo(), false, 2).unwrap();
    b.merge((*two).clone()).unwrap();
    assert_ne!(a.digest(), b.digest());
    b.merge((*one_again).clone()).unwrap();
    assert_eq!(a.digest(), b.digest());
    let c = registry_of("n3");
    c.merge((*one).clone()).unwrap();
    assert_eq!(c.digest(), after_one);
}

#[test]
fn exchanging_what_the_other_lacks_makes_two_nodes_equal() {
    let (a, b) = (registry_of("n1"), registry_of("n2"));
    for name in ["1", "2", "3"] {
        a.create("guest", name, echo(), 1).unwrap();
    }
    b.create("guest", "3", echo(), 1).unwrap();
    b.create("guest", "4", echo(), 1).unwrap();
    a.delete("guest", "2", 5).unwrap();
    let to_b = a.newer_than(&b.summary());
    let to_a = b.newer_than(&a.summary());
    assert_eq!((to_b.len(), to_a.len()), (2, 2));
    let owned = |entries: Vec<Arc<ActionEntry>>| entries.iter().map(|entry| (**entry).clone()).collect();
    assert_eq!(a.merge_all(owned(to_a)).unwrap().newer.len(), 2);
    assert_eq!(b.merge_all(owned(to_b)).unwrap().newer.len(), 2);
    assert_eq!(a.digest(), b.digest());
    assert!(a.newer_than(&b.summary()).is_empty());
    assert!(b.get_any("guest", "2").unwrap().deleted);
}

#[test]
fn a_batch_takes_the_newest_of_each_and_leaves_out_what_does_not_fit() {
    let (a, b) = (registry_of("n1"), registry_of("n2"));
    let first = a.create("guest", "x", echo(), 1).unwrap();
    let second = a.update("guest", "x", echo(), false, 2).unwrap();
    let mut bad = (*first).clone();
    bad.name = "../x".to_owned();
    let batch = [&*second, &bad, &*first].map(Clone::clone).to_vec();
    let merged = b.merge_all(batch.clone()).unwrap();
    assert_eq!(merged.newer, std::slice::from_ref(&second));
    assert!(matches!(merged.refused.as_slice(), [RegistryError::BadName { .. }]));
    assert_eq!(b.digest(), a.digest());
    assert!(b.merge_all(batch).unwrap().newer.is_empty());
}

#[test]
fn a_full_registry_says_so_and_still_takes_changes() {
    let limits = RegistryLimits { actions_max: 2, ..limits() };
    let registry = Registry::load(Arc::new(RedbStore::in_memory().unwrap()), "n1", 1, limits).unwrap();
    registry.create("guest", "a", echo(), 1).unwrap();
    registry.create("guest", "b", echo(), 1).unwrap();
    let error = registry.create("guest", "c", echo(), 1).unwrap_err();
    assert!(matches!(error, RegistryError::Full { entries: 2 }), "{error}");
    let mut foreign = (*registry.get("guest", "a").unwrap()).clone();
    foreign.name = "c".to_owned();
    assert!(matches!(registry.merge(foreign.clone()).unwrap_err(), RegistryError::Full { .. }));
    assert!(matches!(registry.merge_all(vec![foreign]).unwrap().refused.as_slice(), [RegistryError::Full { .. }]));
    registry.update("guest", "a", echo(), false, 2).unwrap();
    registry.delete("guest", "b", 3).unwrap();
    registry.create("guest", "b", echo(), 4).unwrap();
}

#[test]
fn names_that_openwhisk_does_not_allow_are_refused() {
    let registry = registry_of("n1");
    for bad in ["", " a", "a ", "-a", ".a", "a/b", "a\nb", "ä", "a\0", &"a".repeat(257)] {
        let error = registry.create("guest", bad, echo(), 1).unwrap_err();
        assert!(matches!(error, RegistryError::BadName { what: "action name", .. }), "{bad:?}: {error}");
        let error = registry.create(bad, "a", echo(), 1).unwrap_err();
        assert!(matches!(error, RegistryError::BadName { what: "namespace", .. }), "{bad:?}: {error}");
    }
    for good in ["a", "_", "7", "a b", "a@b.c-d_e", &"a".repeat(256)] {
        registry.create("guest", good, echo(), 1).unwrap();
    }
}

#[test]
fn limits_out_of_range_are_refused_with_the_range() {
    let refused = |result: Result<_, RegistryError>| result.unwrap_err().to_string();
    assert_eq!(refused(with_limits(|l| l.memory = Some(64))), "memory 64 MB is out of range: use 128 to 512 MB");
    assert!(refused(with_limits(|l| l.memory = Some(513))).contains("128 to 512"));
    assert!(refused(with_limits(|l| l.timeout = Some(99))).contains("100 to 300000"));
    assert!(refused(with_limits(|l| l.timeout = Some(300_001))).contains("100 to 300000"));
    assert!(refused(with_limits(|l| l.concurrency = Some(0))).contains("1 to 500"));
    assert!(refused(with_limits(|l| l.concurrency = Some(501))).contains("1 to 500"));
    assert!(refused(with_limits(|l| l.logs = Some(11))).contains("0 to 10"));
    let most = LimitsChange { memory: Some(512), timeout: Some(300_000), concurrency: Some(500), logs: Some(0) };
    with_limits(|l| *l = most).unwrap();
}

#[test]
fn limits_follow_the_configuration() {
    let section =
        LimitsSection { memory_max_mb: 2_048, timeout_max: Duration::from_secs(900), ..LimitsSection::default() };
    let store = Arc::new(RedbStore::in_memory().unwrap());
    let registry = Registry::load(store, "n1", 1, RegistryLimits::from(&section)).unwrap();
    let mut change = echo();
    (change.limits.memory, change.limits.timeout) = (Some(2_048), Some(900_000));
    registry.create("guest", "a", change, 1).unwrap();
}

#[test]
fn actionloop_refuses_concurrency() {
    let mut change = python();
    change.kind = Some(Kind::ActionLoop);
    create(change.clone()).unwrap();
    change.limits.concurrency = Some(2);
    let error = create(change).unwrap_err();
    assert!(matches!(error, RegistryError::NotConcurrent { concurrency: 2, .. }), "{error}");
}

#[test]
fn an_image_goes_with_kind_blackbox_and_with_no_other() {
    let of = |kind, image: Option<&str>| {
        create(ActionChange { kind: Some(kind), image: image.map(str::to_owned), ..echo() })
    };
    of(Kind::Blackbox, Some("host.example:5000/path/name:1.2@sha256:00")).unwrap();
    for (kind, image) in [(Kind::Blackbox, None), (Kind::Builtin, Some("a"))] {
        assert!(matches!(of(kind, image).unwrap_err(), RegistryError::ImageAndKind { .. }));
    }
    for bad in ["", "a b", "-a", "/a", "a/../b", "a\n", &"a".repeat(600)] {
        assert!(matches!(of(Kind::Blackbox, Some(bad)).unwrap_err(), RegistryError::BadImage { .. }), "{bad}");
    }
}

#[test]
fn code_is_needed_by_all_kinds_but_builtin_and_images_and_bounded() {
    for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Builtin | Kind::Blackbox)) {
        let error = create(ActionChange { kind: Some(kind), ..ActionChange::default() }).unwrap_err();
        assert!(matches!(error, RegistryError::CodeMissing { .. }), "{kind}: {error}");
    }
    assert!(matches!(create(ActionChange::default()).unwrap_err(), RegistryError::KindMissing));
    let with_code =
        |hash: &str, bytes| create(ActionChange { code: Some(CodeRef { hash: hash.to_owned(), bytes }), ..python() });
    let limit = 48 * 1024 * 1024;
    let hash = crate::store::code::hash(b"");
    with_code(&hash, limit).unwrap();
    assert!(matches!(with_code(&hash, limit + 1).unwrap_err(), RegistryError::CodeTooLarge { .. }));
    assert!(matches!(with_code("../../x", 1).unwrap_err(), RegistryError::BadCodeHash { .. }));
}

#[test]
fn built_in_actions_are_those_that_ship() {
    for main in BUILTINS.into_iter().chain([""]) {
        create(ActionChange { main: Some(main.to_owned()), ..echo() }).unwrap();
    }
    let error = create(ActionChange { main: Some("format-disk".to_owned()), ..echo() }).unwrap_err();
    assert!(error.to_string().contains("`format-disk`") && error.to_string().contains("echo, sleep"), "{error}");
}

#[test]
fn parameters_and_annotations_are_bounded_together() {
    let half = vec![pair("k", json!("x".repeat(600_000)))];
    create(ActionChange { parameters: Some(half.clone()), ..echo() }).unwrap();
    let both = ActionChange { parameters: Some(half.clone()), annotations: Some(half), ..echo() };
    let error = create(both).unwrap_err();
    assert!(matches!(error, RegistryError::MetadataTooLarge { .. }), "{error}");
    let main = ActionChange { main: Some("m".repeat(1_025)), ..python() };
    assert!(matches!(create(main).unwrap_err(), RegistryError::MainTooLong { .. }));
}

#[test]
fn the_annotation_max_concurrent_sets_the_concurrency_unless_the_limit_is_given() {
    let with = |value: Value, concurrency| {
        let mut change = python();
        change.annotations = Some(vec![pair("max-concurrent", value)]);
        change.limits.concurrency = concurrency;
        create(change)
    };
    assert_eq!(with(json!(50), None).unwrap().limits.concurrency, 50);
    assert_eq!(with(json!("50"), None).unwrap().limits.concurrency, 50);
    assert_eq!(with(json!(50), Some(7)).unwrap().limits.concurrency, 7);
    assert!(matches!(with(json!(501), None).unwrap_err(), RegistryError::OutOfRange { .. }));
    for bad in [json!("many"), json!(-1), json!(1.5), json!(null), json!(true), json!(5_000_000_000u64)] {
        let error = with(bad.clone(), None).unwrap_err();
        assert!(matches!(&error, RegistryError::BadAnnotation { .. }), "{bad}: {error}");
    }
}

#[test]
fn a_concurrency_set_by_annotation_stays_until_it_is_changed() {
    let registry = registry_of("n1");
    let mut change = python();
    change.annotations = Some(vec![pair("max-concurrent", json!(50))]);
    registry.create("guest", "a", change, 1).unwrap();
    let other = ActionChange { annotations: Some(vec![pair("note", json!(1))]), ..ActionChange::default() };
    assert_eq!(registry.update("guest", "a", other, false, 2).unwrap().limits.concurrency, 50);
    let mut explicit = ActionChange::default();
    explicit.limits.concurrency = Some(3);
    assert_eq!(registry.update("guest", "a", explicit, false, 3).unwrap().limits.concurrency, 3);
}

#[test]
fn entries_of_peers_may_exceed_our_limits_but_not_our_bounds() {
    let registry = registry_of("n1");
    let mut entry = (*create(echo()).unwrap()).clone();
    entry.limits.memory = 4_096;
    assert!(matches!(registry.merge(entry.clone()).unwrap(), Merge::Newer(_)));
    entry.name = "b".to_owned();
    entry.code_hash = Some("/etc/passwd".to_owned());
    assert!(matches!(registry.merge(entry).unwrap_err(), RegistryError::BadCodeHash { .. }));
}

#[test]
fn a_revision_beyond_all_numbers_is_an_error() {
    let registry = registry_of("n1");
    let mut entry = (*create(echo()).unwrap()).clone();
    entry.revision.counter = u64::MAX;
    registry.merge(entry).unwrap();
    let error = registry.update("guest", "a", echo(), false, 2).unwrap_err();
    assert!(matches!(error, RegistryError::RevisionsExhausted { .. }), "{error}");
}

#[test]
fn versions_rise_in_their_last_part() {
    let registry = registry_of("n1");
    let mut entry = (*create(echo()).unwrap()).clone();
    entry.version = "2.7.9".to_owned();
    registry.merge(entry.clone()).unwrap();
    assert_eq!(registry.update("guest", "a", echo(), false, 2).unwrap().version, "2.7.10");
    (entry.name, entry.version) = ("b".to_owned(), "new".to_owned());
    registry.merge(entry).unwrap();
    assert_eq!(registry.update("guest", "b", echo(), false, 2).unwrap().version, "0.0.1");
}

#[test]
fn concurrent_changes_of_one_action_all_count() {
    let registry = registry_of("n1");
    registry.create("guest", "a", echo(), 1).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    registry.update("guest", "a", echo(), false, 2).unwrap();
                }
            });
        }
    });
    let entry = registry.get("guest", "a").unwrap();
    assert_eq!((entry.revision.counter, entry.version.as_str()), (101, "0.0.101"));
}

#[test]
fn code_in_use_is_known() {
    let registry = registry_of("n1");
    let entry = registry.create("guest", "a", python(), 1).unwrap();
    let hash = entry.code_hash.as_deref().unwrap();
    assert!(registry.uses_code(hash));
    registry.delete("guest", "a", 2).unwrap();
    assert!(!registry.uses_code(hash));
}

/// A store whose disk is full.
#[derive(Debug)]
struct Refusing(RedbStore);

impl Store for Refusing {
    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError> {
        self.0.load_actions()
    }
    fn put_actions(&self, _: &[Arc<ActionEntry>]) -> Result<(), StoreError> {
        Err(StoreError::Failed { what: "write actions", reason: "no space left".to_owned() })
    }
    fn append_activations(&self, records: &[Arc<crate::store::ActivationRecord>]) -> Result<(), StoreError> {
        self.0.append_activations(records)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.0.sync()
    }
    fn activation(&self, namespace: &str, id: &str) -> Result<Option<crate::store::ActivationRecord>, StoreError> {
        self.0.activation(namespace, id)
    }
    fn list_activations(
        &self,
        namespace: &str,
        filter: &crate::store::ActivationFilter,
    ) -> Result<Vec<crate::store::ActivationRecord>, StoreError> {
        self.0.list_activations(namespace, filter)
    }
    fn list_summaries(
        &self,
        namespace: &str,
        filter: &crate::store::ActivationFilter,
    ) -> Result<Vec<crate::store::ActivationSummary>, StoreError> {
        self.0.list_summaries(namespace, filter)
    }
    fn count_activations(&self, namespace: &str, filter: &crate::store::ActivationFilter) -> Result<u64, StoreError> {
        self.0.count_activations(namespace, filter)
    }
    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        unreachable!()
    }
    fn commit_journal(&self, _: &[Step]) -> Result<(), StoreError> {
        unreachable!()
    }
    fn prune(&self, now_ms: u64, retention: crate::store::Retention) -> Result<crate::store::Pruned, StoreError> {
        self.0.prune(now_ms, retention)
    }
}
