//! What is counted, and how it is shown.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// What gossip did in one domain while it was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    pub nodes: usize,
    pub us: u64,
    pub bytes: u64,
    /// Of these, digests.
    pub digest_bytes: u64,
    pub datagrams: u64,
    pub largest: usize,
    /// From a value's publication until every other member was told of it or of a later one.
    pub took_us: Vec<u64>,
}

impl Spread {
    pub fn took_ms(&self, per_mille: usize) -> f64 {
        quantile(&self.took_us, per_mille) as f64 / 1_000.0
    }

    pub fn kb_per_node_s(&self) -> f64 {
        self.bytes as f64 / 1_000.0 / self.nodes as f64 / (self.us as f64 / 1e6)
    }

    /// Two domains side by side.
    pub(super) fn add(&mut self, other: Spread) {
        self.nodes += other.nodes;
        self.us = self.us.max(other.us);
        self.bytes += other.bytes;
        self.digest_bytes += other.digest_bytes;
        self.datagrams += other.datagrams;
        self.largest = self.largest.max(other.largest);
        self.took_us.extend(other.took_us);
    }

    pub fn head() -> String {
        "| nodes | known to all, p50 / p99 / max (ms) | sent per node (kB/s) | of it digests | largest datagram (B) |\n\
         | ---: | ---: | ---: | ---: | ---: |"
            .to_owned()
    }

    pub fn row(&self) -> String {
        format!(
            "| {} | {:.0} / {:.0} / {:.0} | {:.1} | {:.0} % | {} |",
            self.nodes,
            self.took_ms(500),
            self.took_ms(990),
            self.took_ms(1_000),
            self.kb_per_node_s(),
            100.0 * self.digest_bytes as f64 / self.bytes.max(1) as f64,
            self.largest
        )
    }
}

/// What came of one simulation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub nodes: usize,
    pub cells: usize,
    pub seconds: u64,
    /// At the end of it.
    pub containers: usize,
    pub spread: Spread,
    /// Values published, over all nodes.
    pub published: u64,
    /// Steps of all nodes.
    pub steps: u64,
    /// Activations that arrived, were answered, and were refused.
    pub arrived: u64,
    pub answered: u64,
    pub refused: u64,
    pub indeterminate: u64,
    /// Arrived where the node had no container of the action that was idle.
    pub none_here: u64,
    /// How each answered one came to its slot.
    pub served: BTreeMap<&'static str, u64>,
    /// Containers started, and evicted to make room.
    pub started: u64,
    pub evicted: u64,
    /// Reserves sent because gossip showed a free slot, and those of them that were refused.
    pub asked: u64,
    pub stale: u64,
    /// Between nodes, answers included; gossip is not.
    pub messages: u64,
    /// From arrival to the start of the run.
    pub waited_us: Vec<u64>,
}

impl Report {
    /// Containers started for each activation answered.
    pub fn cold_share(&self) -> f64 {
        self.started as f64 / self.answered.max(1) as f64
    }

    /// What it would have been if each node had only its own.
    pub fn alone_share(&self) -> f64 {
        self.none_here as f64 / self.arrived.max(1) as f64
    }

    pub fn stale_share(&self) -> f64 {
        self.stale as f64 / self.asked.max(1) as f64
    }

    pub fn messages_each(&self) -> f64 {
        self.messages as f64 / self.answered.max(1) as f64
    }

    pub fn waited_ms(&self, per_mille: usize) -> f64 {
        quantile(&self.waited_us, per_mille) as f64 / 1_000.0
    }

    pub fn head() -> String {
        "| nodes (cells) | containers | known to all, p50 / p99 / max (ms) | gossip sent per node (kB/s) \
         | largest datagram (B) | adverts published per s | core steps per node and s | refusals from stale adverts \
         | cold starts | idle one at the origin missing | messages per activation | waited, p50 / p99 (ms) \
         | answered / refused |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
            .to_owned()
    }

    pub fn row(&self) -> String {
        let mut row = format!("| {} ({}) | {} ", self.nodes, self.cells, self.containers);
        let seconds = self.seconds.max(1) as f64;
        let spread = &self.spread;
        let _ = write!(
            row,
            "| {:.0} / {:.0} / {:.0} | {:.1} | {} ",
            spread.took_ms(500),
            spread.took_ms(990),
            spread.took_ms(1_000),
            spread.kb_per_node_s(),
            spread.largest
        );
        let _ = write!(
            row,
            "| {:.0} | {:.0} | {:.2} % of {} | {:.2} % | {:.1} % | {:.2} | {:.1} / {:.0} | {} / {} |",
            self.published as f64 / seconds,
            self.steps as f64 / self.nodes as f64 / seconds,
            100.0 * self.stale_share(),
            self.asked,
            100.0 * self.cold_share(),
            100.0 * self.alone_share(),
            self.messages_each(),
            self.waited_ms(500),
            self.waited_ms(990),
            self.answered,
            self.refused
        );
        row
    }
}

/// What the table has no room for.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served: Vec<String> = self.served.iter().map(|(how, times)| format!("{how} {times}")).collect();
        write!(
            f,
            "{} arrived, {} answered ({}), {} refused, {} indeterminate; {} started, {} evicted; digests {} % of gossip",
            self.arrived,
            self.answered,
            served.join(", "),
            self.refused,
            self.indeterminate,
            self.started,
            self.evicted,
            100 * self.spread.digest_bytes / self.spread.bytes.max(1)
        )
    }
}

/// The largest of so many in a thousand of the smallest.
pub(super) fn quantile(of: &[u64], per_mille: usize) -> u64 {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * per_mille).div_ceil(1_000).max(1) - 1;
    sorted.get(place).copied().unwrap_or(0)
}
