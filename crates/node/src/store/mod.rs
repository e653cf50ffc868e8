//! What survives a restart: actions, activation records, the journal, code.
//!
//! The registry owns actions, the `RecordWriter` owns activation records, and the `Journal` what was promised with a
//! 202; all use a [`Store`], whose
//! calls block and belong on a blocking thread. Code lies in files of its own ([`CodeStore`]).

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::registry::action::ActionEntry;

pub mod activation;
pub mod code;
pub mod journal;
mod redb_store;
pub mod writer;

pub use activation::{ActivationRecord, ActivationResponse, ActivationStatus, ActivationSummary};
pub use code::{CodeError, CodeStore};
pub use journal::Journal;
pub use redb_store::RedbStore;
pub use writer::{RecordWriter, WriterOptions, WriterStats};

/// The embedded database. Calls block.
pub trait Store: Send + Sync + Debug + 'static {
    /// All actions, deleted ones too, in no order.
    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError>;

    /// Replaces the actions' entries in one transaction; on disk when it returns.
    fn put_actions(&self, entries: &[Arc<ActionEntry>]) -> Result<(), StoreError>;

    /// Adds records in one transaction. In order, and on disk with the next `sync` or `put_actions`. A
    /// record whose (namespace, id) is there already changes nothing: an outcome is final.
    fn append_activations(&self, records: &[Arc<ActivationRecord>]) -> Result<(), StoreError>;

    /// What was appended before is on disk when it returns.
    fn sync(&self) -> Result<(), StoreError>;

    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError>;

    /// Whole records, of at most `MAX_LIST_BYTES` together.
    fn list_activations(&self, namespace: &str, filter: &ActivationFilter)
    -> Result<Vec<ActivationRecord>, StoreError>;

    /// The same without logs and results, which are not read into memory.
    fn list_summaries(&self, namespace: &str, filter: &ActivationFilter) -> Result<Vec<ActivationSummary>, StoreError>;

    /// How many there are, `skip` left out and `limit` ignored.
    fn count_activations(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError>;

    /// Removes the oldest records: those that ended more than `retention.max_age` before `now_ms`, and what
    /// is beyond `retention.max_bytes`.
    fn prune(&self, now_ms: u64, retention: Retention) -> Result<Pruned, StoreError>;

    /// What the journal holds, in the order of acceptance.
    fn load_journal(&self) -> Result<Vec<journal::Entry>, StoreError>;

    /// Carries the steps out in order, in one transaction; on disk when it returns. After an error nobody knows which
    /// of them are.
    fn commit_journal(&self, steps: &[journal::Step]) -> Result<(), StoreError>;
}

/// A list of whole records ends early rather than hold more than this, at least one record apart.
pub const MAX_LIST_BYTES: usize = 64 << 20;

/// Which activations to list; by their start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationFilter {
    /// Only this action's.
    pub name: Option<String>,
    /// Started at or after.
    pub since_ms: Option<u64>,
    /// Started at or before.
    pub upto_ms: Option<u64>,
    pub limit: usize,
    pub skip: usize,
    /// Newest first.
    pub descending: bool,
}

impl Default for ActivationFilter {
    fn default() -> Self {
        Self { name: None, since_ms: None, upto_ms: None, limit: 30, skip: 0, descending: true }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub max_age: Duration,
    /// As stored, without the store's own overhead.
    pub max_bytes: u64,
}

/// What `prune` removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub records: u64,
    pub bytes: u64,
}

/// Why the store can't answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "store {path} is damaged ({reason}): restore it from a backup, or move it away and start again (actions come back from peers; activation records, and activations that were accepted and have not ended, are lost); nothing was deleted"
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error("store {path} is open in another process: stop that agent first")]
    InUse { path: PathBuf },
    #[error(
        "store {path} has schema {found}, and this version knows schemas up to {known}: start the newer version that wrote it, or use another data folder"
    )]
    NewerSchema { path: PathBuf, found: u64, known: u64 },
    #[error("store {path} can't be opened ({reason}): check the path, its permissions and the disk's free space")]
    Open { path: PathBuf, reason: String },
    #[error("the store failed to {what} ({reason}): check the disk, its free space and its permissions")]
    Failed { what: &'static str, reason: String },
    #[error("{what} in the store can't be read ({reason}): it was written by another version or is damaged")]
    Entry { what: String, reason: String },
}

/// Waits for a writing thread that has done its last step to let go of the store.
fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    if let Some(thread) = thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests;
