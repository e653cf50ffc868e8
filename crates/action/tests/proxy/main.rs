//! The proxy as a real process, talked to over its Unix socket, with each runtime behind it.
//!
//! Runs the example `container` with a pipe as its stdin, as an agent would. `cargo test -p embermesh-action` builds it along;
//! `--test proxy` alone does not, and would run the one that was built last.

#![allow(clippy::unwrap_used)]

mod actionloop;
mod builtin;
mod native;
mod nodejs;
mod python;
#[allow(dead_code, reason = "it has more than is needed here")]
#[path = "../../../../cluster-tests/support/skip.rs"]
mod skip;
mod support;
