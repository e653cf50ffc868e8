//! G1_advert_is_hint_only

use super::{Checked, Invariant};
use crate::container::Lifecycle;
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "G1_advert_is_hint_only",
        "no run starts and nothing is granted but on a container that is warm at its owner at that moment",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let number = match &record.what {
        What::Granted { container, .. } | What::RunBegan { container, .. } => *container,
        _ => return Ok(()),
    };
    if before.life(record).is_none() {
        return Err(format!("{:?} by a life that is over", record.what));
    }
    match before.container(record, number).map(|c| c.state) {
        Some(Lifecycle::Warm) => Ok(()),
        state => Err(format!("container {number} is {state:?}: {:?}", record.what)),
    }
}
