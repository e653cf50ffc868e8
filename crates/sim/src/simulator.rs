//! The deterministic simulator: nodes of production code on simulated hosts, and one seed that decides everything.
//! docs/simulation.md tells what is simulated and what is not.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `plan` | what a seed means: nodes, clocks, calls, faults |
//! | `play` | carries a plan out, and what is demanded at its end |
//! | `world` | the hosts, time, and what is between them |
//! | `host`, `net`, `engine`, `store` | a node's simulated parts |
//! | `witness` | what all of them see, and the judge |
//! | `campaign` | many seeds, each in a process of its own; a failing one is made small |
//! | `host_calls` | randomness and time, in the place of libc's |

mod campaign;
mod engine;
mod host;
mod host_calls;
mod net;
mod plan;
mod play;
mod random;
mod store;
mod witness;
mod world;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use campaign::{Campaign, Failure, Summary};
pub use engine::{Answered, Fate, Mood, Parameters, SimulatedEngine};
pub use host::{Loses, name_of};
pub use host_calls::on_a_thread_of_the_seed;
pub use net::Weather;
pub use plan::{ActionSetting, Cuts, Event, Mode, NodeSetting, Op, Options, Plan, Setting, Waiting};
pub use play::{NAMESPACE, play};
pub use witness::Witness;
pub use world::{Missed, Pending, World};

/// What became of one plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub violation: Option<String>,
    pub simulated_ms: u64,
    pub real_ms: u64,
    pub calls: u64,
    /// What the nodes told of themselves.
    pub records: u64,
    /// How often each thing happened.
    pub counts: BTreeMap<String, u64>,
    pub trace_hash: String,
    /// If it was to be kept.
    #[serde(skip)]
    pub trace: Option<Vec<String>>,
}
