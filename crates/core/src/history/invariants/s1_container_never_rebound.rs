//! S1_container_never_rebound

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named("S1_container_never_rebound", "a container serves one namespace, action and revision for life")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let (number, action, revision) = match &record.what {
        What::Granted { container, action, revision, .. } | What::RunBegan { container, action, revision, .. } => {
            (*container, action, revision)
        }
        _ => return Ok(()),
    };
    match before.container(record, number) {
        Some(c) if (&c.action, &c.revision) != (action, revision) => Err(format!(
            "container {number} was made for {} {} and is used for {action} {revision}",
            c.action, c.revision
        )),
        _ => Ok(()),
    }
}
