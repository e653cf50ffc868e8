//! The real store, in memory, behind a disk that fails at chosen steps of the journal.

use std::sync::{Arc, Mutex};

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
}

#[derive(Debug)]
pub(crate) struct FailingStore {
    inner: RedbStore,
    fails: Mutex<Fails>,
}

impl FailingStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: RedbStore::in_memory().unwrap(), fails: Mutex::new(Fails::Nothing) })
    }

    pub(crate) fn fail(&self, fails: Fails) {
        *self.fails.lock().unwrap() = fails;
    }
}

impl Store for FailingStore {
    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        let fails = match *self.fails.lock().unwrap() {
            Fails::Nothing => false,
            Fails::Everything => true,
            // While it fails, a transaction with nothing in it proves nothing.
            Fails::Accepted => steps.iter().all(|step| matches!(step, Step::Accepted(..) | Step::Forgotten(_))),
            Fails::Ended => steps.iter().any(|step| matches!(step, Step::Ended(..))),
        };
        if fails {
            return Err(StoreError::Failed { what: "write the journal", reason: "no space left".to_owned() });
        }
        self.inner.commit_journal(steps)
    }

    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.load_journal()
    }

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
}
