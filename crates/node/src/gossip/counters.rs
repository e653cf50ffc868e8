//! What gossip counts: traffic in both directions, what was dropped and why, and how large the mesh is.
//!
//! Written by the transport and the gossip task, read by `status` and `/metrics`; all relaxed atomics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Why a datagram was dropped before chitchat saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// It ends before what it announces.
    Truncated,
    /// It is not Embermesh gossip.
    Foreign,
    /// Embermesh gossip in a format that this version does not know.
    Format,
    /// Another cluster's.
    Cluster,
    /// Its structure breaks the format.
    Malformed,
    /// A count or length over its bound, or a compression bomb.
    Oversize,
    /// Well formed, but no node says such things: tombstones, versions near overflow, unusable addresses.
    Implausible,
    /// It tells a node's own state to that node, which only a forger or a clash of identities does.
    AboutSelf,
}

impl DropReason {
    pub const ALL: [Self; 8] = [
        Self::Truncated,
        Self::Foreign,
        Self::Format,
        Self::Cluster,
        Self::Malformed,
        Self::Oversize,
        Self::Implausible,
        Self::AboutSelf,
    ];

    /// For metric labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Foreign => "foreign",
            Self::Format => "format",
            Self::Cluster => "cluster",
            Self::Malformed => "malformed",
            Self::Oversize => "oversize",
            Self::Implausible => "implausible",
            Self::AboutSelf => "about_self",
        }
    }
}

/// Shared by the transport, the gossip task and whoever shows them.
#[derive(Debug, Default)]
pub struct GossipCounters {
    sent_messages: AtomicU64,
    sent_bytes: AtomicU64,
    sent_acks: AtomicU64,
    send_errors: AtomicU64,
    received_messages: AtomicU64,
    received_bytes: AtomicU64,
    receive_errors: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    refused_nodes: AtomicU64,
    nodes: AtomicU64,
    digest_bytes: AtomicU64,
    digest_alarm: AtomicBool,
}

/// [`GossipCounters`] at one moment (each figure by itself: they are not read in one step).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipStats {
    pub sent_messages: u64,
    /// Datagram payloads, our header included, UDP and IP headers not.
    pub sent_bytes: u64,
    /// Sends that failed, timed out or did not fit into a datagram.
    pub send_errors: u64,
    /// Everything that arrived, dropped or not.
    pub received_messages: u64,
    pub received_bytes: u64,
    pub receive_errors: u64,
    /// By [`DropReason::ALL`]'s order.
    pub dropped: [u64; DropReason::ALL.len()],
    /// Times that a node in a peer's digest was not taken in because this gossip domain is full.
    pub refused_nodes: u64,
    /// Nodes known, dead ones not yet forgotten and this one included.
    pub nodes: u64,
    /// Estimated size of this node's digest, which every message but an Ack carries.
    pub digest_bytes: u64,
    /// The digest is over [`super::DIGEST_ALARM_BYTES`]: split the mesh into cells before it is full.
    pub digest_alarm: bool,
}

impl GossipStats {
    pub fn dropped_by(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

impl GossipCounters {
    pub fn snapshot(&self) -> GossipStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GossipStats {
            sent_messages: load(&self.sent_messages),
            sent_bytes: load(&self.sent_bytes),
            send_errors: load(&self.send_errors),
            received_messages: load(&self.received_messages),
            received_bytes: load(&self.received_bytes),
            receive_errors: load(&self.receive_errors),
            dropped: std::array::from_fn(|index| load(&self.dropped[index])),
            refused_nodes: load(&self.refused_nodes),
            nodes: load(&self.nodes),
            digest_bytes: load(&self.digest_bytes),
            digest_alarm: self.digest_alarm.load(Ordering::Relaxed),
        }
    }

    pub(super) fn sent(&self, bytes: usize, is_ack: bool) {
        add(&self.sent_messages, 1);
        add(&self.sent_bytes, bytes);
        add(&self.sent_acks, usize::from(is_ack));
    }

    pub(super) fn sent_acks(&self) -> u64 {
        self.sent_acks.load(Ordering::Relaxed)
    }

    pub(super) fn send_failed(&self) {
        add(&self.send_errors, 1);
    }

    pub(super) fn received(&self, bytes: usize) {
        add(&self.received_messages, 1);
        add(&self.received_bytes, bytes);
    }

    pub(super) fn receive_failed(&self) {
        add(&self.receive_errors, 1);
    }

    pub(super) fn dropped(&self, reason: DropReason) {
        add(&self.dropped[reason as usize], 1);
    }

    pub(super) fn refused(&self, nodes: usize) {
        add(&self.refused_nodes, nodes);
    }

    pub(super) fn sized(&self, nodes: usize, digest_bytes: usize, alarm: bool) {
        self.nodes.store(nodes as u64, Ordering::Relaxed);
        self.digest_bytes.store(digest_bytes as u64, Ordering::Relaxed);
        self.digest_alarm.store(alarm, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}
