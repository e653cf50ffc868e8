//! L1b_beliefs_within_slots

use super::beliefs::beliefs;
use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Glance, Ledger};
use std::collections::BTreeMap;

pub(super) const INVARIANT: Invariant = Invariant {
    look,
    told: false,
    ..Invariant::named(
        "L1b_beliefs_within_slots",
        "unexpired beliefs of all holders in a container are at most its slots, given L3's premises",
    )
};

fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    let mut believed = BTreeMap::new();
    for belief in beliefs(glance) {
        *believed.entry(belief.container).or_insert(0) += belief.slots;
    }
    for (id, slots) in believed {
        let mut containers = glance.nodes.iter().flat_map(|(node, _)| node.containers());
        let there = containers.find(|c| c.id == id);
        if there.is_some_and(|c| c.container.state() == Lifecycle::Warm && slots > c.container.slots) {
            return Err(format!("{slots} slots of {id} are believed in"));
        }
    }
    Ok(())
}
