//! R8_nothing_between_commit_and_engine

use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "R8_nothing_between_commit_and_engine",
        "nothing is granted or started between the step that commits and the engine's answer",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let number = match &record.what {
        What::Granted { container, .. } | What::RunBegan { container, .. } => *container,
        _ => return Ok(()),
    };
    match before.container(record, number).map(|c| c.state) {
        Some(state @ (Lifecycle::Pausing | Lifecycle::Removing)) => {
            Err(format!("container {number} is {state}: {:?}", record.what))
        }
        _ => Ok(()),
    }
}
