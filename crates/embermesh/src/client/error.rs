//! Why a call to a node failed, in words that tell what to try next, and the exit code that stands for it.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use hyper::StatusCode;
use hyper_util::client::legacy;
use serde::Deserialize;

use crate::commands::Exit;
use crate::output::human_duration;

/// Longest part of a body that is no JSON to show in a message.
const EXCERPT_CHARS: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientError {
    /// No connection: nothing was sent.
    Connect {
        base: String,
        cause: String,
        refused: bool,
    },
    /// No whole answer in time; what was asked for may have happened.
    Deadline {
        base: String,
        after: Duration,
    },
    /// The connection broke before the whole answer was there; what was asked for may have happened.
    Broken {
        base: String,
        cause: String,
    },
    /// The node refused.
    Api {
        status: StatusCode,
        error: String,
        code: Option<String>,
        retry_after: Option<Duration>,
    },
    /// The answer is not what the API promises.
    Malformed {
        base: String,
        detail: String,
    },
    TooLarge {
        base: String,
        limit_bytes: usize,
    },
    /// The request could not even be written.
    NotSent(String),
}

impl ClientError {
    /// The error of an answer with a status of 400 or more.
    pub(crate) fn from_answer(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: String,
            code: Option<serde_json::Value>,
        }
        let (error, code) = match serde_json::from_slice::<Body>(body) {
            // OpenWhisk's clients once had a number here.
            Ok(Body { error, code }) => (error, code.map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))),
            Err(_) => (excerpt(body), None),
        };
        let error = if error.is_empty() { status.to_string() } else { error };
        Self::Api { status, error, code, retry_after }
    }

    pub(super) fn from_call(base: &str, error: &legacy::Error) -> Self {
        let base = base.to_owned();
        let chain = chain(error);
        if error.is_connect() {
            let refused = chain.iter().any(|e| io_kind(*e) == Some(io::ErrorKind::ConnectionRefused));
            return Self::Connect { base, cause: deepest(&chain), refused };
        }
        match chain.iter().find_map(|e| e.downcast_ref::<hyper::Error>()) {
            Some(e) if e.is_parse() => Self::Malformed { base, detail: format!("not HTTP: {}", deepest(&chain)) },
            _ => Self::Broken { base, cause: deepest(&chain) },
        }
    }

    pub(super) fn from_body(base: &str, error: &(dyn Error + 'static), limit_bytes: usize) -> Self {
        let base = base.to_owned();
        let chain = chain(error);
        if chain.iter().any(|e| e.is::<http_body_util::LengthLimitError>()) {
            return Self::TooLarge { base, limit_bytes };
        }
        Self::Broken { base, cause: deepest(&chain) }
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Connect { .. } | Self::Deadline { .. } | Self::Broken { .. } => Exit::Unavailable,
            Self::Api { status, .. } => match status.as_u16() {
                404 => Exit::NotFound,
                409 => Exit::Conflict,
                401 | 403 => Exit::NotAuthorised,
                408 | 429 | 503 | 504 => Exit::Unavailable,
                _ => Exit::Failure,
            },
            Self::Malformed { .. } | Self::TooLarge { .. } | Self::NotSent(_) => Exit::Failure,
        }
    }

    /// What to try next, where that follows from the error alone.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { base, .. } => Some(format!(
                "is an agent running at {base}? start one with `embermesh agent`, or set --api / EMBERMESH_API"
            )),
            Self::Deadline { .. } => {
                Some("it may have happened all the same; --request-timeout waits longer".to_owned())
            }
            Self::Broken { base, .. } => {
                Some(format!("it may have happened all the same; does the agent at {base} still run?"))
            }
            Self::Api { retry_after: Some(after), .. } => Some(format!("try again in {}", human_duration(*after))),
            Self::Api { status, .. } if matches!(status.as_u16(), 429 | 503) => {
                Some("try again later; `embermesh status` tells what the node is busy with".to_owned())
            }
            Self::Malformed { base, .. } if !base.is_empty() => {
                Some(format!("is {base} the API of an Embermesh node, and not its mesh port?"))
            }
            _ => None,
        }
    }

    /// The transaction's id, to be found in the node's log.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Api { code, .. } => code.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { base, cause, .. } => write!(f, "no connection to {base}: {cause}"),
            Self::Deadline { base, after } => {
                write!(f, "no answer from {base} within {}", human_duration(*after))
            }
            Self::Broken { base, cause } => write!(f, "{base} broke the connection off: {cause}"),
            Self::Api { status, error, .. } => write!(f, "{error} ({})", status.as_u16()),
            Self::Malformed { base, detail } if base.is_empty() => write!(f, "the node's answer is {detail}"),
            Self::Malformed { base, detail } => write!(f, "the answer of {base} is not to be understood: {detail}"),
            Self::TooLarge { base, limit_bytes } => {
                write!(f, "the answer of {base} is larger than {} MB", limit_bytes >> 20)
            }
            Self::NotSent(why) => f.write_str(why),
        }
    }
}

impl Error for ClientError {}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e| (*e).source()).collect()
}

/// The first cause: those above it only say `client error (Connect)` and the like.
fn deepest(chain: &[&(dyn Error + 'static)]) -> String {
    chain.last().map_or_else(String::new, ToString::to_string)
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    error.downcast_ref::<io::Error>().map(io::Error::kind)
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut short: String = text.trim().chars().filter(|c| !c.is_control()).take(EXCERPT_CHARS).collect();
    if text.trim().chars().count() > EXCERPT_CHARS {
        short.push('…');
    }
    short
}
