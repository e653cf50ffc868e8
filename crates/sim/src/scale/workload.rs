//! A load in the shape of Azure's. Clients know nothing of the mesh: a call comes to any node.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use embermesh_core::{ActionId, ActionSpec, NodeId, Revision};

use super::{Random, Setting};
use crate::azure::{Draw as _, Shape};

/// Containers for each action, on average.
const COPIES: usize = 4;
/// By then all nodes know what all others have.
const FIRST_CALL_US: u64 = 2_000_000;

pub(super) struct Action {
    pub(super) spec: Arc<ActionSpec>,
    /// Its gossip domain.
    pub(super) cell: usize,
    per_s: f64,
    shape: Shape,
}

/// Calls to come, in order.
pub(super) struct Workload {
    pub(super) actions: Vec<Action>,
    arrivals: BinaryHeap<Reverse<(u64, usize)>>,
    random: Random,
}

impl Action {
    /// Slots that are busy on average.
    fn busy(&self) -> f64 {
        self.per_s * self.shape.mean_s()
    }

    fn gap_us(&self, random: &mut Random) -> u64 {
        (self.shape.gap(random) / self.per_s * 1e6) as u64 + 1
    }
}

impl Workload {
    pub(super) fn new(setting: &Setting) -> Self {
        let count = (setting.containers / COPIES).max(1);
        let mut random = Random::new(setting.seed, 3);
        let action = |rank| {
            let shape = Shape::draw(rank, count, &mut random);
            let per_s = setting.calls_per_s as f64 * shape.share;
            Action { spec: spec(rank, &shape), cell: rank % setting.cells, per_s, shape }
        };
        let actions: Vec<Action> = (0..count).map(action).collect();
        let mut arrivals = BinaryHeap::new();
        for (nth, action) in actions.iter().enumerate() {
            // Somewhere in the middle of the first gap, as if it had gone on for ever.
            let first = (action.gap_us(&mut random) as f64 * random.unit()) as u64;
            arrivals.push(Reverse((FIRST_CALL_US + first, nth)));
        }
        Self { actions, arrivals, random }
    }

    /// How many containers of each action there are at the beginning: half as many again as are busy on average, the
    /// rest in turn.
    pub(super) fn copies(&self, containers: usize) -> Vec<usize> {
        let mut copies: Vec<usize> = self.actions.iter().map(|a| (a.busy() * 1.5).ceil() as usize).collect();
        let mut left = containers.saturating_sub(copies.iter().sum());
        while left > 0 {
            for count in copies.iter_mut().take(left) {
                *count += 1;
                left -= 1;
            }
        }
        copies
    }

    /// As every node's registry has it.
    pub(super) fn spec(&self, action: &ActionId) -> Option<Arc<ActionSpec>> {
        let rank: usize = action.name()[1..].parse().ok()?;
        self.actions.get(rank).map(|action| action.spec.clone())
    }

    pub(super) fn next_at(&self) -> u64 {
        self.arrivals.peek().map_or(u64::MAX, |Reverse((at, _))| *at)
    }

    /// The next call's action, and how long it runs.
    pub(super) fn next(&mut self) -> Option<(usize, u64)> {
        let Reverse((at, nth)) = self.arrivals.pop()?;
        let action = &self.actions[nth];
        let gap = action.gap_us(&mut self.random);
        self.arrivals.push(Reverse((at + gap, nth)));
        let seconds = action.shape.run_s(&mut self.random);
        Some((nth, (seconds * 1e6) as u64 + 1))
    }
}

fn spec(rank: usize, shape: &Shape) -> Arc<ActionSpec> {
    Arc::new(ActionSpec {
        action: ActionId::new(["red", "green", "blue"][rank % 3], &format!("a{rank}")),
        revision: Revision { counter: 1, node: NodeId::new("n1") },
        concurrency: 1,
        memory_mb: shape.memory_mb.clamp(64.0, 512.0) as u64,
        timeout_us: 60_000_000,
        idempotent: false,
        image: "image".into(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_load_has_the_shape_it_is_named_after() {
        let setting = Setting::new(10, 4_000, 1);
        let mut workload = Workload::new(&setting);
        let mut calls = BTreeMap::new();
        let mut total = 0u32;
        while workload.next_at() < 120_000_000 {
            let (action, _) = workload.next().expect("calls never end");
            *calls.entry(action).or_insert(0u32) += 1;
            total += 1;
        }
        let few: u32 = calls.range(..10).map(|(_, n)| n).sum();
        let share = f64::from(few) / f64::from(total);
        assert!((0.75..0.95).contains(&share), "1 % of the actions got {share:.2} of the calls");
        let rare = (0..1_000).filter(|a| calls.get(a).is_none_or(|n| *n < 2)).count();
        assert!(rare > 600, "{rare} of 1000 actions are called less than once a minute");
        assert_eq!(workload.copies(4_000).iter().sum::<usize>(), 4_000);
    }
}
