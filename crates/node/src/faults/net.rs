//! TCP with faults: connections that this node makes. What is cut stands still, as a lost route does; keep-alive and
//! deadlines find out.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Faults, LOOK_AGAIN, Way};
use crate::net::{Listener, Net, Stream};

pub(super) struct FaultyNet {
    inner: Arc<dyn Net>,
    faults: Arc<Faults>,
}

impl FaultyNet {
    pub(super) fn new(inner: Arc<dyn Net>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

impl fmt::Debug for FaultyNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyNet").field(&self.inner).finish()
    }
}

#[async_trait]
impl Net for FaultyNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(at).await
    }

    async fn listen_api(&self, at: SocketAddr) -> io::Result<Option<TcpListener>> {
        self.inner.listen_api(at).await
    }

    /// A handshake takes both directions. The caller bounds the wait.
    async fn connect(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        while self.faults.direction(to, Way::Send).cut || self.faults.direction(to, Way::Receive).cut {
            sleep(LOOK_AGAIN).await;
        }
        let inner = self.inner.connect(to).await?;
        let held = |way| Held { faults: self.faults.clone(), peer: to, way, until: None };
        Ok(Box::new(FaultyStream { inner, send: held(Way::Send), receive: held(Way::Receive) }))
    }
}

struct FaultyStream {
    inner: Box<dyn Stream>,
    send: Held,
    receive: Held,
}

/// Holds one direction of a connection back.
struct Held {
    faults: Arc<Faults>,
    peer: SocketAddr,
    way: Way,
    until: Option<Pin<Box<Sleep>>>,
}

impl Held {
    /// Ready when the next bytes may pass.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(until) = &mut self.until {
                std::task::ready!(until.as_mut().poll(cx));
                self.until = None;
                if !self.faults.direction(self.peer, self.way).cut {
                    return Poll::Ready(());
                }
            }
            let direction = self.faults.direction(self.peer, self.way);
            let wait = if direction.cut { LOOK_AGAIN } else { direction.delay() };
            if wait.is_zero() {
                return Poll::Ready(());
            }
            self.until = Some(Box::pin(sleep_until(Instant::now() + wait)));
        }
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let cut = this.receive.faults.direction(this.receive.peer, Way::Receive).cut;
        if cut || this.receive.until.is_some() {
            std::task::ready!(this.receive.poll(cx));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        std::task::ready!(this.send.poll(cx));
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
