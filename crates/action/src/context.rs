//! What an action may know about its activation, and its log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::contract::RunRequest;
use crate::gate::Gate;
use crate::lines::{ActivationLog, Stream};

/// OpenWhisk's default time-out, for callers that send no deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// One activation, as its handler sees it. Cheap to clone; a clone may outlive the run, but what it logs
/// then belongs to no activation.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    activation_id: String,
    namespace: String,
    action_name: String,
    action_version: String,
    transaction_id: String,
    deadline_ms: u64,
    env: Arc<BTreeMap<String, String>>,
    gate: Arc<Gate>,
    log: Arc<ActivationLog>,
}

impl Context {
    pub(crate) fn new(
        request: &RunRequest<'_>,
        env: Arc<BTreeMap<String, String>>,
        gate: Arc<Gate>,
        log: Arc<ActivationLog>,
    ) -> Self {
        let deadline_ms = request
            .deadline
            .as_str()
            .parse()
            .unwrap_or_else(|_| u64::try_from((since_epoch() + DEFAULT_TIMEOUT).as_millis()).unwrap_or(u64::MAX));
        Self(Arc::new(Inner {
            activation_id: request.activation_id.as_str().to_owned(),
            namespace: request.namespace.as_str().to_owned(),
            action_name: request.action_name.as_str().to_owned(),
            action_version: request.action_version.as_str().to_owned(),
            transaction_id: request.transaction_id.as_str().to_owned(),
            deadline_ms,
            env,
            gate,
            log,
        }))
    }

    /// 32 lower-case hex digits.
    pub fn activation_id(&self) -> &str {
        &self.0.activation_id
    }

    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// `/namespace/[package/]name`.
    pub fn action_name(&self) -> &str {
        &self.0.action_name
    }

    /// The version users see, e.g. `0.0.1`.
    pub fn action_version(&self) -> &str {
        &self.0.action_version
    }

    pub fn transaction_id(&self) -> &str {
        &self.0.transaction_id
    }

    /// When the run should be over, in Unix milliseconds. 60 s from its start if the caller gave none.
    pub fn deadline_ms(&self) -> u64 {
        self.0.deadline_ms
    }

    /// Time left until the deadline; zero after it.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.0.deadline_ms).saturating_sub(since_epoch())
    }

    /// The init parameters, and the `__OW_…` values that were sent with `/init`. They are not in this process's
    /// own environment, which several threads may be reading.
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.0.env
    }

    /// Runs in progress in this container, this one included.
    pub fn running(&self) -> u32 {
        self.0.gate.running()
    }

    /// The most runs that were in progress in this container at once.
    pub fn peak(&self) -> u32 {
        self.0.gate.peak()
    }

    /// Writes to the activation's log, as stdout; each line of `text` becomes one.
    pub fn log(&self, text: impl AsRef<str>) {
        self.0.log.text(Stream::Stdout, text.as_ref());
    }

    /// Writes to the activation's log, as stderr; each line of `text` becomes one.
    pub fn log_err(&self, text: impl AsRef<str>) {
        self.0.log.text(Stream::Stderr, text.as_ref());
    }
}

/// Time since 1970, zero on a clock set before it.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
