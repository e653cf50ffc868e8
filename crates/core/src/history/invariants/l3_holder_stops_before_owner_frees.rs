//! L3_holder_stops_before_owner_frees

use super::beliefs::beliefs;
use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Glance, Ledger};

pub(super) const INVARIANT: Invariant = Invariant {
    look,
    told: false,
    ..Invariant::named(
        "L3_holder_stops_before_owner_frees",
        "with clock rates within the bound, nobody uses a lease that its owner has taken back for time",
    )
};

/// While a holder believes in a lease, its owner has it with as many slots and would accept a run on it; a container
/// that is gone, ends without asking or lost a slot to a timed-out run excepted.
fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    for belief in beliefs(glance) {
        let owner = glance.nodes.iter().find(|(node, _)| *node.id() == belief.container.owner);
        let Some((node, clock)) = owner.filter(|(node, _)| node.epoch() == belief.container.epoch) else { continue };
        let Some(view) = node.containers().find(|c| c.id == belief.container) else { continue };
        if view.container.state() != Lifecycle::Warm {
            continue;
        }
        let lease = view.container.leases().get(&belief.fence);
        if !lease.is_some_and(|l| l.slots >= belief.slots && *clock < l.expires_at) {
            return Err(format!("{belief:?}, the owner has {lease:?} at {clock:?}"));
        }
    }
    Ok(())
}
