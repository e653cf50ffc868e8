//! Meshes of real agents on loopback, as users see them. What is proven is proven by what actions answer:
//! their container, process, node, activation id, and how many ran at that moment.
#![allow(clippy::unwrap_used)]

mod changes;
mod children;
mod commands;
mod concurrency;
mod counters;
mod disks;
mod endings;
mod failures;
mod forming;
mod intents;
mod journal;
mod options;
mod records;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;
mod watching;
