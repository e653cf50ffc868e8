//! the history is faithful

use super::{Checked, Invariant};
use crate::container::Container;
use crate::history::ledger::Container as Told;
use crate::history::{Glance, Ledger};
use crate::ids::ContainerId;

pub(super) const INVARIANT: Invariant = Invariant {
    look,
    told: false,
    ..Invariant::named("the history is faithful", "what the records add up to is what each node has in its table")
};

/// Without this, a history could look well and the nodes be ill.
fn look(ledger: &Ledger, glance: &Glance<'_>) -> Checked {
    for (node, _) in &glance.nodes {
        let Some(life) = ledger.lives.get(node.id()).filter(|life| life.epoch == node.epoch()) else { continue };
        let mut told = life.containers.iter();
        for view in node.containers() {
            let Some((_, by_records)) = told.next().filter(|(number, _)| **number == view.id.number) else {
                return Err(format!("{} is not told of", view.id));
            };
            differs(&view.id, view.container, by_records)?;
        }
        if let Some((number, _)) = told.next() {
            return Err(format!("{:?} does not have container {number}, which is told of", node.id()));
        }
        node.check()?;
    }
    Ok(())
}

fn differs(id: &ContainerId, own: &Container, told: &Told) -> Checked {
    if own.state() != told.state {
        return Err(format!("{id} is {}, told is {}", own.state(), told.state));
    }
    let has = own.leases().iter().map(|(fence, l)| (*fence, l.slots, l.running, l.expires_at));
    let is_told = told.leases.iter().map(|(fence, l)| (*fence, l.slots, l.running, l.expires_at));
    if !has.clone().eq(is_told.clone()) {
        let (has, is_told): (Vec<_>, Vec<_>) = (has.collect(), is_told.collect());
        return Err(format!("{id} has {has:?}, told is {is_told:?}"));
    }
    let runs = own.runs().iter().map(|(run, r)| (*run, r.lease, r.overdue));
    if !runs.clone().eq(told.runs.iter().map(|(run, r)| (*run, r.lease, r.overdue))) {
        return Err(format!("{id} has runs {:?}, told is {:?}", own.runs(), told.runs));
    }
    let round = own.intent.as_ref().map(|i| (i.round, i.closes_at, i.last_word));
    if round != told.round.as_ref().map(|r| (r.number, r.closes_at, r.last_word)) {
        return Err(format!("{id} has {:?}, told is {:?}", own.intent, told.round));
    }
    Ok(())
}
