//! One call into a container, whichever engine runs it: what its outcome means when the container ends meanwhile.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::EngineError;
use super::http::{Answer, CallError, Client, Connecting};

/// A result of 1 MB with what is around it.
pub(super) const MAX_ANSWER_BYTES: usize = (1 << 20) + 64 * 1024;
/// An answer that was written before the container ended is taken within this.
const LAST_ANSWER: Duration = Duration::from_millis(100);
/// A connection is seen to break before its container is seen to end, whose last words are waited for.
const END_NOTICE: Duration = Duration::from_secs(1);

/// Sends `body` once. `ended` holds why the container ended, as soon as it did.
pub(super) async fn post(
    client: &Client,
    ended: &watch::Sender<Option<String>>,
    path: &'static str,
    body: Bytes,
    deadline: Duration,
    connecting: Connecting,
) -> Result<Answer, EngineError> {
    let mut ended = ended.subscribe();
    let died_before = |reason: String| match path {
        // Certain: nothing was started, so that it may be run elsewhere.
        "/run" => EngineError::Refused(format!("the container had ended: {reason}")),
        _ => EngineError::Died(reason),
    };
    if let Some(reason) = &*ended.borrow_and_update() {
        return Err(died_before(reason.clone()));
    }
    let mut call = pin!(client.post(path, body, deadline, connecting));
    let outcome = tokio::select! {
        biased;
        outcome = &mut call => outcome,
        reason = end_of(&mut ended) => match timeout(LAST_ANSWER, call).await {
            Ok(outcome) => outcome,
            Err(_) => return Err(EngineError::Died(reason)),
        },
    };
    match outcome {
        Ok(answer) => Ok(answer),
        Err(CallError::Timeout(after)) => Err(EngineError::Timeout(after)),
        Err(CallError::TooLarge { limit }) => Err(EngineError::TooLarge { limit }),
        Err(error @ (CallError::NotSent(_) | CallError::Lost(_))) => {
            match timeout(END_NOTICE, end_of(&mut ended)).await {
                Ok(reason) if matches!(error, CallError::NotSent(_)) => Err(died_before(reason)),
                Ok(reason) => Err(EngineError::Died(reason)),
                Err(_) if matches!(error, CallError::NotSent(_)) => Err(EngineError::Refused(error.to_string())),
                Err(_) => Err(EngineError::Indeterminate(error.to_string())),
            }
        }
    }
}

async fn end_of(ended: &mut watch::Receiver<Option<String>>) -> String {
    match ended.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(_) => "the engine let go of it".to_owned(),
    }
}
