//! One real node over an engine and a store of the test's.
#![allow(clippy::unwrap_used)]

mod engine;
mod journal;
mod node;
mod rig;
mod store;
mod warm_path;
