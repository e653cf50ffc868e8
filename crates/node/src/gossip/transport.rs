//! The seam below chitchat: our datagrams, our header, our counters; encryption will come in here.
//!
//! Each datagram is `EMBR`, a format version, eight bytes of the hash of the cluster's name, then a chitchat
//! message. What is foreign, newer, broken or harmful is counted by reason and dropped; nothing that arrives
//! from outside ends the gossip task.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatId, ChitchatMessage, Deserializable, Serializable};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::counters::{DropReason, GossipCounters};
use super::roster::Roster;
use super::seeds::SeedTable;
use super::wire::{self, Kind};

/// Opens sockets and resolves names. Production uses [`super::UdpDatagrams`]; tests and simulations bring their own.
#[async_trait]
pub trait Datagrams: Send + Sync + 'static {
    async fn open(&self, listen: SocketAddr) -> io::Result<Box<dyn DatagramSocket>>;

    /// The addresses of a seed given as `host:port`.
    async fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(host_port).await?.collect())
    }
}

/// An open socket; closed when dropped.
#[async_trait]
pub trait DatagramSocket: Send + Sync + 'static {
    /// Errors are counted and otherwise ignored: gossip will try again by itself.
    async fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()>;

    /// Must lose nothing when the returned future is dropped. After several errors in a row the socket is
    /// taken for broken and opened anew.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
}

pub(super) const HEADER_BYTES: usize = 13;
const MAGIC: [u8; 4] = *b"EMBR";
const FORMAT_VERSION: u8 = 1;
/// The largest UDP payload over IPv4.
const MAX_DATAGRAM_BYTES: usize = 65_507;
/// UDP sends wait only while the socket's buffer is full.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_ERRORS_IN_A_ROW: u32 = 16;

/// What the transport shares with the gossip task.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) cluster: String,
    pub(super) counters: GossipCounters,
    pub(super) roster: Mutex<Roster>,
    pub(super) seeds: Mutex<SeedTable>,
    /// Rung at every Ack sent: the last step of passing our own news on.
    pub(super) ack_sent: Notify,
}

impl Wiring {
    pub(super) fn with_roster<T>(&self, use_it: impl FnOnce(&mut Roster) -> T) -> T {
        use_it(&mut self.roster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn with_seeds<T>(&self, use_it: impl FnOnce(&mut SeedTable) -> T) -> T {
        use_it(&mut self.seeds.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// chitchat's view of [`Datagrams`], for one incarnation of this node.
pub(super) struct Seam {
    datagrams: Arc<dyn Datagrams>,
    wiring: Arc<Wiring>,
    me: Vec<u8>,
}

impl Seam {
    pub(super) fn new(datagrams: Arc<dyn Datagrams>, wiring: Arc<Wiring>, me: &ChitchatId) -> Self {
        Self { datagrams, wiring, me: me.serialize_to_vec() }
    }
}

#[async_trait]
impl Transport for Seam {
    async fn open(&self, listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.datagrams.open(listen).await?;
        Ok(Box::new(SeamSocket {
            socket,
            header: header(&self.wiring.cluster),
            wiring: self.wiring.clone(),
            me: self.me.clone(),
            outgoing: Vec::new(),
            incoming: vec![0; MAX_DATAGRAM_BYTES + 1].into_boxed_slice(),
            errors_in_a_row: 0,
        }))
    }
}

struct SeamSocket {
    socket: Box<dyn DatagramSocket>,
    header: [u8; HEADER_BYTES],
    wiring: Arc<Wiring>,
    me: Vec<u8>,
    outgoing: Vec<u8>,
    incoming: Box<[u8]>,
    errors_in_a_row: u32,
}

#[async_trait]
impl Socket for SeamSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&self.header);
        message.serialize(&mut self.outgoing);
        let is_ack = matches!(message, ChitchatMessage::Ack { .. });
        let failure = if self.outgoing.len() > MAX_DATAGRAM_BYTES {
            Some(io::Error::other(format!("{} bytes do not fit into a datagram", self.outgoing.len())))
        } else {
            match timeout(SEND_TIMEOUT, self.socket.send_to(to, &self.outgoing)).await {
                Ok(result) => result.err(),
                Err(_) => Some(io::ErrorKind::TimedOut.into()),
            }
        };
        match failure {
            None => {
                self.wiring.counters.sent(self.outgoing.len(), is_ack);
                if is_ack {
                    self.wiring.ack_sent.notify_waiters();
                }
            }
            // Not passed on: chitchat would do nothing but warn, for each peer in each round.
            Some(error) => {
                self.wiring.counters.send_failed();
                tracing::debug!(%to, %error, "gossip not sent");
            }
        }
        Ok(())
    }

    /// May be dropped at its only await, which loses nothing.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.incoming).await {
                Ok(received) => received,
                Err(error) => {
                    self.wiring.counters.receive_failed();
                    self.errors_in_a_row += 1;
                    if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW {
                        return Err(error.into());
                    }
                    continue;
                }
            };
            self.errors_in_a_row = 0;
            self.wiring.counters.received(length);
            let datagram = &self.incoming[..length.min(self.incoming.len())];
            match accept(datagram, &self.header, &self.wiring, &self.me) {
                Ok(message) => {
                    self.wiring.with_seeds(|seeds| seeds.heard(from));
                    return Ok((from, message));
                }
                Err(reason) => {
                    self.wiring.counters.dropped(reason);
                    tracing::debug!(%from, length, reason = reason.name(), "gossip dropped");
                }
            }
        }
    }
}

pub(super) fn header(cluster: &str) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = FORMAT_VERSION;
    header[5..].copy_from_slice(&blake3::hash(cluster.as_bytes()).as_bytes()[..8]);
    header
}

/// The message in a datagram, as far as chitchat may read it.
pub(super) fn accept(
    datagram: &[u8],
    header: &[u8; HEADER_BYTES],
    wiring: &Wiring,
    me: &[u8],
) -> Result<ChitchatMessage, DropReason> {
    let body = behind_header(datagram, header)?;
    let inspected = wire::inspect(body, &wiring.cluster, me)?;
    let now = Instant::now();
    let keep: Vec<bool> = wiring.with_roster(|roster| {
        inspected.entries.iter().map(|entry| roster.admits(&body[entry.id.clone()], now)).collect()
    });
    let refused = keep.iter().filter(|kept| !**kept).count();
    let message = if refused == 0 {
        whole(body)
    } else {
        wiring.counters.refused(refused);
        whole(&wire::without_entries(body, &inspected.entries, &keep))
    }?;
    let same_kind = matches!(
        (&message, inspected.kind),
        (ChitchatMessage::Syn { .. }, Kind::Syn)
            | (ChitchatMessage::SynAck { .. }, Kind::SynAck)
            | (ChitchatMessage::Ack { .. }, Kind::Ack)
    );
    if same_kind { Ok(message) } else { Err(DropReason::Malformed) }
}

fn behind_header<'a>(datagram: &'a [u8], header: &[u8; HEADER_BYTES]) -> Result<&'a [u8], DropReason> {
    let shared = datagram.len().min(MAGIC.len());
    if datagram[..shared] != MAGIC[..shared] {
        return Err(DropReason::Foreign);
    }
    let Some((theirs, body)) = datagram.split_at_checked(HEADER_BYTES) else {
        return Err(DropReason::Truncated);
    };
    if theirs[4] != header[4] {
        return Err(DropReason::Format);
    }
    if theirs != header { Err(DropReason::Cluster) } else { Ok(body) }
}

fn whole(mut body: &[u8]) -> Result<ChitchatMessage, DropReason> {
    let message = ChitchatMessage::deserialize(&mut body).map_err(|_| DropReason::Malformed)?;
    if body.is_empty() { Ok(message) } else { Err(DropReason::Malformed) }
}
