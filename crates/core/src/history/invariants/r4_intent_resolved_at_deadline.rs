//! R4_intent_resolved_at_deadline

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    ..Invariant::named(
        "R4_intent_resolved_at_deadline",
        "a window that is over is closed in the first step at or after it, or waits for the engine",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let Some(life) = before.after_last_step(record) else { return Ok(()) };
    for (number, container) in &life.containers {
        if let Some(round) = container.round.as_ref().filter(|r| !r.awaits_permit && r.closes_at <= life.last.0.1) {
            return Err(format!(
                "container {number} has round {} open at {:?}, due at {:?}",
                round.number, life.last.0.1, round.closes_at
            ));
        }
    }
    Ok(())
}

fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    for (node, _) in &glance.nodes {
        for view in node.containers() {
            let open = view.container.intent.as_ref();
            if let Some(intent) = open.filter(|i| i.closes_at <= node.now() && !i.awaits_permit) {
                return Err(format!("{} is open at {:?}: {intent:?}", view.id, node.now()));
            }
        }
    }
    Ok(())
}
