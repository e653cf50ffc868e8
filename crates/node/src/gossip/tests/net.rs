//! A network in memory: datagrams arrive at once, or not at all.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::super::transport::{DatagramSocket, Datagrams};

type Datagram = (Vec<u8>, SocketAddr);

#[derive(Clone, Default)]
pub(super) struct Net(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sockets: HashMap<SocketAddr, mpsc::Sender<Arrival>>,
    cut: HashSet<SocketAddr>,
    names: HashMap<String, Vec<SocketAddr>>,
    refuse_open: HashSet<SocketAddr>,
    tapped: Option<Vec<Vec<u8>>>,
}

enum Arrival {
    Datagram(Datagram),
    Broken,
    Panic,
}

impl Net {
    /// Nothing reaches or leaves `address` any more.
    pub(super) fn cut(&self, address: SocketAddr) {
        self.with(|state| state.cut.insert(address));
    }

    pub(super) fn heal(&self, address: SocketAddr) {
        self.with(|state| state.cut.remove(&address));
    }

    pub(super) fn name(&self, name: &str, address: SocketAddr) {
        self.with(|state| state.names.insert(name.to_owned(), vec![address]));
    }

    pub(super) fn refuse_open(&self, address: SocketAddr, refuse: bool) {
        self.with(|state| {
            if refuse {
                state.refuse_open.insert(address);
            } else {
                state.refuse_open.remove(&address);
            }
        });
    }

    /// From now on every receive on the open socket fails.
    pub(super) fn break_socket(&self, address: SocketAddr) {
        self.arrive(address, Arrival::Broken);
    }

    /// The next receive panics, in the gossip task.
    pub(super) fn panic_at(&self, address: SocketAddr) {
        self.arrive(address, Arrival::Panic);
    }

    pub(super) fn inject(&self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.arrive(to, Arrival::Datagram((datagram, from)));
    }

    /// Keeps a copy of what is sent from now on.
    pub(super) fn tap(&self) {
        self.with(|state| state.tapped = Some(Vec::new()));
    }

    pub(super) fn tapped(&self) -> Vec<Vec<u8>> {
        self.with(|state| state.tapped.take().unwrap_or_default())
    }

    pub(super) fn is_open(&self, address: SocketAddr) -> bool {
        self.with(|state| state.sockets.get(&address).is_some_and(|socket| !socket.is_closed()))
    }

    /// Lets (virtual) time pass.
    pub(super) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn arrive(&self, to: SocketAddr, arrival: Arrival) {
        let socket = self.with(|state| state.sockets.get(&to).cloned());
        if let Some(socket) = socket {
            // A full socket buffer loses datagrams.
            let _ = socket.try_send(arrival);
        }
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Datagrams for Net {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        let (sender, receiver) = mpsc::channel(4096);
        self.with(|state| {
            let used = state.sockets.get(&listen).is_some_and(|socket| !socket.is_closed());
            if used || state.refuse_open.contains(&listen) {
                return Err(io::Error::from(io::ErrorKind::AddrInUse));
            }
            state.sockets.insert(listen, sender);
            Ok(())
        })?;
        Ok(Box::new(MemorySocket {
            net: self.clone(),
            address: listen,
            receiver: tokio::sync::Mutex::new((receiver, false)),
        }))
    }

    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        self.with(|state| state.names.get(host_port).cloned())
            .ok_or_else(|| io::Error::other("no such name in this test"))
    }
}

struct MemorySocket {
    net: Net,
    address: SocketAddr,
    receiver: tokio::sync::Mutex<(mpsc::Receiver<Arrival>, bool)>,
}

#[async_trait]
impl DatagramSocket for MemorySocket {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let lost = self.net.with(|state| {
            if let Some(tapped) = &mut state.tapped {
                tapped.push(datagram.to_vec());
            }
            state.cut.contains(&to) || state.cut.contains(&self.address)
        });
        if !lost {
            self.net.inject(self.address, to, datagram.to_vec());
        }
        Ok(())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut receiver = self.receiver.lock().await;
        if receiver.1 {
            return Err(io::Error::other("this test broke the socket"));
        }
        match receiver.0.recv().await {
            Some(Arrival::Datagram((datagram, from))) => {
                let length = datagram.len().min(buffer.len());
                buffer[..length].copy_from_slice(&datagram[..length]);
                Ok((length, from))
            }
            Some(Arrival::Broken) | None => {
                receiver.1 = true;
                Err(io::Error::other("this test broke the socket"))
            }
            Some(Arrival::Panic) => panic!("this test makes the gossip task panic"),
        }
    }
}
