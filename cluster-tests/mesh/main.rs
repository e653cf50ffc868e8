//! Meshes of real agents on loopback, as users see them. What is proven is proven by what actions answer:
//! their container, process, node, activation id, and how many ran at that moment.
#![allow(clippy::unwrap_used)]

mod changes;
mod concurrency;
mod endings;
mod failures;
mod forming;
mod intents;
mod journal;
mod records;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;
mod watching;
