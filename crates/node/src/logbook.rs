//! Log lines between the containers that write them and the records that keep them.
//!
//! Lines of an activation wait here until its record is made, at this node or, for an activation of a peer,
//! until that peer asks. Lines that no activation claims are kept with their container and go, marked, into the
//! next record made from it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// Activations that a container remembers as its own.
const MOST_RAN: usize = 1024;
/// How long lines wait to be fetched.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct LogBook {
    pages: Mutex<Pages>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Pages {
    by_activation: HashMap<String, Page>,
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
}

impl LogBook {
    /// The sink for one container's lines.
    /// `limit_bytes` is what an activation may write.
    pub(crate) fn container(self: &Arc<Self>, concurrency: u32, limit_bytes: usize) -> Arc<ContainerLog> {
        let state = Mutex::default();
        Arc::new(ContainerLog { book: self.clone(), alone: concurrency == 1, limit_bytes, state })
    }

    /// Takes what an activation wrote, waiting until `expected` lines or both end marks have come.
    pub(crate) async fn take(&self, activation: &str, expected: Option<u32>, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            {
                let mut pages = self.lock();
                let page = pages.by_activation.get(activation);
                let complete =
                    page.is_some_and(|p| p.ended >= 2 || expected.is_some_and(|n| p.lines.len() >= n as usize));
                if complete || expected == Some(0) || Instant::now() >= deadline {
                    return pages.remove(activation).map_or_else(Vec::new, Page::into_lines);
                }
            }
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                continue;
            }
        }
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
                && (self.order.len() >= MOST_ACTIVATIONS || now - *since > KEPT)
            {
                let oldest = oldest.clone();
                self.remove(&oldest);
                self.order.pop_front();
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

    /// Lines that nobody claimed since they were last taken.
    pub(crate) fn take_unclaimed(&self) -> Vec<String> {
        self.lock().unclaimed.drain(..).collect()
    }

    fn lock(&self) -> MutexGuard<'_, ContainerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            let running = state.running.clone();
            drop(state);
            return running.into_iter().for_each(|running| self.book.end(&running));
        }
        // The newest first: lines come while their activation runs.
        let claimed = match activation {
            Some(activation) => state.ran.iter().rev().find(|ran| *ran == activation).cloned(),
            None => state.running.clone(),
        };
        if let Some(activation) = claimed {
            drop(state);
            return self.book.add(&activation, format!("{stamp} {name}: {text}"), self.limit_bytes);
        }
        if state.unclaimed.len() >= MOST_UNCLAIMED {
            state.unclaimed.pop_front();
        }
        state.unclaimed.push_back(format!("{stamp} {name}: [unattributed] {text}"));
    }

    fn end(&self, _: Stream, activation: &str) {
        let ran = self.lock().ran.iter().rev().any(|ran| ran == activation);
        if ran {
            self.book.end(activation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn lines_are_taken_when_both_streams_have_ended() {
        let book = Arc::new(LogBook::default());
        let log = book.container(4, 1000);
        log.run_begins("a");
        let taken = tokio::spawn({
            let book = book.clone();
            async move { book.take("a", None, LONG).await }
        });
        log.line(Stream::Stdout, Some("a"), "hello");
        log.line(Stream::Stderr, Some("b"), "other");
        log.end(Stream::Stdout, "a");
        log.end(Stream::Stderr, "a");
        let lines = taken.await.unwrap_or_default();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("stdout: hello"), "{lines:?}");
    }

    #[tokio::test]
    async fn a_line_that_names_an_activation_of_another_container_is_not_believed() {
        let book = Arc::new(LogBook::default());
        let log = book.container(4, 1000);
        log.line(Stream::Stdout, Some("stranger"), "forged");
        log.end(Stream::Stdout, "stranger");
        log.end(Stream::Stderr, "stranger");
        assert!(book.take("stranger", Some(1), Duration::from_millis(1)).await.is_empty());
        assert_eq!(log.take_unclaimed().len(), 1);
    }

    #[tokio::test]
    async fn an_end_mark_without_a_name_ends_the_only_run_and_is_no_line() {
        let book = Arc::new(LogBook::default());
        let (alone, shared) = (book.container(1, 1000), book.container(2, 1000));
        alone.run_begins("a");
        alone.line(Stream::Stdout, None, "mine");
        alone.line(Stream::Stdout, None, END_MARK);
        alone.line(Stream::Stderr, None, END_MARK);
        let lines = book.take("a", None, LONG).await;
        assert!(lines.len() == 1 && lines[0].ends_with("mine"), "{lines:?}");
        shared.run_begins("b");
        shared.line(Stream::Stdout, None, END_MARK);
        assert!(shared.take_unclaimed().is_empty());
    }

    #[tokio::test]
    async fn lines_beyond_the_limit_are_counted_and_cut() {
        let book = Arc::new(LogBook::default());
        let log = book.container(1, 100);
        log.run_begins("a");
        for _ in 0..3 {
            log.line(Stream::Stdout, Some("a"), "a line of about eighty bytes with its stamp before it, or so");
        }
        let lines = book.take("a", Some(1), LONG).await;
        assert!(lines.len() == 2 && lines[1].contains("2 more lines were cut"), "{lines:?}");
    }

    #[tokio::test]
    async fn nothing_is_waited_for_when_nothing_was_written() {
        let book = LogBook::default();
        assert!(book.take("a", Some(0), LONG).await.is_empty());
        assert!(book.take("a", None, Duration::from_millis(1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_line_without_a_mark_belongs_to_the_only_run_or_is_kept_unattributed() {
        let book = Arc::new(LogBook::default());
        let alone = book.container(1, 1000);
        alone.run_begins("a");
        alone.line(Stream::Stdout, None, "mine");
        assert_eq!(book.take("a", Some(1), LONG).await.len(), 1);
        let shared = book.container(2, 1000);
        shared.run_begins("b");
        shared.line(Stream::Stdout, None, "whose?");
        let unclaimed = shared.take_unclaimed();
        assert!(unclaimed[0].contains("[unattributed] whose?"), "{unclaimed:?}");
    }
}
