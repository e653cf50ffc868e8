//! A4_every_request_answered

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record, What};
use crate::ids::ActivationId;

pub(super) const INVARIANT: Invariant =
    Invariant { observe, at_rest, ..Invariant::named("A4_every_request_answered", "each activation has one end") };

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Ended { activation, end } = &record.what else { return Ok(()) };
    match before.activations.get(activation).and_then(|a| a.end) {
        Some(first) => Err(format!("{activation} ended as {first:?} and ends as {end:?}")),
        None => Ok(()),
    }
}

fn at_rest(ledger: &Ledger, glance: &Glance<'_>) -> Checked {
    let open = |a: &&ActivationId| {
        ledger.activations.get(a).is_some_and(|a| a.origin.is_some() && a.end.is_none() && !a.orphaned)
    };
    if let Some(id) = ledger.activations.keys().find(open) {
        return Err(format!("{id} has no end"));
    }
    for (node, _) in &glance.nodes {
        let known = ledger.activations.keys().find(|id| node.knows_activation(**id));
        if node.queued() > 0 || known.is_some() {
            return Err(format!("{:?} has {} waiting and knows {known:?}", node.id(), node.queued()));
        }
    }
    Ok(())
}
