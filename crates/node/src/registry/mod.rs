//! All actions that this node knows, its own users' and its peers'.
//!
//! Every node knows every action: a change is made at one node, made durable there, and then carried to
//! the others by gossip and anti-entropy. Of two entries of an action the larger revision wins everywhere,
//! so that the order of arrival doesn't matter. Deleted actions stay as tombstones. Reads never wait for
//! the disk; changes block and belong on a blocking thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::config::LimitsSection;
use crate::store::{Store, StoreError};

pub mod action;
mod change;

use action::{ActionEntry, Kind, Revision};

pub use change::{ActionChange, BUILTINS, CodeRef, LimitsChange, MAX_METADATA_BYTES, check_name};

/// The registry. One for the node, shared.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    node_id: String,
    epoch: u64,
    limits: RegistryLimits,
    /// Held from the look at what is known until the change is visible: one change at a time.
    change: Mutex<()>,
    known: RwLock<Known>,
}

/// What users may ask for here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLimits {
    pub memory_min_mb: u64,
    pub memory_max_mb: u64,
    pub timeout_max_ms: u64,
    pub concurrency_max: u32,
    pub code_max_bytes: u64,
    /// Actions, tombstones counted.
    pub actions_max: usize,
}

impl From<&LimitsSection> for RegistryLimits {
    fn from(limits: &LimitsSection) -> Self {
        Self {
            memory_min_mb: limits.memory_min_mb,
            memory_max_mb: limits.memory_max_mb,
            timeout_max_ms: u64::try_from(limits.timeout_max.as_millis()).unwrap_or(u64::MAX),
            concurrency_max: limits.concurrency_max,
            code_max_bytes: limits.code_max.bytes(),
            actions_max: limits.actions_max as usize,
        }
    }
}

/// What became of an entry from a peer; with what is known now.
#[derive(Debug, Clone, PartialEq)]
pub enum Merge {
    /// It was newer and is known from now on.
    Newer(Arc<ActionEntry>),
    Same(Arc<ActionEntry>),
    /// Ours is newer: the peer should have it.
    Older(Arc<ActionEntry>),
}

/// What a delete leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Deleted {
    /// As it was.
    pub last: Arc<ActionEntry>,
    pub tombstone: Arc<ActionEntry>,
}

/// (namespace, name, revision) of an action, tombstones included.
pub type SummaryItem = (String, String, Revision);

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("action `{namespace}/{name}` exists: update it, or choose another name")]
    Conflict { namespace: String, name: String },
    #[error(
        "action `{namespace}/{name}` is not known here: check the name with `action list`; one just made at another node takes a moment"
    )]
    NotFound { namespace: String, name: String },
    #[error("`{}` is no {what}: use 1 to 256 of A-Z, a-z, 0-9, _, @, ., - and space, beginning with a letter, digit or _, and not ending with a space", .name.escape_debug())]
    BadName { what: &'static str, name: String },
    #[error("{limit} {value} {unit} is out of range: use {min} to {max} {unit}")]
    OutOfRange { limit: &'static str, value: u64, min: u64, max: u64, unit: &'static str },
    #[error(
        "kind {kind} runs one activation at a time, and concurrency {concurrency} was asked for: use 1, or a kind that allows more (native:1, python:3, nodejs:20)"
    )]
    NotConcurrent { kind: Kind, concurrency: u32 },
    #[error("no kind was given: use one of builtin:1, native:1, actionloop:1, python:3, nodejs:20, blackbox")]
    KindMissing,
    #[error("kind {kind} needs code, and there is none: give a file with the action's code")]
    CodeMissing { kind: Kind },
    #[error("kind {kind} and image don't go together: give an image with kind blackbox, and with no other")]
    ImageAndKind { kind: Kind },
    #[error("`{}` is no name of an image: write it as `host/path/name:tag`", .image.escape_debug())]
    BadImage { image: String },
    #[error("the code has {bytes} bytes, and {limit} are allowed: leave out what the action doesn't need at run time")]
    CodeTooLarge { bytes: u64, limit: u64 },
    #[error("`{}` is no code hash: it has 64 digits of 0-9 and a-f", .hash.escape_debug())]
    BadCodeHash { hash: String },
    #[error("there is no built-in action `{}`: use one of {}", .main.escape_debug(), BUILTINS.join(", "))]
    UnknownBuiltin { main: String },
    #[error("main has {bytes} bytes, and {limit} are allowed: give the function's name")]
    MainTooLong { bytes: usize, limit: usize },
    #[error(
        "parameters and annotations have {bytes} bytes together, and {limit} are allowed: pass large values with each invocation"
    )]
    MetadataTooLarge { bytes: usize, limit: usize },
    #[error("annotation {key} is {value}: give a whole number, 1 or more")]
    BadAnnotation { key: &'static str, value: String },
    #[error(
        "the registry is full: it holds {entries} actions, deleted ones counted; raise limits.actions_max on every node"
    )]
    Full { entries: usize },
    #[error("action `{namespace}/{name}` has used up its revisions: choose another name")]
    RevisionsExhausted { namespace: String, name: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registry {
    /// Loads what the store knows. `node_id` signs the revisions made here, and none is below `epoch`, the node's: a node
    /// that has lost what it knew gives none out again.
    pub fn load(
        store: Arc<dyn Store>,
        node_id: impl Into<String>,
        epoch: u64,
        limits: RegistryLimits,
    ) -> Result<Self, StoreError> {
        let mut known = Known::default();
        for entry in store.load_actions()? {
            known.put(Arc::new(entry));
        }
        Ok(Self { store, node_id: node_id.into(), epoch, limits, change: Mutex::new(()), known: RwLock::new(known) })
    }

    /// The action, unless it is deleted.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<ActionEntry>> {
        self.read().get(namespace, name).filter(|entry| !entry.deleted).cloned()
    }

    /// The action or its tombstone.
    pub fn get_any(&self, namespace: &str, name: &str) -> Option<Arc<ActionEntry>> {
        self.read().get(namespace, name).cloned()
    }

    /// A namespace's actions, those changed last first. Deleted ones don't count.
    pub fn list(&self, namespace: &str, skip: usize, limit: usize) -> Vec<Arc<ActionEntry>> {
        let mut entries: Vec<_> = self.read().live(namespace).cloned().collect();
        entries.sort_unstable_by(|a, b| b.updated_ms.cmp(&a.updated_ms).then_with(|| a.name.cmp(&b.name)));
        entries.into_iter().skip(skip).take(limit).collect()
    }

    pub fn count(&self, namespace: &str) -> usize {
        self.read().live(namespace).count()
    }

    /// Actions in all namespaces, deleted ones not counted.
    pub fn total(&self) -> usize {
        self.read().live
    }

    /// Those with an action, sorted.
    pub fn namespaces(&self) -> Vec<String> {
        let known = self.read();
        let mut names: Vec<_> =
            known.entries.keys().filter(|namespace| known.live(namespace).next().is_some()).cloned().collect();
        names.sort_unstable();
        names
    }

    /// Makes a new action. Blocks.
    pub fn create(
        &self,
        namespace: &str,
        name: &str,
        change: ActionChange,
        now_ms: u64,
    ) -> Result<Arc<ActionEntry>, RegistryError> {
        let serial = self.serialise();
        if self.get(namespace, name).is_some() {
            return Err(RegistryError::Conflict { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        self.write_change(&serial, namespace, name, change, now_ms)
    }

    /// Changes an action; with `upsert`, makes it if there is none. Blocks.
    pub fn update(
        &self,
        namespace: &str,
        name: &str,
        change: ActionChange,
        upsert: bool,
        now_ms: u64,
    ) -> Result<Arc<ActionEntry>, RegistryError> {
        let serial = self.serialise();
        if !upsert && self.get(namespace, name).is_none() {
            return Err(not_found(namespace, name));
        }
        self.write_change(&serial, namespace, name, change, now_ms)
    }

    /// Leaves a tombstone. Blocks.
    pub fn delete(&self, namespace: &str, name: &str, now_ms: u64) -> Result<Deleted, RegistryError> {
        let serial = self.serialise();
        let last = self.get(namespace, name).ok_or_else(|| not_found(namespace, name))?;
        let tombstone = ActionEntry {
            revision: self.next_revision(namespace, name)?,
            deleted: true,
            main: String::new(),
            code_hash: None,
            image: None,
            code_bytes: 0,
            parameters: Vec::new(),
            annotations: Vec::new(),
            updated_ms: now_ms,
            ..(*last).clone()
        };
        let tombstone = self.write(&serial, tombstone)?;
        Ok(Deleted { last, tombstone })
    }

    /// Takes an entry from a peer. A newer one is durable before it is visible. Blocks.
    pub fn merge(&self, entry: ActionEntry) -> Result<Merge, RegistryError> {
        let serial = self.serialise();
        change::check_shape(&entry)?;
        match self.get_any(&entry.namespace, &entry.name) {
            Some(known) if known.revision == entry.revision => Ok(Merge::Same(known)),
            Some(known) if known.revision > entry.revision => Ok(Merge::Older(known)),
            _ => self.write(&serial, entry).map(Merge::Newer),
        }
    }

    /// Takes many entries in one transaction: those that are newer are visible when it returns, and
    /// answered. Those that don't fit here are left out, with the reason. Blocks.
    pub fn merge_all(&self, entries: Vec<ActionEntry>) -> Result<MergedAll, RegistryError> {
        let _serial = self.serialise();
        let mut refused = Vec::new();
        let mut newer: HashMap<(String, String), Arc<ActionEntry>> = HashMap::new();
        let mut room = self.limits.actions_max.saturating_sub(self.read().size);
        for entry in entries {
            if let Err(error) = change::check_shape(&entry) {
                refused.push(error);
                continue;
            }
            let known = self.get_any(&entry.namespace, &entry.name);
            let key = (entry.namespace.clone(), entry.name.clone());
            let best = newer.get(&key).or(known.as_ref());
            if best.is_some_and(|best| best.revision >= entry.revision) {
                continue;
            }
            if best.is_none() {
                if room == 0 {
                    refused.push(RegistryError::Full { entries: self.limits.actions_max });
                    continue;
                }
                room -= 1;
            }
            newer.insert(key, Arc::new(entry));
        }
        let newer: Vec<_> = newer.into_values().collect();
        if !newer.is_empty() {
            self.store.put_actions(&newer)?;
            let mut known = self.write_known();
            newer.iter().for_each(|entry| known.put(Arc::clone(entry)));
        }
        Ok(MergedAll { newer, refused })
    }

    /// Equal on nodes that know the same revisions of the same actions, whatever way they came.
    pub fn digest(&self) -> u64 {
        self.read().digest
    }

    /// What is known, tombstones included, in no order.
    pub fn summary(&self) -> Vec<SummaryItem> {
        let known = self.read();
        let all = known.entries.values().flat_map(HashMap::values);
        all.map(|entry| (entry.namespace.clone(), entry.name.clone(), entry.revision.clone())).collect()
    }

    /// What a peer with this summary lacks: entries that it has older or not at all.
    pub fn newer_than(&self, theirs: &[SummaryItem]) -> Vec<Arc<ActionEntry>> {
        let mut highest: HashMap<(&str, &str), &Revision> = HashMap::with_capacity(theirs.len());
        for (namespace, name, revision) in theirs {
            let known = highest.entry((namespace, name)).or_insert(revision);
            *known = revision.max(known);
        }
        let known = self.read();
        let all = known.entries.values().flat_map(HashMap::values);
        let lacks = |entry: &&Arc<ActionEntry>| {
            highest.get(&(entry.namespace.as_str(), entry.name.as_str())).is_none_or(|theirs| **theirs < entry.revision)
        };
        all.filter(lacks).cloned().collect()
    }

    /// Whether any action, tombstones aside, still uses that code.
    pub fn uses_code(&self, hash: &str) -> bool {
        let known = self.read();
        known.entries.values().flat_map(HashMap::values).any(|entry| entry.code_hash.as_deref() == Some(hash))
    }

    fn write_change(
        &self,
        serial: &Serial<'_>,
        namespace: &str,
        name: &str,
        change: ActionChange,
        now_ms: u64,
    ) -> Result<Arc<ActionEntry>, RegistryError> {
        let before = self.get(namespace, name);
        let revision = self.next_revision(namespace, name)?;
        let entry = change.apply((namespace, name), before.as_deref(), revision, now_ms)?;
        change::check_entry(&entry, &self.limits)?;
        self.write(serial, entry)
    }

    fn next_revision(&self, namespace: &str, name: &str) -> Result<Revision, RegistryError> {
        let counter = self.get_any(namespace, name).map_or(0, |entry| entry.revision.counter);
        let exhausted = || RegistryError::RevisionsExhausted { namespace: namespace.to_owned(), name: name.to_owned() };
        let next = counter.checked_add(1).ok_or_else(exhausted)?;
        Ok(Revision { counter: next.max(self.epoch), node_id: self.node_id.clone() })
    }

    /// Durable first, visible then.
    fn write(&self, _serial: &Serial<'_>, entry: ActionEntry) -> Result<Arc<ActionEntry>, RegistryError> {
        let known = self.read();
        if known.size >= self.limits.actions_max && known.get(&entry.namespace, &entry.name).is_none() {
            return Err(RegistryError::Full { entries: known.size });
        }
        drop(known);
        let entry = Arc::new(entry);
        self.store.put_actions(std::slice::from_ref(&entry))?;
        self.write_known().put(Arc::clone(&entry));
        Ok(entry)
    }

    fn serialise(&self) -> Serial<'_> {
        Serial(self.change.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_known(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `merge_all` did.
#[derive(Debug, Default)]
pub struct MergedAll {
    pub newer: Vec<Arc<ActionEntry>>,
    pub refused: Vec<RegistryError>,
}

/// The right to change something.
struct Serial<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

/// By namespace, then name: a look-up borrows both.
#[derive(Debug, Default)]
struct Known {
    entries: HashMap<String, HashMap<String, Arc<ActionEntry>>>,
    /// All entries.
    size: usize,
    /// Those that are not tombstones.
    live: usize,
    digest: u64,
}

impl Known {
    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<ActionEntry>> {
        self.entries.get(namespace)?.get(name)
    }

    fn live(&self, namespace: &str) -> impl Iterator<Item = &Arc<ActionEntry>> {
        self.entries.get(namespace).into_iter().flat_map(HashMap::values).filter(|entry| !entry.deleted)
    }

    fn put(&mut self, entry: Arc<ActionEntry>) {
        self.digest ^= fingerprint(&entry);
        self.live += usize::from(!entry.deleted);
        let namespace = self.entries.entry(entry.namespace.clone()).or_default();
        match namespace.insert(entry.name.clone(), entry) {
            Some(old) => {
                self.digest ^= fingerprint(&old);
                self.live -= usize::from(!old.deleted);
            }
            None => self.size += 1,
        }
    }
}

/// Of (namespace, name, revision); the digest is the XOR of all.
fn fingerprint(entry: &ActionEntry) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in [&entry.namespace, &entry.name, &entry.revision.node_id] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.update(&entry.revision.counter.to_le_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}

fn not_found(namespace: &str, name: &str) -> RegistryError {
    RegistryError::NotFound { namespace: namespace.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
mod tests;
