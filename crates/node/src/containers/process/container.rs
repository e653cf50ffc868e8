//! One container as the agent sees it.
//!
//! ```text
//! live():  launch ─ ready ─ serve ─┬─ died or condemned ─ report ─ wait for remove ─┬─ clean ─ gone
//!              └─ failed ──────────┴─ remove ───────────── terminate ───────────────┘
//! ```
//!
//! One task, `live`, owns its process and folder from beginning to end. Others see the container through
//! [`Container`] and only ask: `remove` for the end, the memory watcher by `condemn`. So callers may go
//! away at any moment.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::process::{Child, ChildStdin};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::engine::Shared;
use super::freeze::{self, FreezeError};
use super::launch;
use super::members::Scope;
use crate::containers::call::{self, MAX_ANSWER_BYTES};
use crate::containers::folder::Folder;
use crate::containers::http::{Address, Answer, Client, Connecting};
use crate::containers::last_lines::LastLines;
use crate::containers::logs::{Stream, read_lines};
use crate::containers::{ContainerSpec, EngineError, EngineEvent, Reply};

/// From its launch until a container's socket accepts connections.
const START_DEADLINE: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(1);
/// For a container to end, however it resists.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// How long the supervisor has before the engine kills as well, and between its attempts.
const END_PATIENCE: Duration = Duration::from_millis(250);
/// A caller of `remove` waits this long: [`END_DEADLINE`] and the folder.
const REMOVE_DEADLINE: Duration = Duration::from_secs(8);

pub(super) struct Container {
    id: Arc<str>,
    pub(super) memory_mb: u64,
    pub(super) max_processes: u64,
    folder: Folder,
    client: Client,
    /// Closing it makes the supervisor end the container.
    stdin: Mutex<Option<ChildStdin>>,
    /// Known once it serves.
    scope: OnceLock<Scope>,
    /// Whether it is stopped; held while that changes.
    paused: Mutex<bool>,
    condemned: CancellationToken,
    condemned_for: OnceLock<String>,
    /// Somebody asked for its end.
    removal: CancellationToken,
    removal_again: Notify,
    /// Why it ended.
    ended: watch::Sender<Option<String>>,
    /// How cleaning up after it went.
    gone: watch::Sender<Option<Result<(), String>>>,
    last_lines: Arc<LastLines>,
}

impl Container {
    pub(super) fn new(spec: &ContainerSpec, folder: Folder, max_processes: u64) -> Self {
        Self {
            id: spec.id.clone(),
            memory_mb: spec.memory_mb,
            max_processes,
            client: Client::new(Address::Unix(folder.socket()), spec.concurrency as usize + 1, MAX_ANSWER_BYTES),
            folder,
            stdin: Mutex::default(),
            scope: OnceLock::new(),
            paused: Mutex::default(),
            condemned: CancellationToken::new(),
            condemned_for: OnceLock::new(),
            removal: CancellationToken::new(),
            removal_again: Notify::new(),
            ended: watch::Sender::new(None),
            gone: watch::Sender::new(None),
            last_lines: LastLines::new(spec.logs.clone()),
        }
    }

    pub(super) async fn post(
        &self,
        path: &'static str,
        body: Bytes,
        deadline: Duration,
        connecting: Connecting,
    ) -> Result<Reply, EngineError> {
        let answer = call::post(&self.client, &self.ended, path, body, deadline, connecting).await?;
        Ok(self.accept(answer))
    }

    /// What is asked for by its own code is believed only inside its own folder.
    fn accept(&self, answer: Answer) -> Reply {
        if let Some(socket) = answer.socket {
            if self.folder.owns_socket(&socket) {
                self.client.redirect(Address::Unix(socket));
            } else {
                tracing::warn!(container = %self.id, socket = %socket.display(), "not a socket in the container's folder: ignored");
            }
        }
        answer.reply
    }

    /// Stops or continues all its processes.
    pub(super) async fn set_paused(self: Arc<Self>, pause: bool) -> Result<(), EngineError> {
        if let Some(reason) = &*self.ended.borrow() {
            return Err(EngineError::Died(reason.clone()));
        }
        let container = self.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let Some(scope) = container.scope.get() else {
                return Err(EngineError::Refused("it is still starting".into()));
            };
            let mut paused = container.paused.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = if pause { freeze::stop(scope) } else { freeze::resume(scope) };
            match outcome {
                Ok(()) => {
                    *paused = pause;
                    Ok(())
                }
                Err(FreezeError::Gone) => Err(EngineError::Died(FreezeError::Gone.to_string())),
                Err(error @ FreezeError::StillRunning { .. }) => Err(EngineError::Refused(error.to_string())),
                Err(error @ FreezeError::Proc(_)) => Err(EngineError::Indeterminate(error.to_string())),
            }
        });
        outcome.await.unwrap_or_else(|error| Err(EngineError::Indeterminate(error.to_string())))
    }

    /// Asks for its end, without waiting for it.
    pub(super) fn abandon(&self) {
        self.removal.cancel();
    }

    /// Asks for its end; returns when nothing of it is left.
    pub(super) async fn remove(&self) -> Result<(), EngineError> {
        let mut gone = self.gone.subscribe();
        if self.gone.send_if_modified(|gone| gone.take_if(|outcome| outcome.is_err()).is_some()) {
            self.removal_again.notify_one();
        }
        self.removal.cancel();
        match timeout(REMOVE_DEADLINE, gone.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())).map_err(EngineError::Indeterminate),
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(EngineError::Indeterminate(format!(
                "container {} has not ended within {REMOVE_DEADLINE:?}; ask again",
                self.id
            ))),
        }
    }

    /// What to watch, unless it does not run.
    pub(super) fn watched_scope(&self) -> Option<Scope> {
        let paused = *self.paused.try_lock().ok()?;
        if paused || self.ended.borrow().is_some() { None } else { self.scope.get().cloned() }
    }

    /// It used more than it may: it ends, and that is reported.
    pub(super) fn condemn(&self, reason: String) {
        if self.condemned_for.set(reason).is_ok() {
            self.condemned.cancel();
        }
    }
}

/// The life of one container: from its launch until it is gone from `engine`'s table. `caller` learns
/// whether it serves; if there is no caller left by then, it is removed.
pub(super) async fn live(
    engine: Arc<Shared>,
    container: Arc<Container>,
    spec: ContainerSpec,
    mut caller: oneshot::Sender<Result<(), EngineError>>,
) {
    let (outcome, mut process) = match launch(&engine, &container, spec).await {
        Ok(mut process) => (ready(&container, &mut process, &mut caller).await, Some(process)),
        Err(message) => (Err(message), None),
    };
    let told = match outcome {
        // It learns that when the attempt has left nothing behind.
        Err(message) => Some((caller, EngineError::Refused(message))),
        Ok(()) => {
            if caller.send(Ok(())).is_ok()
                && let Some(process) = &mut process
            {
                serve(&engine, &container, process).await;
            }
            None
        }
    };
    clean_up(&engine, &container, &mut process, told).await;
}

/// The supervisor, and through it all that is in the container.
struct Process {
    child: Child,
    pid: i32,
    /// Nothing is left. Its numbers may belong to others from then on.
    over: bool,
}

async fn launch(engine: &Arc<Shared>, container: &Arc<Container>, spec: ContainerSpec) -> Result<Process, String> {
    let (engine, folder) = (engine.clone(), container.folder.clone());
    let launched = tokio::task::spawn_blocking(move || {
        let interpreter = engine.interpreters.find(spec.runtime)?;
        launch::start(&engine.config, &engine.binary, engine.isolation, &spec, &folder, interpreter.as_deref())
    });
    let mut child = launched.await.map_err(|error| format!("the launch was given up: {error}"))??;
    *container.stdin.lock().unwrap_or_else(PoisonError::into_inner) = child.stdin.take();
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let (lines, more_lines) = (container.last_lines.clone(), container.last_lines.clone());
        tokio::spawn(async move { read_lines(stdout, Stream::Stdout, &*lines).await });
        tokio::spawn(async move { read_lines(stderr, Stream::Stderr, &*more_lines).await });
    }
    let pid = child.id().ok_or("its supervisor has no process id")?.cast_signed();
    Ok(Process { child, pid, over: false })
}

async fn ready(
    container: &Container,
    process: &mut Process,
    caller: &mut oneshot::Sender<Result<(), EngineError>>,
) -> Result<(), String> {
    let accepts = async {
        while container.client.warm_up().await.is_err() {
            sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        biased;
        status = process.child.wait() => {
            container.last_lines.settle().await;
            return Err(format!("the container ended while it started: {}", container.reason(status.ok())));
        }
        () = container.removal.cancelled() => return Err("it was removed while it started".to_owned()),
        () = caller.closed() => return Err("nobody waits for it any more".to_owned()),
        () = sleep(START_DEADLINE) => {
            let said = container.last_lines.said();
            return Err(format!("the container did not accept connections within {START_DEADLINE:?}{said}"));
        }
        () = accepts => {}
    }
    let _ = container.scope.set(Scope::of(process.pid));
    Ok(())
}

/// Until its removal is asked for. Reports its end, once, if that comes first.
async fn serve(engine: &Shared, container: &Container, process: &mut Process) {
    let status = tokio::select! {
        biased;
        () = container.removal.cancelled() => return,
        status = process.child.wait() => status.ok(),
        () = container.condemned.cancelled() => None,
    };
    container.client.close();
    // What remains if this fails is ended, and told, by the removal.
    let _ = terminate(container, process).await;
    container.last_lines.settle().await;
    let reason = container.reason(status);
    container.ended.send_replace(Some(reason.clone()));
    let died = EngineEvent::Died { id: container.id.to_string(), reason };
    tokio::select! {
        biased;
        () = container.removal.cancelled() => {}
        _ = engine.events.send(died) => container.removal.cancelled().await,
    }
}

async fn clean_up(
    engine: &Shared,
    container: &Container,
    process: &mut Option<Process>,
    mut told: Option<(oneshot::Sender<Result<(), EngineError>>, EngineError)>,
) {
    loop {
        let outcome = clean(container, process).await;
        container.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| "it was removed".to_owned());
            first
        });
        let failed = outcome.is_err();
        match &outcome {
            Ok(()) => engine.forget(&container.id),
            Err(error) => tracing::error!(container = %container.id, %error, "cannot remove a container"),
        }
        container.gone.send_replace(Some(outcome));
        if let Some((caller, error)) = told.take() {
            let _ = caller.send(Err(error));
        }
        if !failed {
            return;
        }
        container.removal_again.notified().await;
    }
}

async fn clean(container: &Container, process: &mut Option<Process>) -> Result<(), String> {
    container.client.close();
    if let Some(process) = process {
        terminate(container, process).await?;
    }
    let folder = container.folder.clone();
    let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
    removed.map_err(|error| error.to_string())?.map_err(|error| format!("cannot remove its folder: {error}"))
}

/// Ends all its processes. The supervisor does that when its stdin closes; the engine helps if it is slow.
async fn terminate(container: &Container, process: &mut Process) -> Result<(), String> {
    if process.over {
        return Ok(());
    }
    drop(container.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
    let deadline = Instant::now() + END_DEADLINE;
    let scope = container.scope.get().cloned().unwrap_or(Scope::Supervisor(process.pid));
    while timeout(END_PATIENCE, process.child.wait()).await.is_err() {
        kill_all(&scope).await;
        if Instant::now() >= deadline {
            let _ = process.child.start_kill();
            return Err(format!("container {} has not ended within {END_DEADLINE:?}", container.id));
        }
    }
    // Nothing is left, unless somebody else killed the supervisor.
    while kill_all(&scope).await > 0 {
        if Instant::now() >= deadline {
            return Err(format!("processes of container {} could not be killed within {END_DEADLINE:?}", container.id));
        }
        sleep(READY_POLL).await;
    }
    process.over = true;
    Ok(())
}

async fn kill_all(scope: &Scope) -> usize {
    let scope = scope.clone();
    let killed = tokio::task::spawn_blocking(move || freeze::kill_members(&scope).unwrap_or(0));
    killed.await.unwrap_or(0)
}

impl Container {
    fn reason(&self, status: Option<ExitStatus>) -> String {
        if let Some(reason) = self.condemned_for.get() {
            return reason.clone();
        }
        let how = match status.map(|status| (status.code(), status)) {
            // The supervisor tells a signal as shells do.
            Some((Some(code), _)) if code > 128 => match Signal::try_from(code - 128) {
                Ok(signal) => format!("killed by {signal}"),
                Err(_) => format!("exit status {code}"),
            },
            Some((Some(code), _)) => format!("exit status {code}"),
            Some((None, status)) => format!("its supervisor was killed: {status}"),
            None => "unknown status".to_owned(),
        };
        format!("{how}{}", self.last_lines.said())
    }
}
