//! Measured figures: what the cost rule decides by. They are kept apart from the protocol's state, so that a
//! model can freeze them; nothing safe depends on them.
//!
//! All averages are exponential with weight 1/8, in fixed point: figures are kept times eight.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{ActionId, NodeId};
use crate::time::{MS, Micros, Time};

/// An exponentially weighted average of durations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ewma {
    times_eight: u64,
    samples: u32,
}

impl Ewma {
    pub fn add(&mut self, sample: u64) {
        if self.samples == 0 {
            self.times_eight = sample.saturating_mul(8);
        } else {
            self.times_eight = self.times_eight - self.times_eight / 8 + sample;
        }
        self.samples = self.samples.saturating_add(1);
    }

    pub fn value(&self) -> Option<u64> {
        (self.samples > 0).then_some(self.times_eight / 8)
    }
}

#[derive(Debug, Clone, Default)]
struct ActionFigures {
    service: Ewma,
    gap: Ewma,
    last_arrival: Option<Time>,
    touched: u64,
}

#[derive(Debug, Clone, Default)]
struct PeerFigures {
    rtt: Ewma,
    /// Share of refused Reserves, in thousandths.
    refused: Ewma,
}

/// All that one node has measured. Bounded: the action least recently measured is forgotten first.
#[derive(Debug, Clone, Default)]
pub struct Estimates {
    actions: BTreeMap<ActionId, ActionFigures>,
    starts: BTreeMap<Arc<str>, Ewma>,
    resume: Ewma,
    peers: BTreeMap<NodeId, PeerFigures>,
    clock: u64,
    frozen: bool,
}

const MOST_ACTIONS: usize = 4096;
/// Assumed until measured.
const FIRST_START: Micros = 300 * MS;
const FIRST_RESUME: Micros = 15 * MS;
const FIRST_RTT: Micros = MS;

impl Estimates {
    /// Estimates that never change, for a model checker.
    pub fn frozen() -> Self {
        Self { frozen: true, ..Self::default() }
    }

    /// Mean run time, once one was measured.
    pub fn service(&self, action: &ActionId) -> Option<Micros> {
        self.actions.get(action)?.service.value()
    }

    /// Mean time between two arrivals here, and the last of them.
    pub fn gap(&self, action: &ActionId) -> Option<(Micros, Time)> {
        let figures = self.actions.get(action)?;
        Some((figures.gap.value()?, figures.last_arrival?))
    }

    /// Create and initialise, by image.
    pub fn start(&self, image: &str) -> Micros {
        self.starts.get(image).and_then(Ewma::value).unwrap_or(FIRST_START)
    }

    /// Until one was measured it counts as cheaper than a start, whatever that costs: or none ever would be.
    pub fn resume(&self, start_us: Micros) -> Micros {
        self.resume.value().unwrap_or(FIRST_RESUME.min(start_us / 2))
    }

    pub fn rtt(&self, peer: &NodeId) -> Micros {
        self.peers.get(peer).and_then(|p| p.rtt.value()).unwrap_or(FIRST_RTT)
    }

    /// The round trip if one was measured.
    pub fn measured_rtt(&self, peer: &NodeId) -> Option<Micros> {
        self.peers.get(peer)?.rtt.value()
    }

    /// How likely a peer refuses, in thousandths.
    pub fn refusal(&self, peer: &NodeId) -> u64 {
        self.peers.get(peer).and_then(|p| p.refused.value()).unwrap_or(0)
    }

    /// Assumes that a start takes as long, and a resume half of that, as if it had been measured.
    pub fn assuming_start(mut self, image: &str, start_us: Micros) -> Self {
        self.starts.entry(image.into()).or_default().add(start_us);
        self.resume.add(start_us / 2);
        self
    }

    pub(crate) fn arrived(&mut self, action: &ActionId, now: Time) {
        if let Some(figures) = self.figures(action) {
            if let Some(last) = figures.last_arrival {
                figures.gap.add(now.since(last));
            }
            figures.last_arrival = Some(now);
        }
    }

    pub(crate) fn served(&mut self, action: &ActionId, took: Micros) {
        if let Some(figures) = self.figures(action) {
            figures.service.add(took);
        }
    }

    pub(crate) fn started(&mut self, image: &Arc<str>, took: Micros) {
        if !self.frozen && (self.starts.len() < MOST_ACTIONS || self.starts.contains_key(image)) {
            self.starts.entry(image.clone()).or_default().add(took);
        }
    }

    pub(crate) fn resumed(&mut self, took: Micros) {
        if !self.frozen {
            self.resume.add(took);
        }
    }

    pub(crate) fn answered(&mut self, peer: &NodeId, refused: bool) {
        if !self.frozen {
            self.peers.entry(peer.clone()).or_default().refused.add(if refused { 1000 } else { 0 });
        }
    }

    /// A round trip that held no run and no wait.
    pub fn round_trip(&mut self, peer: &NodeId, took: Micros) {
        if !self.frozen {
            self.peers.entry(peer.clone()).or_default().rtt.add(took);
        }
    }

    pub(crate) fn forget_peer(&mut self, peer: &NodeId) {
        self.peers.remove(peer);
    }

    fn figures(&mut self, action: &ActionId) -> Option<&mut ActionFigures> {
        if self.frozen {
            return None;
        }
        self.clock += 1;
        if self.actions.len() >= MOST_ACTIONS && !self.actions.contains_key(action) {
            let oldest = self.actions.iter().min_by_key(|(_, f)| f.touched).map(|(a, _)| a.clone());
            oldest.and_then(|a| self.actions.remove(&a));
        }
        if !self.actions.contains_key(action) {
            self.actions.insert(action.clone(), ActionFigures::default());
        }
        let figures = self.actions.get_mut(action)?;
        figures.touched = self.clock;
        Some(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_starts_at_its_first_sample_and_follows_the_rest() {
        let mut ewma = Ewma::default();
        assert_eq!(ewma.value(), None);
        ewma.add(80);
        assert_eq!(ewma.value(), Some(80));
        for _ in 0..100 {
            ewma.add(160);
        }
        assert!((150..=160).contains(&ewma.value().unwrap_or(0)));
    }

    #[test]
    fn figures_of_many_actions_stay_bounded_and_the_oldest_goes_first() {
        let mut estimates = Estimates::default();
        for n in 0..=MOST_ACTIONS {
            estimates.served(&ActionId::new("ns", &n.to_string()), 7);
        }
        assert_eq!(estimates.actions.len(), MOST_ACTIONS);
        assert_eq!(estimates.service(&ActionId::new("ns", "0")), None);
        assert_eq!(estimates.service(&ActionId::new("ns", "1")), Some(7));
    }
}
