//! A stage that namespaces share: deficit round robin (Shreedhar and Varghese, 1995), O(1) for each item.
//!
//! A namespace with queued work gets its share of the stage, less one quantum, however much the others queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::mutations::{Mutation, on};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stage<T> {
    quantum: u64,
    namespaces: BTreeMap<Arc<str>, Line<T>>,
    /// Namespaces with work, the one whose turn it is in front.
    ring: VecDeque<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line<T> {
    items: VecDeque<(u64, T)>,
    deficit: u64,
    /// Whether this turn's quantum was added.
    credited: bool,
}

impl<T> Stage<T> {
    /// `quantum`: what a namespace may spend each turn; at least the usual cost of one item.
    pub fn new(quantum: u64) -> Self {
        Self { quantum: quantum.max(1), namespaces: BTreeMap::new(), ring: VecDeque::new() }
    }

    pub fn push(&mut self, namespace: &str, cost: u64, item: T) {
        match self.namespaces.get_mut(namespace) {
            Some(line) => line.items.push_back((cost, item)),
            None => {
                let name: Arc<str> = namespace.into();
                let line = Line { items: VecDeque::from([(cost, item)]), deficit: 0, credited: false };
                self.namespaces.insert(name.clone(), line);
                self.ring.push_back(name);
            }
        }
    }

    /// The item whose turn it is; it stays until [`Stage::pop`].
    pub fn peek(&mut self) -> Option<(u64, &T)> {
        self.settle()?;
        let line = self.namespaces.get(self.ring.front()?)?;
        line.items.front().map(|(cost, item)| (*cost, item))
    }

    pub fn pop(&mut self) -> Option<T> {
        self.settle()?;
        let name = self.ring.front()?.clone();
        let line = self.namespaces.get_mut(&name)?;
        let (cost, item) = line.items.pop_front()?;
        line.deficit = line.deficit.saturating_sub(cost);
        if line.items.is_empty() {
            self.namespaces.remove(&name);
            self.ring.pop_front();
        }
        Some(item)
    }

    /// The first line's first item, in turn, that `fits`; out of turn, so its namespace has less to spend.
    pub fn take_first(&mut self, fits: impl Fn(u64) -> bool) -> Option<T> {
        let fitting = |name: &&Arc<str>| {
            self.namespaces.get(*name).and_then(|line| line.items.front()).is_some_and(|(cost, _)| fits(*cost))
        };
        let name = self.ring.iter().find(fitting)?.clone();
        let line = self.namespaces.get_mut(&name)?;
        let (cost, item) = line.items.pop_front()?;
        line.deficit = line.deficit.saturating_sub(cost);
        if line.items.is_empty() {
            self.namespaces.remove(&name);
            self.ring.retain(|n| *n != name);
        }
        Some(item)
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.namespaces.values().flat_map(|line| line.items.iter().map(|(_, item)| item))
    }

    /// Drops what `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for line in self.namespaces.values_mut() {
            line.items.retain(|(_, item)| keep(item));
        }
        self.namespaces.retain(|_, line| !line.items.is_empty());
        self.ring.retain(|name| self.namespaces.contains_key(name));
    }

    /// Turns the ring until the one in front can pay for its first item. Each turn adds a quantum, so an item
    /// costs at most cost / quantum turns of the ring: O(1) for the costs that a stage is made for.
    fn settle(&mut self) -> Option<()> {
        loop {
            let name = self.ring.front()?;
            let line = self.namespaces.get_mut(name)?;
            let cost = line.items.front()?.0;
            if line.deficit >= cost || on(Mutation::StageStarves) {
                return Some(());
            }
            if !line.credited {
                line.deficit += self.quantum;
                line.credited = true;
                continue;
            }
            line.credited = false;
            self.ring.rotate_left(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_with_many_items_does_not_hold_up_another_with_few() {
        let mut stage = Stage::new(256);
        for n in 0..100 {
            stage.push("greedy", 256, ("greedy", n));
        }
        stage.push("modest", 256, ("modest", 0));
        let first: Vec<_> = (0..2).filter_map(|_| stage.pop()).map(|(name, _)| name).collect();
        assert!(first.contains(&"modest"), "{first:?}");
    }

    #[test]
    fn shares_are_equal_in_cost_and_not_in_number() {
        let mut stage = Stage::new(256);
        for n in 0..40 {
            stage.push("large", 512, ("large", n));
            stage.push("small", 128, ("small", n));
        }
        let mut spent = BTreeMap::new();
        for _ in 0..25 {
            if let Some((name, _)) = stage.pop() {
                *spent.entry(name).or_insert(0) += if name == "large" { 512 } else { 128 };
            }
        }
        let difference = i64::abs(spent["large"] - spent["small"]);
        assert!(difference <= 512 + 256, "{spent:?}");
    }

    #[test]
    fn an_item_that_costs_more_than_a_quantum_gets_its_turn() {
        let mut stage = Stage::new(1);
        stage.push("a", 100, 1);
        stage.push("b", 1, 2);
        let all: Vec<_> = std::iter::from_fn(|| stage.pop()).collect();
        assert_eq!(all.len(), 2);
        assert!(stage.is_empty());
    }

    #[test]
    fn dropping_items_leaves_the_ring_consistent() {
        let mut stage = Stage::new(10);
        stage.push("a", 1, 1);
        stage.push("b", 1, 2);
        stage.push("b", 1, 3);
        stage.retain(|item| *item == 3);
        assert_eq!(stage.peek(), Some((1, &3)));
        assert_eq!(stage.pop(), Some(3));
        assert_eq!(stage.pop(), None);
    }
}
