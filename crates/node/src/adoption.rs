//! Containers that outlive the agent: left behind idle when it ends, found and taken over when it comes back.
//!
//! Which are taken over is the core's decision; here stands what the engine has to be asked for. A container that is
//! taken over serves nothing before what an earlier life ran in it has ended, at most its action's time-out.

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::Input;
use embermesh_core::mutations::{Mutation, on};
use embermesh_core::output::Output;
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, sleep, timeout};

use crate::containers::{EngineError, Found};
use crate::node::Node;
use crate::registry::action::ActionEntry;

/// Containers taken over or ended at a time.
const PARALLEL: usize = 8;
/// A start waits no longer for its containers; what is not settled by then goes on beside it.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two looks whether what an earlier life ran has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What becomes of a container that was found.
enum Settled {
    Adopt { found: Found, container: u64, entry: Arc<ActionEntry> },
    Discard(Found),
}

impl Node {
    /// Looks for containers of earlier lives and settles what becomes of them; returns when the idle ones serve.
    pub(crate) async fn adopt_found(&self) {
        let found = match self.engine().found().await {
            Ok(found) if found.is_empty() => return,
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "containers of earlier lives of this node could not be looked for");
                return;
            }
        };
        let began = Instant::now();
        let count = found.len();
        // The core hears of all of them before anything else is started: each takes its memory.
        let settled: Vec<_> = found.into_iter().zip(0..).map(|(found, number)| self.settle(number, found)).collect();
        let node = self.clone();
        let settling = async move {
            let each = settled.into_iter().map(|settled| node.clone().carry_out_settled(settled));
            stream::iter(each).for_each_concurrent(PARALLEL, |done| done).await;
        };
        let settled = timeout(SETTLE, tokio::spawn(settling)).await.is_ok();
        tracing::info!(containers = count, took = ?began.elapsed(), settled, "containers of earlier lives were found");
    }

    /// What becomes of one.
    fn settle(&self, number: u64, found: Found) -> Settled {
        let entry = self.registry().get(&found.namespace, &found.action);
        let Some(entry) = entry.filter(|entry| entry.revision.to_string() == found.revision) else {
            return Settled::Discard(found);
        };
        let spec = self.specs().get(&entry);
        let adopt = self.tell_and_pick(Input::ContainerFound { found: number, spec }, |output| match output {
            Output::AdoptContainer { found, container } if *found == number => Some(*container),
            _ => None,
        });
        match adopt {
            Some(container) => Settled::Adopt { found, container, entry },
            None => Settled::Discard(found),
        }
    }

    async fn carry_out_settled(self, settled: Settled) {
        match settled {
            Settled::Adopt { found, container, entry } => self.adopt(found, container, entry).await,
            Settled::Discard(found) => self.discard(&found).await,
        }
    }

    async fn adopt(self, found: Found, container: u64, entry: Arc<ActionEntry>) {
        let spec = self.enlist(container, &entry);
        match self.engine().adopt(&found, spec).await {
            Ok(0) => self.adopted(container, &found),
            Ok(left) => {
                // Not the others' business: they need not wait for it.
                let deadline = Instant::now() + Duration::from_millis(entry.limits.timeout);
                tokio::spawn(async move {
                    match self.quiet(container, left, deadline).await {
                        Ok(()) => self.adopted(container, &found),
                        Err(error) => self.not_adopted(container, &found, &error),
                    }
                });
            }
            Err(error) => self.not_adopted(container, &found, &error),
        }
    }

    /// Waits until what an earlier life ran in it has ended.
    async fn quiet(&self, container: u64, mut left: u32, deadline: Instant) -> Result<(), EngineError> {
        let id = self.container_id(container).to_string();
        while left > 0 {
            if Instant::now() >= deadline {
                return Err(EngineError::Refused(format!("{left} runs of an earlier life have not ended in time")));
            }
            sleep(LOOK_EVERY).await;
            left = match self.engine().runs_left(&id).await {
                // A handler that computes may keep its runtime from answering.
                Err(EngineError::Timeout(_)) => left,
                told => told?,
            };
        }
        Ok(())
    }

    fn adopted(&self, container: u64, found: &Found) {
        tracing::info!(was = found.id, container = %self.container_id(container), "a container is taken over");
        self.tell(Input::ContainerAdopted { container, paused: found.paused });
    }

    fn not_adopted(&self, container: u64, found: &Found, error: &EngineError) {
        tracing::warn!(was = found.id, %error, "a container can't be taken over and goes");
        self.tell(Input::ContainerDied { container });
    }

    /// Ends one that is of no use.
    async fn discard(&self, found: &Found) {
        if on(Mutation::RemovalForgotten) {
            return;
        }
        tracing::info!(was = found.id, action = found.action, "a container of an earlier life is of no use and goes");
        if let Err(error) = self.engine().discard(found).await {
            tracing::warn!(was = found.id, %error, "it could not be removed yet");
        }
    }

    /// Ends the node's work and leaves its containers for its next life. Those that are still in use when the time is
    /// over are left as well: that life will see what became of their runs.
    pub(crate) async fn hand_over(&self, within: Duration) {
        let deadline_us = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        let in_use = self.drained_by(Input::HandOverRequested { deadline_us }, within).await;
        if in_use.is_none_or(|end| !end.containers.is_empty()) {
            tracing::warn!("runs that have not ended are left to the next start of this node");
        }
    }

    /// The ids of containers in which nothing runs and nothing will.
    pub(crate) fn idle_for_next_life(&self) -> Vec<String> {
        let idle = self.driver().look(|core| core.handed_over());
        idle.into_iter().map(|number| self.container_id(number).to_string()).collect()
    }
}
