//! L1_owner_table_within_slots

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    ..Invariant::named(
        "L1_owner_table_within_slots",
        "leased slots and runs outside of leases are at most the slots, always",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let (number, more) = match &record.what {
        What::Granted { container, slots, .. } => (*container, *slots),
        What::RunBegan { container, lease: None, .. } => (*container, 1),
        _ => return Ok(()),
    };
    match before.container(record, number) {
        Some(there) if there.taken() + more > there.slots => {
            Err(format!("{} slots of {} are taken and {more} more are given", there.taken(), there.slots))
        }
        _ => Ok(()),
    }
}

/// The owner's own table, counted anew.
fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    for view in glance.nodes.iter().flat_map(|(node, _)| node.containers()) {
        let leased: u32 = view.container.leases().values().map(|l| l.slots).sum();
        let outside = view.container.runs().values().filter(|r| r.lease.is_none()).count() as u32;
        if leased + outside > view.container.slots {
            return Err(format!("{}: {leased} + {outside} of {}", view.id, view.container.slots));
        }
    }
    Ok(())
}
