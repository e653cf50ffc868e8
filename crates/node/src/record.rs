//! What is kept of an activation that has ended: made once, and stored when its log lines are there.

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::output::Served;
use embermesh_core::{ActivationId, Input, NodeId};
use serde_json::json;

use crate::invoke::Activation;
use crate::logbook::ContainerLog;
use crate::node::Node;
use crate::outcome::Outcome;
use crate::registry::action::KeyValue;
use crate::store::journal::Kept;
use crate::store::{ActivationRecord, ActivationResponse, ActivationStatus};

/// How an activation ended at its origin.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) served: Option<Served>,
    pub(crate) started_ms: u64,
    pub(crate) waited: Duration,
    pub(crate) init_ms: Option<u64>,
    /// Where its log lines are: at a peer, or here.
    pub(crate) ran_at: Option<NodeId>,
    pub(crate) log: Option<Arc<ContainerLog>>,
    pub(crate) indeterminate: bool,
}

impl Ended {
    /// It did not run, or nobody knows where.
    pub(crate) fn without_run(activation: &Activation, outcome: Outcome) -> Self {
        Self {
            outcome,
            served: None,
            started_ms: activation.arrived_ms,
            waited: activation.arrived.elapsed(),
            init_ms: None,
            ran_at: None,
            log: None,
            indeterminate: false,
        }
    }

    /// It ran at a peer.
    pub(crate) fn remote(outcome: Outcome, served: Served, started_ms: u64, waited: Duration, peer: NodeId) -> Self {
        Self {
            outcome,
            served: Some(served),
            started_ms,
            waited,
            init_ms: None,
            ran_at: Some(peer),
            log: None,
            indeterminate: false,
        }
    }

    /// Nobody will know whether it ran.
    pub(crate) fn indeterminate(activation: &Activation, why: &str) -> Self {
        let outcome = Outcome::failed(ActivationStatus::InternalError, why);
        Self { indeterminate: true, ..Self::without_run(activation, outcome) }
    }
}

impl Node {
    /// Makes the record, and has it stored when its log lines are there.
    pub(crate) fn record(&self, activation: &Arc<Activation>, ended: Ended) -> ActivationRecord {
        let entry = &activation.entry;
        let end_ms = ended.started_ms + ended.outcome.took.as_millis() as u64;
        let mut annotations = vec![
            annotation("path", json!(format!("{}/{}", entry.namespace, entry.name))),
            annotation("kind", json!(entry.kind.as_str())),
            annotation("timeout", json!(ended.outcome.timed_out)),
            annotation("waitTime", json!(ended.waited.as_millis() as u64)),
            annotation(
                "limits",
                json!({"concurrency": entry.limits.concurrency, "logs": entry.limits.logs,
                       "memory": entry.limits.memory, "timeout": entry.limits.timeout}),
            ),
        ];
        if let Some(init_ms) = ended.init_ms {
            annotations.push(annotation("initTime", json!(init_ms)));
        }
        if let Some(served) = ended.served {
            annotations.push(annotation("served", json!(served_name(served))));
        }
        if ended.log.is_some() || ended.ran_at.is_some() {
            let node = ended.ran_at.as_ref().unwrap_or_else(|| self.id());
            annotations.push(annotation("node", json!(node.as_str())));
        }
        if ended.indeterminate {
            annotations.push(annotation("indeterminate", json!(true)));
        }
        let record = ActivationRecord {
            activation_id: activation.hex.clone(),
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            version: entry.version.clone(),
            subject: activation.call.subject.clone(),
            start_ms: ended.started_ms,
            end_ms,
            duration_ms: end_ms - ended.started_ms,
            publish: false,
            cause: None,
            logs: Vec::new(),
            annotations,
            response: ActivationResponse::new(ended.outcome.status, ended.outcome.result.clone()),
        };
        let own_lines = ended.outcome.log_lines;
        let no_lines = match (&ended.ran_at, &ended.log) {
            (Some(_), _) => own_lines == Some(0),
            (None, Some(log)) => log.was_silent(&activation.hex, own_lines),
            (None, None) => true,
        };
        let (node, id, mut stored) = (self.clone(), activation.id, record.clone());
        if activation.keeping.is_promised() {
            self.track(async move {
                if !no_lines {
                    node.add_lines(&mut stored, &ended).await;
                }
                node.end_owed(id, stored).await;
            });
        } else if no_lines {
            self.records().record(stored);
        } else {
            self.track(async move {
                node.add_lines(&mut stored, &ended).await;
                node.records().record(stored);
            });
        }
        record
    }

    /// The one record of an activation that was owed, of which no action is known any more.
    pub(crate) async fn record_failed(&self, kept: &Kept, why: &str, indeterminate: bool) {
        let outcome = Outcome::failed(ActivationStatus::InternalError, why);
        let mut annotations = vec![annotation("path", json!(format!("{}/{}", kept.namespace, kept.name)))];
        if indeterminate {
            annotations.push(annotation("indeterminate", json!(true)));
        }
        let end_ms = self.wall_ms().max(kept.accepted_ms);
        let record = ActivationRecord {
            activation_id: kept.id.to_string(),
            namespace: kept.namespace.clone(),
            name: kept.name.clone(),
            version: kept.version.clone(),
            subject: kept.subject.clone(),
            start_ms: kept.accepted_ms,
            end_ms,
            duration_ms: end_ms - kept.accepted_ms,
            publish: false,
            cause: None,
            logs: Vec::new(),
            annotations,
            response: ActivationResponse::new(outcome.status, outcome.result),
        };
        self.end_owed(kept.id, record).await;
    }

    /// The record takes the place of what was owed; it can be seen once it is on disk.
    async fn end_owed(&self, id: ActivationId, record: ActivationRecord) {
        match self.journal().end(id, record).await {
            Ok(()) => self.tell(Input::BodyDropped { activation: id }),
            Err(error) => {
                tracing::warn!(activation = %id, %error, "how this activation ended is not on disk: the next start finds it owed");
            }
        }
    }

    async fn add_lines(&self, record: &mut ActivationRecord, ended: &Ended) {
        let id = &record.activation_id;
        record.logs = match (&ended.ran_at, &ended.log) {
            (Some(peer), _) => self.call_logs(peer, id).await,
            (None, Some(log)) => log.take(id, ended.outcome.log_lines).await,
            (None, None) => Vec::new(),
        };
    }
}

/// How an activation came to its slot, as records show it.
fn served_name(served: Served) -> &'static str {
    match served {
        Served::Local => "local",
        Served::HeldLease => "leased",
        Served::NewLease => "leased_new",
        Served::Resumed => "resumed",
        Served::Cold => "cold",
    }
}

fn annotation(key: &str, value: serde_json::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value }
}
