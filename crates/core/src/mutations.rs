//! Bugs on purpose: each can be switched on in the production path, to prove that the checkers see it.
//!
//! Only the feature `mutations` makes them reachable; without it `on` is a constant. No build that ships has it.

/// What a [`Mutation`] does wrong; one at a time in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mutation {
    /// The step that commits does not look again whether the container is used.
    CommitWithoutRecheck = 1,
    /// A lease ends at its owner as early as at its holder: nothing is left for clocks that differ.
    NoGrace,
    /// A holder counts from the send that was answered, not from the first.
    CountsFromLastSend,
    /// A copy of a Reserve is taken for a new one.
    DuplicateTakesTwoSlots,
    /// A new life of a node uses the epoch of the one before.
    RestartForgetsEpoch,
    /// A new life of a node takes requests that were meant for the one before.
    OldEpochServed,
    /// A run on a lease that is over renews it.
    RenewsExpired,
    /// A release whose fence is not known ends another lease of its holder.
    ReleaseIgnoresFence,
    /// A veto of an earlier round counts.
    OldRoundVeto,
    /// A veto in time does not count.
    VetoIgnored,
    /// Gossip of an earlier life of a peer replaces that of its present one.
    OldEpochBelieved,
    /// A container on its way out is warm again when a peer speaks of its action.
    RevivedByGossip,
    /// A copy of a Run is taken for a new one.
    RunTwice,
    /// A run whose fence is not known is accepted on another lease of its holder.
    FenceUnchecked,
    /// A run whose connection broke stays on its lease for ever.
    BusyLeaked,
    /// The stage serves the namespace in front until it has nothing left.
    StageStarves,
    /// Every node counts its copy as the last one.
    AllAreLast,
    /// An activation is acknowledged while its journal has still to write it.
    PromisedBeforeDisk,
    /// A copy of a request does not wait for the run of the first one: the driver makes it once more.
    JoinedRunsAgain,
    /// A new life of a node does not end what the one before had begun to remove.
    RemovalForgotten,
}

impl Mutation {
    /// Those in this crate, which the model, the mesh and the rules see (`crates/sim/tests/gate.rs`).
    pub const CORE: [Mutation; 17] = [
        Mutation::CommitWithoutRecheck,
        Mutation::NoGrace,
        Mutation::CountsFromLastSend,
        Mutation::DuplicateTakesTwoSlots,
        Mutation::RestartForgetsEpoch,
        Mutation::OldEpochServed,
        Mutation::RenewsExpired,
        Mutation::ReleaseIgnoresFence,
        Mutation::OldRoundVeto,
        Mutation::VetoIgnored,
        Mutation::OldEpochBelieved,
        Mutation::RevivedByGossip,
        Mutation::RunTwice,
        Mutation::FenceUnchecked,
        Mutation::BusyLeaked,
        Mutation::StageStarves,
        Mutation::AllAreLast,
    ];

    /// Those in the driver, which real nodes have to show (`crates/node/tests/gate`).
    pub const DRIVER: [Mutation; 3] =
        [Mutation::PromisedBeforeDisk, Mutation::JoinedRunsAgain, Mutation::RemovalForgotten];
}

#[cfg(feature = "mutations")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutation;

    static ON: AtomicU8 = AtomicU8::new(0);

    /// Switches a bug on for all nodes of this process, or all off.
    pub fn set(mutation: Option<Mutation>) {
        ON.store(mutation.map_or(0, |m| m as u8), Ordering::SeqCst);
    }

    /// Whether the bug is there.
    pub fn on(mutation: Mutation) -> bool {
        ON.load(Ordering::Relaxed) == mutation as u8
    }
}

#[cfg(feature = "mutations")]
pub use switch::{on, set};

/// Whether the bug is there: never, in this build.
#[cfg(not(feature = "mutations"))]
pub const fn on(_: Mutation) -> bool {
    false
}
