//! Actions for Embermesh: the SDK for actions written in Rust, and the proxy that runs everything else.
//!
//! # Writing an action
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     embermesh_action::serve(|ctx, params| async move {
//!         ctx.log(format!("called with {params}"));
//!         Ok(serde_json::json!({ "activation": ctx.activation_id() }))
//!     })
//! }
//! ```
//!
//! # The contract
//!
//! Whatever runs in a container answers two requests, HTTP/1.1 with JSON bodies, as Apache OpenWhisk's
//! runtimes do. A container under an agent listens on a Unix socket, an image by itself on TCP port 8080.
//!
//! `POST /init` `{"value": {"name", "main", "code", "binary", "env": {string: string}}}`, once: 200, or 502 with
//! the reason; a second one is 403.
//!
//! `POST /run` `{"value": {…}, "namespace", "action_name", "action_version", "activation_id", "transaction_id",
//! "deadline"}` with the deadline in Unix milliseconds, as a string:
//!
//! | answer | when |
//! | --- | --- |
//! | 200 and the result, an object or an array | the action answered; a key `error` in it makes it an application error |
//! | 502 `{"error": "…"}` | it failed, panicked or ended, answered something else, or was not initialised |
//! | 403 `{"error": "…"}` | as many runs as the container allows are already in progress |
//! | 507 `{"error": "…"}` | its result is larger than [`contract::MAX_RESULT_BYTES`] |
//! | 400, 413 | the request is not what is described here, or larger than [`contract::MAX_RUN_BODY_BYTES`] |
//!
//! A caller that hangs up does not end its run.
//!
//! `POST /adopt` with the header `x-embermesh-epoch`: an agent takes the container over from an earlier life of its own.
//! 200 `{"running": n}` tells how many runs are still in progress; from then on requests with a lower epoch are
//! answered 409, and so is this one if a higher epoch was here before, or no run would be taken.
//!
//! # Log lines
//!
//! Under an agent, a line that belongs to an activation is written on stdout or stderr as
//! `\x1e<activation id>\x1f<text>\n`, in one write. Anything else there is a line of nobody in particular.
//! Before a run is answered that wrote any, `\x1e<activation id>\x1fXXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n` goes to both
//! streams; the answer's header `x-embermesh-log-lines` says how many lines were attributed. Where nobody could count
//! them, because the process that wrote them died, there are the marks and no header. Without an agent (no
//! `__EMBERMESH_CONTAINER` in the environment) lines and end marks carry no prefix, and each run has its marks: what
//! OpenWhisk expects.

mod context;
mod gate;
mod http;
mod lines;
mod sdk;
mod server;

pub mod contract;
pub mod examples;
pub mod proxy;

pub use context::Context;
pub use sdk::{ActionError, Endpoint, ServeError, ServeOptions, serve, serve_in, serve_with};
