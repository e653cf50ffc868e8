//! ActionLoop executables: one JSON object a line on stdin, one JSON object a line on fd 3, one at a time.
//!
//! `__OW_WAIT_FOR_ACK` is set, so an executable that knows it says `{"ok":true}` on fd 3 when it is ready. One that does
//! not may stay silent. The very first line is taken for that word if it is exactly this object, however late it comes;
//! a first answer can't look like it. A line that nobody asked for, once it is noticed, ends the executable: from then on
//! answers could belong to another run.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use super::child::Child;
use super::line_buffer::{Line, LineBuffer};
use super::pump::{Pump, read_now};
use super::{Host, code};
use crate::contract::{InitRequest, MAX_RESULT_BYTES};
use crate::gate;
use crate::lines::Stream;
use crate::sdk::too_large;
use crate::server::{Answer, Call, Initialised, Target, Task};

const ANSWER_FD: i32 = 3;
/// How long an executable has to fail or to say that it is ready, before it is taken as ready.
const START_PATIENCE: Duration = Duration::from_millis(50);
const CHUNK_BYTES: usize = 16 * 1024;
/// Bytes of a line that an error message shows.
const SHOWN_BYTES: usize = 200;

#[derive(Debug)]
pub(super) struct ActionLoop {
    host: Host,
    process: OnceLock<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdout: Arc<Pump>,
    stderr: Arc<Pump>,
    talk: Mutex<Talk>,
}

/// Both ends of the conversation; whoever holds it has the executable for itself.
#[derive(Debug)]
struct Talk {
    requests: pipe::Sender,
    answers: Answers,
}

impl ActionLoop {
    pub(super) fn new(host: Host) -> Self {
        Self { host, process: OnceLock::new() }
    }

    async fn start(&self, init: &InitRequest<'_>) -> Result<Initialised, String> {
        let path = self.host.options.workdir.join("exec");
        code::write_executable(init, &path)?;
        let mut command = Command::new(&path);
        command.envs(init.env()).env("__OW_WAIT_FOR_ACK", "true");
        let process = self.spawn(command).await?;
        process.await_readiness().await?;
        self.follow(&process);
        self.process.get_or_init(|| process);
        Ok(Initialised::default())
    }

    async fn spawn(&self, mut command: Command) -> Result<Process, String> {
        let setup =
            |e: io::Error| format!("cannot connect to the executable: {e}; check the container's limit on files");
        let (stdin, requests) = io::pipe().map_err(setup)?;
        let (answers, answer_fd) = io::pipe().map_err(setup)?;
        let (stdout, stdout_fd) = io::pipe().map_err(setup)?;
        let (stderr, stderr_fd) = io::pipe().map_err(setup)?;
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout_fd)).stderr(Stdio::from(stderr_fd));
        let mapping = FdMapping { parent_fd: OwnedFd::from(answer_fd), child_fd: ANSWER_FD };
        command.fd_mappings(vec![mapping]).map_err(|e| format!("cannot give the executable fd {ANSWER_FD}: {e}"))?;
        // Taking the command ends this side's copies of the child's descriptors: their end is the child's end.
        let child = self.host.children.spawn(command).await?;
        let lines = &self.host.lines;
        Ok(Process {
            child,
            stdout: Pump::start(stdout, Stream::Stdout, lines.clone()).map_err(setup)?,
            stderr: Pump::start(stderr, Stream::Stderr, lines.clone()).map_err(setup)?,
            talk: Mutex::new(Talk {
                requests: pipe::Sender::from_owned_fd(OwnedFd::from(requests)).map_err(setup)?,
                answers: Answers::new(OwnedFd::from(answers)).map_err(setup)?,
            }),
        })
    }

    /// Tells the host when it ends, in a run or between two.
    fn follow(&self, process: &Process) {
        let (host, child, stderr) = (self.host.clone(), process.child.clone(), process.stderr.clone());
        tokio::spawn(async move {
            let how = child.ended().await;
            host.ended(&explained(how, &stderr));
        });
    }

    async fn answer(&self, process: &Process, call: &Call<'_>) -> Answer {
        let mut talk = process.talk.lock().await;
        if let Some(unasked) = talk.answers.unasked() {
            process.child.kill();
            let reason = format!("it wrote on fd {ANSWER_FD} without being asked: {unasked}");
            self.host.ended(&reason);
            return Answer::error(502, gate::ended(&reason));
        }
        process.stdout.attribute(Some(call.log.clone()));
        process.stderr.attribute(Some(call.log.clone()));
        let mut request = Vec::with_capacity(call.body.len() + 1);
        request.extend(call.body.iter().map(one_line));
        request.push(b'\n');
        let Talk { requests, answers } = &mut *talk;
        let exchange = async {
            // A failed write shows as its end.
            let _ = requests.write_all(&request).await;
            answers.next().await
        };
        let line = tokio::select! {
            biased;
            line = exchange => line,
            // It may have answered before it ended.
            _ = process.child.ended() => None,
        };
        let line = line.or_else(|| answers.waiting());
        process.stdout.attribute(None);
        process.stderr.attribute(None);
        match line {
            Some(Line::Text(line)) => judged(line),
            Some(Line::TooLong(bytes)) => too_large(bytes),
            None => {
                process.child.kill();
                let reason = explained(process.child.ended().await, &process.stderr);
                self.host.ended(&reason);
                Answer::error(502, gate::ended(&reason))
            }
        }
    }
}

impl Target for ActionLoop {
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>> {
        Box::pin(self.start(init))
    }

    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer> {
        Box::pin(async move {
            let answer = match self.process.get() {
                Some(process) => self.answer(process, &call).await,
                None => Answer::error(502, "the action is not initialised: send /init first"),
            };
            answer.with_lines(call.log.close())
        })
    }
}

impl Process {
    async fn await_readiness(&self) -> Result<(), String> {
        let mut talk = self.talk.lock().await;
        let first = tokio::select! {
            biased;
            how = self.child.ended() => Err(how),
            first = tokio::time::timeout(START_PATIENCE, talk.answers.first()) => Ok(first),
        };
        match first {
            // Silent or ready.
            Ok(Err(_) | Ok(Some(None))) => Ok(()),
            Ok(Ok(Some(Some(line)))) => {
                self.child.kill();
                Err(format!("the executable wrote on fd {ANSWER_FD} before it was asked: {}", shown(&line)))
            }
            Ok(Ok(None)) => {
                self.child.kill();
                Err(ended_at_start(self.child.ended().await, &self.stderr))
            }
            Err(how) => Err(ended_at_start(how, &self.stderr)),
        }
    }
}

/// fd 3, as lines.
#[derive(Debug)]
struct Answers {
    pipe: pipe::Receiver,
    buffer: LineBuffer,
    /// Whether the first line was seen, after which none is an acknowledgement.
    begun: bool,
    chunk: Box<[u8]>,
}

impl Answers {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let chunk = vec![0; CHUNK_BYTES].into_boxed_slice();
        let pipe = pipe::Receiver::from_owned_fd(fd)?;
        Ok(Self { pipe, buffer: LineBuffer::new(MAX_RESULT_BYTES), begun: false, chunk })
    }

    /// The first line: `Some(None)` if it is the acknowledgement, `None` at the end.
    async fn first(&mut self) -> Option<Option<Vec<u8>>> {
        let line = self.line().await?;
        self.begun = true;
        Some(match line {
            Line::Text(line) => (!is_acknowledgement(&line)).then_some(line),
            Line::TooLong(_) => Some(b"(a very long line)".to_vec()),
        })
    }

    /// The next answer; `None` when there will be none.
    async fn next(&mut self) -> Option<Line> {
        loop {
            let line = self.line().await?;
            if let Some(line) = self.accept(line) {
                return Some(line);
            }
        }
    }

    /// An answer that is there already.
    fn waiting(&mut self) -> Option<Line> {
        loop {
            let line = match self.buffer.next() {
                Some(line) => line,
                None if self.read_now().is_ok_and(|bytes| bytes > 0) => continue,
                None => return None,
            };
            if let Some(line) = self.accept(line) {
                return Some(line);
            }
        }
    }

    /// What was written since the last answer, apart from an acknowledgement.
    fn unasked(&mut self) -> Option<String> {
        self.waiting().map(|line| match line {
            Line::Text(line) => shown(&line),
            Line::TooLong(bytes) => format!("(a line of {bytes} bytes)"),
        })
    }

    fn accept(&mut self, line: Line) -> Option<Line> {
        let first = !std::mem::replace(&mut self.begun, true);
        match line {
            Line::Text(line) if first && is_acknowledgement(&line) => None,
            line => Some(line),
        }
    }

    async fn line(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.buffer.next() {
                return Some(line);
            }
            self.pipe.readable().await.ok()?;
            match self.pipe.try_read(&mut self.chunk) {
                Ok(0) => return None,
                Ok(bytes) => self.buffer.push(&self.chunk[..bytes]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
        }
    }

    fn read_now(&mut self) -> io::Result<usize> {
        let bytes = read_now(&self.pipe, &mut self.chunk)?;
        self.buffer.push(&self.chunk[..bytes]);
        Ok(bytes)
    }
}

/// JSON's strings hold no raw line breaks, so any in a valid body stand between its tokens.
pub(super) fn one_line(byte: &u8) -> u8 {
    if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }
}

/// How a process ended, with what it said last.
pub(super) fn explained(how: String, stderr: &Pump) -> String {
    stderr.drain();
    let tail = stderr.tail();
    if tail.is_empty() { how } else { format!("{how}; its last words: {tail}") }
}

fn ended_at_start(how: String, stderr: &Pump) -> String {
    let how = explained(how, stderr);
    format!(
        "the executable ended, or closed fd {ANSWER_FD}, at its start (is it one for this machine, and does it speak ActionLoop?): {how}"
    )
}

fn judged(line: Vec<u8>) -> Answer {
    let is_container = matches!(line.trim_ascii_start().first(), Some(b'{' | b'['));
    match serde_json::from_slice::<&RawValue>(&line) {
        Ok(_) if is_container => Answer::new(200, line),
        _ => Answer::error(502, format!("the action answered what is not a JSON object or array: {}", shown(&line))),
    }
}

fn is_acknowledgement(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| value == serde_json::json!({ "ok": true }))
}

fn shown(line: &[u8]) -> String {
    let cut = if line.len() > SHOWN_BYTES { "…" } else { "" };
    format!("{}{cut}", String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES)]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn answers() -> (Answers, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Answers::new(OwnedFd::from(reader)).unwrap(), writer)
    }

    #[tokio::test]
    async fn only_the_first_line_is_an_acknowledgement_however_late() {
        let (mut answers, mut writer) = answers();
        writer.write_all(b"{ \"ok\" : true }\n{\"a\":1}\n{\"ok\":true}\n").unwrap();
        assert_eq!(answers.next().await, Some(Line::Text(b"{\"a\":1}".to_vec())));
        assert_eq!(answers.next().await, Some(Line::Text(b"{\"ok\":true}".to_vec())));
        drop(writer);
        assert_eq!(answers.next().await, None);
    }

    #[tokio::test]
    async fn a_first_line_with_more_than_the_acknowledgement_is_an_answer() {
        let (mut answers, mut writer) = answers();
        writer.write_all(b"{\"ok\":true,\"n\":1}\n").unwrap();
        assert!(answers.next().await.is_some());
    }

    #[tokio::test]
    async fn a_line_that_nobody_asked_for_is_noticed_and_a_late_acknowledgement_is_not_one() {
        let (mut answers, mut writer) = answers();
        writer.write_all(b"{\"ok\":true}\n").unwrap();
        assert_eq!(answers.unasked(), None);
        writer.write_all(b"{\"n\":2}\n").unwrap();
        assert_eq!(answers.unasked().as_deref(), Some("{\"n\":2}"));
    }

    #[test]
    fn what_is_not_an_object_or_array_is_a_502_that_shows_it() {
        assert_eq!(judged(b" {\"a\":1}".to_vec()).status, 200);
        assert_eq!(judged(b"[]".to_vec()).status, 200);
        for line in [&b"7"[..], b"{\"a\":", b"", b"hello"] {
            let answer = judged(line.to_vec());
            assert_eq!(answer.status, 502);
            assert!(String::from_utf8_lossy(&answer.body).contains("JSON object or array"));
        }
    }
}
