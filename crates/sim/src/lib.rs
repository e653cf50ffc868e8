//! Proofs of the protocol, over production code and never a copy of it.

pub mod mesh;
