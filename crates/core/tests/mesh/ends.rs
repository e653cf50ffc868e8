//! Invariants of the end: the network is whole again, nothing new was asked, and time has passed.

use embermesh_core::Node;

use crate::world::World;

type Checked = Result<(), String>;

impl World {
    pub(crate) fn check_ends(&mut self) {
        type Check = fn(&World) -> Checked;
        let checks: [(&str, Check); 4] = [
            ("L7_no_slot_leak", l7_no_slot_leak),
            ("A4_every_request_answered", a4_every_request_answered),
            ("R7_veto_bounded", r7_unused_containers_are_gone),
            ("nothing is left waiting", nothing_is_left),
        ];
        for (name, check) in checks {
            if let Err(what) = check(self) {
                self.violate(name, what);
            }
        }
    }
}

/// All slots are free, at owners and in holders' minds.
fn l7_no_slot_leak(world: &World) -> Checked {
    for node in nodes(world) {
        if let Some(lease) = node.granted_leases().next() {
            return Err(format!("{:?} still has granted {lease:?}", node.id()));
        }
        if let Some(lease) = node.held_leases().next() {
            return Err(format!("{:?} still holds {lease:?}", node.id()));
        }
        if node.running() > 0 {
            return Err(format!("{:?} still counts {} runs", node.id(), node.running()));
        }
    }
    Ok(())
}

/// Each activation has one end, unless its caller left while it waited.
fn a4_every_request_answered(world: &World) -> Checked {
    match world.ledger.open_activations().next() {
        Some((id, host)) => Err(format!("{id} at {:?} has no end", world.hosts[host].id)),
        None => Ok(()),
    }
}

/// Nobody used them for long: an intent has ended each.
fn r7_unused_containers_are_gone(world: &World) -> Checked {
    for node in nodes(world) {
        if let Some(view) = node.containers().next() {
            return Err(format!("{} is still {:?}: {:?}", view.id, view.container.state(), view.container));
        }
    }
    Ok(())
}

fn nothing_is_left(world: &World) -> Checked {
    for node in nodes(world) {
        let intents = node.intents();
        if node.queued() > 0 || !intents.is_empty() || node.memory_used_mb() > 0 {
            return Err(format!("{:?}: {} wait, {intents:?}, {} MB", node.id(), node.queued(), node.memory_used_mb()));
        }
        if let Some((id, _)) = world.bodies.iter().find(|(id, _)| node.knows_activation(**id)) {
            return Err(format!("{:?} still knows {id}", node.id()));
        }
    }
    Ok(())
}

fn nodes(world: &World) -> impl Iterator<Item = &Node> {
    world.hosts.iter().filter_map(|h| h.node.as_ref())
}
