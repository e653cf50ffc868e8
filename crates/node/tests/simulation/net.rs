//! The node's seams to TCP and UDP, over turmoil's network.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use embermesh_node::gossip::{DatagramSocket, Datagrams};
use embermesh_node::net::{Listener, Net, Stream};
use turmoil::net::{TcpListener, TcpStream, UdpSocket, lookup_host};

#[derive(Debug)]
pub(crate) struct SimulatedNet;

#[async_trait]
impl Net for SimulatedNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SimulatedListener(TcpListener::bind(at).await?)))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(TcpStream::connect(to).await?))
    }
}

struct SimulatedListener(TcpListener);

#[async_trait]
impl Listener for SimulatedListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        Ok((Box::new(stream), from))
    }
}

#[derive(Debug)]
pub(crate) struct SimulatedDatagrams;

#[async_trait]
impl Datagrams for SimulatedDatagrams {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        Ok(Box::new(SimulatedSocket(UdpSocket::bind(listen).await?)))
    }

    /// Names are those of the simulation's hosts: the real resolver would be asked in real time.
    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host(host_port).await?.collect())
    }
}

struct SimulatedSocket(UdpSocket);

#[async_trait]
impl DatagramSocket for SimulatedSocket {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.0.send_to(datagram, to).await.map(drop)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer).await
    }
}
