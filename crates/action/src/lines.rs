//! Log lines on their way out of the container: who wrote them is put before them here.
//!
//! `Lines` owns the process's stdout and stderr; an `ActivationLog` belongs to one run. Each line is one
//! write, under a lock, so that lines of concurrent runs never mix.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::contract::{END_MARK, MAX_LINE_BYTES, is_activation_id};

/// How long a full pipe may hold up a line before that line is dropped.
const FULL_PIPE_PATIENCE: Duration = Duration::from_secs(5);
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Both output streams of this process.
pub(crate) struct Lines {
    stdout: Mutex<Sink>,
    stderr: Mutex<Sink>,
    /// Whether a line carries its activation's id.
    framed: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("framed", &self.framed).finish_non_exhaustive()
    }
}

impl Lines {
    /// Writes to this process's own streams, past the standard library's buffers.
    pub(crate) fn stdio(framed: bool) -> io::Result<Self> {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Self::new(Box::new(stdout), Box::new(stderr), framed))
    }

    pub(crate) fn new(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>, framed: bool) -> Self {
        let sink = |to| Mutex::new(Sink { to, buffer: Vec::new() });
        Self { stdout: sink(stdout), stderr: sink(stderr), framed }
    }

    pub(crate) fn framed(&self) -> bool {
        self.framed
    }

    /// A line of nobody in particular.
    pub(crate) fn unattributed(&self, stream: Stream, text: &[u8]) {
        self.write(stream, None, text);
    }

    fn write(&self, stream: Stream, activation: Option<&str>, text: &[u8]) {
        let sink = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        lock(sink).line(activation, text);
    }
}

/// The lines of one run, counted.
#[derive(Debug)]
pub(crate) struct ActivationLog {
    lines: Arc<Lines>,
    activation: Option<String>,
    state: Mutex<LogState>,
}

#[derive(Debug, Default)]
struct LogState {
    written: u32,
    closed: bool,
}

impl ActivationLog {
    pub(crate) fn new(lines: Arc<Lines>, activation: &str) -> Self {
        let activation = (lines.framed && is_activation_id(activation)).then(|| activation.to_owned());
        Self { lines, activation, state: Mutex::default() }
    }

    /// Writes `text`, each of its lines as one. After the run's end they belong to nobody.
    pub(crate) fn text(&self, stream: Stream, text: &str) {
        for line in text.lines() {
            self.line(stream, line.as_bytes());
        }
    }

    pub(crate) fn line(&self, stream: Stream, text: &[u8]) {
        // Held while writing: nothing may be attributed behind the end mark.
        let mut state = lock(&self.state);
        if state.closed {
            return self.lines.unattributed(stream, text);
        }
        state.written = state.written.saturating_add(1);
        self.lines.write(stream, self.activation.as_deref(), text);
    }

    /// Ends the log on both streams and returns how many lines it had. Only the first call writes; and nothing,
    /// if the log is an agent's and empty: the answer says so, and each mark would wake up who reads it.
    pub(crate) fn close(&self) -> u32 {
        let mut state = lock(&self.state);
        let tells_itself = state.written == 0 && self.activation.is_some();
        if !std::mem::replace(&mut state.closed, true) && !tells_itself {
            self.mark_ends();
        }
        state.written
    }

    /// Ends it where the activation's process, which counted its own lines, has died: only the marks tell the end.
    pub(crate) fn close_uncounted(&self) {
        if !std::mem::replace(&mut lock(&self.state).closed, true) {
            self.mark_ends();
        }
    }

    fn mark_ends(&self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.lines.write(stream, self.activation.as_deref(), END_MARK.as_bytes());
        }
    }
}

struct Sink {
    to: Box<dyn Write + Send>,
    buffer: Vec<u8>,
}

impl Sink {
    fn line(&mut self, activation: Option<&str>, text: &[u8]) {
        self.buffer.clear();
        if let Some(id) = activation {
            self.buffer.push(0x1e);
            self.buffer.extend_from_slice(id.as_bytes());
            self.buffer.push(0x1f);
        }
        self.buffer.extend_from_slice(&text[..text.len().min(MAX_LINE_BYTES)]);
        self.buffer.push(b'\n');
        // A line that can't be written has nowhere to be reported.
        let _ = self.flush();
        self.buffer.shrink_to(MAX_LINE_BYTES / 8);
    }

    /// The pipe may have been made non-blocking by a process that shares it, so a full one is waited for here.
    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let mut waited = Duration::ZERO;
        while written < self.buffer.len() {
            match self.to.write(&self.buffer[written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && waited < FULL_PIPE_PATIENCE => {
                    std::thread::sleep(FULL_PIPE_PAUSE);
                    waited += FULL_PIPE_PAUSE;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// What these locks guard stays whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that keeps what was written, for tests.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }

    /// Both streams into one capture each.
    pub(crate) fn pair(framed: bool) -> (Self, Self, Arc<Lines>) {
        let (out, err) = (Self::default(), Self::default());
        let lines = Lines::new(Box::new(out.clone()), Box::new(err.clone()), framed);
        (out, err, Arc::new(lines))
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_line_carries_its_activation_and_the_end_mark_closes_both_streams() {
        let (out, err, lines) = Captured::pair(true);
        let log = ActivationLog::new(lines, ID);
        log.text(Stream::Stdout, "one\ntwo\n");
        log.text(Stream::Stderr, "three");
        assert_eq!(log.close(), 3);
        assert_eq!(log.close(), 3, "closing again adds nothing");
        let mark = format!("\x1e{ID}\x1f{END_MARK}\n");
        assert_eq!(out.text(), format!("\x1e{ID}\x1fone\n\x1e{ID}\x1ftwo\n{mark}"));
        assert_eq!(err.text(), format!("\x1e{ID}\x1fthree\n{mark}"));
    }

    #[test]
    fn an_empty_log_writes_nothing_and_a_line_after_its_end_belongs_to_nobody() {
        let (out, err, lines) = Captured::pair(true);
        let log = ActivationLog::new(lines, ID);
        assert_eq!(log.close(), 0);
        log.text(Stream::Stdout, "late");
        assert_eq!((out.text().as_str(), err.text().as_str()), ("late\n", ""));
        assert_eq!(log.close(), 0);
    }

    #[test]
    fn without_an_agent_or_a_proper_id_lines_have_no_prefix() {
        for (framed, id) in [(false, ID), (true, "not-an-id")] {
            let (out, _, lines) = Captured::pair(framed);
            let log = ActivationLog::new(lines, id);
            log.text(Stream::Stdout, "plain");
            log.close();
            assert_eq!(out.text(), format!("plain\n{END_MARK}\n"));
        }
    }

    #[test]
    fn a_line_over_the_bound_is_cut() {
        let (out, _, lines) = Captured::pair(true);
        lines.unattributed(Stream::Stdout, &vec![b'x'; MAX_LINE_BYTES + 10]);
        assert_eq!(out.text().len(), MAX_LINE_BYTES + 1);
    }
}
