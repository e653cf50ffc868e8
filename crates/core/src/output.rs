//! What a node wants done. The driver carries each out and reports how it ended as an [`Input`](crate::Input).

use crate::history::Record;
use crate::ids::{
    ActionHash, ActionId, ActivationId, ContainerId, Epoch, Fence, IntentId, NodeId, RequestId, Revision, RunId,
};
use crate::time::Micros;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    // For own activations.
    /// Run it in an own container; ends with `RunFinished`.
    RunLocal {
        activation: ActivationId,
        run: RunId,
        container: u64,
        attempt: u32,
        served: Served,
    },
    /// Run it on a held lease; ends with `RunAnswered`.
    SendRun(SendRun),
    /// The activation ends without having run; or, if an earlier attempt of it may have run, this one is put off: whoever
    /// keeps it asks again.
    Refuse {
        activation: ActivationId,
        refusal: Refusal,
        maybe_ran: bool,
    },
    /// It may or may not have run; nobody will know.
    Indeterminate {
        activation: ActivationId,
    },
    /// It certainly did not run where it was handed last, and will not: what was noted of that is void.
    CameBack {
        activation: ActivationId,
    },

    // To peers.
    SendReserve(SendReserve),
    SendRelease {
        to: NodeId,
        container: ContainerId,
        fence: Fence,
        keep: u32,
    },
    SendRecall {
        to: NodeId,
        fence: Fence,
    },
    /// To those named, and into the gossip ring if `gossip`.
    SendIntent {
        to: Vec<NodeId>,
        gossip: bool,
        notice: IntentNotice,
    },
    SendVeto {
        to: NodeId,
        container: ContainerId,
        round: u32,
        hold_us: Micros,
    },
    SendNotice {
        to: NodeId,
        hash: ActionHash,
        queued: u32,
        slots: u32,
        start_us: Micros,
        service_us: Micros,
    },

    // Answers to peers; each belongs to the input that carried the same request.
    AnswerReserve {
        request: RequestId,
        answer: ReserveAnswer,
    },
    AnswerRun {
        request: RequestId,
        answer: RunAnswer,
    },
    AnswerNotice {
        to: NodeId,
        hash: ActionHash,
        advice: crate::input::Advice,
    },

    // For the engine.
    StartContainer {
        container: u64,
        action: ActionId,
        revision: Revision,
    },
    /// Takes a container over that was found, under this number.
    AdoptContainer {
        found: u64,
        container: u64,
    },
    /// Ends one that was found and that is of no use.
    DiscardFound {
        found: u64,
    },
    PauseContainer {
        container: u64,
    },
    ResumeContainer {
        container: u64,
    },
    RemoveContainer {
        container: u64,
    },

    // For gossip, operators and watchers.
    PublishAdvert {
        hash: ActionHash,
        advert: Advert,
    },

    /// Answers `IntentRequested`: the round it opened, or why it could not.
    IntentAnswer {
        container: u64,
        answer: Result<IntentId, IntentProblem>,
    },
    /// For whoever watches.
    Event(Event),
    /// For whoever judges; only if [`Node::with_history`](crate::Node::with_history) asked for it.
    History(Box<Record>),
    /// The drain ended: well, if nothing is left of all that it waited for.
    Drained(DrainEnd),
}

/// What a drain has left, and what it has ended by force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DrainEnd {
    /// Own containers; those that are idle and to be handed over don't count.
    pub containers: Vec<u64>,
    /// Own activations that run at peers.
    pub at_peers: u32,
    /// Own activations that the journal keeps, those at peers included.
    pub owed: u32,
    /// Runs that it ended with their containers.
    pub killed: u32,
    /// Promises that it ended before they had begun.
    pub given_up: u32,
}

impl DrainEnd {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.at_peers == 0 && self.owed == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SendRun {
    pub activation: ActivationId,
    pub request: RequestId,
    pub to: NodeId,
    pub owner_epoch: Epoch,
    pub open_from: u64,
    pub container: ContainerId,
    pub fence: Fence,
    pub action: ActionId,
    pub revision: Revision,
    pub keep: u32,
    pub attempt: u32,
    pub timeout_us: Micros,
    pub served: Served,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SendReserve {
    pub request: RequestId,
    pub to: NodeId,
    pub owner_epoch: Epoch,
    pub open_from: u64,
    pub action: ActionId,
    pub revision: Revision,
    pub slots: u32,
    pub wait_us: Micros,
    pub start: bool,
    /// The activation whose body goes along.
    pub run: Option<Attempt>,
    pub timeout_us: Micros,
}

/// One hand-over of an activation's body to one owner epoch.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub activation: ActivationId,
    pub attempt: u32,
}

/// How an activation came to its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Served {
    /// An own container that was warm.
    Local,
    /// A lease held since before.
    HeldLease,
    /// A lease made for it.
    NewLease,
    /// A container resumed for it.
    Resumed,
    /// A container started for it.
    Cold,
}

/// Why an activation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The action's queue, or the node's, is full.
    QueueFull { retry_after_us: Micros },
    /// No slot came free in time.
    NoCapacity { retry_after_us: Micros },
    /// This node is draining.
    Draining,
    /// It was promised, and a drain by force has come to its deadline before it began.
    GivenUp,
    /// The action was deleted while it waited.
    Deleted,
    /// Its caller has left, and a peer refused it: it is not tried again.
    Cancelled,
    /// Its container could not be started.
    StartFailed,
    /// Its code failed to initialise.
    InitFailed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReserveAnswer {
    Granted {
        container: ContainerId,
        fence: Fence,
        slots: u32,
        ttl_us: Micros,
        /// The run of the activation that came along, accepted in the same step.
        run: Option<RunId>,
        /// Whether this answers the first copy of the request: any other joins its run.
        first: bool,
    },
    Denied {
        denial: Denial,
        hint: Option<NodeId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RunAnswer {
    /// Start it in that container.
    Accepted {
        run: RunId,
        container: u64,
        renewed_us: Micros,
    },
    /// A retry of one that was accepted before: share its outcome.
    Joined {
        run: RunId,
    },
    Refused(RunRefusal),
}

/// Why a Reserve is denied. Each is certain: nothing was granted and nothing will be for this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denial {
    /// Meant for another epoch of the owner.
    WrongEpoch,
    /// From an older epoch of the holder that is not remembered, or below its `open_from`.
    StaleRequest,
    /// From an older epoch of the holder: nothing was begun for it, and nothing will be.
    NotTaken,
    StaleRevision,
    UnknownAction,
    NoCapacity,
    /// The wait is over, and the container that was waited for is still on its way.
    StillComing,
    /// The owner's own activations wait for these slots.
    Busy,
    Draining,
    /// The owner keeps no more answers for this holder.
    Full,
}

/// Why a run on a lease is refused. Each is certain: it did not start and will not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunRefusal {
    WrongEpoch,
    StaleRequest,
    StaleRevision,
    /// The container is gone.
    UnknownContainer,
    /// No such lease: expired, released or of another holder.
    UnknownLease,
    /// All slots of the lease are busy.
    NoSlot,
    Retiring,
    Full,
    /// The body never reached a container, and will not.
    NotStarted,
}

#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntentKind {
    Pause,
    Remove,
}

/// Why an operator's intent could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IntentProblem {
    #[error("this node owns no such container")]
    UnknownContainer,
    #[error("the container is {0}: only a warm one can be paused, only a warm or paused one removed")]
    WrongState(crate::container::Lifecycle),
    #[error("round {0} of an intent is open already")]
    AlreadyOpen(u32),
    #[error("a veto holds it for another {0} ms")]
    Held(u64),
}

/// What an owner tells of an intent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IntentNotice {
    pub container: ContainerId,
    pub hash: ActionHash,
    pub round: u32,
    pub kind: IntentKind,
    pub urgent: bool,
    /// From its opening to its close.
    pub window_us: Micros,
    /// Whether the owner counts it as the last warm copy.
    pub last_copy: bool,
}

/// An owner's warm containers of one action, as gossip shows them: a hint, never a promise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Advert {
    pub warm: u32,
    pub paused: u32,
    pub starting: u32,
    /// Free slots: 0, 1, 2 (two or three), 3 (four or more).
    pub free_bucket: u8,
}

impl Advert {
    /// The bucket that has no upper end.
    pub const MANY: u8 = 3;

    pub fn bucket(free: u32) -> u8 {
        match free {
            0 => 0,
            1 => 1,
            2 | 3 => 2,
            _ => Self::MANY,
        }
    }

    /// Whether its node has a copy, warm or paused.
    pub fn has_copy(&self) -> bool {
        self.warm + self.paused > 0
    }

    /// The fewest free slots that the bucket stands for.
    pub fn free_at_least(&self) -> u32 {
        match self.free_bucket {
            0 => 0,
            1 => 1,
            2 => 2,
            _ => 4,
        }
    }
}

/// What happened, for people and for checkers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    PeerUp {
        peer: NodeId,
        epoch: Epoch,
    },
    PeerDown {
        peer: NodeId,
        epoch: Epoch,
    },
    ContainerStarting {
        container: u64,
        action: ActionId,
    },
    ContainerWarm {
        container: u64,
        action: ActionId,
        cold_us: Micros,
    },
    ContainerAdopted {
        container: u64,
        action: ActionId,
    },
    ContainerFailed {
        container: u64,
        action: ActionId,
    },
    ContainerDied {
        container: u64,
        action: ActionId,
    },
    ContainerPaused {
        container: u64,
        action: ActionId,
    },
    ContainerResumed {
        container: u64,
        action: ActionId,
    },
    ContainerRetiring {
        container: u64,
        action: ActionId,
    },
    ContainerRemoved {
        container: u64,
        action: ActionId,
    },
    LeaseGranted {
        holder: NodeId,
        container: u64,
        fence: Fence,
        slots: u32,
    },
    LeaseDenied {
        holder: NodeId,
        action: ActionId,
        denial: Denial,
    },
    LeaseExpired {
        holder: NodeId,
        container: u64,
        fence: Fence,
    },
    LeaseReleased {
        holder: NodeId,
        container: u64,
        fence: Fence,
    },
    LeaseHeld {
        owner: NodeId,
        container: ContainerId,
        fence: Fence,
        slots: u32,
    },
    LeaseLost {
        owner: NodeId,
        fence: Fence,
    },
    RunRefused {
        holder: NodeId,
        refusal: RunRefusal,
    },
    IntentOpened {
        intent: IntentId,
        kind: IntentKind,
        urgent: bool,
        operator: bool,
    },
    VetoCounted {
        intent: IntentId,
        peer: NodeId,
        hold_us: Micros,
    },
    /// It named another round, epoch or container.
    VetoIgnored {
        peer: NodeId,
        container: ContainerId,
        round: u32,
    },
    VetoSent {
        owner: NodeId,
        intent: IntentId,
        hold_us: Micros,
    },
    IntentClosed {
        intent: IntentId,
        kind: IntentKind,
        end: IntentEnd,
    },
    Evicting {
        container: u64,
        needed_mb: u64,
    },
    HomeAsked {
        home: NodeId,
        action: ActionId,
    },
    HomeSaidReserve {
        action: ActionId,
        at: NodeId,
    },
    Draining,
    Drained,
}

/// How a round ended.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IntentEnd {
    Committed,
    Vetoed {
        by: Vec<(NodeId, Micros)>,
    },
    /// A lease or a run came first.
    Used,
    /// The owner was stalled past the window; a new round follows.
    Late,
    /// The container left the state that the intent was for.
    Overtaken,
}
