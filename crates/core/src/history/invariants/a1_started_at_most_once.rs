//! A1_started_at_most_once

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "A1_started_at_most_once",
        "an activation starts once across the whole mesh, unless it is idempotent; then once an attempt",
    )
};

/// An idempotent activation has as many attempts at most.
const MOST_ATTEMPTS: u32 = 3;

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::RunBegan { run, attempt, .. } = &record.what else { return Ok(()) };
    if before.life(record).is_some_and(|life| life.attempts.contains_key(run)) {
        return Err(format!("{run:?} begins twice"));
    }
    let id = attempt.activation;
    let Some(known) = before.activations.get(&id) else { return Ok(()) };
    let all: u32 = known.begun.values().sum();
    if known.origin.is_some() && !known.idempotent && all > 0 {
        return Err(format!("{id} begins at {} after it began {all} times", record.node));
    }
    if known.begun.get(&attempt.attempt).is_some_and(|begun| *begun > 0) {
        return Err(format!("attempt {} of {id} begins again at {}", attempt.attempt, record.node));
    }
    if all >= MOST_ATTEMPTS { Err(format!("{id} begins after it began {all} times")) } else { Ok(()) }
}
