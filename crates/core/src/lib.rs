//! The Embermesh protocol: leases on slots of warm containers, intents to pause or remove them, and where
//! an activation runs. One state machine without I/O, clock or randomness.
//!
//! One entrance, one exit: [`Node::handle`] takes what happened and pushes what is to be done, and
//! [`Node::next_deadline`] tells when to come back at the latest. Whoever drives it (the agent, a simulation,
//! a model checker) carries the outputs out and reports each result as a further input, so that nothing is
//! ever decided on what was true before a wait.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`ids`], [`time`] | names, fences, request identity; microseconds |
//! | [`input`], [`output`] | the two halves of the interface |
//! | [`container`] | life cycle, slots, leases and intent of one own container |
//! | [`node`] | the state of one node and its steps |
//! | [`gossiped`] | adverts and intents as gossip carries them |
//! | [`estimates`], [`policy`] | measured figures, and the decisions that users may replace |
//! | [`history`] | what happened, as nodes tell it, and the invariants that judge it |
//! | [`stage`] | what namespaces share, by deficit round robin |
//!
//! Payloads never enter: the core sees ids, sizes and deadlines.

pub mod config;
pub mod container;
pub mod estimates;
pub mod gossiped;
pub mod history;
pub mod ids;
pub mod input;
pub mod mutations;
pub mod node;
pub mod output;
pub mod policy;
pub mod stage;
pub mod time;

pub use config::Config;
pub use ids::{
    ActionHash, ActionId, ActionSpec, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, Revision, RunId,
};
pub use input::Input;
pub use node::Node;
pub use output::Output;
pub use time::{Micros, Time};
