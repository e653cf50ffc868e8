//! Liveness, without which 'what is quiet is at rest' (A4, L7) says little: every path has an end, and at its end all is
//! quiet. A search along all paths looks for one that comes back to a state it has been in, and for a state that is not
//! quiet and from which nothing goes on.
//!
//! Faults and calls are bounded in number, so a path that never ends would have to go round in a circle.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::{Mesh, Move, State};

/// How the search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Paths {
    /// All of them end, with all quiet; so many states are on them.
    End(usize),
    /// This one comes back to a state that it has been in.
    GoesRound(Vec<Move>),
    /// This one ends, and something is still under way.
    Stuck(Vec<Move>),
    /// Not all were looked at in that time.
    Unfinished(usize),
}

/// A state on the path, and what has still to be tried from it.
struct Step {
    state: State,
    fingerprint: u64,
    came_by: Option<Move>,
    moves: Vec<Move>,
}

impl Mesh {
    pub fn paths(&self, limit: Duration) -> Paths {
        let until = Instant::now() + limit;
        let first = Step::new(State::first(&self.setting), None);
        // True while it is on the path.
        let mut on_path = HashMap::from([(first.fingerprint, true)]);
        let mut path = vec![first];
        while let Some(step) = path.last_mut() {
            let Some(next) = step.moves.pop() else {
                on_path.insert(step.fingerprint, false);
                path.pop();
                continue;
            };
            let mut state = step.state.clone();
            state.make(next.clone());
            let step = Step::new(state, Some(next));
            match on_path.get(&step.fingerprint) {
                Some(false) => continue,
                Some(true) => return Paths::GoesRound(moves_of(path, step)),
                None => {}
            }
            if step.moves.is_empty() && !step.state.is_over() && !step.state.is_quiet() {
                return Paths::Stuck(moves_of(path, step));
            }
            on_path.insert(step.fingerprint, true);
            path.push(step);
            if on_path.len().is_multiple_of(1_024) && Instant::now() > until {
                return Paths::Unfinished(on_path.len());
            }
        }
        Paths::End(on_path.len())
    }
}

impl Step {
    fn new(state: State, came_by: Option<Move>) -> Self {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let mut moves = Vec::new();
        state.moves(&mut moves);
        Self { fingerprint: hasher.finish(), state, came_by, moves }
    }
}

fn moves_of(path: Vec<Step>, last: Step) -> Vec<Move> {
    path.into_iter().chain([last]).filter_map(|step| step.came_by).collect()
}
