//! Faults made on purpose, for chaos tests: only in agents started with `--enable-fault-injection`.
//!
//! [`Faults`] is the table of what goes wrong at this node; the wrappers around its seams look at it: `net` (TCP),
//! `datagrams` (gossip), `engine`, and the adjustable [`Clock`]. Without fault injection none of them is there.
//!
//! A link's faults concern what this node sends to a peer, and what it receives from it, on connections that this
//! node made and in datagrams. Connections that the peer made are the peer's to break: to cut a link one way, cut
//! `send` at one end and `receive` at the other; to cut it altogether, cut both at both ends.

mod datagrams;
mod engine;
mod net;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::containers::Engine;
use crate::gossip::Datagrams;
use crate::net::Net;

/// What is cut is looked at again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Longest delay of a link.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// What goes wrong at this node now.
#[derive(Debug)]
pub struct Faults {
    links: Mutex<BTreeMap<SocketAddr, LinkFault>>,
    engine_stalled: AtomicBool,
    clock: Clock,
    random: AtomicU64,
}

/// What goes wrong between this node and one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkFault {
    pub send: Direction,
    pub receive: Direction,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Direction {
    /// Nothing passes: connections stand still, datagrams are lost.
    pub cut: bool,
    /// What passes is held back for so long; at most a minute.
    pub delay_ms: u64,
    /// Share of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// Share of datagrams that come twice, 0 to 1.
    pub duplicate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Send,
    Receive,
}

/// What becomes of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    /// 0 if it is lost.
    copies: usize,
    delay: Duration,
}

impl Direction {
    /// Why it can't be.
    pub fn check(&self) -> Result<(), String> {
        for (name, share) in [("loss", self.loss), ("duplicate", self.duplicate)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("`{name}` {share} is no share: give 0 to 1"));
            }
        }
        if self.delay() > MAX_DELAY {
            return Err(format!("`delay_ms` {} is over a minute: cut the link instead", self.delay_ms));
        }
        Ok(())
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }
}

impl Faults {
    /// A table without faults. `clock` is the node's, made by [`Clock::adjustable`]; `seed` decides what is lost.
    pub fn new(clock: Clock, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::default(),
            engine_stalled: AtomicBool::new(false),
            clock,
            // Seeds that are small or alike begin far apart; 0 would stay 0.
            random: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        })
    }

    pub fn net(self: &Arc<Self>, inner: Arc<dyn Net>) -> Arc<dyn Net> {
        Arc::new(net::FaultyNet::new(inner, self.clone()))
    }

    pub fn datagrams(self: &Arc<Self>, inner: Arc<dyn Datagrams>) -> Arc<dyn Datagrams> {
        Arc::new(datagrams::FaultyDatagrams::new(inner, self.clone()))
    }

    pub fn engine(self: &Arc<Self>, inner: Arc<dyn Engine>) -> Arc<dyn Engine> {
        Arc::new(engine::FaultyEngine::new(inner, self.clone()))
    }

    /// Replaces the link's faults; without any the link is whole again.
    pub(crate) fn set_link(&self, peer: SocketAddr, fault: LinkFault) {
        if fault == LinkFault::default() {
            self.links().remove(&peer);
        } else {
            self.links().insert(peer, fault);
        }
    }

    pub(crate) fn set_drift(&self, ppm: i64) {
        self.clock.set_drift(ppm);
    }

    pub(crate) fn stall_engine(&self, stalled: bool) {
        self.engine_stalled.store(stalled, Ordering::Relaxed);
    }

    /// Everything is whole again, and the clock runs at its own rate.
    pub(crate) fn heal(&self) {
        self.links().clear();
        self.stall_engine(false);
        self.set_drift(0);
    }

    pub(crate) fn links_shown(&self) -> BTreeMap<SocketAddr, LinkFault> {
        self.links().clone()
    }

    pub(crate) fn drift_ppm(&self) -> i64 {
        self.clock.drift_ppm()
    }

    pub(crate) fn engine_stalled(&self) -> bool {
        self.engine_stalled.load(Ordering::Relaxed)
    }

    fn direction(&self, peer: SocketAddr, way: Way) -> Direction {
        let link = self.links().get(&peer).copied().unwrap_or_default();
        match way {
            Way::Send => link.send,
            Way::Receive => link.receive,
        }
    }

    fn fate(&self, peer: SocketAddr, way: Way) -> Fate {
        let direction = self.direction(peer, way);
        let lost = direction.cut || self.happens(direction.loss);
        let copies = if lost { 0 } else { 1 + usize::from(self.happens(direction.duplicate)) };
        Fate { copies, delay: direction.delay() }
    }

    fn happens(&self, share: f64) -> bool {
        if share <= 0.0 {
            return false;
        }
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.store(x, Ordering::Relaxed);
        // The upper 53 bits make a fraction below 1.
        ((x >> 11) as f64) / ((1_u64 << 53) as f64) < share
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, LinkFault>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7412))
    }

    fn faults(fault: LinkFault) -> Arc<Faults> {
        let faults = Faults::new(Clock::adjustable(), 7);
        faults.set_link(peer(), fault);
        faults
    }

    #[tokio::test]
    async fn a_link_cut_one_way_loses_what_is_sent_and_takes_what_comes() {
        let cut = Direction { cut: true, ..Direction::default() };
        let faults = faults(LinkFault { send: cut, ..LinkFault::default() });
        assert_eq!(faults.fate(peer(), Way::Send).copies, 0);
        assert_eq!(faults.fate(peer(), Way::Receive).copies, 1);
        faults.heal();
        assert_eq!(faults.fate(peer(), Way::Send).copies, 1);
        assert!(faults.links_shown().is_empty());
    }

    #[tokio::test]
    async fn loss_and_duplication_come_at_their_shares() {
        let worse = Direction { loss: 0.3, duplicate: 0.5, ..Direction::default() };
        let faults = faults(LinkFault { send: worse, ..LinkFault::default() });
        let fates: Vec<usize> = (0..10_000).map(|_| faults.fate(peer(), Way::Send).copies).collect();
        let share = |copies: usize| fates.iter().filter(|c| **c == copies).count() as f64 / 10_000.0;
        assert!((share(0) - 0.3).abs() < 0.03, "{}", share(0));
        assert!((share(2) - 0.35).abs() < 0.03, "{}", share(2));
    }

    #[tokio::test]
    async fn the_same_seed_loses_the_same_datagrams_and_another_one_others() {
        let fates = |seed: u64| {
            let faults = Faults::new(Clock::adjustable(), seed);
            let worse = Direction { loss: 0.5, ..Direction::default() };
            faults.set_link(peer(), LinkFault { send: worse, ..LinkFault::default() });
            (0..64).map(|_| faults.fate(peer(), Way::Send).copies).collect::<Vec<_>>()
        };
        assert_eq!(fates(8), fates(8));
        assert_ne!(fates(8), fates(11));
    }

    #[test]
    fn what_is_no_share_or_too_long_is_named() {
        let odd = Direction { loss: 1.5, ..Direction::default() };
        assert!(odd.check().is_err_and(|said| said.contains("`loss` 1.5")));
        let long = Direction { delay_ms: 60_001, ..Direction::default() };
        assert!(long.check().is_err_and(|said| said.contains("60001")));
    }
}
