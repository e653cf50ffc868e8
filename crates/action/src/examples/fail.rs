//! The example that fails, in each way an action can.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::number;
use crate::sdk::{ActionError, Outcome};

const WAYS: &str = "error, exception, panic, exit, hang, rubbish, big, memory";
/// Bytes of a `big` answer: over the 1 MB that a result may have.
const DEFAULT_BIG_BYTES: u64 = 2 * 1024 * 1024;
const MAX_BIG_BYTES: u64 = 16 * 1024 * 1024;
/// Where `memory` stops eating when nothing stops it: well over any container's limit, kind to a host without one.
const DEFAULT_MEMORY_MB: u64 = 1024;

pub(super) async fn fail(params: &Value, mut proof: Map<String, Value>) -> Result<Outcome, ActionError> {
    let how = params.get("how").and_then(Value::as_str).unwrap_or("error");
    let error = match how {
        "error" => "told to fail".to_owned(),
        "exception" => return Err(ActionError::failed("told to fail with an exception")),
        "panic" => std::panic::panic_any("told to panic"),
        "exit" => std::process::exit(3),
        "hang" => std::future::pending().await,
        "rubbish" => return Ok(Outcome::Raw(Bytes::from_static(b"this is \xff not JSON"))),
        "big" => {
            let bytes = number(params, "bytes", DEFAULT_BIG_BYTES).min(MAX_BIG_BYTES);
            proof.insert("big".to_owned(), "x".repeat(bytes as usize).into());
            return Ok(Outcome::Result(Value::Object(proof)));
        }
        "memory" => {
            let limit_mb = number(params, "limit_mb", DEFAULT_MEMORY_MB);
            let held = tokio::task::spawn_blocking(move || eat(limit_mb)).await?;
            // Nothing stopped it: keep what it has until somebody does.
            std::future::pending::<()>().await;
            format!("ate {} MB", held.len())
        }
        other => format!("there is no way to fail called {other:?}: `how` is one of {WAYS}"),
    };
    proof.insert("error".to_owned(), error.into());
    Ok(Outcome::Result(Value::Object(proof)))
}

/// Takes memory megabyte by megabyte and writes to it, so that it is really there.
fn eat(limit_mb: u64) -> Vec<Vec<u8>> {
    const BYTES: usize = 1024 * 1024;
    let mut held = Vec::new();
    for _ in 0..limit_mb {
        held.push(vec![0xa5; BYTES]);
        // Slow enough for whoever watches this process's memory.
        std::thread::sleep(Duration::from_micros(500));
    }
    held
}
