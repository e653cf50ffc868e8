//! What the front door asks of a node and what it gets: one invocation and how it ended.

use std::time::Duration;

use bytes::Bytes;

use crate::store::ActivationRecord;

/// A user's call of an action.
#[derive(Debug, Clone)]
pub struct Call {
    pub namespace: String,
    pub name: String,
    /// The caller's parameters: one JSON object, as the front door has checked. The action's own are added by
    /// the node.
    pub params: Bytes,
    pub transaction_id: String,
    /// Who calls.
    pub subject: String,
}

/// Whether the caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it has ended, at most that long.
    For(Duration),
    /// Not at all.
    No,
}

/// What became of a call.
#[derive(Debug)]
pub enum Invoked {
    /// It ended while the caller waited. Log lines are added to the stored record later.
    Ended(Box<ActivationRecord>),
    /// It goes on; its record can be had later. 32 hex digits.
    Accepted { activation_id: String },
}

/// Why a call was not taken, or did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    #[error("action `{namespace}/{name}` does not exist")]
    NotFound { namespace: String, name: String },
    #[error("too many activations of `{name}` are waiting; try again in {} ms", retry_after.as_millis())]
    QueueFull { name: String, retry_after: Duration },
    #[error("no capacity for `{name}` on this node or its peers; try again in {} ms", retry_after.as_millis())]
    NoCapacity { name: String, retry_after: Duration },
    #[error("this node is draining; use another one")]
    Draining,
    #[error("action `{namespace}/{name}` was deleted while the activation waited")]
    Deleted { namespace: String, name: String },
    #[error("the caller left before it could run")]
    Cancelled,
    #[error(
        "this node can't promise to run what nobody waits for ({reason}): wait for the answer with blocking=true, or use another node; it goes on by itself once its data folder can be written"
    )]
    NotKept { reason: String },
    #[error(
        "activation `{activation_id}` has not ended, and this node can't promise that it will ({reason}): if it has begun it goes on, else it was cancelled"
    )]
    NotPromised { activation_id: String, reason: String },
}
