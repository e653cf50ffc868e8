//! The way of one activation at its origin: from the call to its record.
//!
//! The task that serves the call does all of it: it asks the core for an assignment, carries that out (in an own
//! container, or by gRPC on a lease), tells the core how it went, and takes the next assignment if the
//! activation has not ended. Two short locks and no channel on the warm path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Refusal, SendReserve, SendRun, Served};
use embermesh_core::{ActivationId, Input};
use embermesh_proto::v1;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use crate::clock::wall_ms;
use crate::detached::Detached;
use crate::driver::{Assignment, Mine};
use crate::invocation::{Call, InvokeError, Invoked, Wait};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::registry::action::{ActionEntry, KeyValue};
use crate::store::{ActivationRecord, ActivationResponse, ActivationStatus};

/// How long a record waits for its log lines.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// One activation under way.
struct Activation {
    id: ActivationId,
    hex: String,
    entry: Arc<ActionEntry>,
    call: Call,
    arrived: Instant,
    arrived_ms: u64,
}

/// How it ended at this node.
struct Ended {
    outcome: Outcome,
    served: Option<Served>,
    started_ms: u64,
    waited: Duration,
    init_ms: Option<u64>,
    /// Where its log lines are: here, or at a peer.
    ran_at: Option<embermesh_core::NodeId>,
    container: Option<u64>,
    indeterminate: bool,
}

impl Ended {
    /// It did not run, or nobody knows where.
    fn without_run(activation: &Activation, outcome: Outcome) -> Self {
        Self {
            outcome,
            served: None,
            started_ms: activation.arrived_ms,
            waited: activation.arrived.elapsed(),
            init_ms: None,
            ran_at: None,
            container: None,
            indeterminate: false,
        }
    }
}

/// Tells the core when the caller leaves before the end.
struct HangUp {
    node: Node,
    id: ActivationId,
    rest: Option<Detached<Result<ActivationRecord, InvokeError>>>,
}

impl Node {
    /// Runs an action. Dropping the future is the caller hanging up: what waits is cancelled, what runs goes on.
    pub async fn invoke(&self, call: Call, wait: Wait) -> Result<Invoked, InvokeError> {
        let entry = self
            .find_action(&call.namespace, &call.name)
            .await
            .ok_or_else(|| InvokeError::NotFound { namespace: call.namespace.clone(), name: call.name.clone() })?;
        let id = new_activation_id();
        let hex = id.to_string();
        let arrived = Instant::now();
        let activation = Activation { id, hex: hex.clone(), entry, call, arrived, arrived_ms: wall_ms() };
        let activation = Arc::new(activation);
        let refused = Refused { node: self.clone(), activation: activation.clone() };
        let mut run = Detached::new(self.clone().run_to_end(activation));
        if let Wait::For(longest) = wait {
            let mut caller = HangUp { node: self.clone(), id, rest: Some(run) };
            let ended = match caller.rest.as_mut() {
                Some(run) => timeout(longest, run).await,
                None => return Ok(Invoked::Accepted { activation_id: hex }),
            };
            match (ended, caller.rest.take()) {
                (Ok(ended), _) => return Ok(Invoked::Ended(Box::new(ended?))),
                // It turns into a non-blocking one.
                (Err(_), Some(rest)) => run = rest,
                (Err(_), None) => return Ok(Invoked::Accepted { activation_id: hex }),
            }
        }
        tokio::spawn(async move {
            if let Err(error) = run.await {
                refused.record(&error);
            }
        });
        Ok(Invoked::Accepted { activation_id: hex })
    }

    async fn run_to_end(self, activation: Arc<Activation>) -> Result<ActivationRecord, InvokeError> {
        let spec = self.spec(&activation.entry);
        let body_bytes = activation.call.params.len() as u64;
        let mut next =
            self.tell_for(Input::InvokeRequested { activation: activation.id, spec, body_bytes }, activation.id);
        let ended = loop {
            let assignment = match next {
                Mine::Now(assignment) => assignment,
                Mine::Later(mut mailbox) => match mailbox.recv().await {
                    Some(assignment) => assignment,
                    // The node goes down with the activation still waiting.
                    None => return Err(InvokeError::Draining),
                },
            };
            let step = match assignment {
                Assignment::Local { run, container, served } => {
                    self.run_local(&activation, run, container, served).await
                }
                Assignment::Leased(send) => self.run_leased(&activation, send).await,
                Assignment::Reserve(send) => self.reserve_and_run(&activation, send).await,
                Assignment::Refused(refusal) => match self.refused(&activation, refusal) {
                    Ok(ended) => Step::Ended(ended),
                    Err(error) => {
                        self.metrics().refused();
                        return Err(error);
                    }
                },
                Assignment::Indeterminate => {
                    self.metrics().indeterminate();
                    Step::Ended(indeterminate(&activation))
                }
            };
            match step {
                Step::Ended(ended) => break ended,
                Step::Again(again) => next = again,
            }
        };
        self.metrics().invoke_seconds.record(activation.arrived.elapsed().as_secs_f64());
        if let Some(served) = ended.served {
            self.metrics().served(served);
            self.metrics().wait_seconds.record(ended.waited.as_secs_f64());
        }
        Ok(self.record(&activation, ended))
    }

    async fn run_local(
        &self,
        activation: &Activation,
        run: embermesh_core::RunId,
        container: u64,
        served: Served,
    ) -> Step {
        let started_ms = wall_ms();
        let waited = activation.arrived.elapsed();
        let entry = self.entry_in(container).unwrap_or_else(|| activation.entry.clone());
        let call = &activation.call;
        let (outcome, end) = self.run_in(container, &entry, activation.id, &call.params, &call.transaction_id).await;
        let input = Input::RunFinished { container, run, end };
        let Some(outcome) = outcome else {
            // The body never reached the container: back to the queue.
            return Step::Again(self.tell_for(input, activation.id));
        };
        self.tell(input);
        let init_ms = (served == Served::Cold).then(|| self.init_ms(container)).flatten();
        Step::Ended(Ended {
            outcome,
            served: Some(served),
            started_ms,
            waited,
            init_ms,
            ran_at: None,
            container: Some(container),
            indeterminate: false,
        })
    }

    async fn run_leased(&self, activation: &Activation, send: SendRun) -> Step {
        let started_ms = wall_ms();
        let waited = activation.arrived.elapsed();
        let message = self.activation_message(activation, send.attempt);
        let answer = self.call_run(&send, message).await;
        let request = send.request.clone();
        match answer {
            Ok(outcome) => {
                self.tell(Input::RunAnswered { request, end: RemoteEnd::Answered { renewed_us: outcome.renewed_us } });
                Step::Ended(remote(outcome.outcome, send.served, started_ms, waited, send.to))
            }
            Err(end) => Step::Again(self.tell_for(Input::RunAnswered { request, end }, activation.id)),
        }
    }

    async fn reserve_and_run(&self, activation: &Activation, send: SendReserve) -> Step {
        let started_ms = wall_ms();
        let waited = activation.arrived.elapsed();
        let attempt = send.run.map_or(0, |r| r.attempt);
        let message = self.activation_message(activation, attempt);
        let request = send.request.clone();
        match self.call_reserve_and_run(&send, message).await {
            Ok(outcome) => {
                self.tell(Input::RunAnswered { request, end: RemoteEnd::Answered { renewed_us: outcome.renewed_us } });
                Step::Ended(remote(outcome.outcome, Served::NewLease, started_ms, waited, send.to))
            }
            Err(input) => Step::Again(self.tell_for(input, activation.id)),
        }
    }

    fn activation_message(&self, activation: &Activation, attempt: u32) -> v1::Activation {
        v1::Activation {
            activation_id: activation.id.0.to_be_bytes().to_vec(),
            attempt,
            body: activation.call.params.clone(),
            transaction_id: activation.call.transaction_id.clone(),
        }
    }

    /// A refusal that is the action's own fault ends as a record, any other as an error.
    fn refused(&self, activation: &Activation, refusal: Refusal) -> Result<Ended, InvokeError> {
        let (namespace, name) = (activation.call.namespace.clone(), activation.call.name.clone());
        let outcome = match refusal {
            Refusal::QueueFull { retry_after_us } => {
                return Err(InvokeError::QueueFull { name, retry_after: Duration::from_micros(retry_after_us) });
            }
            Refusal::NoCapacity { retry_after_us } => {
                return Err(InvokeError::NoCapacity { name, retry_after: Duration::from_micros(retry_after_us) });
            }
            Refusal::Draining => return Err(InvokeError::Draining),
            Refusal::Cancelled => return Err(InvokeError::Cancelled),
            Refusal::Deleted => return Err(InvokeError::Deleted { namespace, name }),
            Refusal::InitFailed => {
                Outcome::failed(ActivationStatus::DeveloperError, &self.start_error(&namespace, &name))
            }
            Refusal::StartFailed => {
                Outcome::failed(ActivationStatus::InternalError, &self.start_error(&namespace, &name))
            }
        };
        Ok(Ended::without_run(activation, outcome))
    }

    /// Makes the record, and has it stored when its log lines are there.
    fn record(&self, activation: &Activation, ended: Ended) -> ActivationRecord {
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
        if ended.container.is_some() || ended.ran_at.is_some() {
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
        self.store_with_logs(record.clone(), ended);
        record
    }

    fn store_with_logs(&self, mut record: ActivationRecord, ended: Ended) {
        let unclaimed = ended.container.map(|c| self.unclaimed_lines(c)).unwrap_or_default();
        let ran = ended.ran_at.is_some() || ended.container.is_some();
        if !ran || (ended.outcome.log_lines == Some(0) && unclaimed.is_empty()) {
            return self.records().record(record);
        }
        let node = self.clone();
        tokio::spawn(async move {
            record.logs = match &ended.ran_at {
                Some(peer) => node.call_logs(peer, &record.activation_id).await,
                None => node.logbook().take(&record.activation_id, ended.outcome.log_lines, LOG_PATIENCE).await,
            };
            record.logs.extend(unclaimed);
            node.records().record(record);
        });
    }
}

/// A 202 that is refused afterwards: its outcome is a record all the same.
struct Refused {
    node: Node,
    activation: Arc<Activation>,
}

impl Refused {
    fn record(&self, error: &InvokeError) {
        let outcome = Outcome::failed(ActivationStatus::InternalError, &error.to_string());
        self.node.record(&self.activation, Ended::without_run(&self.activation, outcome));
    }
}

enum Step {
    Ended(Ended),
    Again(Mine<Assignment, tokio::sync::mpsc::Receiver<Assignment>>),
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            if self.node.cancel(self.id) {
                rest.abandon();
            } else {
                drop(rest);
            }
        }
    }
}

fn remote(outcome: Outcome, served: Served, started_ms: u64, waited: Duration, peer: embermesh_core::NodeId) -> Ended {
    Ended {
        outcome,
        served: Some(served),
        started_ms,
        waited,
        init_ms: None,
        ran_at: Some(peer),
        container: None,
        indeterminate: false,
    }
}

fn indeterminate(activation: &Activation) -> Ended {
    let text = "The node that ran this activation was lost: whether it ran is not known.";
    let outcome = Outcome::failed(ActivationStatus::InternalError, text);
    Ended { indeterminate: true, ..Ended::without_run(activation, outcome) }
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

fn new_activation_id() -> ActivationId {
    ActivationId(uuid::Uuid::now_v7().as_u128())
}

/// The action's own parameters under the caller's.
pub(crate) fn merged_params(defaults: &[KeyValue], params: &Bytes) -> Option<Bytes> {
    if defaults.is_empty() {
        return Some(params.clone());
    }
    let given: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(params).ok()?;
    let mut merged: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    for default in defaults {
        merged.insert(&default.key, serde_json::value::to_raw_value(&default.value).ok()?);
    }
    for (key, value) in &given {
        merged.insert(key, value.clone());
    }
    serde_json::to_vec(&merged).ok().map(Bytes::from)
}
