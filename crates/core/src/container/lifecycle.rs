//! The life cycle's one transition table.

use std::fmt;

use crate::mutations::{Mutation, on};

#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifecycle {
    /// The engine makes it.
    Starting,
    /// Its runtime loads the action's code.
    Initializing,
    /// It outlived an earlier life of this node; it takes nothing until what still runs in it has ended.
    Adopting,
    /// It takes runs: idle, busy or full.
    Warm,
    /// The engine pauses it: nothing is granted or started.
    Pausing,
    Paused,
    Resuming,
    /// It takes nothing new and goes when its last lease and run have ended.
    Retiring,
    /// The engine removes it; there is no way back.
    Removing,
    Removed,
    /// It never came up, or its engine can't tell what it is in.
    Failed,
}

/// A move that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a container can't go from {from} to {to}")]
pub struct IllegalMove {
    pub from: Lifecycle,
    pub to: Lifecycle,
}

impl Lifecycle {
    pub const ALL: [Lifecycle; 11] = [
        Lifecycle::Starting,
        Lifecycle::Initializing,
        Lifecycle::Adopting,
        Lifecycle::Warm,
        Lifecycle::Pausing,
        Lifecycle::Paused,
        Lifecycle::Resuming,
        Lifecycle::Retiring,
        Lifecycle::Removing,
        Lifecycle::Removed,
        Lifecycle::Failed,
    ];

    /// The table: every legal move is here and nowhere else.
    pub fn moved(self, to: Lifecycle) -> Result<Lifecycle, IllegalMove> {
        use Lifecycle::*;
        let legal = matches!(
            (self, to),
            (Starting, Initializing | Failed)
                | (Initializing, Warm | Failed)
                | (Adopting, Warm | Paused | Failed)
                | (Warm, Pausing | Retiring | Removing | Failed)
                | (Pausing, Paused | Failed)
                | (Paused, Resuming | Retiring | Removing | Failed)
                | (Resuming, Warm | Failed)
                | (Retiring, Removing | Failed)
                | (Failed, Removing)
                | (Removing, Removed)
        ) || (on(Mutation::RevivedByGossip) && (self, to) == (Removing, Warm));
        if legal { Ok(to) } else { Err(IllegalMove { from: self, to }) }
    }

    /// Whether it has the action's code loaded and stays: one more copy. The engine's work on it changes nothing.
    pub fn is_copy(self) -> bool {
        matches!(self, Lifecycle::Warm | Lifecycle::Pausing | Lifecycle::Paused | Lifecycle::Resuming)
    }

    /// As adverts and tables show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Lifecycle::Starting => "starting",
            Lifecycle::Initializing => "initializing",
            Lifecycle::Adopting => "adopting",
            Lifecycle::Warm => "warm",
            Lifecycle::Pausing => "pausing",
            Lifecycle::Paused => "paused",
            Lifecycle::Resuming => "resuming",
            Lifecycle::Retiring => "retiring",
            Lifecycle::Removing => "removing",
            Lifecycle::Removed => "removed",
            Lifecycle::Failed => "failed",
        }
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_move_of_the_diagram_is_legal_and_no_other() {
        use Lifecycle::*;
        let legal = [
            (Starting, Initializing),
            (Starting, Failed),
            (Initializing, Warm),
            (Initializing, Failed),
            (Adopting, Warm),
            (Adopting, Paused),
            (Adopting, Failed),
            (Warm, Pausing),
            (Warm, Retiring),
            (Warm, Removing),
            (Warm, Failed),
            (Pausing, Paused),
            (Pausing, Failed),
            (Paused, Resuming),
            (Paused, Retiring),
            (Paused, Removing),
            (Paused, Failed),
            (Resuming, Warm),
            (Resuming, Failed),
            (Retiring, Removing),
            (Retiring, Failed),
            (Failed, Removing),
            (Removing, Removed),
        ];
        for from in Lifecycle::ALL {
            for to in Lifecycle::ALL {
                assert_eq!(from.moved(to).is_ok(), legal.contains(&(from, to)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn an_illegal_move_names_both_ends() {
        let error = Lifecycle::Removing.moved(Lifecycle::Warm).map_err(|e| e.to_string());
        assert_eq!(error, Err("a container can't go from removing to warm".to_owned()));
    }
}
