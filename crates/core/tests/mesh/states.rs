//! Invariants of the state between two steps.

use embermesh_core::container::Lifecycle;
use embermesh_core::{ContainerId, Node};

use crate::world::World;

type Checked = Result<(), String>;

impl World {
    /// `host` has just made a step.
    pub(crate) fn check_states(&mut self, host: usize) {
        type Check = fn(&World, usize) -> Checked;
        let checks: [(&str, Check); 7] = [
            ("L0_runs_within_slots", l0_runs_within_slots),
            ("L1_owner_table_within_slots", l1_owner_table_within_slots),
            ("L1b_beliefs_within_slots", l1b_beliefs_within_slots),
            ("L3_holder_stops_before_owner_frees", l3_holder_stops_before_owner_frees),
            ("R4_intent_resolved_at_deadline", r4_intent_resolved_at_deadline),
            ("M1_memory_within_limit", m1_memory_within_limit),
            ("the node's own check", own_check),
        ];
        for (name, check) in checks {
            if let Err(what) = check(self, host) {
                self.violate(name, what);
            }
        }
    }

    /// Leases that holders believe in at this moment, by their own clocks.
    fn beliefs(&self) -> impl Iterator<Item = Belief> {
        (0..self.hosts.len()).flat_map(move |holder| {
            let now = self.clock(holder);
            let node = self.hosts[holder].node.iter();
            node.flat_map(move |node| node.held_leases()).filter_map(move |lease| {
                let expires_at = self.hosts[holder].last_step + lease.expires_in_us;
                let (container, slots) = (lease.container, lease.slots);
                (now < expires_at).then_some(Belief { container, counter: lease.fence.counter, slots })
            })
        })
    }
}

#[derive(Debug)]
struct Belief {
    container: ContainerId,
    counter: u64,
    slots: u32,
}

/// As the container sees it: runs begun and neither answered nor ended with it.
fn l0_runs_within_slots(world: &World, host: usize) -> Checked {
    for (number, there) in &world.hosts[host].engine.boxes {
        if there.runs.len() > there.slots as usize {
            return Err(format!("{} runs in container {number} of {} slots", there.runs.len(), there.slots));
        }
    }
    Ok(())
}

/// Leased slots and runs outside of leases, counted anew.
fn l1_owner_table_within_slots(world: &World, host: usize) -> Checked {
    for view in world.hosts[host].node.iter().flat_map(Node::containers) {
        let container = view.container;
        let leased: u32 = container.leases().values().map(|l| l.slots).sum();
        let outside = container.runs().values().filter(|r| r.lease.is_none()).count() as u32;
        if leased + outside > container.slots {
            return Err(format!("{}: {leased} + {outside} of {}", view.id, container.slots));
        }
    }
    Ok(())
}

/// Unexpired beliefs of all holders in one container that is still there.
fn l1b_beliefs_within_slots(world: &World, _: usize) -> Checked {
    let mut believed = std::collections::BTreeMap::new();
    for belief in world.beliefs() {
        *believed.entry(belief.container).or_insert(0) += belief.slots;
    }
    for (container, slots) in believed {
        let Some(owner) = world.host_of(&container.owner).filter(|o| world.hosts[*o].epoch == container.epoch) else {
            continue;
        };
        let there = world.hosts[owner].engine.boxes.get(&container.number).filter(|b| !b.dead);
        if there.is_some_and(|b| slots > b.slots) {
            return Err(format!("{slots} slots of {container} are believed in"));
        }
    }
    Ok(())
}

/// While a holder believes in a lease, its owner has it in its table, with as many slots, and accepts runs on it;
/// a container that is gone, ends without asking or lost a slot to a timed-out run excepted.
fn l3_holder_stops_before_owner_frees(world: &World, _: usize) -> Checked {
    for belief in world.beliefs() {
        let id = &belief.container;
        let Some(owner) = world.host_of(&id.owner).filter(|o| world.hosts[*o].epoch == id.epoch) else { continue };
        let Some(node) = &world.hosts[owner].node else { continue };
        let Some(view) = node.containers().find(|c| c.id == *id) else { continue };
        if view.container.state() != Lifecycle::Warm {
            continue;
        }
        let lease = view.container.leases().iter().find(|(fence, _)| fence.counter == belief.counter);
        let now = world.clock(owner);
        if !lease.is_some_and(|(_, l)| l.slots >= belief.slots && now < l.expires_at) {
            return Err(format!("{belief:?}, the owner has {lease:?} at {now:?}"));
        }
    }
    Ok(())
}

/// A window that is over was closed in that step, or waits for the engine.
fn r4_intent_resolved_at_deadline(world: &World, host: usize) -> Checked {
    let now = world.hosts[host].last_step;
    for view in world.hosts[host].node.iter().flat_map(Node::containers) {
        if let Some(intent) = &view.container.intent
            && intent.closes_at <= now
            && !intent.awaits_permit
        {
            return Err(format!("{} is open at {now:?}: {intent:?}", view.id));
        }
    }
    Ok(())
}

/// What the engine has made, and what the node counts.
fn m1_memory_within_limit(world: &World, host: usize) -> Checked {
    let here = &world.hosts[host];
    let made: u64 = here.engine.boxes.values().map(|b| b.memory_mb).sum();
    let counted = here.node.as_ref().map_or(0, Node::memory_used_mb);
    let limit = world.config.memory_mb;
    if made > limit || counted > limit { Err(format!("{made} MB made, {counted} MB counted")) } else { Ok(()) }
}

fn own_check(world: &World, host: usize) -> Checked {
    world.hosts[host].node.as_ref().map_or(Ok(()), Node::check)
}
