//! R7_veto_bounded

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    at_rest,
    ..Invariant::named(
        "R7_veto_bounded",
        "three rounds in a row may be cancelled without a run, the next one not; an unused container goes in the end",
    )
};

const MOST_IN_VAIN: u32 = 3;

fn observe(before: &Ledger, record: &Record) -> Checked {
    if let Some(life) = before.after_last_step(record)
        && let Some((number, container)) = life.containers.iter().find(|(_, c)| c.in_vain > MOST_IN_VAIN)
    {
        return Err(format!("{} rounds of container {number} were in vain", container.in_vain));
    }
    let What::Opened { intent, last_word, .. } = &record.what else { return Ok(()) };
    match before.container(record, intent.container.number) {
        Some(c) if (c.cancelled >= MOST_IN_VAIN) != *last_word => {
            Err(format!("{intent} has the last word: {last_word}, after {} cancelled rounds", c.cancelled))
        }
        _ => Ok(()),
    }
}

fn at_rest(ledger: &Ledger, glance: &Glance<'_>) -> Checked {
    if let Some((id, container)) = ledger.containers().next() {
        return Err(format!("{id} is still {}", container.state));
    }
    match glance.nodes.iter().flat_map(|(node, _)| node.containers()).next() {
        Some(view) => Err(format!("{} is still {}", view.id, view.container.state())),
        None => Ok(()),
    }
}
