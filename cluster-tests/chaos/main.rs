//! `embermesh chaos run` as users run it: real agents, real faults, and a judgement that can come out either way.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod endings;
mod examples;
#[path = "../support/program.rs"]
mod program;
mod reports;
mod runs;
#[path = "../support/skip.rs"]
mod skip;
mod tool;
mod unprivileged;
