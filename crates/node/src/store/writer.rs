//! Writes activation records behind the activations' backs.
//!
//! `record` puts a record into a bounded queue under one short lock and never waits. One thread writes
//! them in groups, in order; until they are written, and a little longer, they are found in memory. When
//! the store can't keep up or fails, records are dropped and counted: an activation's answer never depends
//! on its record.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::blocking::Blocking;

use super::{ActivationFilter, ActivationRecord, ActivationSummary, Retention, Store, StoreError, join};

/// Before a group that the store refused is given up.
const MAX_TRIES: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// Lists wait this long for what was recorded before them.
const LIST_FLUSH: Duration = Duration::from_secs(1);

/// Bounds and times of a `RecordWriter`.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// Records in one transaction.
    pub batch_records: usize,
    /// A record waits this long for others to share its transaction.
    pub batch_delay: Duration,
    /// Records that wait to be written.
    pub queue_records: usize,
    /// The same, in bytes.
    pub queue_bytes: usize,
    /// Records kept in memory after they were written.
    pub recent_records: usize,
    /// The same, in bytes.
    pub recent_bytes: usize,
    /// What was written is on disk after this.
    pub sync_interval: Duration,
    pub retention: Retention,
    pub prune_interval: Duration,
    pub blocking: Blocking,
}

impl WriterOptions {
    pub fn new(retention: Retention) -> Self {
        Self {
            batch_records: 256,
            batch_delay: Duration::from_millis(50),
            queue_records: 20_000,
            queue_bytes: 64 << 20,
            recent_records: 1_000,
            recent_bytes: 8 << 20,
            sync_interval: Duration::from_secs(1),
            retention,
            prune_interval: Duration::from_secs(60),
            blocking: Blocking::Threads,
        }
    }
}

/// What the writer has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterStats {
    pub written: u64,
    /// Lost because the queue was full or the store failed.
    pub dropped: u64,
    pub queued: usize,
    pub queued_bytes: usize,
}

/// The way to the store for activation records. Its thread ends when this is dropped.
#[derive(Debug)]
pub struct RecordWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    options: WriterOptions,
    state: Mutex<State>,
    /// For the thread: there is work.
    work: Condvar,
    /// For those who flush: work is done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Not yet written, oldest first.
    queue: VecDeque<Arc<ActivationRecord>>,
    queue_bytes: usize,
    /// Written (or given up), oldest first.
    recent: VecDeque<Arc<ActivationRecord>>,
    recent_bytes: usize,
    /// Both of the above, by id.
    by_id: HashMap<String, Arc<ActivationRecord>>,
    /// Records that ever entered and left the queue: a flush waits until the second reaches the first.
    entered: u64,
    left: u64,
    written: u64,
    dropped: u64,
    /// All that left the queue before this count is on disk.
    synced: u64,
    /// Somebody waits for the queue: don't wait for others to share the transaction.
    hurry: bool,
    /// Somebody waits for the disk.
    sync_wanted: bool,
    closing: bool,
    ended: bool,
    warned: Option<Instant>,
}

impl RecordWriter {
    /// Starts the writing thread, if records are written by one.
    pub fn start(store: Arc<dyn Store>, options: WriterOptions) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { store, options, state: Mutex::default(), work: Condvar::new(), done: Condvar::new() });
        if options.blocking == Blocking::Inline {
            shared.lock().ended = true;
            return Ok(Self { shared, thread: Mutex::default() });
        }
        let mut thread = Thread { shared: Arc::clone(&shared), synced_at: Instant::now(), pruned_at: None };
        let handle = thread::Builder::new().name("record-writer".to_owned()).spawn(move || thread.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(handle)) })
    }

    /// Hands the record over. Never waits for the store.
    pub fn record(&self, record: ActivationRecord) {
        let options = &self.shared.options;
        let bytes = record.approximate_bytes();
        let record = Arc::new(record);
        let mut state = self.shared.lock();
        state.by_id.insert(record.activation_id.clone(), Arc::clone(&record));
        if options.blocking == Blocking::Inline {
            match self.shared.store.append_activations(std::slice::from_ref(&record)) {
                Ok(()) => state.written += 1,
                Err(_) => state.dropped += 1,
            }
            return state.remember(record, options);
        }
        let full = state.queue.len() >= options.queue_records || state.queue_bytes + bytes > options.queue_bytes;
        if full || state.closing {
            state.dropped += 1;
            state.remember(record, options);
            let dropped = state.dropped;
            if state.may_warn() {
                drop(state);
                tracing::warn!(dropped, "activation records are dropped: the store can't keep up");
            }
            return;
        }
        state.queue.push_back(record);
        state.queue_bytes += bytes;
        state.entered += 1;
        let wake = state.queue.len() == 1 || state.queue.len() == options.batch_records;
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// The record of that activation, written or not. May read the disk: call it where blocking is allowed.
    pub fn get(&self, namespace: &str, id: &str) -> Result<Option<Arc<ActivationRecord>>, StoreError> {
        let recent = self.shared.lock().by_id.get(id).filter(|record| record.namespace == namespace).cloned();
        match recent {
            Some(record) => Ok(Some(record)),
            None => Ok(self.shared.store.activation(namespace, id)?.map(Arc::new)),
        }
    }

    /// Whole records, those just recorded too. Blocks.
    pub fn list(&self, namespace: &str, filter: &ActivationFilter) -> Result<Vec<ActivationRecord>, StoreError> {
        self.flush_queue(LIST_FLUSH);
        self.shared.store.list_activations(namespace, filter)
    }

    /// Summaries, of those just recorded too. Blocks.
    pub fn list_summaries(
        &self,
        namespace: &str,
        filter: &ActivationFilter,
    ) -> Result<Vec<ActivationSummary>, StoreError> {
        self.flush_queue(LIST_FLUSH);
        self.shared.store.list_summaries(namespace, filter)
    }

    /// Blocks.
    pub fn count(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError> {
        self.flush_queue(LIST_FLUSH);
        self.shared.store.count_activations(namespace, filter)
    }

    /// Blocks until what was recorded before is on disk (or given up); false when the deadline came first.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.wait_for(deadline, true, |state, target| state.synced >= target)
    }

    /// Flushes, and ends the thread. Later records are dropped. False when the deadline came first.
    pub fn close(&self, deadline: Duration) -> bool {
        self.shared.lock().closing = true;
        if !self.wait_for(deadline, true, |state, _| state.ended) {
            return false;
        }
        join(&self.thread);
        let state = self.shared.lock();
        state.synced == state.entered
    }

    pub fn stats(&self) -> WriterStats {
        let state = self.shared.lock();
        WriterStats {
            written: state.written,
            dropped: state.dropped,
            queued: state.queue.len(),
            queued_bytes: state.queue_bytes,
        }
    }

    /// As `flush`, but readable is enough.
    fn flush_queue(&self, deadline: Duration) -> bool {
        self.wait_for(deadline, false, |state, target| state.left >= target)
    }

    /// Waits until `reached(state, records entered by now)`, with the thread in a hurry.
    fn wait_for(&self, deadline: Duration, sync: bool, reached: impl Fn(&State, u64) -> bool) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.shared.lock();
        let target = state.entered;
        while !reached(&state, target) {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| !state.ended) else {
                return false;
            };
            state.hurry = true;
            state.sync_wanted |= sync;
            self.shared.work.notify_one();
            state = self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for RecordWriter {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every step that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Keeps a record that left the queue, and forgets the oldest ones beyond the bounds.
    fn remember(&mut self, record: Arc<ActivationRecord>, options: &WriterOptions) {
        self.recent_bytes += record.approximate_bytes();
        self.recent.push_back(record);
        while self.recent.len() > options.recent_records || self.recent_bytes > options.recent_bytes {
            let Some(oldest) = self.recent.pop_front() else {
                break;
            };
            self.recent_bytes = self.recent_bytes.saturating_sub(oldest.approximate_bytes());
            // Unless a later record came with the same id.
            if self.by_id.get(&oldest.activation_id).is_some_and(|known| Arc::ptr_eq(known, &oldest)) {
                self.by_id.remove(&oldest.activation_id);
            }
        }
    }

    fn may_warn(&mut self) -> bool {
        let now = Instant::now();
        let may = self.warned.is_none_or(|last| now.duration_since(last) >= WARN_INTERVAL);
        if may {
            self.warned = Some(now);
        }
        may
    }
}

/// The writing thread.
struct Thread {
    shared: Arc<Shared>,
    synced_at: Instant,
    pruned_at: Option<Instant>,
}

impl Thread {
    fn run(&mut self) {
        let _ended = Ended(Arc::downgrade(&self.shared));
        loop {
            let batch = self.next_batch();
            if !batch.is_empty() {
                let written = self.write(&batch);
                self.settle(&batch, written);
            }
            self.sync_when_due();
            let state = self.shared.lock();
            if state.closing && state.queue.is_empty() {
                return;
            }
            drop(state);
            self.prune_when_due();
        }
    }

    /// Waits for a full group, or for what there is after the delay. The records stay in the queue, where
    /// `get` finds them, until they are written.
    fn next_batch(&self) -> Vec<Arc<ActivationRecord>> {
        let options = &self.shared.options;
        let mut state = self.shared.lock();
        let mut since: Option<Instant> = None;
        loop {
            let pending = state.queue.len();
            if pending >= options.batch_records || state.hurry || state.sync_wanted || state.closing {
                break;
            }
            if pending > 0 && since.is_none() {
                since = Some(Instant::now());
            }
            let unsynced = state.synced < state.left;
            let left = match since {
                Some(since) => options.batch_delay.checked_sub(since.elapsed()),
                None if unsynced => options.sync_interval.checked_sub(self.synced_at.elapsed()),
                None => options.prune_interval.checked_sub(self.pruned_at.map_or(Duration::MAX, |at| at.elapsed())),
            };
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                break;
            };
            state = self.shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let batch: Vec<_> = state.queue.iter().take(options.batch_records).cloned().collect();
        // The hurry ends with the group that empties the queue.
        state.hurry &= batch.len() < state.queue.len();
        batch
    }

    fn write(&self, batch: &[Arc<ActivationRecord>]) -> bool {
        for attempt in 1..=MAX_TRIES {
            match self.shared.store.append_activations(batch) {
                Ok(()) => return true,
                Err(error) => {
                    if self.shared.lock().may_warn() {
                        tracing::warn!(%error, attempt, records = batch.len(), "activation records can't be written");
                    }
                }
            }
            if attempt < MAX_TRIES {
                thread::sleep(RETRY_PAUSE * attempt);
            }
        }
        false
    }

    /// Takes the group out of the queue.
    fn settle(&self, batch: &[Arc<ActivationRecord>], written: bool) {
        let mut state = self.shared.lock();
        let count = batch.len() as u64;
        for _ in batch {
            if let Some(record) = state.queue.pop_front() {
                state.queue_bytes = state.queue_bytes.saturating_sub(record.approximate_bytes());
                state.remember(record, &self.shared.options);
            }
        }
        state.left += count;
        if written {
            state.written += count;
        } else {
            state.dropped += count;
        }
        drop(state);
        self.shared.done.notify_all();
    }

    fn sync_when_due(&mut self) {
        let left = {
            let mut state = self.shared.lock();
            let asked = state.queue.is_empty() && (state.sync_wanted || state.closing);
            let due = asked || self.synced_at.elapsed() >= self.shared.options.sync_interval;
            if asked {
                state.sync_wanted = false;
            }
            if !due || state.synced == state.left {
                return;
            }
            state.left
        };
        self.synced_at = Instant::now();
        match self.shared.store.sync() {
            Ok(()) => self.shared.lock().synced = left,
            Err(error) => {
                if self.shared.lock().may_warn() {
                    tracing::warn!(%error, "activation records can't be made durable");
                }
            }
        }
        self.shared.done.notify_all();
    }

    fn prune_when_due(&mut self) {
        if self.pruned_at.is_some_and(|at| at.elapsed() < self.shared.options.prune_interval) {
            return;
        }
        self.pruned_at = Some(Instant::now());
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        match self.shared.store.prune(now_ms, self.shared.options.retention) {
            Ok(pruned) if pruned.records > 0 => {
                tracing::debug!(records = pruned.records, bytes = pruned.bytes, "old activation records removed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "old activation records can't be removed"),
        }
    }
}

/// Tells those who wait that the thread is gone, even when it panicked.
struct Ended(Weak<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            let mut state = shared.lock();
            state.ended = true;
            state.closing = true;
            drop(state);
            shared.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
