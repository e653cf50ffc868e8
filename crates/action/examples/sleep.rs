//! Sleeps for `ms`, or until its deadline. Many may sleep at once where the container allows it.

use std::process::ExitCode;
use std::time::Duration;

use embermesh_action::ActionError;
use serde_json::json;

fn main() -> ExitCode {
    embermesh_action::serve(|ctx, params| async move {
        let ms = params["ms"].as_u64().ok_or_else(|| ActionError::application("give `ms`, a number"))?;
        let slept = Duration::from_millis(ms).min(ctx.remaining());
        tokio::time::sleep(slept).await;
        Ok(json!({ "slept_ms": slept.as_millis() as u64 }))
    })
}
