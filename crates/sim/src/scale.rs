//! Many nodes: production cores under a load in the shape of Azure's, with a model of how gossip spreads between them.
//!
//! Real are the cores (every decision of every node), the texts that go through gossip, and the layout and compression
//! of chitchat's messages. Modelled are the order in which chitchat's rounds happen, the network (whole, a quarter of a
//! millisecond one way), and the engine (a third of a second for a start). Neither time for computing nor faults: what
//! nodes do when things break, the other rooms try.
//!
//! One seed decides everything. `cargo run -p embermesh-sim --example scale` prints the table of docs/scale.md.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `gossip` | one gossip domain: who knows what of whom, and what it costs |
//! | [`cells`] | gossip of a mesh of several domains |
//! | `pack` | the sizes of chitchat's messages |
//! | `workload` | actions, their copies and their arrivals |
//! | `world` | nodes, time, the network and the engine |
//! | `tally` | what is counted |

pub mod cells;
pub mod gossip;
mod pack;
mod tally;
mod workload;
mod world;

pub use tally::{Report, Spread};

use crate::azure::Draw;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Setting {
    pub nodes: usize,
    /// Over all nodes, warm at the beginning.
    pub containers: usize,
    /// Gossip domains; a node knows only those of its own.
    pub cells: usize,
    /// Adverts of one node at a time.
    pub adverts: usize,
    /// Calls per second over all nodes.
    pub calls_per_s: u64,
    /// Before anything is counted, and for how long it is.
    pub warm_up_s: u64,
    pub seconds: u64,
    pub seed: u64,
}

impl Setting {
    /// Ten containers for each call per second, a quarter as many actions, and time enough for idle ones to be paused
    /// before it is counted.
    pub fn new(nodes: usize, containers: usize, seed: u64) -> Self {
        let calls_per_s = (containers / 10) as u64;
        Self { nodes, containers, cells: 1, adverts: 32, calls_per_s, warm_up_s: 20, seconds: 30, seed }
    }
}

/// Plays it from begin to end.
pub fn run(setting: &Setting) -> Report {
    world::World::new(setting).play()
}

/// xorshift64*: one for each purpose, so that none of them changes the others' draws.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mut random = Self((seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

impl Draw for Random {
    fn unit(&mut self) -> f64 {
        ((self.next() >> 10) + 1) as f64 / (1u64 << 53) as f64
    }
}
