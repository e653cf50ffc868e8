//! R6_removed_is_final

use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Glance, Ledger, Record, What};
use crate::ids::ContainerId;

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    ..Invariant::named(
        "R6_removed_is_final",
        "once its removal has begun, no grant and no run names a container, and it never comes back",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let number = match &record.what {
        What::Granted { container, .. } | What::RunBegan { container, .. } | What::Made { container, .. } => *container,
        What::Moved { container, to } if *to != Lifecycle::Removed => *container,
        _ => return Ok(()),
    };
    let id = ContainerId { owner: record.node.clone(), epoch: record.epoch, number };
    if before.removed.contains(&id) { Err(format!("{id} was removed: {:?}", record.what)) } else { Ok(()) }
}

/// What a node has in its table is not what it has removed, whatever it was told since.
fn look(ledger: &Ledger, glance: &Glance<'_>) -> Checked {
    for view in glance.nodes.iter().flat_map(|(node, _)| node.containers()) {
        let back = !matches!(view.container.state(), Lifecycle::Removing | Lifecycle::Removed);
        if back && ledger.removed.contains(&view.id) {
            return Err(format!("{} was removed and is {}", view.id, view.container.state()));
        }
    }
    Ok(())
}
