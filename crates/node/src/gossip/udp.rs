//! Datagrams in production: plain UDP.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::net::UdpSocket;

use super::transport::{DatagramSocket, Datagrams};

#[derive(Debug, Clone, Copy, Default)]
pub struct UdpDatagrams;

#[async_trait]
impl Datagrams for UdpDatagrams {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        Ok(Box::new(UdpSocket::bind(listen).await?))
    }
}

#[async_trait]
impl DatagramSocket for UdpSocket {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        UdpSocket::send_to(self, datagram, to).await.map(|_| ())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        UdpSocket::recv_from(self, buffer).await
    }
}
