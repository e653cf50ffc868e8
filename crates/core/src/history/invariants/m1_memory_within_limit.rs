//! M1_memory_within_limit

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named("M1_memory_within_limit", "what a node's containers were promised together is within its limit")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Made { memory_mb, .. } = &record.what else { return Ok(()) };
    let Some(life) = before.life(record) else { return Ok(()) };
    let used: u64 = life.containers.values().map(|c| c.memory_mb).sum();
    let limit = life.premises.memory_mb;
    if used + memory_mb > limit { Err(format!("{used} + {memory_mb} MB of {limit} MB")) } else { Ok(()) }
}
