//! What happened, as the nodes tell it: one append-only history, and the invariants that judge it.
//!
//! A node whose history is on ([`Node::with_history`](crate::Node::with_history)) pushes an
//! [`Output::History`] for whatever the protocol promises something about: who granted, ran,
//! paused, removed or vetoed what, with fences, epochs and request ids. Off, which is the default, it costs a branch.
//!
//! The [`Judge`] reads records in the order in which they happened and keeps a [`Ledger`] of its own, by arithmetic of
//! its own. Each invariant lives once, in `invariants/`, and looks at the ledger before a record and at that record.
//! The same ones judge the property test, the model, and whatever an agent has recorded. Where the nodes themselves
//! are at hand, as in a simulation, a [`Glance`] at them is judged as well.

mod invariants;
mod judge;
mod ledger;

use crate::container::Lifecycle;
use crate::ids::{ActionId, ActivationId, ContainerId, Epoch, Fence, IntentId, NodeId, RequestId, Revision, RunId};
use crate::input::{Input, RemoteEnd, RunEnd};
use crate::output::{Attempt, Denial, Event, IntentEnd, IntentKind, Output, ReserveAnswer, RunRefusal};
use crate::time::{Micros, Time};

pub use invariants::{INVARIANTS, Invariant};
pub use judge::{Glance, Judge, Violation};
pub use ledger::Ledger;

/// One thing that happened at one node.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// By the node's own clock.
    pub at: Time,
    pub node: NodeId,
    pub epoch: Epoch,
    /// Number of the step in this life of the node, from 1: what one step did is one thing. 0 if it was none of its own.
    pub step: u64,
    pub what: What,
}

/// The numbers that a node has promised to keep.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Premises {
    /// ttl + grace: how long an owner accepts runs after a grant or a renewing run.
    pub accepts_us: Micros,
    /// A window noticed later than this after its end may open again.
    pub late_after_us: Micros,
    pub max_hold_us: Micros,
    pub memory_mb: u64,
}

/// Containers are named by their number where they are the node's own.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// A life of the node begins; all that an earlier one had is gone.
    Began(Premises),
    /// It ends and leaves its idle containers to the next one.
    HandsOver,

    // Own activations.
    /// Above attempt 0, an earlier one may have run.
    Invoked {
        activation: ActivationId,
        idempotent: bool,
        attempt: u32,
    },
    /// The body leaves this node, or may.
    BodySent {
        attempt: Attempt,
        request: RequestId,
        lease: Option<Fence>,
    },
    /// What was heard of a body that was sent.
    Heard {
        request: RequestId,
        heard: Heard,
    },
    Ended {
        activation: ActivationId,
        end: End,
    },
    /// A first send of a Reserve or a Run, meant for that epoch.
    Asked {
        to: NodeId,
        owner_epoch: Epoch,
    },

    // Own containers.
    Made {
        container: u64,
        action: ActionId,
        revision: Revision,
        slots: u32,
        memory_mb: u64,
    },
    Moved {
        container: u64,
        to: Lifecycle,
    },
    Gone {
        container: u64,
    },
    Granted {
        request: RequestId,
        container: u64,
        fence: Fence,
        slots: u32,
        action: ActionId,
        revision: Revision,
    },
    /// A copy of a request got the answer that the first one had.
    GrantRepeated {
        request: RequestId,
        fence: Fence,
    },
    RunBegan {
        run: RunId,
        container: u64,
        attempt: Attempt,
        action: ActionId,
        revision: Revision,
        lease: Option<OnLease>,
    },
    /// A copy of a request waits for the run that the first one began.
    RunJoined {
        run: RunId,
        attempt: Attempt,
    },
    RunEnded {
        container: u64,
        run: RunId,
        end: RunEnd,
    },
    /// A holder keeps `slots` of a lease, none if it is over.
    Released {
        container: u64,
        fence: Fence,
        holder: NodeId,
        holder_epoch: Epoch,
        slots: u32,
    },
    Expired {
        container: u64,
        fence: Fence,
    },

    // What the container itself sees, told by whoever runs it.
    Entered {
        container: u64,
        run: RunId,
    },
    /// It has answered.
    Left {
        container: u64,
        run: RunId,
    },

    // Intents on own containers.
    Opened {
        intent: IntentId,
        kind: IntentKind,
        window_us: Micros,
        last_word: bool,
    },
    Veto {
        from: NodeId,
        container: ContainerId,
        round: u32,
        hold_us: Micros,
        counted: bool,
    },
    /// Its window has closed unopposed; the engine is busy.
    AwaitsPermit {
        intent: IntentId,
    },
    /// `own_waits`: own activations of the action wait at this moment.
    Closed {
        intent: IntentId,
        end: IntentEnd,
        own_waits: bool,
    },

    // Peers.
    /// Gossip shows a peer in that epoch.
    Shown {
        peer: NodeId,
        epoch: Epoch,
    },
    /// This node takes a peer for live in that epoch.
    PeerUp {
        peer: NodeId,
        epoch: Epoch,
    },
    /// This node believes an advert.
    AdvertTaken {
        peer: NodeId,
        epoch: Epoch,
    },
}

/// The lease that a run shows.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OnLease {
    pub request: RequestId,
    pub fence: Fence,
    /// Slots that the holder wants to keep.
    pub keep: u32,
    /// The lease counts from this run now.
    pub renewed: bool,
}

/// What an origin hears of a body that it sent.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// The owner it was meant for has spoken: it ran, or it will not.
    Settled,
    /// Somebody else refused: another epoch, or one that has closed the request.
    Refused,
    /// This send provably never left.
    NeverLeft,
}

/// How an activation ends at its origin.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Answered,
    /// It has not run and will not.
    Refused,
    /// Asked for again by whoever keeps it, and not taken now: an earlier attempt may have run.
    PutOff,
    Indeterminate,
    /// Its caller left while it waited.
    Dropped,
    /// Taken back before it was handed on; it may be asked for once more.
    Withdrawn,
}

impl What {
    /// What an input tells by itself, before the node has looked at it.
    pub(crate) fn of_input(input: &Input) -> Option<What> {
        let heard = |request: &RequestId, heard| Some(What::Heard { request: request.clone(), heard });
        match input {
            Input::InvokeRequested { activation, spec, attempt, .. } => {
                Some(What::Invoked { activation: *activation, idempotent: spec.idempotent, attempt: *attempt })
            }
            Input::PeerUp { peer, epoch } => Some(What::Shown { peer: peer.clone(), epoch: *epoch }),
            Input::RunFinished { container, run, end } => {
                Some(What::RunEnded { container: *container, run: *run, end: *end })
            }
            Input::ReserveDenied { request, denial: Denial::WrongEpoch | Denial::StaleRequest, .. } => {
                heard(request, Heard::Refused)
            }
            Input::ReserveDenied { request, .. } => heard(request, Heard::Settled),
            Input::ReserveFailed { request, never_sent: true } | Input::ReserveWithdrawn { request } => {
                heard(request, Heard::NeverLeft)
            }
            Input::RunAnswered { request, end } => match end {
                RemoteEnd::Refused(RunRefusal::WrongEpoch | RunRefusal::StaleRequest) => heard(request, Heard::Refused),
                RemoteEnd::Answered { .. } | RemoteEnd::Refused(_) => heard(request, Heard::Settled),
                RemoteEnd::NeverSent | RemoteEnd::Withdrawn => heard(request, Heard::NeverLeft),
                RemoteEnd::Unknown => None,
            },
            _ => None,
        }
    }

    /// What an output tells by itself; where more is to be told than it carries, the step does so.
    pub(crate) fn of_output(output: &Output) -> Option<What> {
        match output {
            Output::SendRun(send) => Some(What::BodySent {
                attempt: Attempt { activation: send.activation, attempt: send.attempt },
                request: send.request.clone(),
                lease: Some(send.fence),
            }),
            Output::SendReserve(send) => {
                let attempt = send.run?;
                Some(What::BodySent { attempt, request: send.request.clone(), lease: None })
            }
            Output::Refuse { activation, maybe_ran, .. } => {
                let end = if *maybe_ran { End::PutOff } else { End::Refused };
                Some(What::Ended { activation: *activation, end })
            }
            Output::Indeterminate { activation } => {
                Some(What::Ended { activation: *activation, end: End::Indeterminate })
            }
            Output::AnswerReserve { request, answer: ReserveAnswer::Granted { fence, first: false, .. } } => {
                Some(What::GrantRepeated { request: request.clone(), fence: *fence })
            }
            Output::Event(event) => What::of_event(event),
            _ => None,
        }
    }

    fn of_event(event: &Event) -> Option<What> {
        match event {
            Event::PeerUp { peer, epoch } => Some(What::PeerUp { peer: peer.clone(), epoch: *epoch }),
            Event::LeaseExpired { container, fence, .. } => {
                Some(What::Expired { container: *container, fence: *fence })
            }
            Event::ContainerRemoved { container, .. } => Some(What::Gone { container: *container }),
            _ => None,
        }
    }
}
