//! What holders believe in at a moment, by their own clocks: what L1b and L3 look at.

use crate::history::Glance;
use crate::ids::{ContainerId, Fence};

#[derive(Debug)]
pub(super) struct Belief {
    pub(super) container: ContainerId,
    pub(super) fence: Fence,
    pub(super) slots: u32,
}

/// Leases that holders would use now, with or without a step in between.
pub(super) fn beliefs(glance: &Glance<'_>) -> impl Iterator<Item = Belief> {
    glance.nodes.iter().flat_map(|(node, clock)| {
        let unexpired = node.held_leases().filter(move |lease| *clock < node.now() + lease.expires_in_us);
        unexpired.map(|lease| Belief { container: lease.container, fence: lease.fence, slots: lease.slots })
    })
}
