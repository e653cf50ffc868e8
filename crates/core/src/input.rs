//! What can happen to a node.

use std::sync::Arc;

use crate::ids::{
    ActionHash, ActionId, ActionSpec, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, Revision, RunId,
};
use crate::output::{Advert, Attempt, Denial, IntentKind, IntentNotice, RunRefusal};
use crate::time::Micros;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Nothing but the time: what is due fires.
    Tick,

    // From users of this node.
    InvokeRequested {
        activation: ActivationId,
        spec: Arc<ActionSpec>,
        body_bytes: u64,
        /// Above 0, an earlier attempt may have run: this node knows of it from its journal.
        attempt: u32,
        /// Its body is kept until `BodyDropped`, not only while it waits.
        journaled: bool,
    },
    /// The journal keeps the body of an activation that this node has accepted before. If it is not under way it will be
    /// asked for, unless `BodyDropped` comes first.
    BodyKept {
        activation: ActivationId,
        action: ActionId,
        bytes: u64,
    },
    /// The journal keeps it no more.
    BodyDropped {
        activation: ActivationId,
    },
    /// The caller left: what waits is dropped, what runs goes on.
    InvokeCancelled {
        activation: ActivationId,
    },
    /// An operator opens an intent, or with `force` retires the container without asking.
    IntentRequested {
        container: u64,
        kind: IntentKind,
        force: bool,
    },
    /// An operator vetoes an intent that this node heard of.
    VetoRequested {
        container: ContainerId,
        round: u32,
        hold_us: Option<Micros>,
    },
    /// An operator gives a held lease back.
    ReleaseRequested {
        owner: NodeId,
        fence: Fence,
    },
    /// Stop accepting work, finish what runs and what the journal keeps, and end all containers; at the deadline
    /// report what is left, or kill it.
    DrainRequested {
        deadline_us: Micros,
        force: bool,
    },
    /// The same in haste: what the journal keeps and has not begun is left to the next life of this node, and at the
    /// deadline what is left is killed.
    StopRequested {
        deadline_us: Micros,
    },
    /// Stop accepting work and let runs and leases end, but keep the containers: the next life of this node adopts
    /// them. At the deadline report those that are still in use.
    HandOverRequested {
        deadline_us: Micros,
    },

    // From the action registry.
    ActionChanged {
        spec: Arc<ActionSpec>,
    },
    ActionDeleted {
        action: ActionId,
        revision: Revision,
    },

    // From gossip.
    PeerUp {
        peer: NodeId,
        epoch: Epoch,
    },
    PeerDown {
        peer: NodeId,
        epoch: Epoch,
    },
    /// Slowly changing facts of a peer.
    PeerFacts {
        peer: NodeId,
        epoch: Epoch,
        draining: bool,
        room_mb: u64,
    },
    AdvertReceived {
        peer: NodeId,
        epoch: Epoch,
        hash: ActionHash,
        advert: Advert,
    },
    /// Directly from the owner or through gossip; hearing it twice changes nothing.
    IntentReceived {
        notice: IntentNotice,
    },

    // From peers, as owner.
    ReserveReceived {
        request: RequestId,
        /// The epoch of this node that is meant.
        owner_epoch: Epoch,
        /// The lowest number that the holder may still retry here.
        open_from: u64,
        action: ActionId,
        revision: Revision,
        /// What this node's registry knows of the action.
        spec: Option<Arc<ActionSpec>>,
        slots: u32,
        wait_us: Micros,
        /// Start a container when there is none (the asking node is short of memory).
        start: bool,
        /// An activation whose body came along.
        run: Option<Attempt>,
    },
    RunReceived {
        request: RequestId,
        owner_epoch: Epoch,
        open_from: u64,
        container: ContainerId,
        fence: Fence,
        action: ActionId,
        revision: Revision,
        /// Slots that the holder wants to keep.
        keep: u32,
        attempt: Attempt,
    },
    ReleaseReceived {
        holder: NodeId,
        holder_epoch: Epoch,
        container: ContainerId,
        fence: Fence,
        keep: u32,
    },
    VetoReceived {
        from: NodeId,
        container: ContainerId,
        round: u32,
        hold_us: Micros,
    },
    /// A peer is about to start a container of an action whose home this node may be.
    NoticeReceived {
        from: NodeId,
        from_epoch: Epoch,
        hash: ActionHash,
        queued: u32,
        slots: u32,
        start_us: Micros,
        service_us: Micros,
    },

    // From peers, as holder.
    ReserveGranted {
        request: RequestId,
        container: ContainerId,
        fence: Fence,
        slots: u32,
        ttl_us: Micros,
    },
    ReserveDenied {
        request: RequestId,
        denial: Denial,
        hint: Option<NodeId>,
    },
    /// No answer: `never_sent` only if the request provably never left this node.
    ReserveFailed {
        request: RequestId,
        never_sent: bool,
    },
    /// It was not sent, and the activation that it carries is taken back: nothing is wrong with the peer.
    ReserveWithdrawn {
        request: RequestId,
    },
    RunAnswered {
        request: RequestId,
        end: RemoteEnd,
    },
    RecallReceived {
        owner: NodeId,
        owner_epoch: Epoch,
        fence: Fence,
    },
    NoticeAnswered {
        hash: ActionHash,
        advice: Advice,
    },

    // From the engine.
    ContainerCreated {
        container: u64,
    },
    ContainerReady {
        container: u64,
    },
    ContainerFailed {
        container: u64,
        failure: StartFailure,
    },
    PauseEnded {
        container: u64,
        ok: bool,
    },
    ResumeEnded {
        container: u64,
        ok: bool,
    },
    RemoveEnded {
        container: u64,
    },
    /// The engine has a container of an earlier life of this node that could serve on; `found` is the driver's own
    /// number for it. `spec` is what it serves, the newest revision.
    ContainerFound {
        found: u64,
        spec: Arc<ActionSpec>,
    },
    /// It answers to this epoch, and nothing of an earlier one runs in it.
    ContainerAdopted {
        container: u64,
        paused: bool,
    },
    /// It ended by itself.
    ContainerDied {
        container: u64,
    },
    RunFinished {
        container: u64,
        run: RunId,
        end: RunEnd,
    },
}

/// How a run in an own container ended.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunEnd {
    /// The container answered, whatever it said.
    Answered,
    /// It was not done within the action's time-out: the slot is lost, the container retires.
    TimedOut,
    /// The body provably never reached the container.
    NeverStarted,
    /// The origin did not hand the body on, and takes the activation back: nothing is wrong with the container.
    Withdrawn,
    /// The connection broke; the container is not to be trusted any more.
    Lost,
}

/// How a run on a lease ended, as its origin sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RemoteEnd {
    /// With the run's result. `renewed_us` is the ttl counted from the send, 0 if the lease was not renewed.
    Answered {
        renewed_us: Micros,
    },
    Refused(RunRefusal),
    /// The body provably never left.
    NeverSent,
    /// It was not handed on, and the activation is taken back: nothing is wrong with the lease.
    Withdrawn,
    /// It left, and neither answer nor refusal came.
    Unknown,
}

/// Why a container did not become warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StartFailure {
    /// The engine could not provide it.
    Engine,
    /// The engine has too much to do with others: nothing is wrong with this one.
    Busy,
    /// The action's code failed to initialise.
    Init,
}

/// A home's word to a node that is about to start a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Advice {
    Start,
    /// Somebody else is starting one that should do for both.
    ReserveAt {
        peer: NodeId,
        epoch: Epoch,
    },
}
