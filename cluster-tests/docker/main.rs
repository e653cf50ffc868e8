//! Real agents on a real Docker engine. What is proven is proven by what actions answer, and by what Docker says.
//!
//! Without an engine each test says SKIPPED, unless EMBERMESH_REQUIRE_DOCKER is 1.
#![allow(clippy::unwrap_used)]

mod adoption;
mod agents;
mod engine;
mod failures;
mod images;
mod interference;
mod notes;
mod partitions;
mod promises;
mod relay;
mod reuse;
mod settling;
mod stock;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;
mod unprivileged;
