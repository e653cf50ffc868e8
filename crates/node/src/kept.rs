//! Activations that nobody waits for: promised once their journal has them on disk, and handed on once it has noted
//! where to.
//!
//! A promise is kept as long as the data folder is: what can't be noted is taken back from the core, so that it holds
//! no slot, and asked for again when the disk works.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::input::{RemoteEnd, RunEnd};
use embermesh_core::mutations::{Mutation, on};
use embermesh_core::output::{SendReserve, SendRun};
use embermesh_core::{ActivationId, Input, RunId};
use embermesh_proto::v1;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::driver::{Assignment, Mine};
use crate::invocation::InvokeError;
use crate::invoke::{Activation, HangUp, Next, Rest};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::record::Ended;
use crate::rpc::convert;
use crate::store::ActivationStatus;
use crate::store::journal::{JournalError, Kept, Request, Started};

/// The longest pause before one that was promised asks for a place in a full queue again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

const PASSING: u8 = 0;
const PROMISED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the journal has to do with an activation.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    state: AtomicU8,
    /// The next attempt's number, or the one under way.
    attempt: AtomicU32,
    handed: Mutex<Option<Handed>>,
    /// It was refused by a node that drains, and asked for once more.
    asked_again: AtomicBool,
}

/// Where the body went, or goes next.
#[derive(Debug, Clone)]
pub(crate) enum Handed {
    Local { run: RunId, attempt: u32 },
    Run(Box<SendRun>),
    Reserve(Box<SendReserve>),
}

/// What becomes of an activation that was not run.
pub(crate) enum After {
    Again(Next),
    Ended(Box<Ended>),
    /// Without a record: its caller is told, or the next start goes on with it.
    Gone(InvokeError),
}

impl Keeping {
    /// For one that is owed since before a restart.
    pub(crate) fn promised(attempt: u32) -> Self {
        Self { state: AtomicU8::new(PROMISED), attempt: AtomicU32::new(attempt), ..Self::default() }
    }

    pub(crate) fn is_promised(&self) -> bool {
        self.state.load(Ordering::Acquire) == PROMISED
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.attempt.load(Ordering::Relaxed)
    }

    fn promise(&self) {
        self.state.store(PROMISED, Ordering::Release);
    }

    fn note(&self, handed: Handed) {
        self.attempt.store(handed.attempt(), Ordering::Relaxed);
        *self.handed.lock().unwrap_or_else(PoisonError::into_inner) = Some(handed);
    }

    /// It came back, and certainly did not run.
    fn came_back(&self) {
        *self.handed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn handed(&self) -> Option<Handed> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Handed {
    pub(crate) fn by(assignment: &Assignment) -> Option<Self> {
        match assignment {
            Assignment::Local { run, attempt, .. } => Some(Self::Local { run: *run, attempt: *attempt }),
            Assignment::Leased(send) => Some(Self::Run(Box::new(send.clone()))),
            Assignment::Reserve(send) => Some(Self::Reserve(Box::new(send.clone()))),
            Assignment::Refused(_) | Assignment::Indeterminate => None,
        }
    }

    fn attempt(&self) -> u32 {
        match self {
            Self::Local { attempt, .. } => *attempt,
            Self::Run(send) => send.attempt,
            Self::Reserve(send) => send.run.map_or(0, |run| run.attempt),
        }
    }

    /// The same hand-over: a request that is sent once more, at the same owner epoch.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local { run, .. }, Self::Local { run: other, .. }) => run == other,
            (Self::Run(send), Self::Run(other)) => send.request == other.request,
            (Self::Reserve(send), Self::Reserve(other)) => send.request == other.request,
            _ => false,
        }
    }

    /// As the journal notes it.
    fn started(&self, node: &Node) -> Started {
        let (owner, epoch, request) = match self {
            Self::Local { .. } => (node.id(), node.epoch(), None),
            Self::Run(send) => {
                let message = v1::RunRequest { run: None, ..convert::run_message(send, v1::Activation::default()) };
                (&send.to, send.owner_epoch, Some(Request::Run(Bytes::from(message.encode_to_vec()))))
            }
            Self::Reserve(send) => {
                let message = convert::reserve_message(send, None);
                (&send.to, send.owner_epoch, Some(Request::Reserve(Bytes::from(message.encode_to_vec()))))
            }
        };
        Started { owner: owner.to_string(), epoch: epoch.0, attempt: self.attempt(), request }
    }
}

impl Node {
    /// Takes an activation that nobody waits for: it ends well once the promise is on disk. The rest goes on in a task
    /// of its own, whether the caller hears of it or not.
    pub(crate) async fn accept(&self, activation: Arc<Activation>) -> Result<(), InvokeError> {
        self.may_promise()?;
        let (tell, told) = oneshot::channel();
        self.track(self.clone().accept_and_run(activation, tell));
        told.await.unwrap_or(Err(InvokeError::Draining))
    }

    async fn accept_and_run(self, activation: Arc<Activation>, tell: oneshot::Sender<Result<(), InvokeError>>) {
        let first = self.ask(&activation, true);
        if let Mine::Now(Assignment::Refused(refusal)) = &first
            && let Err(error) = self.refused(&activation, *refusal)
        {
            self.metrics().refused();
            self.tell(Input::BodyDropped { activation: activation.id });
            tell.send(Err(error)).ok();
            return;
        }
        // A slot that is free now: promise and hand-over share a transaction.
        let handed = match &first {
            Mine::Now(assignment) => Handed::by(assignment),
            Mine::Later(_) => None,
        };
        let started = handed.as_ref().map(|handed| handed.started(&self));
        let promise = self.journal().accept(activation.kept(), started);
        let on_disk = if on(Mutation::PromisedBeforeDisk) {
            drop(tokio::spawn(promise));
            Ok(())
        } else {
            promise.await
        };
        if let Err(error) = on_disk {
            self.take_back(activation.id, first).await;
            self.tell(Input::BodyDropped { activation: activation.id });
            tell.send(Err(not_kept(error))).ok();
            return;
        }
        if let Some(handed) = handed {
            activation.keeping.note(handed);
        }
        activation.keeping.promise();
        tell.send(Ok(())).ok();
        self.run_to_end(activation, first).await.ok();
    }

    /// A blocking call turns into one that nobody waits for. While the promise is on its way to the disk the activation
    /// stands still: nothing is handed on meanwhile.
    pub(crate) async fn promise_rest(&self, activation: Arc<Activation>, rest: Rest) -> Result<(), InvokeError> {
        let (tell, told) = oneshot::channel();
        let node = self.clone();
        self.track(async move {
            let keeping = &activation.keeping;
            let nowhere = || Started::nowhere(keeping.attempt());
            let started = keeping.handed().map_or_else(nowhere, |handed| Some(handed.started(&node)));
            let promised = match node.may_promise() {
                Ok(()) => {
                    // Before it is on disk: a drain that begins meanwhile finishes it.
                    let (action, bytes) = (node.spec(&activation.entry).action.clone(), activation.call.params.len());
                    node.tell(Input::BodyKept { activation: activation.id, action, bytes: bytes as u64 });
                    let on_disk = node.journal().accept(activation.kept(), started).await;
                    if on_disk.is_err() {
                        node.tell(Input::BodyDropped { activation: activation.id });
                    }
                    on_disk.map_err(not_kept)
                }
                Err(error) => Err(error),
            };
            let activation_id = activation.hex.clone();
            let promised =
                promised.map_err(|error| InvokeError::NotPromised { activation_id, reason: error.to_string() });
            if promised.is_ok() {
                activation.keeping.promise();
                tell.send(promised).ok();
                rest.await.ok();
            } else {
                // It may be on disk as it was a moment ago: then it must not go anywhere else from here.
                activation.keeping.state.store(GIVEN_UP, Ordering::Release);
                drop(HangUp { node, id: activation.id, rest: Some(rest) });
                tell.send(promised).ok();
            }
        });
        told.await.unwrap_or(Err(InvokeError::Draining))
    }

    /// Has it noted where the body goes, before it goes there. For a call that somebody waits for that is a note in
    /// memory.
    pub(crate) async fn note_handed(&self, activation: &Activation, handed: Handed) -> Result<(), InvokeError> {
        let keeping = &activation.keeping;
        match keeping.state.load(Ordering::Acquire) {
            PASSING => {}
            // But for one more copy of a request that it has noted.
            GIVEN_UP if keeping.handed().is_some_and(|before| before.is(&handed)) => {}
            GIVEN_UP => return Err(InvokeError::Cancelled),
            _ => {
                if !keeping.handed().is_some_and(|before| before.is(&handed)) {
                    keeping.attempt.store(handed.attempt(), Ordering::Relaxed);
                    let noted = self.journal().started(activation.id, handed.started(self)).await;
                    if let Err(error) = noted {
                        // It may be on disk, or get there yet.
                        self.note_back(activation);
                        return Err(not_kept(error));
                    }
                }
            }
        }
        keeping.note(handed);
        Ok(())
    }

    /// It came back from where it was noted to have gone, certainly not run: its next life asks nobody for it. Not
    /// waited for: a crash before it is on disk asks there, and is told as much or, at worst, nothing.
    pub(crate) fn note_back(&self, activation: &Activation) {
        let keeping = &activation.keeping;
        keeping.came_back();
        if keeping.is_promised() {
            drop(self.journal().came_back(activation.id, keeping.attempt()));
        }
    }

    /// Gives an assignment back that was not carried out: the activation is the core's no more.
    pub(crate) fn withdraw(&self, assignment: Assignment) {
        match assignment {
            Assignment::Local { run, container, .. } => {
                self.tell(Input::RunFinished { container, run, end: RunEnd::Withdrawn });
            }
            Assignment::Leased(send) => {
                self.tell(Input::RunAnswered { request: send.request, end: RemoteEnd::Withdrawn });
            }
            Assignment::Reserve(send) => self.tell(Input::ReserveWithdrawn { request: send.request }),
            Assignment::Refused(_) | Assignment::Indeterminate => {}
        }
    }

    async fn take_back(&self, id: ActivationId, next: Next) {
        match next {
            Mine::Now(assignment) => self.withdraw(assignment),
            Mine::Later(mut mailbox) => {
                if !self.cancel(id)
                    && let Some(assignment) = mailbox.recv().await
                {
                    self.withdraw(assignment);
                }
            }
        }
    }

    /// What becomes of one that was not run. A promise is kept by asking again for what comes back, and by a record
    /// for what does not.
    pub(crate) async fn after(&self, activation: &Activation, error: InvokeError) -> After {
        if !activation.keeping.is_promised() {
            return After::Gone(error);
        }
        match &error {
            InvokeError::Draining if self.is_stopping() => return After::Gone(error),
            // It was not promised yet when the drain began. Now it is, and is finished like all that are.
            InvokeError::Draining if !activation.keeping.asked_again.swap(true, Ordering::Relaxed) => {}
            InvokeError::NotKept { .. } => tokio::select! {
                () = self.journal().works() => {}
                () = self.stopped() => return After::Gone(error),
            },
            InvokeError::QueueFull { retry_after, .. } => tokio::select! {
                () = tokio::time::sleep((*retry_after).min(LONGEST_PAUSE)) => {}
                () = self.stopped() => return After::Gone(error),
            },
            _ => {
                if activation.keeping.attempt() > 0 {
                    // An earlier attempt may have run.
                    self.metrics().indeterminate();
                    return After::Ended(Box::new(Ended::indeterminate(activation, &error.to_string())));
                }
                let outcome = Outcome::failed(ActivationStatus::InternalError, &error.to_string());
                return After::Ended(Box::new(Ended::without_run(activation, outcome)));
            }
        }
        After::Again(self.ask(activation, true))
    }

    fn may_promise(&self) -> Result<(), InvokeError> {
        if self.journal().promises_no_more() {
            return Err(InvokeError::Draining);
        }
        match self.journal().trouble() {
            Some(reason) => Err(InvokeError::NotKept { reason }),
            None => Ok(()),
        }
    }
}

impl Activation {
    fn kept(&self) -> Arc<Kept> {
        Arc::new(Kept {
            id: self.id,
            namespace: self.call.namespace.clone(),
            name: self.call.name.clone(),
            version: self.entry.version.clone(),
            subject: self.call.subject.clone(),
            transaction_id: self.call.transaction_id.clone(),
            accepted_ms: self.arrived_ms,
            params: self.call.params.clone(),
        })
    }
}

fn not_kept(error: JournalError) -> InvokeError {
    match error {
        JournalError::Closed => InvokeError::Draining,
        other => InvokeError::NotKept { reason: other.to_string() },
    }
}
