//! L2_fence_monotonic

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named("L2_fence_monotonic", "each fence of a node is greater than all before, restarts included")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Granted { fence, .. } = &record.what else { return Ok(()) };
    if fence.epoch != record.epoch {
        return Err(format!("{fence:?} is granted in epoch {}", record.epoch.0));
    }
    match before.fences.get(&record.node) {
        Some(last) if last >= fence => Err(format!("{fence:?} after {last:?}")),
        _ => Ok(()),
    }
}
