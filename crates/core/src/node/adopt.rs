//! Containers that outlived an earlier life of this node. Each is taken over under a number and an epoch of this life,
//! as one that was made now, or it goes; it takes nothing before the engine says that nothing of before runs in it.

use std::sync::Arc;

use super::Node;
use crate::container::{Container, Lifecycle};
use crate::history::What;
use crate::ids::ActionSpec;
use crate::output::{Event, Output};

impl Node {
    pub(super) fn handle_found(&mut self, found: u64, spec: Arc<ActionSpec>) {
        let fits = self.memory_used_mb + spec.memory_mb <= self.cfg().memory_mb;
        let newest = self.actions.get(&spec.action).is_none_or(|a| !a.deleted && a.spec.revision <= spec.revision);
        if !fits || !newest || self.drain.is_some() {
            return self.emit(Output::DiscardFound { found });
        }
        let name = spec.action.clone();
        self.learn_spec(spec.clone());
        self.counters.container += 1;
        let number = self.counters.container;
        let container =
            Container::found(name.clone(), spec.revision.clone(), spec.concurrency, spec.memory_mb, self.now);
        self.tell_made(number, &spec);
        self.tell(|_| What::Moved { container: number, to: Lifecycle::Adopting });
        self.memory_used_mb += spec.memory_mb;
        self.containers.insert(number, container);
        if let Some(action) = self.actions.get_mut(&name) {
            action.containers.insert(number);
        }
        self.emit(Output::AdoptContainer { found, container: number });
        self.touch(&name);
    }

    pub(super) fn handle_adopted(&mut self, number: u64, paused: bool) {
        let adopting = self.containers.get(&number).is_some_and(|c| c.state() == Lifecycle::Adopting);
        if !adopting || !self.moved(number, if paused { Lifecycle::Paused } else { Lifecycle::Warm }) {
            return;
        }
        let Some(name) = self.containers.get(&number).map(|c| c.action.clone()) else { return };
        self.note(Event::ContainerAdopted { container: number, action: name.clone() });
        if self.drains(&name) || self.is_outdated(number) {
            return self.retire_or_keep(number);
        }
        self.arm_idle(number);
        self.resume_for_waiting(&name);
        self.touch(&name);
    }
}
