//! What this node owes: activations that were accepted with a 202 and have not ended.
//!
//! A caller hands a step over and waits until it is on disk. One thread writes them in groups: while one group is on
//! its way to the disk the next one gathers, so that many share an fsync and one that is alone does not wait for
//! company. When the disk fails, or does not answer, new promises are refused at once, ends wait, and the thread tries
//! again with growing pauses until it works. Nothing here is on the way of a call that somebody waits for.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::ActivationId;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::blocking::Blocking;

use super::{ActivationRecord, Store, StoreError, join};

/// All that is needed to run an activation again after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub id: ActivationId,
    pub namespace: String,
    pub name: String,
    /// The action's when it was accepted, as users see it.
    pub version: String,
    pub subject: String,
    pub transaction_id: String,
    pub accepted_ms: u64,
    pub params: Bytes,
}

/// Where an activation's body was handed on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub owner: String,
    pub epoch: u64,
    pub attempt: u32,
    /// None for an own container.
    pub request: Option<Request>,
}

impl Started {
    /// For one that is nowhere and has not run since, all that is left of earlier hand-overs: the attempt to make next.
    pub fn nowhere(attempt: u32) -> Option<Self> {
        (attempt > 0).then(|| Self { owner: String::new(), epoch: 0, attempt, request: None })
    }

    pub fn is_nowhere(&self) -> bool {
        self.owner.is_empty()
    }
}

/// The message that carried it to a peer, without the body, in the wire's encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Run(Bytes),
    Reserve(Bytes),
}

/// An activation that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kept: Arc<Kept>,
    pub started: Option<Started>,
}

/// One change of the journal.
#[derive(Debug, Clone)]
pub enum Step {
    /// It is owed; handed on already when a blocking call turns into one that nobody waits for, or a slot was free.
    Accepted(Arc<Kept>, Option<Started>),
    Started(ActivationId, Started),
    /// It came back from there and certainly did not run; this is the attempt to make next.
    CameBack(ActivationId, u32),
    /// Its one record; it is owed no more.
    Ended(ActivationId, Arc<ActivationRecord>),
    /// It was not accepted after all.
    Forgotten(ActivationId),
}

/// Why a step is not on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("{0}")]
    Failed(String),
    #[error("the disk has not answered for {} s", patience.as_secs())]
    Late { patience: Duration },
    #[error("{waiting} steps wait for the disk already")]
    Busy { waiting: usize },
    #[error("this node is going down")]
    Closed,
}

/// Bounds and times of a `Journal`.
#[derive(Debug, Clone, Copy)]
pub struct JournalOptions {
    /// Steps in one transaction.
    pub group_steps: usize,
    /// Bytes in one transaction, one step apart.
    pub group_bytes: usize,
    /// New promises that wait for the disk; further ones are refused.
    pub most_waiting: usize,
    /// The longest a promise waits for the disk: meanwhile it may hold a slot.
    pub patience: Duration,
    /// Pauses between tries after a failure, from the first to the longest.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    pub blocking: Blocking,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            group_steps: 1_024,
            group_bytes: 8 << 20,
            most_waiting: 8_192,
            patience: Duration::from_secs(5),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            blocking: Blocking::Threads,
        }
    }
}

/// The way to the journal. Its thread ends when this is dropped.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    options: JournalOptions,
    state: Mutex<State>,
    /// For the writing loop: there is work, or it is to end.
    work: Notify,
    ended: watch::Sender<bool>,
    /// Why nothing can be promised now.
    trouble: watch::Sender<Option<String>>,
    /// How many are owed.
    owed: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Ask>,
    owed: HashSet<ActivationId>,
    trouble: bool,
    /// A group is on its way to the disk.
    committing: bool,
    /// It takes too long: that is all the trouble there is.
    late: bool,
    no_more: bool,
    closing: bool,
    ended: bool,
    /// It ended with steps that are not on disk.
    lost: bool,
    groups: u64,
    steps: u64,
}

#[derive(Debug)]
struct Ask {
    step: Step,
    done: oneshot::Sender<Result<(), JournalError>>,
}

impl Step {
    /// A promise that can be refused; an end can only wait.
    fn is_promise(&self) -> bool {
        matches!(self, Step::Accepted(..) | Step::Started(..))
    }
}

impl Ask {
    fn bytes(&self) -> usize {
        match &self.step {
            Step::Accepted(kept, _) => kept.params.len(),
            Step::Ended(_, record) => record.approximate_bytes(),
            Step::Started(..) | Step::CameBack(..) | Step::Forgotten(_) => 0,
        }
    }
}

impl Journal {
    /// Reads what is owed, and starts the writing thread.
    pub fn start(store: Arc<dyn Store>, options: JournalOptions) -> Result<(Self, Vec<Entry>), StoreError> {
        let entries = store.load_journal()?;
        let owed: HashSet<_> = entries.iter().map(|entry| entry.kept.id).collect();
        let shared = Arc::new(Shared {
            store,
            options,
            owed: watch::channel(owed.len()).0,
            state: Mutex::new(State { owed, ..State::default() }),
            work: Notify::new(),
            ended: watch::channel(false).0,
            trouble: watch::channel(None).0,
        });
        let writing = Writing { shared: Arc::clone(&shared), doubtful: Vec::new() };
        let started = options.blocking.start("journal", writing.run());
        let handle = started.map_err(|error: io::Error| StoreError::Failed {
            what: "start the journal's thread",
            reason: error.to_string(),
        })?;
        Ok((Self { shared, thread: Mutex::new(handle) }, entries))
    }

    /// Promises to run it: on disk when this ends well.
    pub fn accept(
        &self,
        kept: Arc<Kept>,
        started: Option<Started>,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.step(Step::Accepted(kept, started))
    }

    /// Notes where its body goes, before it goes there.
    pub fn started(
        &self,
        id: ActivationId,
        started: Started,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.step(Step::Started(id, started))
    }

    /// Takes the note of its last hand-over back.
    pub fn came_back(
        &self,
        id: ActivationId,
        attempt: u32,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.step(Step::CameBack(id, attempt))
    }

    /// Its record takes its place. Waits for a disk that fails until it works again, or the node goes down.
    pub fn end(
        &self,
        id: ActivationId,
        record: ActivationRecord,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.step(Step::Ended(id, Arc::new(record)))
    }

    /// From now on nothing more is promised; what is owed goes on.
    pub fn promise_no_more(&self) {
        self.shared.lock().no_more = true;
    }

    pub fn promises_no_more(&self) -> bool {
        self.shared.lock().no_more
    }

    /// How many are owed.
    pub fn owed(&self) -> usize {
        self.shared.lock().owed.len()
    }

    /// Waits until nothing is owed.
    pub async fn emptied(&self) {
        let mut owed = self.shared.owed.subscribe();
        owed.wait_for(|owed| *owed == 0).await.ok();
    }

    /// Why nothing can be promised now.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.borrow().clone()
    }

    /// Waits until promises are taken.
    pub async fn works(&self) {
        let mut trouble = self.shared.trouble.subscribe();
        trouble.wait_for(Option::is_none).await.ok();
    }

    /// Transactions so far, and the steps in them.
    pub fn written(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.groups, state.steps)
    }

    /// Writes what waits, and ends the thread. False when the deadline came first, or not all could be written.
    pub async fn close(&self, deadline: Duration) -> bool {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        let mut ended = self.shared.ended.subscribe();
        if timeout(deadline, ended.wait_for(|ended| *ended)).await.is_err() {
            return false;
        }
        join(&self.thread);
        !self.shared.lock().lost
    }

    fn step(&self, step: Step) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let is_promise = step.is_promise();
        let handed = self.hand_over(step);
        let shared = Arc::clone(&self.shared);
        async move {
            let on_disk = handed?;
            if !is_promise {
                return on_disk.await.unwrap_or(Err(JournalError::Closed));
            }
            let mut on_disk = on_disk;
            if let Ok(told) = timeout(shared.options.patience, &mut on_disk).await {
                return told.unwrap_or(Err(JournalError::Closed));
            }
            // From here on the thread takes back what it can't tell; what it told before holds.
            on_disk.close();
            on_disk.try_recv().unwrap_or_else(|_| Err(shared.late()))
        }
    }

    fn hand_over(&self, step: Step) -> Result<oneshot::Receiver<Result<(), JournalError>>, JournalError> {
        let (done, on_disk) = oneshot::channel();
        let ask = Ask { step, done };
        let mut state = self.shared.lock();
        if state.trouble && (ask.step.is_promise() || state.ended) {
            let reason = self.shared.trouble.borrow().clone();
            return Err(JournalError::Failed(reason.unwrap_or_default()));
        }
        if state.closing {
            return Err(JournalError::Closed);
        }
        if let Step::Accepted(kept, _) = &ask.step {
            if state.no_more {
                return Err(JournalError::Closed);
            }
            let waiting = state.queue.len();
            if waiting >= self.shared.options.most_waiting {
                return Err(JournalError::Busy { waiting });
            }
            state.owed.insert(kept.id);
            self.shared.owed.send_replace(state.owed.len());
        }
        state.queue.push_back(ask);
        drop(state);
        self.shared.work.notify_one();
        Ok(on_disk)
    }
}

impl Drop for Journal {
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

    /// Somebody has waited too long: until the disk answers, nobody else is to.
    fn late(&self) -> JournalError {
        let late = JournalError::Late { patience: self.options.patience };
        let mut state = self.lock();
        if state.committing && !state.trouble {
            (state.trouble, state.late) = (true, true);
            self.trouble.send_replace(Some(late.to_string()));
            tracing::error!(error = %late, "no new activation is accepted without a caller that waits");
        }
        late
    }

    /// The disk has answered.
    fn answered(&self, state: &mut State) {
        state.committing = false;
        if std::mem::take(&mut state.late) {
            state.trouble = false;
            self.trouble.send_replace(None);
        }
    }
}

/// The writing loop.
struct Writing {
    shared: Arc<Shared>,
    /// Promises that were refused since their transaction failed: they may be on disk all the same.
    doubtful: Vec<Step>,
}

impl Writing {
    async fn run(mut self) {
        let _ended = Ended(Arc::downgrade(&self.shared));
        let mut pause = self.shared.options.first_pause;
        loop {
            let (group, closing) = self.next_group().await;
            if group.is_empty() && closing {
                return;
            }
            match self.shared.store.commit_journal(&steps(&group)) {
                Ok(()) => self.settle(group),
                Err(error) => {
                    self.refuse(group, &error);
                    if !self.try_until_it_works(&mut pause).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for work. What gathered meanwhile goes together.
    async fn next_group(&self) -> (Vec<Ask>, bool) {
        loop {
            if let Some(group) = self.take_group() {
                return group;
            }
            // A word that came before this is kept.
            self.shared.work.notified().await;
        }
    }

    fn take_group(&self) -> Option<(Vec<Ask>, bool)> {
        let mut state = self.shared.lock();
        if state.queue.is_empty() && !state.closing {
            return None;
        }
        let mut bytes = 0;
        let fits = |ask: &&Ask| {
            bytes += ask.bytes();
            bytes <= self.shared.options.group_bytes
        };
        let most = state.queue.len().min(self.shared.options.group_steps);
        let count = state.queue.iter().take(most).take_while(fits).count().max(most.min(1));
        let group = state.queue.drain(..count).collect();
        state.committing = true;
        Some((group, state.closing))
    }

    fn settle(&self, group: Vec<Ask>) {
        let mut state = self.shared.lock();
        self.shared.answered(&mut state);
        state.groups += 1;
        state.steps += group.len() as u64;
        for ask in &group {
            if let Step::Ended(id, _) | Step::Forgotten(id) = &ask.step {
                state.owed.remove(id);
            }
        }
        self.shared.owed.send_replace(state.owed.len());
        drop(state);
        for ask in group {
            let promised = if let Step::Accepted(kept, _) = &ask.step { Some(kept.id) } else { None };
            if ask.done.send(Ok(())).is_err()
                && let Some(id) = promised
            {
                self.take_back(id);
            }
        }
    }

    /// Whoever asked for this promise has been told that there is none.
    fn take_back(&self, id: ActivationId) {
        let ask = Ask { step: Step::Forgotten(id), done: oneshot::channel().0 };
        self.shared.lock().queue.push_back(ask);
    }

    /// The group's promises are refused, and those that wait behind it; ends go back to the queue.
    fn refuse(&mut self, group: Vec<Ask>, error: &StoreError) {
        let reason = error.to_string();
        tracing::error!(%error, "the journal can't be written: no new activation is accepted without a caller that waits");
        let mut refused = Vec::new();
        let mut state = self.shared.lock();
        self.shared.answered(&mut state);
        state.trouble = true;
        self.shared.trouble.send_replace(Some(reason.clone()));
        let written = group.len();
        let waiting: Vec<Ask> = state.queue.drain(..).collect();
        for (place, ask) in group.into_iter().chain(waiting).enumerate() {
            if let Step::Accepted(kept, _) = &ask.step {
                state.owed.remove(&kept.id);
                if place < written {
                    self.doubtful.push(Step::Forgotten(kept.id));
                }
            }
            if ask.step.is_promise() { refused.push(ask) } else { state.queue.push_back(ask) }
        }
        self.shared.owed.send_replace(state.owed.len());
        drop(state);
        for ask in refused {
            ask.done.send(Err(JournalError::Failed(reason.clone()))).ok();
        }
    }

    /// Tries with growing pauses. The first transaction that works takes doubtful promises out and brings the ends
    /// that wait. False when the journal closes before; one last try is made then.
    async fn try_until_it_works(&mut self, pause: &mut Duration) -> bool {
        loop {
            let last = !self.sleep(*pause).await;
            *pause = (*pause * 2).min(self.shared.options.longest_pause);
            let ends: Vec<Ask> = self.shared.lock().queue.drain(..).collect();
            let mut all = self.doubtful.clone();
            all.extend(steps(&ends));
            let tried = self.shared.store.commit_journal(&all);
            match tried {
                Ok(()) => {
                    self.doubtful.clear();
                    *pause = self.shared.options.first_pause;
                    self.shared.lock().trouble = false;
                    self.settle(ends);
                    self.shared.trouble.send_replace(None);
                    tracing::info!("the journal can be written again");
                    return true;
                }
                Err(error) => {
                    tracing::warn!(%error, next_try_in = ?*pause, "the journal still can't be written");
                    self.shared.trouble.send_replace(Some(error.to_string()));
                    let mut state = self.shared.lock();
                    for ask in ends.into_iter().rev() {
                        state.queue.push_front(ask);
                    }
                    if last {
                        return false;
                    }
                }
            }
        }
    }

    /// False when the journal closes meanwhile.
    async fn sleep(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            if self.shared.lock().closing {
                return false;
            }
            if timeout_at(until, self.shared.work.notified()).await.is_err() {
                return true;
            }
        }
    }
}

fn steps(asks: &[Ask]) -> Vec<Step> {
    asks.iter().map(|ask| ask.step.clone()).collect()
}

/// Tells those who wait that the loop has ended, even when it panicked.
struct Ended(Weak<Shared>);

impl Ended {
    fn tell_panic(&self, shared: &Shared) {
        let reason = "the thread that writes the journal has ended by a fault: restart the agent, and report it";
        shared.trouble.send_replace(Some(reason.to_owned()));
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            let mut state = shared.lock();
            state.ended = true;
            state.closing = true;
            let left: Vec<Ask> = state.queue.drain(..).collect();
            state.lost |= !left.is_empty();
            if thread::panicking() {
                state.trouble = true;
                self.tell_panic(&shared);
            }
            // What could not be written stays owed on disk.
            if !left.is_empty() {
                tracing::error!(steps = left.len(), "the journal ends with steps that could not be written");
            }
            drop(state);
            for ask in left {
                ask.done.send(Err(JournalError::Closed)).ok();
            }
            shared.ended.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests;
