//! An Embermesh node: everything with I/O, driving the protocol core.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`node`], `claim` | what a node is made of, how it starts and ends; its claim to its id |
//! | `driver` | carries the core's outputs out, brings back what came of them |
//! | `invoke` | the way of one activation at its origin |
//! | `owned`, `adoption`, [`containers`] | own containers; those of earlier lives; the engines that run them |
//! | `rpc`, `peers`, [`net`] | gRPC between peers, over a TCP seam |
//! | `barred` | who is not heard on either seam: the node's own containers |
//! | [`gossip`], `facts`, `rejoin` | membership and slowly changing facts, over a datagram seam; finding the mesh again |
//! | [`registry`], `actions` | actions known to every node |
//! | [`store`], [`data_dir`], `logbook` | what survives a restart; log lines on their way there |
//! | [`history`] | what the core tells of itself, in a file |
//! | [`blocking`] | where work that waits for the disk is done |
//! | [`api`] | the HTTP front door |
//! | `operate`, `shown`, [`views`], `metrics` | what people do by hand and see |
//! | [`faults`] | faults made on purpose, in agents that were started for it |
//!
//! Gossip, containers and rpc don't know each other: they meet in the driver.

mod actions;
mod adoption;
pub mod api;
mod barred;
pub mod blocking;
mod claim;
pub mod clock;
pub mod config;
pub mod containers;
pub mod data_dir;
mod detached;
mod driver;
mod facts;
pub mod faults;
pub mod gossip;
pub mod history;
pub mod invocation;
mod invoke;
mod kept;
mod logbook;
mod metrics;
pub mod net;
pub mod node;
mod operate;
mod outcome;
mod owned;
mod peers;
mod record;
mod recovery;
pub mod registry;
mod rejoin;
mod rpc;
mod shown;
pub mod store;
pub mod views;

pub use actions::ActionError;
pub use claim::Taken;
pub use node::{Leaving, Node, Parts, StartError};
pub use operate::OperatorError;
