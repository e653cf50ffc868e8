//! The conversation with a launcher: JSON lines both ways over one socket, many calls at once, told apart by number.
//!
//! ```text
//! -> {"id":0,"init":{"file","main","env","concurrency","framed","max_result_bytes"}}
//! <- {"id":0,"status":200|502,"lines":0,"body":{…}}
//! -> {"id":7,"run":{the /run request}}
//! <- {"id":7,"status":200|502,"lines":2,"body":{…}}    the log is ended
//! <- {"id":7,"status":400,"lines":0,"body":{…}}        the request can't be read; the log is not ended
//! ```
//!
//! The end of the socket ends the launcher.

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::JoinHandle;

use super::actionloop::one_line;
use super::line_buffer::{Line, LineBuffer};
use crate::contract::MAX_RESULT_BYTES;

/// A result and what stands around it.
const MAX_ANSWER_BYTES: usize = MAX_RESULT_BYTES + 1024;
const CHUNK_BYTES: usize = 16 * 1024;

/// Who waits for which answer.
type Waiting = HashMap<u64, oneshot::Sender<Reply>>;

/// A launcher's answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) lines: u32,
    pub(super) body: Bytes,
}

#[derive(Debug, Clone)]
pub(super) struct Channel {
    writer: Arc<AsyncMutex<OwnedWriteHalf>>,
    /// As many as there are runs in progress, which the gate bounds. `None` once there is nobody to answer.
    waiting: Arc<Mutex<Option<Waiting>>>,
    next: Arc<AtomicU64>,
}

impl Channel {
    /// Starts to listen. The task ends with the socket and says why.
    pub(super) fn open(socket: StdUnixStream) -> io::Result<(Self, JoinHandle<String>)> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let channel = Self {
            writer: Arc::new(AsyncMutex::new(writer)),
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
            next: Arc::new(AtomicU64::new(0)),
        };
        let listening = tokio::spawn(channel.clone().listen(reader));
        Ok((channel, listening))
    }

    /// Sends `body` under `name` and waits for its answer; `None` if the launcher ends before.
    pub(super) async fn call(&self, name: &str, body: &[u8]) -> Option<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        self.with_waiting(|waiting| waiting.insert(id, sender))?;
        let mut message = Vec::with_capacity(body.len() + 48);
        message.extend_from_slice(format!("{{\"id\":{id},\"{name}\":").as_bytes());
        message.extend(body.iter().map(one_line));
        message.extend_from_slice(b"}\n");
        // A failed write shows as the launcher's end, which drops the sender.
        let _ = self.writer.lock().await.write_all(&message).await;
        reply.await.ok()
    }

    /// Nobody will answer any more: everyone who waits is told so.
    pub(super) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn listen(self, mut reader: OwnedReadHalf) -> String {
        let mut buffer = LineBuffer::new(MAX_ANSWER_BYTES);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match reader.read(&mut chunk).await {
                Ok(0) => return "it closed its channel".to_owned(),
                Ok(bytes) => buffer.push(&chunk[..bytes]),
                Err(e) => return format!("its channel broke: {e}"),
            }
            while let Some(line) = buffer.next() {
                if let Err(reason) = self.deliver(line) {
                    return reason;
                }
            }
        }
    }

    fn deliver(&self, line: Line) -> Result<(), String> {
        let line = match line {
            Line::Text(line) => line,
            Line::TooLong(bytes) => return Err(format!("it wrote {bytes} bytes on its channel in one line")),
        };
        let message: Message<'_> =
            serde_json::from_slice(&line).map_err(|e| format!("it wrote rubbish on its channel: {e}"))?;
        let reply = Reply {
            status: message.status,
            lines: message.lines,
            body: Bytes::copy_from_slice(message.body.get().as_bytes()),
        };
        if let Some(Some(sender)) = self.with_waiting(|waiting| waiting.remove(&message.id)) {
            let _ = sender.send(reply);
        }
        Ok(())
    }

    fn with_waiting<T>(&self, f: impl FnOnce(&mut Waiting) -> T) -> Option<T> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(f)
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    id: u64,
    status: u16,
    lines: u32,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    #[tokio::test]
    async fn answers_find_their_callers_in_whatever_order_they_come() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let (channel, _listening) = Channel::open(ours).unwrap();
        let launcher = std::thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let second = lines.next().unwrap().unwrap();
            assert_eq!(first, r#"{"id":0,"run":{ "a":1}}"#, "a request is one line");
            assert!(second.starts_with(r#"{"id":1,"#));
            for id in [1, 0] {
                writeln!(&theirs, r#"{{"id":{id},"status":200,"lines":{id},"body":{{"id":{id}}}}}"#).unwrap();
            }
        });
        let (first, second) = tokio::join!(channel.call("run", b"{\n\"a\":1}"), channel.call("run", b"{}"));
        assert_eq!(&first.unwrap().body[..], br#"{"id":0}"#);
        assert_eq!(second.unwrap().lines, 1);
        launcher.join().unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_channel_is_told_to_those_who_wait_and_those_who_come_later() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let (channel, listening) = Channel::open(ours).unwrap();
        drop(theirs);
        assert_eq!(listening.await.unwrap(), "it closed its channel");
        let waiting = channel.clone();
        let call = tokio::spawn(async move { waiting.call("run", b"{}").await.is_none() });
        tokio::task::yield_now().await;
        channel.close();
        assert!(call.await.unwrap());
        assert!(channel.call("run", b"{}").await.is_none());
    }
}
