//! The way of one activation at its origin: from the call to its record.
//!
//! The task that serves the call does all of it: it asks the core for an assignment, carries that out (in an own
//! container, or by gRPC on a lease), tells the core how it went, and takes the next assignment if the
//! activation has not ended. Two short locks of the node's and no channel on the warm path. What the journal has to do
//! with those that nobody waits for is in `kept`; of the others it has a note in memory, in the activation itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Refusal, SendReserve, SendRun, Served};
use embermesh_core::{ActivationId, Input};
use embermesh_proto::v1;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::detached::Detached;
use crate::driver::{Assignment, Mine};
use crate::invocation::{Call, InvokeError, Invoked, Wait};
use crate::kept::{After, Handed, Keeping};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::record::Ended;
use crate::registry::action::{ActionEntry, KeyValue};
use crate::store::{ActivationRecord, ActivationStatus};

const LOST: &str = "The node that ran this activation was lost: whether it ran is not known.";
const GIVEN_UP: &str = "The node that had accepted this activation was drained by force: it did not run.";

/// One activation under way.
pub(crate) struct Activation {
    pub(crate) id: ActivationId,
    pub(crate) hex: String,
    pub(crate) entry: Arc<ActionEntry>,
    pub(crate) call: Call,
    pub(crate) arrived: Instant,
    pub(crate) arrived_ms: u64,
    pub(crate) keeping: Keeping,
}

/// An assignment, or where it will come.
pub(crate) type Next = Mine<Assignment, mpsc::Receiver<Assignment>>;

/// How an activation that somebody waits for goes on.
pub(crate) type Rest = Detached<Result<ActivationRecord, InvokeError>>;

/// Tells the core when the caller leaves before the end.
pub(crate) struct HangUp {
    pub(crate) node: Node,
    pub(crate) id: ActivationId,
    pub(crate) rest: Option<Rest>,
}

enum Step {
    Ended(Ended),
    Again(Next),
}

impl Activation {
    pub(crate) fn new(
        id: ActivationId,
        entry: Arc<ActionEntry>,
        call: Call,
        arrived_ms: u64,
        keeping: Keeping,
    ) -> Arc<Self> {
        Arc::new(Self { id, hex: id.to_string(), entry, call, arrived: Instant::now(), arrived_ms, keeping })
    }
}

impl Node {
    /// Runs an action. Dropping the future is the caller hanging up: what waits is cancelled, what runs goes on.
    pub async fn invoke(&self, call: Call, wait: Wait) -> Result<Invoked, InvokeError> {
        let entry = self
            .find_action(&call.namespace, &call.name)
            .await
            .ok_or_else(|| InvokeError::NotFound { namespace: call.namespace.clone(), name: call.name.clone() })?;
        let id = new_activation_id();
        let activation = Activation::new(id, entry, call, self.wall_ms(), Keeping::default());
        let accepted = Invoked::Accepted { activation_id: activation.hex.clone() };
        let Wait::For(longest) = wait else {
            self.accept(activation).await?;
            return Ok(accepted);
        };
        let (node, own) = (self.clone(), activation.clone());
        let run = Detached::new(async move {
            let first = node.ask(&own, false);
            node.run_to_end(own, first).await
        });
        let mut caller = HangUp { node: self.clone(), id, rest: Some(run) };
        let ended = match caller.rest.as_mut() {
            Some(run) => timeout(longest, run).await,
            None => return Ok(accepted),
        };
        match (ended, caller.rest.take()) {
            (Ok(ended), _) => Ok(Invoked::Ended(Box::new(ended?))),
            (Err(_), Some(rest)) => {
                self.promise_rest(activation, rest).await?;
                Ok(accepted)
            }
            (Err(_), None) => Ok(accepted),
        }
    }

    /// Asks the core for the first assignment.
    pub(crate) fn ask(&self, activation: &Activation, journaled: bool) -> Next {
        let input = Input::InvokeRequested {
            activation: activation.id,
            spec: self.spec(&activation.entry),
            body_bytes: activation.call.params.len() as u64,
            attempt: activation.keeping.attempt(),
            journaled,
        };
        self.tell_for(input, activation.id)
    }

    /// Carries out what the core assigns until the activation has ended, and makes its record.
    pub(crate) async fn run_to_end(
        self,
        activation: Arc<Activation>,
        first: Next,
    ) -> Result<ActivationRecord, InvokeError> {
        let mut next = first;
        let ended = loop {
            match self.carry_out_all(&activation, next).await {
                Ok(ended) => break ended,
                Err(error) => match self.after(&activation, error).await {
                    After::Again(again) => next = again,
                    After::Ended(ended) => break *ended,
                    After::Gone(error) => return Err(error),
                },
            }
        };
        self.metrics().invoke_seconds.record(activation.arrived.elapsed().as_secs_f64());
        if let Some(served) = ended.served {
            self.metrics().served(served);
            self.metrics().wait_seconds.record(ended.waited.as_secs_f64());
        }
        Ok(self.record(&activation, ended))
    }

    async fn carry_out_all(&self, activation: &Activation, first: Next) -> Result<Ended, InvokeError> {
        let mut next = first;
        loop {
            let assignment = match next {
                Mine::Now(assignment) => assignment,
                Mine::Later(mut mailbox) => match mailbox.recv().await {
                    Some(assignment) => assignment,
                    // The node goes down with the activation still waiting.
                    None => return Err(InvokeError::Draining),
                },
            };
            if let Some(handed) = Handed::by(&assignment)
                && let Err(error) = self.note_handed(activation, handed).await
            {
                self.withdraw(assignment);
                return Err(error);
            }
            let step = match assignment {
                Assignment::Local { run, container, served, .. } => {
                    self.run_local(activation, run, container, served).await
                }
                Assignment::Leased(send) => self.run_leased(activation, send).await,
                Assignment::Reserve(send) => self.reserve_and_run(activation, send).await,
                Assignment::Refused(refusal) => match self.refused(activation, refusal) {
                    Ok(ended) => Step::Ended(ended),
                    Err(error) => {
                        self.metrics().refused();
                        return Err(error);
                    }
                },
                Assignment::Indeterminate => {
                    self.metrics().indeterminate();
                    Step::Ended(Ended::indeterminate(activation, LOST))
                }
            };
            match step {
                Step::Ended(ended) => return Ok(ended),
                Step::Again(again) => next = again,
            }
        }
    }

    async fn run_local(
        &self,
        activation: &Activation,
        run: embermesh_core::RunId,
        container: u64,
        served: Served,
    ) -> Step {
        let started_ms = self.wall_ms();
        let waited = activation.arrived.elapsed();
        let (owned, call) = (self.own_container(container), &activation.call);
        let place = (container, run);
        let (outcome, end) =
            self.run_in(owned.as_ref(), place, activation.id, &call.params, &call.transaction_id).await;
        let input = Input::RunFinished { container, run, end };
        // Without one the body never reached the container: back to the queue.
        let Some(outcome) = outcome else { return self.not_run(activation, input) };
        self.tell(input);
        let init_ms = owned.as_ref().and_then(|owned| owned.init_ms).filter(|_| served == Served::Cold);
        Step::Ended(Ended {
            outcome,
            served: Some(served),
            started_ms,
            waited,
            init_ms,
            ran_at: None,
            log: owned.map(|owned| owned.log),
            indeterminate: false,
        })
    }

    async fn run_leased(&self, activation: &Activation, send: SendRun) -> Step {
        let started_ms = self.wall_ms();
        let waited = activation.arrived.elapsed();
        let message = self.activation_message(activation, send.attempt);
        let answer = self.call_run(&send, message).await;
        let request = send.request.clone();
        match answer {
            Ok(outcome) => {
                self.tell(Input::RunAnswered { request, end: RemoteEnd::Answered { renewed_us: outcome.renewed_us } });
                Step::Ended(Ended::remote(outcome.outcome, send.served, started_ms, waited, send.to))
            }
            Err(end) => self.not_run(activation, Input::RunAnswered { request, end }),
        }
    }

    async fn reserve_and_run(&self, activation: &Activation, send: SendReserve) -> Step {
        let started_ms = self.wall_ms();
        let waited = activation.arrived.elapsed();
        let attempt = send.run.map_or(0, |r| r.attempt);
        let message = self.activation_message(activation, attempt);
        let request = send.request.clone();
        match self.call_reserve_and_run(&send, message).await {
            Ok(outcome) => {
                self.tell(Input::RunAnswered { request, end: RemoteEnd::Answered { renewed_us: outcome.renewed_us } });
                Step::Ended(Ended::remote(outcome.outcome, Served::NewLease, started_ms, waited, send.to))
            }
            Err(input) => self.not_run(activation, input),
        }
    }

    /// Its hand-over brought no result: asked for once more, here or elsewhere, or ended as the core says.
    fn not_run(&self, activation: &Activation, input: Input) -> Step {
        let (next, came_back) = self.tell_end(input, activation.id);
        if came_back {
            self.note_back(activation);
        }
        Step::Again(next)
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
    pub(crate) fn refused(&self, activation: &Activation, refusal: Refusal) -> Result<Ended, InvokeError> {
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
            Refusal::GivenUp => Outcome::failed(ActivationStatus::InternalError, GIVEN_UP),
            Refusal::InitFailed => {
                Outcome::failed(ActivationStatus::DeveloperError, &self.start_error(&namespace, &name))
            }
            Refusal::StartFailed => {
                Outcome::failed(ActivationStatus::InternalError, &self.start_error(&namespace, &name))
            }
        };
        Ok(Ended::without_run(activation, outcome))
    }
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
