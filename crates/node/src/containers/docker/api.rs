//! Calls of the engine, each with its deadline, and what their failures mean.

use std::collections::HashMap;
use std::error::Error as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use bollard::container::AttachContainerResults;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, EventMessage};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::Stream;
use tokio::time::{Instant, sleep, timeout};

use crate::containers::EngineError;

/// For what the engine answers from memory.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// For a pause or an unpause.
const PAUSE: Duration = Duration::from_secs(5);
/// For a create, a start or a removal.
const CHANGE: Duration = Duration::from_secs(30);
/// For a removal that another call began.
const REMOVED_POLL: Duration = Duration::from_millis(20);
/// Bollard's own limit for the head of an answer: longer than all deadlines here.
const BOLLARD_SECS: u64 = 600;

/// The engine's API, at the version that both sides know.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) docker: Docker,
    socket: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// What it was about does not exist.
    #[error("{0}")]
    Missing(String),
    /// What it was about is in another state than the call needs.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Refused(String),
    /// It never reached the engine.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been carried out.
    #[error("{0}")]
    Unknown(String),
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unknown(text) => EngineError::Indeterminate(text),
            other => EngineError::Refused(other.to_string()),
        }
    }
}

impl Api {
    /// Connects and agrees on a version, once.
    pub(super) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let shown = socket.display().to_string();
        let connected = Docker::connect_with_unix(&shown, BOLLARD_SECS, API_DEFAULT_VERSION);
        let docker = connected.map_err(|error| failure_of(&error, &shown))?;
        let docker = match timeout(LOOK, docker.negotiate_version()).await {
            Ok(outcome) => outcome.map_err(|error| failure_of(&error, &shown))?,
            Err(_) => return Err(hung(&shown, LOOK)),
        };
        Ok(Self { docker, socket: shown })
    }

    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        match timeout(limit, call).await {
            Ok(outcome) => outcome.map_err(|error| self.failure(&error)),
            Err(_) => Err(hung(&self.socket, limit)),
        }
    }

    pub(super) fn failure(&self, error: &Error) -> Failure {
        failure_of(error, &self.socket)
    }

    pub(super) async fn ping(&self, limit: Duration) -> Result<(), Failure> {
        self.within(limit, self.docker.ping()).await.map(drop)
    }

    /// The new container's id.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, Failure> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        Ok(self.within(CHANGE, self.docker.create_container(Some(options), body)).await?.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Failure> {
        self.within(CHANGE, self.docker.start_container(id, None::<StartContainerOptions>)).await
    }

    pub(super) async fn pause(&self, id: &str) -> Result<(), Failure> {
        self.within(PAUSE, self.docker.pause_container(id)).await
    }

    pub(super) async fn unpause(&self, id: &str) -> Result<(), Failure> {
        self.within(PAUSE, self.docker.unpause_container(id)).await
    }

    pub(super) async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, Failure> {
        self.within(LOOK, self.docker.inspect_container(id, None::<InspectContainerOptions>)).await
    }

    /// Ends it and waits until nothing of it is left. One that is gone is a success.
    pub(super) async fn remove(&self, id: &str) -> Result<(), Failure> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.within(CHANGE, self.docker.remove_container(id, Some(options))).await {
            Err(Failure::Missing(_)) => Ok(()),
            // Another call removes it already.
            Err(Failure::Conflict(text)) => self.gone(id, text).await,
            outcome => outcome,
        }
    }

    async fn gone(&self, id: &str, text: String) -> Result<(), Failure> {
        let deadline = Instant::now() + CHANGE;
        while Instant::now() < deadline {
            if let Err(Failure::Missing(_)) = self.inspect(id).await {
                return Ok(());
            }
            sleep(REMOVED_POLL).await;
        }
        Err(Failure::Unknown(text))
    }

    /// Containers in any state.
    pub(super) async fn list(&self, filter: &HashMap<String, Vec<String>>) -> Result<Vec<ContainerSummary>, Failure> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(filter).build();
        self.within(LOOK, self.docker.list_containers(Some(options))).await
    }

    /// Both output streams, from now on.
    pub(super) async fn attach(&self, id: &str) -> Result<AttachContainerResults, Failure> {
        let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).build();
        self.within(LOOK, self.docker.attach_container(id, Some(options))).await
    }

    /// What happens to containers, from `since` (Unix time, seconds) on.
    pub(super) fn events(
        &self,
        filter: &HashMap<String, Vec<String>>,
        since: u64,
    ) -> impl Stream<Item = Result<EventMessage, Error>> + use<> {
        let mut filter = filter.clone();
        filter.insert("type".to_owned(), vec!["container".to_owned()]);
        let kinds = ["die", "oom", "pause", "unpause", "destroy"];
        filter.insert("event".to_owned(), kinds.map(str::to_owned).to_vec());
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filter).build();
        self.docker.events(Some(options))
    }
}

fn hung(socket: &str, limit: Duration) -> Failure {
    Failure::Unknown(format!("the Docker engine at {socket} did not answer within {limit:?}"))
}

fn failure_of(error: &Error, socket: &str) -> Failure {
    let text = |message: &str| format!("the Docker engine refused: {}", message.trim());
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => Failure::Missing(text(message)),
        Error::DockerResponseServerError { status_code: 409, message } => Failure::Conflict(text(message)),
        Error::DockerResponseServerError { message, .. } => Failure::Refused(text(message)),
        Error::SocketNotFoundError(_) => unreachable_at(socket, Some(io::ErrorKind::NotFound), "no such file"),
        Error::HyperLegacyError { err } if err.is_connect() => {
            let cause = cause_of(error);
            let kind = cause.as_ref().map(|(kind, _)| *kind);
            unreachable_at(socket, kind, &cause.map_or_else(|| err.to_string(), |(_, text)| text))
        }
        other => Failure::Unknown(format!("the call of the Docker engine at {socket} broke: {}", innermost(other))),
    }
}

fn unreachable_at(socket: &str, kind: Option<io::ErrorKind>, why: &str) -> Failure {
    let advice = match kind {
        Some(io::ErrorKind::PermissionDenied) => "run the agent as root, or as a member of the group `docker`",
        Some(io::ErrorKind::NotFound) => "is Docker installed and running? Give its socket with docker.socket",
        _ => "is Docker running? `service docker start` starts it",
    };
    Failure::Unreachable(format!("the Docker engine at {socket} can't be reached ({why}): {advice}"))
}

fn cause_of(error: &Error) -> Option<(io::ErrorKind, String)> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some((io.kind(), io.to_string()));
        }
        cause = error.source();
    }
    None
}

fn innermost(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}
