//! The real store, in memory, behind a disk that fails at chosen steps of the journal.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use embermesh_core::ActivationId;
use embermesh_node::registry::action::ActionEntry;
use embermesh_node::store::journal::{Entry, Step};
use embermesh_node::store::{
    ActivationFilter, ActivationRecord, ActivationSummary, Pruned, RedbStore, Retention, Store, StoreError,
};

/// Which transactions of the journal fail: those that hold such a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fails {
    Nothing,
    Accepted,
    Ended,
    Everything,
    /// All, but only after what is in them got to the disk.
    EverythingTooLate,
}

#[derive(Debug)]
pub(crate) struct FailingStore {
    inner: RedbStore,
    fails: Mutex<Fails>,
    /// Whose hand-overs were noted as having come back.
    taken_back: Mutex<Vec<ActivationId>>,
    /// Whoever wrote, or read a record.
    users: Mutex<HashSet<ThreadId>>,
}

impl FailingStore {
    pub(crate) fn new() -> Arc<Self> {
        let inner = RedbStore::in_memory().unwrap();
        Arc::new(Self {
            inner,
            fails: Mutex::new(Fails::Nothing),
            taken_back: Mutex::default(),
            users: Mutex::default(),
        })
    }

    pub(crate) fn fail(&self, fails: Fails) {
        *self.fails.lock().unwrap() = fails;
    }

    pub(crate) fn taken_back(&self) -> Vec<ActivationId> {
        self.taken_back.lock().unwrap().clone()
    }

    /// The threads that waited for it since this was asked last.
    pub(crate) fn take_users(&self) -> HashSet<ThreadId> {
        std::mem::take(&mut self.users.lock().unwrap())
    }

    fn used(&self) {
        self.users.lock().unwrap().insert(thread::current().id());
    }
}

impl Store for FailingStore {
    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        self.used();
        let fails = match *self.fails.lock().unwrap() {
            Fails::Nothing => false,
            Fails::Everything => true,
            Fails::EverythingTooLate => {
                self.inner.commit_journal(steps)?;
                true
            }
            // While it fails, a transaction with nothing in it proves nothing.
            Fails::Accepted => steps.iter().all(|step| matches!(step, Step::Accepted(..) | Step::Forgotten(_))),
            Fails::Ended => steps.iter().any(|step| matches!(step, Step::Ended(..))),
        };
        if fails {
            return Err(StoreError::Failed { what: "write the journal", reason: "no space left".to_owned() });
        }
        let back = steps.iter().filter_map(|step| if let Step::CameBack(id, _) = step { Some(*id) } else { None });
        self.taken_back.lock().unwrap().extend(back);
        self.inner.commit_journal(steps)
    }

    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.load_journal()
    }

    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError> {
        self.inner.load_actions()
    }

    fn put_actions(&self, entries: &[Arc<ActionEntry>]) -> Result<(), StoreError> {
        self.used();
        self.inner.put_actions(entries)
    }

    fn append_activations(&self, records: &[Arc<ActivationRecord>]) -> Result<(), StoreError> {
        self.used();
        self.inner.append_activations(records)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.used();
        self.inner.sync()
    }

    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError> {
        self.used();
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
}
