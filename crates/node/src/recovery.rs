//! After a restart: what is owed is run, asked for where it was handed on, or ended as indeterminate.

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::output::Served;
use embermesh_core::{ActionId, Input, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::invocation::Call;
use crate::invoke::Activation;
use crate::kept::Keeping;
use crate::node::Node;
use crate::record::Ended;
use crate::rejoin::kept_peers;
use crate::rpc::again::Asked;
use crate::store::journal::{Entry, Kept, Started};

/// How many of those that are owed are run at once: the queues have room for new ones meanwhile.
const AT_ONCE: usize = 256;
/// How long the mesh may take to form before this node goes on alone.
const MESH_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Runs of one activation that is idempotent; as in the core.
const MOST_ATTEMPTS: u32 = 3;

const RESTARTED: &str =
    "This node ended while the activation ran in a container of its own: whether it ran to its end is not known.";
const NOT_TOLD: &str = "This node was restarted, and the node that was handed the activation can't tell how it ended: whether it ran is not known.";
const UNKNOWN_ACTION: &str = "The action is gone: it did not run.";

impl Node {
    /// Counts what is owed, before anything else is accepted.
    pub(crate) fn take_up(&self, owed: &[Entry]) {
        for entry in owed {
            let kept = &entry.kept;
            let (action, bytes) = (ActionId::new(&kept.namespace, &kept.name), kept.params.len() as u64);
            self.tell(Input::BodyKept { activation: kept.id, action, bytes });
        }
    }

    /// Goes on with what is owed.
    pub(crate) fn recover(&self, owed: Vec<Entry>) {
        if owed.is_empty() {
            return;
        }
        let at_peer = |entry: &Entry| entry.started.as_ref().is_some_and(|started| started.request.is_some());
        let (handed, rest): (Vec<_>, Vec<_>) = owed.into_iter().partition(at_peer);
        tracing::info!(at_peers = handed.len(), here = rest.len(), "accepted activations from before are gone on with");
        let node = self.clone();
        self.track(async move {
            let gate = Arc::new(Semaphore::new(AT_ONCE));
            let recover = |entry| node.track(node.clone().recover_one(entry, gate.clone()));
            handed.into_iter().for_each(recover);
            node.await_mesh().await;
            rest.into_iter().for_each(recover);
        });
    }

    async fn recover_one(self, entry: Entry, gate: Arc<Semaphore>) {
        let kept = entry.kept;
        let Some(started) = entry.started else {
            return self.run_again(&kept, 0, gate).await;
        };
        if started.is_nowhere() {
            return self.run_again(&kept, started.attempt, gate).await;
        }
        let why = match &started.request {
            None => RESTARTED,
            Some(_) => match self.ask_again(&kept, &started, self.longest_run(&kept)).await {
                Asked::Answered(outcome) => {
                    let Some(activation) = self.activation_of(&kept, started.attempt) else {
                        return self.record_failed(&kept, NOT_TOLD, true).await;
                    };
                    let peer = NodeId::new(&started.owner);
                    let ended = Ended::remote(outcome, Served::HeldLease, kept.accepted_ms, Duration::ZERO, peer);
                    self.record(&activation, ended);
                    return;
                }
                Asked::NotRun => {
                    drop(self.journal().came_back(kept.id, started.attempt));
                    return self.run_again(&kept, started.attempt, gate).await;
                }
                Asked::Stopped => return,
                Asked::Unknown => NOT_TOLD,
            },
        };
        self.end_unknown(&kept, &started, why, gate).await;
    }

    /// It may have run: told as that, or run again if its user allows.
    async fn end_unknown(&self, kept: &Kept, started: &Started, why: &str, gate: Arc<Semaphore>) {
        let next = started.attempt + 1;
        let again = self.find_action(&kept.namespace, &kept.name).await.is_some_and(|action| action.idempotent());
        if again && next < MOST_ATTEMPTS {
            return self.run_again(kept, next, gate).await;
        }
        self.metrics().indeterminate();
        match self.activation_of(kept, started.attempt) {
            Some(activation) => {
                self.record(&activation, Ended::indeterminate(&activation, why));
            }
            None => self.record_failed(kept, why, true).await,
        }
    }

    async fn run_again(&self, kept: &Kept, attempt: u32, gate: Arc<Semaphore>) {
        let permit: OwnedSemaphorePermit = tokio::select! {
            Ok(permit) = gate.acquire_owned() => permit,
            () = self.stopped() => return,
        };
        self.find_action(&kept.namespace, &kept.name).await;
        match self.activation_of(kept, attempt) {
            Some(activation) if !activation.entry.deleted => {
                let first = self.ask(&activation, true);
                // What became of it is in its record, or it is owed still.
                self.clone().run_to_end(activation, first).await.ok();
            }
            _ => self.record_failed(kept, UNKNOWN_ACTION, attempt > 0).await,
        }
        drop(permit);
    }

    /// With the action as it is known now, deleted or not.
    fn activation_of(&self, kept: &Kept, attempt: u32) -> Option<Arc<Activation>> {
        let entry = self.registry().get_any(&kept.namespace, &kept.name)?;
        let call = Call {
            namespace: kept.namespace.clone(),
            name: kept.name.clone(),
            params: kept.params.clone(),
            transaction_id: kept.transaction_id.clone(),
            subject: kept.subject.clone(),
        };
        Some(Activation::new(kept.id, entry, call, kept.accepted_ms, Keeping::promised(attempt)))
    }

    /// How long its run may take: as long as any, if the action is not known.
    fn longest_run(&self, kept: &Kept) -> Duration {
        let entry = self.registry().get_any(&kept.namespace, &kept.name);
        entry.map_or(self.limits().timeout_max, |entry| Duration::from_millis(entry.limits.timeout))
    }

    /// Without seeds and peers of before there is nobody to wait for.
    fn mesh_patience(&self) -> Duration {
        let alone = self.config().join.is_empty() && kept_peers(&self.data_dir()).is_empty();
        if alone { Duration::ZERO } else { MESH_PATIENCE }
    }

    async fn await_mesh(&self) {
        let formed = async {
            while self.driver().look(|core| core.live_peers()) == 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let left = self.mesh_patience().saturating_sub(self.uptime());
        tokio::select! {
            _ = tokio::time::timeout(left, formed) => {}
            () = self.stopped() => {}
        }
    }
}
