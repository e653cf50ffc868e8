//! L0_runs_within_slots

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named("L0_runs_within_slots", "runs in a container, as it sees them, are at most its slots")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Entered { container, run } = &record.what else { return Ok(()) };
    match before.container(record, *container) {
        Some(there) if there.inside.len() >= there.slots as usize => {
            Err(format!("{run:?} enters container {container} of {} slots with {:?} inside", there.slots, there.inside))
        }
        _ => Ok(()),
    }
}
