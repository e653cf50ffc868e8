//! R5_unopposed_intent_commits

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};
use crate::output::IntentEnd;

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "R5_unopposed_intent_commits",
        "a round ends without committing only for a veto, a use, a stall or another way out",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    if let Some(life) = before.after_last_step(record) {
        for (number, container) in &life.containers {
            if let Some(closing) = &container.closing {
                return Err(format!("a round of container {number} ended as {:?} and nothing came of it", closing.end));
            }
        }
    }
    let What::Closed { intent, end, .. } = &record.what else { return Ok(()) };
    let Some(life) = before.life(record) else { return Ok(()) };
    let Some(round) = life.containers.get(&intent.container.number).and_then(|c| c.round.as_ref()) else {
        return Err(format!("{intent} is closed and was not open"));
    };
    let late = record.at.since(round.closes_at) > life.premises.late_after_us;
    match end {
        IntentEnd::Vetoed { .. } if round.vetoes.is_empty() => Err(format!("{intent} ends by a veto that never came")),
        IntentEnd::Committed if record.at < round.closes_at => {
            Err(format!("{intent} commits before {:?}", round.closes_at))
        }
        IntentEnd::Late if !late => Err(format!("{intent} is called late, it was due at {:?}", round.closes_at)),
        _ => Ok(()),
    }
}
