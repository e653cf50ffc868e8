//! A3_success_is_that_runs_result

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "A3_success_is_that_runs_result",
        "what a repeated request waits for is the run of its own attempt",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::RunJoined { run, attempt } = &record.what else { return Ok(()) };
    match before.life(record).and_then(|life| life.attempts.get(run)) {
        Some(began) if began == attempt => Ok(()),
        began => Err(format!("{attempt:?} joins {run:?}, which is {began:?}")),
    }
}
