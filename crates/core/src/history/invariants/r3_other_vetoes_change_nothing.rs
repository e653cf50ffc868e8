//! R3_other_vetoes_change_nothing

use super::r2_countable_veto_stops_commit::is_countable;
use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record, What};
use crate::input::Input;
use crate::output::IntentEnd;
use std::collections::BTreeMap;

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    ..Invariant::named("R3_other_vetoes_change_nothing", "a veto of another round, epoch or container leaves no trace")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    match &record.what {
        What::Veto { container, round, counted: true, .. } if !is_countable(before, record, container, *round) => {
            Err(format!("a veto of round {round} of {container} counts"))
        }
        What::Closed { intent, end: IntentEnd::Vetoed { by }, .. } => {
            let open = before.container(record, intent.container.number).and_then(|c| c.round.as_ref());
            let counted: BTreeMap<_, _> = open.map(|r| r.vetoes.clone()).unwrap_or_default();
            let told: BTreeMap<_, _> = by.iter().cloned().collect();
            if told == counted { Ok(()) } else { Err(format!("{intent} ends by {told:?}, counted were {counted:?}")) }
        }
        _ => Ok(()),
    }
}

/// The step itself: one whose veto did not count leaves the node as it was.
fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    let Some((before, Input::VetoReceived { container, round, .. }, after)) = &glance.step else { return Ok(()) };
    let open = before.containers().find(|c| c.id == *container).and_then(|c| c.container.intent.as_ref());
    let named = open.is_some_and(|intent| intent.round == *round);
    if !named && before != after {
        Err(format!("a veto of round {round} of {container} changed the node"))
    } else {
        Ok(())
    }
}
