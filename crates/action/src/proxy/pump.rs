//! Carries a child's stdout or stderr to the proxy's own, line by line, and says whose lines they are.
//!
//! A run's answer and its output arrive on different descriptors. What was printed before the answer is in the pipe
//! when the answer is read, so `attribute` and `drain` read the pipe empty, at once, past the event
//! loop, before a run is called over.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, PipeReader};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::unix::pipe;

use super::line_buffer::{Line, LineBuffer};
use crate::contract::MAX_LINE_BYTES;
use crate::lines::{ActivationLog, Lines, Stream};

const CHUNK_BYTES: usize = 8 * 1024;
/// A pipe's capacity: the most that can have been in it at any one moment.
const PIPE_BYTES: usize = 64 * 1024;
/// Last lines that are kept to explain an end.
const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 400;

#[derive(Debug)]
pub(super) struct Pump {
    pipe: pipe::Receiver,
    stream: Stream,
    lines: Arc<Lines>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    buffer: LineBuffer,
    owner: Option<Arc<ActivationLog>>,
    tail: VecDeque<String>,
    chunk: Box<[u8]>,
}

enum Got {
    Bytes(usize),
    Nothing,
    End,
}

impl Pump {
    /// Starts to carry; goes on until the pipe's last writer is gone.
    pub(super) fn start(pipe: PipeReader, stream: Stream, lines: Arc<Lines>) -> io::Result<Arc<Self>> {
        let state = State {
            buffer: LineBuffer::new(MAX_LINE_BYTES),
            owner: None,
            tail: VecDeque::new(),
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
        };
        let pump = Arc::new(Self {
            pipe: pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))?,
            stream,
            lines,
            state: Mutex::new(state),
        });
        let task = pump.clone();
        tokio::spawn(async move {
            while task.pipe.readable().await.is_ok() {
                let mut state = task.state();
                let result = task.pipe.try_read(&mut state.chunk);
                if let Got::End = task.take(&mut state, result) {
                    return;
                }
            }
        });
        Ok(pump)
    }

    /// From here on lines belong to `owner`; what was written before still belongs to the one before.
    pub(super) fn attribute(&self, owner: Option<Arc<ActivationLog>>) {
        let mut state = self.state();
        self.read_all(&mut state);
        let rest = state.buffer.take_rest();
        if !rest.is_empty() {
            self.emit(&mut state, &rest);
        }
        state.owner = owner;
    }

    /// Carries what is in the pipe now.
    pub(super) fn drain(&self) {
        self.read_all(&mut self.state());
    }

    /// The last lines, for an explanation; empty if there were none.
    pub(super) fn tail(&self) -> String {
        let state = self.state();
        state.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn read_all(&self, state: &mut State) {
        let mut read = 0;
        while read < PIPE_BYTES {
            let result = read_now(&self.pipe, &mut state.chunk);
            match self.take(state, result) {
                Got::Bytes(bytes) => read += bytes,
                Got::Nothing | Got::End => return,
            }
        }
    }

    /// Carries on what a read put into the chunk.
    fn take(&self, state: &mut State, result: io::Result<usize>) -> Got {
        let got = match result {
            Ok(0) => Got::End,
            Ok(bytes) => Got::Bytes(bytes),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Got::Nothing,
            Err(_) => Got::End,
        };
        match got {
            Got::Bytes(bytes) => {
                let State { buffer, chunk, .. } = state;
                buffer.push(&chunk[..bytes]);
                while let Some(line) = state.buffer.next() {
                    match line {
                        Line::Text(text) => self.emit(state, &text),
                        Line::TooLong(bytes) => {
                            let note =
                                format!("(a line of {bytes} bytes was dropped: {MAX_LINE_BYTES} are kept at most)");
                            self.emit(state, note.as_bytes());
                        }
                    }
                }
            }
            Got::End => {
                let rest = state.buffer.take_rest();
                if !rest.is_empty() {
                    self.emit(state, &rest);
                }
            }
            Got::Nothing => {}
        }
        got
    }

    fn emit(&self, state: &mut State, text: &[u8]) {
        if state.tail.len() == TAIL_LINES {
            state.tail.pop_front();
        }
        let said = unframed(text);
        state.tail.push_back(String::from_utf8_lossy(&said[..said.len().min(TAIL_LINE_BYTES)]).into_owned());
        match &state.owner {
            Some(log) => log.line(self.stream, text),
            None => self.lines.unattributed(self.stream, text),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what is there at this moment, whether or not the event loop has heard of it.
pub(super) fn read_now(pipe: &pipe::Receiver, to: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(pipe, to)?)
}

/// A line without the prefix that a launcher may have put before it.
fn unframed(line: &[u8]) -> &[u8] {
    match (line.first(), line.get(33)) {
        (Some(0x1e), Some(0x1f)) => &line[34..],
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::lines::Captured;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[tokio::test]
    async fn what_was_printed_before_the_answer_is_the_runs_even_if_no_event_came_yet() {
        let (out, _, lines) = Captured::pair(true);
        let (reader, mut writer) = io::pipe().unwrap();
        let pump = Pump::start(reader, Stream::Stdout, lines.clone()).unwrap();
        writer.write_all(b"before\n").unwrap();
        let log = Arc::new(ActivationLog::new(lines, ID));
        pump.attribute(Some(log.clone()));
        writer.write_all(b"during\nno newline").unwrap();
        pump.attribute(None);
        assert_eq!(log.close(), 2);
        writer.write_all(b"after\n").unwrap();
        pump.drain();
        let text = out.text();
        assert!(
            text.starts_with(&format!("before\n\x1e{ID}\x1fduring\n\x1e{ID}\x1fno newline\n\x1e{ID}\x1fXXX_")),
            "{text:?}"
        );
        assert!(text.ends_with("\nafter\n"), "{text:?}");
    }

    #[tokio::test]
    async fn lines_are_carried_without_being_asked_for_and_the_last_ones_kept() {
        let (_, err, lines) = Captured::pair(true);
        let (reader, mut writer) = io::pipe().unwrap();
        let pump = Pump::start(reader, Stream::Stderr, lines).unwrap();
        for n in 0..30 {
            writer.write_all(format!("\x1e{ID}\x1fline {n}\n").as_bytes()).unwrap();
        }
        drop(writer);
        tokio::time::timeout(Duration::from_secs(5), async {
            while !err.text().contains("line 29") {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert_eq!(pump.tail().lines().count(), TAIL_LINES);
        assert!(pump.tail().ends_with("line 28\nline 29"), "{}", pump.tail());
    }
}
