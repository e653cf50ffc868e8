//! An open intent of one container: its round, its window and the vetoes counted in it.

use std::collections::BTreeMap;

use crate::ids::NodeId;
use crate::mutations::{Mutation, on};
use crate::output::IntentKind;
use crate::time::{Micros, Time};

/// Rounds in a row that may be cancelled without a run in between; the next one ignores vetoes.
const MOST_VETOED_ROUNDS: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenIntent {
    pub round: u32,
    pub kind: IntentKind,
    pub cause: Cause,
    pub closes_at: Time,
    /// Countable vetoes with how long each wants the container kept.
    pub vetoes: BTreeMap<NodeId, Micros>,
    /// Vetoes are ignored and grants denied: the container was kept unused for too many rounds.
    pub last_word: bool,
    /// The window has closed unopposed; it waits for the engine, the container still usable.
    pub awaits_permit: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    Idle,
    /// Memory is needed for another start.
    Memory,
    Operator,
}

/// How a window that has closed is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    Commit,
    Vetoed,
    /// Too late: nobody knows what was said meanwhile.
    Late,
}

impl OpenIntent {
    pub fn urgent(&self) -> bool {
        self.cause == Cause::Memory
    }

    /// Counts a veto; `false` if this round ignores it or has closed.
    pub fn veto(&mut self, peer: &NodeId, hold_us: Micros, max_hold_us: Micros, now: Time) -> bool {
        if on(Mutation::VetoIgnored) || self.last_word || self.awaits_permit || now >= self.closes_at {
            return false;
        }
        let hold = self.vetoes.entry(peer.clone()).or_default();
        *hold = (*hold).max(hold_us.min(max_hold_us));
        true
    }

    pub fn longest_hold(&self) -> Micros {
        self.vetoes.values().copied().max().unwrap_or(0)
    }

    /// Called in the first step at or after the close.
    pub fn close(&self, now: Time, late_after: Micros) -> Closing {
        if !self.vetoes.is_empty() {
            Closing::Vetoed
        } else if now.since(self.closes_at) > late_after {
            Closing::Late
        } else {
            Closing::Commit
        }
    }
}

/// What earlier rounds left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rounds {
    last: u32,
    /// Cancelled in a row without a run in between.
    cancelled: u32,
    /// No new round opens before this moment.
    pub hold_until: Time,
}

impl Rounds {
    /// The next round, and whether it has the last word.
    pub fn open(&mut self) -> (u32, bool) {
        self.last += 1;
        (self.last, self.cancelled >= MOST_VETOED_ROUNDS)
    }

    pub fn cancelled(&mut self, hold_until: Time) {
        self.cancelled += 1;
        self.hold_until = hold_until;
    }

    pub fn used(&mut self) {
        self.cancelled = 0;
        self.hold_until = Time::default();
    }

    pub fn last(&self) -> u32 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent() -> OpenIntent {
        OpenIntent {
            round: 1,
            kind: IntentKind::Remove,
            cause: Cause::Idle,
            closes_at: Time(1000),
            vetoes: BTreeMap::new(),
            last_word: false,
            awaits_permit: false,
        }
    }

    #[test]
    fn the_longest_hold_counts_up_to_the_most_allowed() {
        let mut intent = intent();
        assert!(intent.veto(&NodeId::new("a"), 50, 200, Time(1)));
        assert!(intent.veto(&NodeId::new("b"), 900, 200, Time(2)));
        assert_eq!(intent.longest_hold(), 200);
        assert_eq!(intent.close(Time(1000), 10), Closing::Vetoed);
    }

    #[test]
    fn a_veto_after_the_close_does_not_count() {
        let mut intent = intent();
        assert!(!intent.veto(&NodeId::new("a"), 50, 200, Time(1000)));
        assert_eq!(intent.close(Time(1000), 10), Closing::Commit);
    }

    #[test]
    fn a_close_noticed_too_late_is_neither_commit_nor_veto() {
        assert_eq!(intent().close(Time(1010), 10), Closing::Commit);
        assert_eq!(intent().close(Time(1011), 10), Closing::Late);
    }

    #[test]
    fn the_fourth_round_without_a_run_has_the_last_word() {
        let mut rounds = Rounds::default();
        for n in 1..=3 {
            assert_eq!(rounds.open(), (n, false));
            rounds.cancelled(Time(n.into()));
        }
        assert_eq!(rounds.open(), (4, true));
        rounds.used();
        assert_eq!(rounds.open(), (5, false));
    }
}
