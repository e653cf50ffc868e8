//! The last words of a container: they say why it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::logs::{LogSink, Stream};

/// For what a container wrote last to be read after its end.
const DEADLINE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(1);
const KEPT_LINES: usize = 8;
const KEPT_CHARS: usize = 300;

/// Passes lines on, and keeps the last that no activation wrote on stderr: they say why something ended.
#[derive(Debug)]
pub(super) struct LastLines {
    sink: Arc<dyn LogSink>,
    stderr: Mutex<VecDeque<String>>,
}

impl LogSink for LastLines {
    fn line(&self, stream: Stream, activation: Option<&str>, text: &str) {
        if stream == Stream::Stderr && activation.is_none() {
            let mut kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(text.chars().take(KEPT_CHARS).collect());
        }
        self.sink.line(stream, activation, text);
    }

    fn end(&self, stream: Stream, activation: &str) {
        self.sink.end(stream, activation);
    }
}

impl LastLines {
    pub(super) fn new(sink: Arc<dyn LogSink>) -> Arc<Self> {
        Arc::new(Self { sink, stderr: Mutex::default() })
    }

    /// Waits until the readers have let go of it, which they do at the end of their streams.
    pub(super) async fn settle(self: &Arc<Self>) {
        let deadline = Instant::now() + DEADLINE;
        while Arc::strong_count(self) > 1 && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }

    pub(super) fn said(&self) -> String {
        let kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.is_empty() {
            true => String::new(),
            false => format!("; it said: {}", kept.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")),
        }
    }
}
