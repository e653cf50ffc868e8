//! A2_indeterminate_iff_unknown

use super::{Checked, Invariant};
use crate::history::{End, Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "A2_indeterminate_iff_unknown",
        "indeterminate is told when the body left and neither answer nor refusal came, and only then",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Ended { activation, end } = &record.what else { return Ok(()) };
    let Some(known) = before.activations.get(activation) else { return Ok(()) };
    let unsettled = known.unsettled.values().any(|sends| *sends > 0);
    let begun: u32 = known.begun.values().sum();
    match end {
        End::Refused | End::Dropped if unsettled || begun > 0 => Err(format!(
            "{activation} may have run and ends as {end:?}: began {begun} times, sends {:?}",
            known.unsettled
        )),
        End::Indeterminate | End::PutOff if !unsettled => {
            Err(format!("the body of {activation} never left or was answered"))
        }
        _ => Ok(()),
    }
}
