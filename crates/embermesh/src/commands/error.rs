//! How a command ends: its exit code, and its error with a hint.

use std::fmt;
use std::io;
use std::process::ExitCode;

use hyper::StatusCode;

use crate::client::ClientError;
use crate::output::Output;

/// The exit codes that scripts rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Failure = 1,
    Usage = 2,
    NotFound = 3,
    /// Vetoed, or in conflict with what is there.
    Conflict = 4,
    /// Unavailable, or not done in time.
    Unavailable = 5,
    NotAuthorised = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Debug)]
pub(crate) enum CommandError {
    Client(ClientError),
    /// The same, with what to try next in this command.
    Hinted(ClientError, String),
    Usage(String),
    /// In conflict with what is there.
    Conflict(String),
    /// A file or input that can't be used.
    Input(String),
    /// Standard output can't be written.
    Output(io::Error),
}

impl CommandError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Client(e) | Self::Hinted(e, _) => e.exit(),
            Self::Usage(_) => Exit::Usage,
            Self::Conflict(_) => Exit::Conflict,
            Self::Input(_) => Exit::Failure,
            // Whoever read the output has seen enough, as in `… | head -1`.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Output(_) => Exit::Failure,
        }
    }

    /// Says on standard error what went wrong, unless nobody is to know.
    pub(crate) fn report(&self, output: &mut Output<'_>) {
        if self.exit() == Exit::Ok {
            return;
        }
        output.remark(&format!("error: {self}"));
        let (code, hint) = match self {
            Self::Client(e) => (e.code(), e.hint()),
            Self::Hinted(e, hint) => (e.code(), Some(hint.clone())),
            Self::Usage(_) | Self::Conflict(_) | Self::Input(_) | Self::Output(_) => (None, None),
        };
        if let Some(code) = code {
            output.remark(&format!("code: {code}"));
        }
        if let Some(hint) = hint {
            output.remark(&format!("hint: {hint}"));
        }
    }
}

/// Adds what to try next when the node answered with that status.
pub(crate) trait HintOn<T> {
    fn hint_on(self, status: StatusCode, hint: impl FnOnce() -> String) -> Result<T, CommandError>;
}

impl<T, E: Into<CommandError>> HintOn<T> for Result<T, E> {
    fn hint_on(self, status: StatusCode, hint: impl FnOnce() -> String) -> Result<T, CommandError> {
        self.map_err(|e| match e.into() {
            CommandError::Client(e) if e.status() == Some(status) => CommandError::Hinted(e, hint()),
            other => other,
        })
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(e) | Self::Hinted(e, _) => e.fmt(f),
            Self::Usage(message) | Self::Conflict(message) | Self::Input(message) => f.write_str(message),
            Self::Output(e) => write!(f, "standard output can't be written: {e}"),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
