//! The task of one connection: it moves its bytes, and ends it when the other side has gone without a word.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::net::Stream;

/// A connection whose other side has gone without a word ends after these two.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
pub(super) const PING_PATIENCE: Duration = Duration::from_secs(2);

/// How often something came in on a connection.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicU64);

impl Heard {
    pub(super) fn listen_to(self: &Arc<Self>, stream: Box<dyn Stream>) -> Listened {
        Listened { stream, heard: self.clone() }
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Until it ends: by itself, by the other side's silence, or since nobody calls on it any more.
pub(super) async fn drive(mut connection: Connection<Listened, Bytes>, heard: Arc<Heard>, of: Weak<Shared>) {
    let _ending = Ending { heard: heard.clone(), of };
    let pings = connection.ping_pong();
    tokio::select! {
        // First what has come in: after a pause of this process an answer to a ping may be there already.
        biased;
        ended = connection => if let Err(error) = ended { tracing::debug!(%error, "a connection to a peer has broken") },
        () = silence(pings, &heard) => tracing::debug!("a connection to a peer has fallen silent"),
    }
}

/// Ends when a ping has no answer and nothing else came either.
async fn silence(pings: Option<PingPong>, heard: &Heard) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_EVERY).await;
        let mut before = heard.count();
        if pings.send_ping(Ping::opaque()).is_err() {
            return;
        }
        loop {
            match timeout(PING_PATIENCE, poll_fn(|context| pings.poll_pong(context))).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                // The answer may stand behind much else that is on its way.
                Err(_) if heard.count() > before => before = heard.count(),
                Err(_) => return,
            }
        }
    }
}

/// However the task ends, nobody calls on its connection afterwards.
struct Ending {
    heard: Arc<Heard>,
    of: Weak<Shared>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(shared) = self.of.upgrade() {
            shared.forget(&self.heard);
        }
    }
}

/// A stream that counts what comes in.
pub(super) struct Listened {
    stream: Box<dyn Stream>,
    heard: Arc<Heard>,
}

impl AsyncRead for Listened {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, to);
        if polled.is_ready() {
            self.heard.0.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Listened {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
