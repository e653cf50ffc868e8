//! Gossip's datagrams with faults: lost, late or twice.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::{Faults, Way};
use crate::gossip::{DatagramSocket, Datagrams};

/// Datagrams held back at a time; more are lost.
const MAX_HELD: usize = 4096;

pub(super) struct FaultyDatagrams {
    inner: Arc<dyn Datagrams>,
    faults: Arc<Faults>,
}

impl FaultyDatagrams {
    pub(super) fn new(inner: Arc<dyn Datagrams>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Datagrams for FaultyDatagrams {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        let inner: Arc<dyn DatagramSocket> = Arc::from(self.inner.open(listen).await?);
        let held = Arc::new(Semaphore::new(MAX_HELD));
        Ok(Box::new(FaultySocket { inner, faults: self.faults.clone(), held }))
    }

    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        self.inner.resolve(host_port).await
    }
}

struct FaultySocket {
    inner: Arc<dyn DatagramSocket>,
    faults: Arc<Faults>,
    held: Arc<Semaphore>,
}

#[async_trait]
impl DatagramSocket for FaultySocket {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let fate = self.faults.fate(to, Way::Send);
        for _ in 0..fate.copies {
            if fate.delay.is_zero() {
                self.inner.send_to(to, datagram).await?;
            } else if let Ok(permit) = self.held.clone().try_acquire_owned() {
                let (inner, datagram) = (self.inner.clone(), datagram.to_vec());
                tokio::spawn(async move {
                    sleep(fate.delay).await;
                    inner.send_to(to, &datagram).await.ok();
                    drop(permit);
                });
            }
        }
        Ok(())
    }

    /// What arrives is lost or taken; to delay or double it is its sender's part.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let (bytes, from) = self.inner.recv_from(buffer).await?;
            if self.faults.fate(from, Way::Receive).copies > 0 {
                return Ok((bytes, from));
            }
        }
    }
}
