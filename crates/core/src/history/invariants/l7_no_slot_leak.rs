//! L7_no_slot_leak

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    at_rest,
    ..Invariant::named(
        "L7_no_slot_leak",
        "without new requests all slots are free ttl + grace after the last grant or run end",
    )
};

/// No step leaves a lease behind that is over.
fn observe(before: &Ledger, record: &Record) -> Checked {
    let Some(life) = before.after_last_step(record) else { return Ok(()) };
    for (number, container) in &life.containers {
        if let Some((fence, lease)) = container.leases.iter().find(|(_, lease)| lease.expires_at <= life.last.0.1) {
            return Err(format!("container {number} keeps {fence:?} {lease:?} at {:?}", life.last.0.1));
        }
    }
    Ok(())
}

fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    for (node, _) in &glance.nodes {
        let mut leases = node.containers().flat_map(|view| view.container.leases());
        if let Some((fence, lease)) = leases.find(|(_, lease)| lease.expires_at <= node.now()) {
            return Err(format!("{:?} keeps {fence:?} {lease:?} at {:?}", node.id(), node.now()));
        }
    }
    Ok(())
}

fn at_rest(ledger: &Ledger, glance: &Glance<'_>) -> Checked {
    for (id, container) in ledger.containers() {
        if container.taken() > 0 {
            return Err(format!("{id} still has {:?} and {:?}", container.leases, container.runs));
        }
    }
    for (node, _) in &glance.nodes {
        if let Some(lease) = node.granted_leases().chain(node.held_leases()).next() {
            return Err(format!("{:?} still has {lease:?}", node.id()));
        }
        if node.running() > 0 {
            return Err(format!("{:?} still counts {} runs", node.id(), node.running()));
        }
    }
    Ok(())
}
