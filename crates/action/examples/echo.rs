//! The smallest action: answers with what it was given.
//!
//! Try it: `EMBERMESH_ACTION_PORT=8080 cargo run -p embermesh-action --example echo`, then
//! `curl -d '{}' localhost:8080/init` and `curl -d '{"value":{"a":1}}' localhost:8080/run`.

use std::process::ExitCode;

use serde_json::json;

fn main() -> ExitCode {
    embermesh_action::serve(|ctx, params| async move {
        ctx.log(format!("{} runs in progress", ctx.running()));
        Ok(json!({ "echo": params, "activation_id": ctx.activation_id() }))
    })
}
