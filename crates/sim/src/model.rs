//! A few nodes, and every order in which things can happen to them.
//!
//! The state holds production [`Node`](embermesh_core::Node)s and calls their `handle`; around them are the messages
//! under way, the engine's unfinished calls, and how many faults of each kind are left. Time moves from deadline to
//! deadline, by clocks that run at different rates, and messages may be overtaken by any number of deadlines. Moments
//! are hashed relative to now, so that the same situation later is the same state.
//!
//! | file | what lives there |
//! | --- | --- |
//! | `setting` | the configurations: how many nodes and slots, which faults, and what has to be reached |
//! | `state` | one state, its hash, the judge |
//! | `network` | messages and calls: the half of the driver that sends and answers |
//! | `moves` | what can happen next, and how it does |
//! | `fewer` | which states are spared because they tell nothing new |
//! | `part` | what states share, and its hash |
//! | `circles` | whether every path ends |

mod circles;
mod fewer;
mod moves;
mod network;
mod part;
mod setting;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use embermesh_core::history::Violation;
use stateright::{Checker, HasDiscoveries, Model, Property};

pub use circles::Paths;
pub use moves::Move;
pub use setting::{Faults, Seen, Setting};
pub use state::State;

/// One configuration, to be checked completely.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub setting: Setting,
    /// What was reached, in any state.
    seen: Arc<AtomicU32>,
}

/// What the checker found.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub unique: usize,
    pub depth: usize,
    pub took: Duration,
    /// All states were looked at.
    pub complete: bool,
    /// What was reached, a bit for each [`Seen`].
    pub reached: u32,
    /// What should have been reached and was not: a run that proves nothing.
    pub missing: Vec<Seen>,
    /// What does not hold, and how it came to that.
    pub violation: Option<(Violation, Vec<Move>)>,
}

impl Mesh {
    pub fn new(setting: Setting) -> Self {
        Self { setting, seen: Arc::default() }
    }

    /// Looks at all states, or as many as the time allows, in so many threads.
    pub fn check(self, limit: Duration, threads: usize) -> Report {
        let begun = Instant::now();
        let (seen, expected) = (self.seen.clone(), self.setting.expects);
        let checker = self.checker().threads(threads).timeout(limit).finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.spawn_dfs().join();
        let took = begun.elapsed();
        let reached = seen.load(Ordering::Relaxed);
        let violation = checker.discoveries().into_values().next().and_then(|path| {
            let last = path.last_state().verdict()?;
            Some((last, path.into_actions()))
        });
        Report {
            states: checker.state_count(),
            unique: checker.unique_state_count(),
            depth: checker.max_depth(),
            took,
            complete: took < limit && violation.is_none(),
            reached,
            missing: expected.iter().copied().filter(|s| reached & s.bit() == 0).collect(),
            violation,
        }
    }
}

impl Model for Mesh {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.setting)]
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        state.moves(moves);
    }

    fn next_state(&self, last: &State, action: Move) -> Option<State> {
        let mut next = last.clone();
        next.make(action);
        let seen = next.take_seen();
        if self.seen.load(Ordering::Relaxed) & seen != seen {
            self.seen.fetch_or(seen, Ordering::Relaxed);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every invariant holds, and what is quiet is at rest", |_, state: &State| {
                state.verdict().is_none()
            }),
            // Never fulfilled: the search goes on to the end.
            Property::sometimes("the search was given up", |_, _| false),
        ]
    }
}
