//! Log lines between the containers that write them and the records that keep them.
//!
//! Lines of an activation wait here until its record is made, at this node or, for an activation of a peer,
//! until that peer asks. Lines that no activation claims are kept with their container and go, marked, into the
//! next record of a run in it; those that none took are logged when the container is gone.
//!
//! A runtime counts the lines that it attributes to a run, and marks their end. What child processes and native code
//! print is not counted: after a run that wrote nothing itself, only time tells whether such lines are still on their
//! way. They are waited for where there is reason to expect them: in a container that is new, or wrote some lately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::{log_stamp, wall_ms};
use crate::containers::logs::{END_MARK, LogSink, Stream};

/// Activations whose lines wait at once; the oldest go first.
const MOST_ACTIVATIONS: usize = 10_000;
/// Bytes of all lines that wait.
const MOST_TOTAL_BYTES: usize = 64 << 20;
/// Lines that no activation claimed, for one container.
const MOST_UNCLAIMED: usize = 200;
/// Of those that no record took, so many are logged, and of each so much.
const MOST_LOGGED: usize = 20;
const MOST_LOGGED_CHARS: usize = 300;
/// Activations that a container remembers as its own.
const MOST_RAN: usize = 1024;
/// How long lines wait to be fetched, from the first on: longer than a run may take by default (`timeout_max`), and its
/// origin to ask for them.
const KEPT: Duration = Duration::from_secs(600);
/// How long the end of a run's lines may be on its way.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long lines may be on their way of which nobody tells that they come.
const UNTOLD_PATIENCE: Duration = Duration::from_millis(20);
/// Runs without lines of their own after which such lines are waited for: the first ones of a container, and
/// as many after each such line.
const DOUBTED_RUNS: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct LogBook {
    pages: Mutex<Pages>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    by_activation: HashMap<String, Page>,
    /// The oldest first; those that are taken meanwhile included.
    order: VecDeque<(Instant, String)>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Page {
    lines: Vec<String>,
    bytes: usize,
    cut: usize,
    /// Streams on which the last line was announced.
    ended: u8,
    /// The run was a peer's: where the rest of its lines is, and how many are its own.
    left: Option<(Weak<ContainerLog>, Option<u32>)>,
}

impl LogBook {
    /// The sink for one container's lines.
    /// `limit_bytes` is what an activation may write.
    pub(crate) fn container(self: &Arc<Self>, id: Arc<str>, concurrency: u32, limit_bytes: usize) -> Arc<ContainerLog> {
        let state = Mutex::new(ContainerState { doubted: DOUBTED_RUNS, ..ContainerState::default() });
        Arc::new(ContainerLog { book: self.clone(), id, alone: concurrency == 1, limit_bytes, state })
    }

    /// What a run for a peer wrote stays here until the peer asks.
    pub(crate) fn leave(&self, activation: &str, log: &Arc<ContainerLog>, own: Option<u32>) {
        self.lock().page(activation).left = Some((Arc::downgrade(log), own));
    }

    /// What was left of a peer's activation; once.
    pub(crate) async fn fetch(&self, activation: &str) -> Vec<String> {
        let left = self.lock().by_activation.get_mut(activation).and_then(|page| page.left.take());
        let Some((log, own)) = left else { return Vec::new() };
        match log.upgrade() {
            Some(log) => log.take(activation, own).await,
            // The container is gone: all that it wrote has been read.
            None => self.lines(activation),
        }
    }

    /// Waits until what an activation wrote is here, as far as that can be told. `own` are the lines that its runtime
    /// attributed to it: of none it marks no end.
    async fn written(&self, activation: &str, own: Option<u32>) {
        let deadline = Instant::now() + if own == Some(0) { UNTOLD_PATIENCE } else { PATIENCE };
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let complete = self.lock().by_activation.get(activation).is_some_and(|page| page.ended >= 2);
            if complete || tokio::time::timeout_at(deadline, ended).await.is_err() {
                return;
            }
        }
    }

    fn lines(&self, activation: &str) -> Vec<String> {
        self.lock().remove(activation).map_or_else(Vec::new, Page::into_lines)
    }

    fn add(&self, activation: &str, line: String, limit_bytes: usize) {
        let mut pages = self.lock();
        let page = pages.page(activation);
        if page.bytes + line.len() > limit_bytes {
            page.cut += 1;
            return;
        }
        page.bytes += line.len();
        pages.bytes += line.len();
        if let Some(page) = pages.by_activation.get_mut(activation) {
            page.lines.push(line);
        }
        pages.make_room();
    }

    fn end(&self, activation: &str) {
        let both = {
            let mut pages = self.lock();
            let page = pages.page(activation);
            page.ended = page.ended.saturating_add(1);
            page.ended >= 2
        };
        if both {
            self.ended.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn page(&mut self, activation: &str) -> &mut Page {
        if !self.by_activation.contains_key(activation) {
            let now = Instant::now();
            while let Some((since, oldest)) = self.order.front()
                && (self.by_activation.len() >= MOST_ACTIVATIONS
                    || now - *since > KEPT
                    || !self.by_activation.contains_key(oldest))
            {
                let oldest = oldest.clone();
                self.remove(&oldest);
                self.order.pop_front();
            }
            if self.order.len() >= 2 * MOST_ACTIVATIONS {
                self.order.retain(|(_, activation)| self.by_activation.contains_key(activation));
            }
            self.order.push_back((now, activation.to_owned()));
        }
        self.by_activation.entry(activation.to_owned()).or_default()
    }
}

impl Pages {
    fn remove(&mut self, activation: &str) -> Option<Page> {
        let page = self.by_activation.remove(activation)?;
        self.bytes -= page.bytes;
        Some(page)
    }

    /// Lines that nobody fetched make way, the oldest first.
    fn make_room(&mut self) {
        while self.bytes > MOST_TOTAL_BYTES
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.remove(&oldest);
        }
    }
}

impl Page {
    fn into_lines(mut self) -> Vec<String> {
        if self.cut > 0 {
            self.lines.push(format!(
                "{} stderr: [{} more lines were cut: over the action's limit]",
                log_stamp(wall_ms()),
                self.cut
            ));
        }
        self.lines
    }
}

/// One container's way into the book.
#[derive(Debug)]
pub(crate) struct ContainerLog {
    book: Arc<LogBook>,
    id: Arc<str>,
    /// One activation at a time: whatever is written during a run is its own.
    alone: bool,
    limit_bytes: usize,
    state: Mutex<ContainerState>,
}

#[derive(Debug, Default)]
struct ContainerState {
    running: Option<String>,
    /// Activations that ran in it lately: lines that name another are not believed.
    ran: VecDeque<String>,
    unclaimed: VecDeque<String>,
    /// Unclaimed lines that made room for newer ones.
    dropped: usize,
    /// Runs without lines of their own that are not believed to have been silent.
    doubted: u32,
}

impl ContainerLog {
    /// A run begins: unmarked lines of a container without concurrency are its own from here on.
    pub(crate) fn run_begins(&self, activation: &str) {
        let mut state = self.lock();
        if self.alone {
            state.running = Some(activation.to_owned());
        }
        if state.ran.len() >= MOST_RAN {
            state.ran.pop_front();
        }
        state.ran.push_back(activation.to_owned());
    }

    /// Whether a run that has ended left nothing to take. Lines that come later all the same are nobody's.
    pub(crate) fn was_silent(&self, activation: &str, own: Option<u32>) -> bool {
        let mut state = self.lock();
        if own != Some(0) {
            return false;
        }
        if state.doubted > 0 {
            state.doubted -= 1;
            return false;
        }
        state.close(activation);
        true
    }

    /// What a run that has ended wrote, and what nobody claimed since that was last taken; once it is here.
    pub(crate) async fn take(&self, activation: &str, own: Option<u32>) -> Vec<String> {
        self.book.written(activation, own).await;
        let mut state = self.lock();
        state.close(activation);
        let mut lines = self.book.lines(activation);
        lines.extend(state.take_unclaimed());
        lines
    }

    fn lock(&self) -> MutexGuard<'_, ContainerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContainerState {
    /// From here on no line is that activation's.
    fn close(&mut self, activation: &str) {
        self.running.take_if(|running| running == activation);
        if let Some(at) = self.ran.iter().rposition(|ran| ran == activation) {
            self.ran.remove(at);
        }
    }

    fn take_unclaimed(&mut self) -> impl Iterator<Item = String> {
        let dropped = std::mem::take(&mut self.dropped);
        let note =
            (dropped > 0).then(|| format!("{} stderr: [unattributed] [{dropped} lines dropped]", log_stamp(wall_ms())));
        note.into_iter().chain(self.unclaimed.drain(..))
    }
}

impl Drop for ContainerLog {
    /// With the container's last reader: no record will take what is left.
    fn drop(&mut self) {
        let mut state = self.lock();
        let left: Vec<String> = state.take_unclaimed().collect();
        let skipped = left.len().saturating_sub(MOST_LOGGED);
        if skipped > 0 {
            tracing::info!(container = %self.id, lines = skipped, "a container wrote more after its last record");
        }
        for line in &left[skipped..] {
            let line: String = line.chars().take(MOST_LOGGED_CHARS).collect();
            tracing::info!(container = %self.id, line, "a container wrote this after its last record");
        }
    }
}

impl LogSink for ContainerLog {
    fn line(&self, stream: Stream, activation: Option<&str>, text: &str) {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let stamp = log_stamp(wall_ms());
        let mut state = self.lock();
        // Images that are not ours mark an activation's end without saying whose.
        if activation.is_none() && text == END_MARK {
            return state.running.iter().for_each(|running| self.book.end(running));
        }
        // The newest first: lines come while their activation runs.
        let claimed = match activation {
            Some(activation) => state.ran.iter().rev().find(|ran| *ran == activation).cloned(),
            None => state.running.clone(),
        };
        if activation.is_none() || claimed.is_none() {
            state.doubted = DOUBTED_RUNS;
        }
        // The state stays locked: nothing may come to a page that is taken.
        if let Some(activation) = claimed {
            return self.book.add(&activation, format!("{stamp} {name}: {text}"), self.limit_bytes);
        }
        if state.unclaimed.len() >= MOST_UNCLAIMED {
            state.unclaimed.pop_front();
            state.dropped += 1;
        }
        state.unclaimed.push_back(format!("{stamp} {name}: [unattributed] {text}"));
    }

    fn end(&self, _: Stream, activation: &str) {
        let state = self.lock();
        if state.ran.iter().rev().any(|ran| ran == activation) {
            self.book.end(activation);
        }
    }
}

#[cfg(test)]
mod tests;
