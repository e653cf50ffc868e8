//! Who may start: one initialisation in a container's life, then so many runs at a time.
//!
//! ```text
//! Fresh -> Initialising -> Ready ----> Ended
//!               |                        ^
//!               +-> Failed    (the action's process is gone)
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct Gate {
    /// Most runs at a time; `u32::MAX` for no bound.
    limit: u32,
    state: Mutex<State>,
    quiet: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    running: u32,
    peak: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Fresh,
    Initialising,
    Ready,
    Failed(String),
    Ended(String),
}

/// Why a request was turned away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Gate {
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        let state = State { phase: Phase::Fresh, running: 0, peak: 0 };
        Arc::new(Self { limit: limit.max(1), state: Mutex::new(state), quiet: Notify::new() })
    }

    /// Lets the first caller initialise.
    pub(crate) fn begin_init(self: &Arc<Self>) -> Result<InitPermit, Refusal> {
        let mut state = self.state();
        match &state.phase {
            Phase::Fresh => {
                state.phase = Phase::Initialising;
                Ok(InitPermit { gate: self.clone(), settled: false })
            }
            Phase::Initialising | Phase::Ready => {
                refuse(403, "cannot initialise the action more than once: start another container for other code")
            }
            Phase::Failed(reason) => refuse(403, format!("this container's initialisation failed before: {reason}")),
            Phase::Ended(reason) => refuse(502, ended(reason)),
        }
    }

    /// Takes one run's place until the permit is dropped.
    pub(crate) fn begin_run(self: &Arc<Self>) -> Result<RunPermit, Refusal> {
        let mut state = self.state();
        match &state.phase {
            Phase::Ready => {}
            Phase::Fresh => return refuse(502, "the action is not initialised: send /init first"),
            Phase::Initialising => return refuse(502, "the action is still being initialised"),
            Phase::Failed(reason) => return refuse(502, format!("the action's initialisation failed: {reason}")),
            Phase::Ended(reason) => return refuse(502, ended(reason)),
        }
        if state.running >= self.limit {
            let limit = self.limit;
            return refuse(
                403,
                format!(
                    "{limit} of {limit} runs are in progress: raise the action's concurrency limit to run more at once"
                ),
            );
        }
        state.running += 1;
        state.peak = state.peak.max(state.running);
        Ok(RunPermit(self.clone()))
    }

    /// The action's process is gone: nothing runs here any more.
    pub(crate) fn end(&self, reason: &str) {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Ended(reason.to_owned());
        }
    }

    /// Runs in progress now.
    pub(crate) fn running(&self) -> u32 {
        self.state().running
    }

    /// The same, if runs are taken at all.
    pub(crate) fn running_if_ready(&self) -> Result<u32, Refusal> {
        let state = self.state();
        match &state.phase {
            Phase::Ready => Ok(state.running),
            Phase::Fresh | Phase::Initialising => refuse(409, "the action is not initialised"),
            Phase::Failed(reason) => refuse(409, format!("the action's initialisation failed: {reason}")),
            Phase::Ended(reason) => refuse(409, ended(reason)),
        }
    }

    /// The most that were in progress at once.
    pub(crate) fn peak(&self) -> u32 {
        self.state().peak
    }

    /// Waits until no run is in progress.
    pub(crate) async fn quiet(&self) {
        loop {
            let notified = self.quiet.notified();
            if self.running() == 0 {
                return;
            }
            notified.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every later run is told once the action's process is gone.
pub(crate) fn ended(reason: &str) -> String {
    format!("the action's process ended: {reason}")
}

/// The right to initialise. Dropped without a word (a panic), it counts as failed.
#[derive(Debug)]
pub(crate) struct InitPermit {
    gate: Arc<Gate>,
    settled: bool,
}

impl InitPermit {
    pub(crate) fn settle(mut self, outcome: &Result<(), String>) {
        self.to(match outcome {
            Ok(()) => Phase::Ready,
            Err(reason) => Phase::Failed(reason.clone()),
        });
    }

    fn to(&mut self, phase: Phase) {
        self.settled = true;
        let mut state = self.gate.state();
        if state.phase == Phase::Initialising {
            state.phase = phase;
        }
    }
}

impl Drop for InitPermit {
    fn drop(&mut self) {
        if !self.settled {
            self.to(Phase::Failed("it was interrupted".to_owned()));
        }
    }
}

/// One run in progress.
#[derive(Debug)]
pub(crate) struct RunPermit(Arc<Gate>);

impl Drop for RunPermit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running = state.running.saturating_sub(1);
        if state.running == 0 {
            self.0.quiet.notify_waiters();
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

fn refuse<T>(status: u16, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, message: message.into() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ready(limit: u32) -> Arc<Gate> {
        let gate = Gate::new(limit);
        gate.begin_init().unwrap().settle(&Ok(()));
        gate
    }

    #[test]
    fn a_run_before_init_is_refused_and_a_second_init_too() {
        let gate = Gate::new(1);
        assert_eq!(gate.begin_run().unwrap_err().status, 502);
        let permit = gate.begin_init().unwrap();
        assert_eq!(gate.begin_run().unwrap_err().status, 502);
        assert_eq!(gate.begin_init().unwrap_err().status, 403);
        permit.settle(&Ok(()));
        assert_eq!(gate.begin_init().unwrap_err().status, 403);
        assert!(gate.begin_run().is_ok());
    }

    #[test]
    fn runs_over_the_limit_are_refused_until_one_ends() {
        let gate = ready(2);
        let first = gate.begin_run().unwrap();
        let _second = gate.begin_run().unwrap();
        assert_eq!(gate.begin_run().unwrap_err().status, 403);
        drop(first);
        assert!(gate.begin_run().is_ok());
        assert_eq!((gate.running(), gate.peak()), (1, 2));
    }

    #[test]
    fn a_failed_or_abandoned_initialisation_is_remembered() {
        let gate = Gate::new(1);
        gate.begin_init().unwrap().settle(&Err("no such function".to_owned()));
        assert!(gate.begin_run().unwrap_err().message.contains("no such function"));
        let gate = Gate::new(1);
        drop(gate.begin_init().unwrap());
        assert!(gate.begin_run().unwrap_err().message.contains("interrupted"));
    }

    #[test]
    fn after_the_process_ended_every_run_says_so() {
        let gate = ready(1);
        gate.end("exit code 3");
        gate.end("something later");
        let refusal = gate.begin_run().unwrap_err();
        assert_eq!(refusal, Refusal { status: 502, message: "the action's process ended: exit code 3".to_owned() });
    }
}
