//! A store in memory that outlives its agent, on a disk that can be full.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use embermesh_core::ActivationId;
use embermesh_node::registry::action::ActionEntry;
use embermesh_node::store::journal::{Entry, Started, Step};
use embermesh_node::store::{
    ActivationFilter, ActivationRecord, ActivationSummary, Pruned, Retention, Store, StoreError,
};

use super::random::Random;

type Key = (String, String);

#[derive(Debug)]
pub(super) struct SimulatedStore(Mutex<Disk>);

#[derive(Debug)]
struct Disk {
    random: Random,
    full: bool,
    actions: BTreeMap<Key, ActionEntry>,
    records: BTreeMap<Key, Arc<ActivationRecord>>,
    /// Records that a crash may take along.
    unsynced: Vec<Key>,
    journal: Vec<Entry>,
}

impl SimulatedStore {
    pub(super) fn new(random: Random) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Disk {
            random,
            full: false,
            actions: BTreeMap::new(),
            records: BTreeMap::new(),
            unsynced: Vec::new(),
            journal: Vec::new(),
        })))
    }

    /// From now on nothing more can be written; or it can.
    pub(super) fn set_full(&self, full: bool) {
        self.disk().full = full;
    }

    /// A crash before the last writes were on disk.
    pub(super) fn lose_unsynced(&self) {
        let mut disk = self.disk();
        for key in std::mem::take(&mut disk.unsynced) {
            disk.records.remove(&key);
        }
    }

    /// Whether the activation is owed, or has its record.
    pub(super) fn answers_for(&self, id: ActivationId) -> bool {
        let hex = id.to_string();
        let disk = self.disk();
        disk.journal.iter().any(|entry| entry.kept.id == id) || disk.records.keys().any(|(_, known)| *known == hex)
    }

    /// Whether anything is owed.
    pub(super) fn owes(&self) -> bool {
        !self.disk().journal.is_empty()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn writable(&self, what: &'static str) -> Result<(), StoreError> {
        if self.full {
            Err(StoreError::Failed { what, reason: "no space left on the device".to_owned() })
        } else {
            Ok(())
        }
    }

    /// An outcome is final.
    fn add(&mut self, record: &Arc<ActivationRecord>) -> Key {
        let key = (record.namespace.clone(), record.activation_id.clone());
        self.records.entry(key.clone()).or_insert_with(|| record.clone());
        key
    }

    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::Accepted(kept, started) => {
                if !self.journal.iter().any(|entry| entry.kept.id == kept.id) {
                    self.journal.push(Entry { kept: kept.clone(), started: started.clone() });
                }
            }
            Step::Started(id, started) => {
                if let Some(entry) = self.journal.iter_mut().find(|entry| entry.kept.id == *id) {
                    entry.started = Some(started.clone());
                }
            }
            Step::CameBack(id, attempt) => {
                if let Some(entry) = self.journal.iter_mut().find(|entry| entry.kept.id == *id) {
                    entry.started = Started::nowhere(*attempt);
                }
            }
            Step::Ended(id, record) => {
                self.journal.retain(|entry| entry.kept.id != *id);
                self.add(record);
            }
            Step::Forgotten(id) => self.journal.retain(|entry| entry.kept.id != *id),
        }
    }

    fn listed(&self, namespace: &str, filter: &ActivationFilter) -> Vec<Arc<ActivationRecord>> {
        let fits = |record: &&Arc<ActivationRecord>| {
            record.namespace == namespace
                && filter.name.as_ref().is_none_or(|name| *name == record.name)
                && filter.since_ms.is_none_or(|since| record.start_ms >= since)
                && filter.upto_ms.is_none_or(|upto| record.start_ms <= upto)
        };
        let mut listed: Vec<_> = self.records.values().filter(fits).cloned().collect();
        listed.sort_by_key(|record| record.start_ms);
        if filter.descending {
            listed.reverse();
        }
        listed.into_iter().skip(filter.skip).collect()
    }
}

impl Store for SimulatedStore {
    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError> {
        Ok(self.disk().actions.values().cloned().collect())
    }

    fn put_actions(&self, entries: &[Arc<ActionEntry>]) -> Result<(), StoreError> {
        let mut disk = self.disk();
        disk.writable("write actions")?;
        for entry in entries {
            disk.actions.insert((entry.namespace.clone(), entry.name.clone()), ActionEntry::clone(entry));
        }
        disk.unsynced.clear();
        Ok(())
    }

    fn append_activations(&self, records: &[Arc<ActivationRecord>]) -> Result<(), StoreError> {
        let mut disk = self.disk();
        disk.writable("write activation records")?;
        for record in records {
            let key = disk.add(record);
            disk.unsynced.push(key);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut disk = self.disk();
        disk.writable("sync")?;
        disk.unsynced.clear();
        Ok(())
    }

    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError> {
        let key = (namespace.to_owned(), id.to_owned());
        Ok(self.disk().records.get(&key).map(|record| ActivationRecord::clone(record)))
    }

    fn list_activations(&self, ns: &str, filter: &ActivationFilter) -> Result<Vec<ActivationRecord>, StoreError> {
        let listed = self.disk().listed(ns, filter);
        Ok(listed.iter().take(filter.limit).map(|record| ActivationRecord::clone(record)).collect())
    }

    fn list_summaries(&self, ns: &str, filter: &ActivationFilter) -> Result<Vec<ActivationSummary>, StoreError> {
        let listed = self.disk().listed(ns, filter);
        Ok(listed.iter().take(filter.limit).map(|record| record.summary()).collect())
    }

    fn count_activations(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError> {
        Ok(self.disk().listed(namespace, filter).len() as u64)
    }

    fn prune(&self, _: u64, _: Retention) -> Result<Pruned, StoreError> {
        Ok(Pruned::default())
    }

    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        Ok(self.disk().journal.clone())
    }

    /// On a full disk some transactions are carried out that nobody hears of.
    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        let mut disk = self.disk();
        let refused = disk.writable("write the journal");
        if refused.is_ok() || disk.random.chance(30) {
            steps.iter().for_each(|step| disk.carry_out(step));
            disk.unsynced.clear();
        }
        refused
    }
}
