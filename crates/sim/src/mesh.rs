//! The protocol under fire: nodes over a network that loses, repeats, delays and reorders, with clocks that run
//! at different rates, nodes that start again and owners that stall. After each step of each node every invariant
//! of [`embermesh_core::history`] is looked at.
//!
//! | file | what it plays |
//! | --- | --- |
//! | `plan` | what a case does, and how cases are drawn |
//! | `setup` | the numbers, the actions, a policy |
//! | `world` | time, clocks, hosts, the order of events, and the judge |
//! | `network` | calls between nodes: the half of the driver that sends and answers |
//! | `gossip` | membership, facts and adverts, late and sometimes stale |
//! | `engine` | containers and the runs in them |

mod engine;
mod gossip;
mod network;
pub mod plan;
mod setup;
mod world;

use std::collections::BTreeMap;

use embermesh_core::history::Violation;

use plan::Plan;
use world::World;

/// What became of one case.
#[derive(Debug)]
pub struct Outcome {
    pub violation: Option<Violation>,
    /// How often each thing happened.
    pub seen: BTreeMap<&'static str, u32>,
}

/// Plays a case, then heals the network, waits, and looks whether all came to rest.
pub fn run(plan: &Plan) -> Outcome {
    let mut world = World::new(&plan.setting);
    for op in &plan.ops {
        world.apply(op);
        if world.violation.is_some() {
            break;
        }
    }
    if world.violation.is_none() {
        world.heal();
    }
    Outcome { violation: world.violation, seen: world.seen }
}
