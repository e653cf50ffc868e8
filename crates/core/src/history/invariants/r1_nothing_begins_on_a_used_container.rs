//! R1_nothing_begins_on_a_used_container

use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "R1_nothing_begins_on_a_used_container",
        "no pause or removal begins with an unexpired lease or a run; of a dead container or a timed-out run it may",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Moved { container, to: to @ (Lifecycle::Pausing | Lifecycle::Removing) } = &record.what else {
        return Ok(());
    };
    let Some(there) = before.container(record, *container) else { return Ok(()) };
    let used = !there.leases.is_empty() || there.runs.values().any(|run| !run.overdue);
    if used && there.state != Lifecycle::Failed {
        return Err(format!("container {container} goes to {to} with {:?} and {:?}", there.leases, there.runs));
    }
    Ok(())
}
