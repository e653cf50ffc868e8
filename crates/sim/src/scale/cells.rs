//! Beyond one gossip domain: cells, each a domain of its own, and gateways that belong to a second domain as well. A
//! gateway tells the gateways what its cell is like, and its cell what the others are like.
//!
//! This plays the gossip of it: how long news of one cell take to every node of all others, and what gateways pay. No
//! agent does this yet.

use embermesh_core::time::{MS, SECOND};

use super::Random;
use super::gossip::{Domain, Key, News};
use super::tally::{Spread, quantile};

const MEMBERS: usize = 100;
const GATEWAYS: usize = 3;
/// How often a gateway looks at what it has to pass on, and tells it if it has changed.
const PASS_ON_US: u64 = 500 * MS;

/// What was counted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cells {
    cells: usize,
    /// Of one cell, and of the gateways' own domain.
    inside: Spread,
    between: Spread,
    /// From a cell's change until every node of all cells was told of it.
    took_us: Vec<u64>,
}

pub fn head() -> String {
    "| nodes in cells | a cell's news known to every node, p50 / p99 / max (ms) | sent per node, in its cell (kB/s) \
     | sent per gateway besides (kB/s) |\n| --- | ---: | ---: | ---: |"
        .to_owned()
}

impl Cells {
    pub fn row(&self) -> String {
        let took = |per_mille| quantile(&self.took_us, per_mille) as f64 / 1_000.0;
        format!(
            "| {} in {} cells | {:.0} / {:.0} / {:.0} | {:.1} | {:.1} |",
            self.cells * MEMBERS,
            self.cells,
            took(500),
            took(990),
            took(1_000),
            self.inside.kb_per_node_s(),
            self.between.kb_per_node_s()
        )
    }

    pub fn slowest_ms(&self) -> u64 {
        quantile(&self.took_us, 1_000) / MS
    }
}

/// Cells of 100 nodes with three gateways each, whose members change an advert each second. What a cell is like changes
/// every two seconds.
///
/// Two cells are played, the one that has news and one that hears of them; the others are as the second.
pub fn gateways(cells: usize, seconds: u64, seed: u64) -> Cells {
    let mut world = World::new(cells, seed);
    let mut random = Random::new(seed, 5);
    let mut inner: Vec<u64> = (0..MEMBERS).map(|_| random.below(SECOND)).collect();
    let (from, until) = (5 * SECOND, (5 + seconds) * SECOND);
    let mut changed_at = Vec::new();
    let mut took_us = Vec::new();
    let mut next_change = from + random.below(SECOND);
    while world.now < until {
        let due = inner.iter().copied().min().unwrap_or(u64::MAX).min(next_change).min(world.next_at());
        world.now = due;
        for domain in world.all() {
            domain.count(due >= from);
        }
        if due == next_change {
            changed_at.push(due);
            world.change(changed_at.len());
            next_change += 2 * SECOND + random.below(250 * MS);
        } else if let Some(member) = inner.iter().position(|at| *at == due) {
            inner[member] += SECOND;
            let text = format!("{:08},1,0,0,{}", member * 7_919, due / SECOND % 4);
            for domain in [&mut world.here, &mut world.there] {
                domain.set(due, member, Key::advert((due / SECOND % 10) as usize), text.clone(), News::Other);
            }
        } else {
            took_us.extend(world.step().map(|nth| due - changed_at[nth - 1]));
        }
    }
    let mut spreads = [&mut world.here, &mut world.between].map(|domain| std::mem::take(&mut domain.spread));
    for spread in &mut spreads {
        spread.us = until - from;
    }
    let [inside, between] = spreads;
    Cells { cells, inside, between, took_us }
}

struct World {
    now: u64,
    /// The cell with news, the gateways, and one of the cells that hear of them.
    here: Domain,
    between: Domain,
    there: Domain,
    cells: usize,
    /// The news that each of the first cell's gateways, each of the other's, and each of the other's members have.
    sent: [usize; GATEWAYS],
    passed: [usize; GATEWAYS],
    heard: Vec<usize>,
    looks: Vec<u64>,
    now_is: usize,
    known_to_all: usize,
}

impl World {
    fn new(cells: usize, seed: u64) -> Self {
        let names = |prefix: &str, count| (0..count).map(|n| format!("{prefix}{n}")).collect();
        let mut random = Random::new(seed, 6);
        Self {
            now: 0,
            here: Domain::new(names("a", MEMBERS), seed),
            between: Domain::new(names("g", cells * GATEWAYS), seed + 1),
            there: Domain::new(names("b", MEMBERS), seed + 2),
            cells,
            sent: [0; GATEWAYS],
            passed: [0; GATEWAYS],
            heard: vec![0; MEMBERS],
            looks: (0..2 * GATEWAYS).map(|_| random.below(PASS_ON_US)).collect(),
            now_is: 0,
            known_to_all: 0,
        }
    }

    fn all(&mut self) -> [&mut Domain; 3] {
        [&mut self.here, &mut self.between, &mut self.there]
    }

    fn next_at(&self) -> u64 {
        let domains = [&self.here, &self.between, &self.there].map(Domain::next_at);
        domains.into_iter().chain(self.looks.iter().copied()).min().unwrap_or(u64::MAX)
    }

    /// The first cell is another by now; its gateways will notice at their next look.
    fn change(&mut self, nth: usize) {
        self.now_is = nth;
    }

    /// The next thing. The numbers of changes that every member of the other cell knows of by it.
    fn step(&mut self) -> std::ops::Range<usize> {
        let nothing = 0..0;
        if let Some(gateway) = self.looks.iter().position(|at| *at == self.now) {
            self.looks[gateway] += PASS_ON_US;
            self.pass_on(gateway);
            return nothing;
        }
        if self.here.next_at() == self.now {
            self.here.step();
            return nothing;
        }
        if self.between.next_at() == self.now {
            for told in self.between.step() {
                // Of the second cell's gateways, which come after the first one's.
                let own = told.to.wrapping_sub(GATEWAYS);
                if own < GATEWAYS && told.of < GATEWAYS {
                    self.passed[own] = self.passed[own].max(self.sent[told.of]);
                }
            }
            return nothing;
        }
        for told in self.there.step() {
            if let News::Facts { room_mb, .. } = told.news {
                self.heard[told.to] = self.heard[told.to].max(room_mb as usize);
            }
        }
        let before = self.known_to_all + 1;
        self.known_to_all = self.heard.iter().copied().min().unwrap_or(0).max(self.known_to_all);
        before..self.known_to_all + 1
    }

    /// A gateway of the first cell tells the gateways what its cell is like; one of the second tells its cell what the
    /// others are like: 40 bytes for each.
    fn pass_on(&mut self, gateway: usize) {
        let own = gateway % GATEWAYS;
        if gateway < GATEWAYS {
            if self.sent[own] != self.now_is {
                self.sent[own] = self.now_is;
                let text = format!("cell,{},{}", self.now_is, "x".repeat(32));
                self.between.set(self.now, own, Key::FACTS, text, News::Other);
            }
            return;
        }
        if self.heard[own] != self.passed[own] {
            self.heard[own] = self.passed[own];
            let news = News::Facts { draining: false, room_mb: self.passed[own] as u64 };
            self.there.set(self.now, own, Key::FACTS, "x".repeat(40 * self.cells), news);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_in_one_cell_is_known_in_another_soon() {
        let cells = gateways(5, 20, 1);
        assert!(cells.took_us.len() >= 5, "{cells:?}");
        assert!(cells.slowest_ms() < 4_000, "{} ms", cells.slowest_ms());
    }
}
