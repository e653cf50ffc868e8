//! The node's seams to TCP and UDP, over turmoil's network. What goes wrong with single datagrams is made here, as
//! turmoil neither doubles them nor loses them alone.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use embermesh_node::gossip::{DatagramSocket, Datagrams};
use embermesh_node::net::{Listener, Net, Stream};
use tokio::sync::watch;
use tokio::time::sleep;
use turmoil::net::{TcpListener, TcpStream, UdpSocket, lookup_host};

use super::random::Random;
use super::witness::Witness;

/// Between two errors of a socket that is broken: time has to pass for what is done about it.
const BROKEN_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct SimulatedNet;

#[async_trait]
impl Net for SimulatedNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SimulatedListener(TcpListener::bind(at).await?)))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(TcpStream::connect(to).await?))
    }

    /// Calls come from the simulation itself.
    async fn listen_api(&self, _: SocketAddr) -> io::Result<Option<tokio::net::TcpListener>> {
        Ok(None)
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

/// What becomes of datagrams that a node sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Percent that are lost.
    pub loss: u64,
    /// Percent that come twice.
    pub twice: u64,
    /// Each is late by up to this: later ones overtake it.
    pub late_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct SimulatedDatagrams {
    air: Arc<Mutex<Air>>,
    /// No socket works, nor can one be opened.
    broken: watch::Sender<bool>,
    witness: Arc<Witness>,
}

#[derive(Debug)]
struct Air {
    weather: Weather,
    random: Random,
}

impl SimulatedDatagrams {
    pub(super) fn new(random: Random, witness: Arc<Witness>) -> Self {
        let air = Arc::new(Mutex::new(Air { weather: Weather::default(), random }));
        Self { air, broken: watch::Sender::new(false), witness }
    }

    pub(super) fn set(&self, weather: Weather) {
        self.air.lock().unwrap_or_else(PoisonError::into_inner).weather = weather;
    }

    pub(super) fn break_down(&self, broken: bool) {
        self.broken.send_replace(broken);
    }

    fn check(&self) -> io::Result<()> {
        if *self.broken.borrow() { Err(io::Error::other("the simulated socket is broken")) } else { Ok(()) }
    }

    /// How late each copy of the next datagram is.
    fn copies(&self) -> Vec<Duration> {
        let mut air = self.air.lock().unwrap_or_else(PoisonError::into_inner);
        let Air { weather, random } = &mut *air;
        if *weather == Weather::default() {
            return vec![Duration::ZERO];
        }
        let copies = if random.chance(weather.loss) { 0 } else { 1 + usize::from(random.chance(weather.twice)) };
        self.witness.note(["gossip: lost", "gossip: late", "gossip: twice"][copies]);
        (0..copies).map(|_| Duration::from_millis(random.below(weather.late_ms + 1))).collect()
    }
}

#[async_trait]
impl Datagrams for SimulatedDatagrams {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>> {
        self.check()?;
        let socket = Arc::new(UdpSocket::bind(listen).await?);
        Ok(Box::new(SimulatedSocket { socket, air: self.clone() }))
    }

    /// Names are those of the simulation's hosts: the real resolver would be asked in real time.
    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host(host_port).await?.collect())
    }
}

struct SimulatedSocket {
    socket: Arc<UdpSocket>,
    air: SimulatedDatagrams,
}

#[async_trait]
impl DatagramSocket for SimulatedSocket {
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.air.check()?;
        for late in self.air.copies() {
            if late.is_zero() {
                self.socket.send_to(datagram, to).await?;
                continue;
            }
            // Gone with its socket, like one that a crash overtakes.
            let (socket, datagram) = (Arc::downgrade(&self.socket), datagram.to_vec());
            tokio::spawn(async move {
                sleep(late).await;
                if let Some(socket) = socket.upgrade() {
                    socket.send_to(&datagram, to).await.ok();
                }
            });
        }
        Ok(())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut broken = self.air.broken.subscribe();
        tokio::select! {
            biased;
            () = async { drop(broken.wait_for(|broken| *broken).await) } => {
                sleep(BROKEN_PAUSE).await;
                Err(io::Error::other("the simulated socket is broken"))
            }
            received = self.socket.recv_from(buffer) => received,
        }
    }
}
