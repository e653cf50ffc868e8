//! Proofs of the protocol, over production code and never a copy of it. What must hold is judged by the invariants of
//! [`embermesh_core::history`], the same ones everywhere.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`mesh`] | nodes over a network that loses, repeats, delays and reorders: seeded cases |
//! | [`model`] | a few nodes, and all that can become of them: a checked model |
//! | [`rules`] | fair shares and keepers, each by itself |
//! | [`scale`] | hundreds of nodes under load, with a model of their gossip |
//! | [`simulator`] | whole nodes on simulated hosts, from one seed |
//! | `azure` | the shape of the load that the last two play |

mod azure;
pub mod mesh;
pub mod model;
pub mod rules;
pub mod scale;
pub mod simulator;
