//! What comes from the addresses of the engine's own containers is hung up on, or dropped: their code may reach the world,
//! not the agent that runs it. Here for peers' connections and for gossip; the API asks the engine itself.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::TcpListener;

use crate::containers::Engine;
use crate::gossip::{DatagramSocket, Datagrams};
use crate::net::{Listener, Net, Stream};

/// A seam whose visitors the engine is asked about.
pub(crate) struct Barred<T> {
    inner: T,
    engine: Arc<dyn Engine>,
}

impl<T> Barred<T> {
    pub(crate) fn new(inner: T, engine: Arc<dyn Engine>) -> Self {
        Self { inner, engine }
    }

    fn admits(&self, from: SocketAddr) -> bool {
        let barred = self.engine.bars(from.ip());
        if barred {
            tracing::debug!(%from, "a container spoke to the mesh port: it gets no answer");
        }
        !barred
    }
}

impl<T: fmt::Debug> fmt::Debug for Barred<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Barred").field(&self.inner).finish()
    }
}

#[async_trait]
impl Net for Barred<Arc<dyn Net>> {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Barred::new(self.inner.listen(at).await?, self.engine.clone())))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        self.inner.connect(to).await
    }

    async fn listen_api(&self, at: SocketAddr) -> io::Result<Option<TcpListener>> {
        self.inner.listen_api(at).await
    }
}

#[async_trait]
impl Listener for Barred<Box<dyn Listener>> {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        loop {
            let (stream, from) = self.inner.accept().await?;
            if self.admits(from) {
                return Ok((stream, from));
            }
        }
    }
}

#[async_trait]
impl Datagrams for Barred<Arc<dyn Datagrams>> {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        Ok(Box::new(Barred::new(self.inner.open(listen).await?, self.engine.clone())))
    }

    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        self.inner.resolve(host_port).await
    }
}

#[async_trait]
impl DatagramSocket for Barred<Box<dyn DatagramSocket>> {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.inner.send_to(to, datagram).await
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let (length, from) = self.inner.recv_from(buffer).await?;
            if self.admits(from) {
                return Ok((length, from));
            }
        }
    }
}
