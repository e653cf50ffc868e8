//! What a container's answer means, in OpenWhisk's terms.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::containers::{EngineError, Reply};
use crate::store::ActivationStatus;

/// Our runtimes pass no result on that is far over the limit, and say so by this status.
const RESULT_TOO_LARGE: u16 = 507;

/// How a run ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) status: ActivationStatus,
    /// The result; for a failure an object with `error`.
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) took: Duration,
    /// Lines that it wrote, if the runtime counts them.
    pub(crate) log_lines: Option<u32>,
    pub(crate) timed_out: bool,
}

impl Outcome {
    pub(crate) fn failed(status: ActivationStatus, error: &str) -> Self {
        let text = serde_json::json!({ "error": error }).to_string();
        Self {
            status,
            result: RawValue::from_string(text).ok(),
            took: Duration::ZERO,
            log_lines: None,
            timed_out: false,
        }
    }

    /// From the container's answer to `/run`.
    pub(crate) fn of_reply(reply: Reply, limit_bytes: usize, took: Duration) -> Self {
        let log_lines = reply.log_lines;
        let judged = match reply.status {
            RESULT_TOO_LARGE => Self::too_large(limit_bytes),
            _ if reply.body.len() > limit_bytes => Self::too_large(limit_bytes),
            200 => Self::of_result(&reply.body),
            status => Self::of_failure(status, &reply.body),
        };
        Self { took, log_lines, ..judged }
    }

    /// From an engine call that brought no answer.
    pub(crate) fn of_error(error: &EngineError, limit: Duration, limit_bytes: usize, took: Duration) -> Self {
        let failed = match error {
            EngineError::Timeout(_) => {
                let text = format!("The action exceeded its time limits of {} milliseconds.", limit.as_millis());
                Self { timed_out: true, ..Self::failed(ActivationStatus::DeveloperError, &text) }
            }
            EngineError::TooLarge { .. } => Self::too_large(limit_bytes),
            other => Self::failed(
                ActivationStatus::DeveloperError,
                &format!("The action did not produce a valid response and exited unexpectedly: {other}"),
            ),
        };
        Self { took, ..failed }
    }

    /// From the wire.
    pub(crate) fn of_parts(status: u32, body: &Bytes, took: Duration, log_lines: Option<u32>) -> Self {
        let status = match status {
            0 => ActivationStatus::Success,
            1 => ActivationStatus::ApplicationError,
            2 => ActivationStatus::DeveloperError,
            _ => ActivationStatus::InternalError,
        };
        Self { status, result: raw(body), took, log_lines, timed_out: false }
    }

    fn too_large(limit_bytes: usize) -> Self {
        let text = format!(
            "The action produced a response that exceeded the allowed length of {limit_bytes} bytes; it was truncated."
        );
        Self::failed(ActivationStatus::ApplicationError, &text)
    }

    fn of_result(body: &Bytes) -> Self {
        #[derive(Deserialize)]
        struct Probe<'a> {
            #[serde(borrow)]
            error: Option<&'a RawValue>,
        }
        let first = body.iter().find(|b| !b.is_ascii_whitespace());
        let status = match first {
            Some(b'[') => Some(ActivationStatus::Success),
            Some(b'{') => serde_json::from_slice::<Probe>(body).ok().map(|probe| match probe.error {
                Some(_) => ActivationStatus::ApplicationError,
                None => ActivationStatus::Success,
            }),
            _ => None,
        };
        match (status, raw(body)) {
            (Some(status), Some(result)) => {
                Self { status, result: Some(result), took: Duration::ZERO, log_lines: None, timed_out: false }
            }
            _ => Self::failed(
                ActivationStatus::DeveloperError,
                &format!("The action did not produce a JSON object or array but: {}", excerpt(body)),
            ),
        }
    }

    fn of_failure(status: u16, body: &Bytes) -> Self {
        #[derive(Deserialize)]
        struct Told {
            error: serde_json::Value,
        }
        let told = serde_json::from_slice::<Told>(body).ok().map(|told| match told.error {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        });
        let text = told.unwrap_or_else(|| format!("The action's runtime answered {status}: {}", excerpt(body)));
        Self::failed(ActivationStatus::DeveloperError, &text)
    }

    /// For the wire: a number that outgrows its type means unknown.
    pub(crate) fn log_lines_message(&self) -> u32 {
        self.log_lines.unwrap_or(u32::MAX)
    }

    pub(crate) fn body(&self) -> Bytes {
        self.result.as_ref().map_or_else(Bytes::new, |r| Bytes::copy_from_slice(r.get().as_bytes()))
    }
}

/// The error that a failed `/init` told.
pub(crate) fn init_error(reply: &Reply) -> String {
    let failed = Outcome::of_failure(reply.status, &reply.body);
    let text = failed.result.and_then(|r| serde_json::from_str::<serde_json::Value>(r.get()).ok());
    let told = text.and_then(|v| v.get("error").and_then(|e| e.as_str().map(str::to_owned)));
    format!("Initialization has failed: {}", told.unwrap_or_default())
}

fn raw(body: &Bytes) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(body).ok()?;
    RawValue::from_string(text.to_owned()).ok()
}

fn excerpt(body: &Bytes) -> String {
    const MOST: usize = 200;
    let text: String = String::from_utf8_lossy(body).chars().take(MOST).collect();
    if text.is_empty() { "nothing".to_owned() } else { format!("`{}`", text.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, body: &str) -> Outcome {
        let reply = Reply { status, body: Bytes::copy_from_slice(body.as_bytes()), log_lines: None };
        Outcome::of_reply(reply, 100, Duration::ZERO)
    }

    #[test]
    fn answers_get_the_status_of_the_contract() {
        assert_eq!(judge(200, r#"{"a": 1}"#).status, ActivationStatus::Success);
        assert_eq!(judge(200, r#" [1, 2] "#).status, ActivationStatus::Success);
        assert_eq!(judge(200, r#"{"a": 1, "error": "no"}"#).status, ActivationStatus::ApplicationError);
        assert_eq!(judge(200, "rubbish").status, ActivationStatus::DeveloperError);
        assert_eq!(judge(200, r#"{"a": "#).status, ActivationStatus::DeveloperError);
        assert_eq!(judge(200, "3").status, ActivationStatus::DeveloperError);
        assert_eq!(judge(502, r#"{"error": "boom"}"#).status, ActivationStatus::DeveloperError);
    }

    #[test]
    fn an_answer_over_the_limit_is_an_application_error_that_says_so() {
        let outcome = judge(200, &format!(r#"{{"a": "{}"}}"#, "x".repeat(200)));
        assert_eq!(outcome.status, ActivationStatus::ApplicationError);
        assert!(outcome.result.is_some_and(|r| r.get().contains("truncated")));
    }

    #[test]
    fn a_failure_tells_what_the_runtime_told() {
        let outcome = judge(502, r#"{"error": "boom"}"#);
        assert_eq!(outcome.result.map(|r| r.get().to_owned()), Some(r#"{"error":"boom"}"#.to_owned()));
    }
}
