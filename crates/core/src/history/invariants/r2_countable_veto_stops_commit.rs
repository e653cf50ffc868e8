//! R2_countable_veto_stops_commit

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};
use crate::ids::ContainerId;
use crate::output::IntentEnd;

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "R2_countable_veto_stops_commit",
        "a veto that names the open round, in time, counts; the round does not commit, and no new one opens while it holds",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    match &record.what {
        What::Veto { container, round, counted: false, .. } if is_countable(before, record, container, *round) => {
            Err(format!("a veto of round {round} of {container} does not count"))
        }
        What::Closed { intent, end: IntentEnd::Committed, .. } => {
            let container = before.container(record, intent.container.number);
            match container.and_then(|c| c.round.as_ref()) {
                Some(round) if !round.vetoes.is_empty() => Err(format!("{intent} committed over {:?}", round.vetoes)),
                _ => Ok(()),
            }
        }
        What::Opened { intent, .. } => match before.container(record, intent.container.number) {
            Some(c) if record.at < c.hold_until => {
                Err(format!("{intent} opens while a veto holds until {:?}", c.hold_until))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether a veto names the open round of this life's container, in time, in a round that hears vetoes.
pub(super) fn is_countable(before: &Ledger, record: &Record, container: &ContainerId, round: u32) -> bool {
    let own = container.owner == record.node && container.epoch == record.epoch;
    let open = before.container(record, container.number).filter(|_| own).and_then(|c| c.round.as_ref());
    open.is_some_and(|r| r.number == round && !r.last_word && !r.awaits_permit && record.at < r.closes_at)
}
