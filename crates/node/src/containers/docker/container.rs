//! One container: its start, its calls, pause and resume, its end.
//!
//! ```text
//! begin(): image ─ folder or network ─ create ─ attach ─ start ─ accepts ─ serves ─ remove
//!              └────────────── any failure: what was made is removed ───────────────┘
//! ```
//!
//! `begin` is a task of its own, so that whoever asked for the start may go away. What the engine does by itself,
//! the monitor tells: [`Container::died`], [`align`]. `pausing` is held while the engine changes it,
//! so that nobody takes a change that is under way for somebody else's.

mod adopted;
mod lines;
mod start;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{Api, Failure};
use super::engine::Shared;
use super::spec;
use crate::containers::call;
use crate::containers::folder::Folder;
use crate::containers::http::{Address, Answer, Client, Connecting};
use crate::containers::last_lines::LastLines;
use crate::containers::{ContainerSpec, EngineError, EngineEvent, Reply, Runtime};

pub(super) use start::begin;

/// A start that is being given up ends within this: its longest call of the engine, and more.
const GIVE_UP: Duration = Duration::from_secs(70);
/// Somebody who pauses or resumes our container more often than this within a minute is not argued with.
const MOST_CORRECTIONS: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);

pub(super) struct Container {
    pub(super) id: Arc<str>,
    /// Its id in the life of the agent that made it: its labels and its folder have that.
    pub(super) label: Arc<str>,
    memory_mb: u64,
    /// An image that serves TCP, without a folder.
    stock: bool,
    concurrency: usize,
    folder: Folder,
    /// Held during its start.
    starting: AsyncMutex<()>,
    docker_id: OnceLock<String>,
    client: OnceLock<Client>,
    serving: AtomicBool,
    /// It was adopted as paused, and could not be asked for anything yet.
    unasked: AtomicBool,
    pausing: AsyncMutex<Pausing>,
    /// What `pausing` wants, for whoever must not wait for it.
    wants_pause: AtomicBool,
    corrections: Mutex<VecDeque<Instant>>,
    out_of_memory: AtomicBool,
    pub(super) removal: CancellationToken,
    /// Why it ended.
    ended: watch::Sender<Option<String>>,
    last_lines: Arc<LastLines>,
}

/// Whether it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pausing {
    /// As the core wants it.
    wanted: bool,
    /// As the engine last said; none after a call of unknown outcome.
    known: Option<bool>,
}

impl Container {
    pub(super) fn new(spec: &ContainerSpec, folder: Folder) -> Self {
        Self {
            id: spec.id.clone(),
            label: spec.id.clone(),
            memory_mb: spec.memory_mb,
            stock: spec.runtime == Runtime::Image,
            concurrency: spec.concurrency as usize,
            folder,
            starting: AsyncMutex::default(),
            docker_id: OnceLock::new(),
            client: OnceLock::new(),
            serving: AtomicBool::new(false),
            unasked: AtomicBool::new(false),
            pausing: AsyncMutex::new(Pausing { wanted: false, known: Some(false) }),
            wants_pause: AtomicBool::new(false),
            corrections: Mutex::default(),
            out_of_memory: AtomicBool::new(false),
            removal: CancellationToken::new(),
            ended: watch::Sender::new(None),
            last_lines: LastLines::new(spec.logs.clone()),
        }
    }

    /// The engine's id, once it was created.
    pub(super) fn docker_id(&self) -> Option<&str> {
        self.docker_id.get().map(String::as_str)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    pub(super) async fn post(
        &self,
        path: &'static str,
        body: Bytes,
        deadline: Duration,
        connecting: Connecting,
    ) -> Result<Reply, EngineError> {
        let starting = || EngineError::Refused("it is still starting".into());
        let client = self.client.get().ok_or_else(starting)?;
        let answer = call::post(client, &self.ended, path, body, deadline, connecting).await?;
        Ok(self.accept(client, answer))
    }

    /// What is asked for by its own code is believed only inside its own folder.
    fn accept(&self, client: &Client, answer: Answer) -> Reply {
        if let Some(socket) = answer.socket.filter(|_| !self.stock) {
            match spec::outside(&self.folder, &socket) {
                Some(path) => client.redirect(Address::Unix(path)),
                None => {
                    tracing::warn!(container = %self.id, socket = %socket.display(), "not a socket in the container's folder: ignored");
                }
            }
        }
        answer.reply
    }

    /// While the engine can't be asked, a pause is put off: the core counts it as paused and sends it nothing, and
    /// the monitor brings the engine's state in line as soon as it answers. So a warm container is not lost
    /// because the engine was away when it fell idle.
    pub(super) async fn pause(&self, engine: &Shared) -> Result<(), EngineError> {
        let mut pausing = self.pausing.lock().await;
        let id = self.ready_id()?;
        self.want(&mut pausing, true);
        if engine.is_in_trouble() {
            return Ok(());
        }
        match self.change(&engine.api, id, true).await {
            Ok(()) => pausing.known = Some(true),
            Err(Failure::Unreachable(_)) => {}
            Err(Failure::Unknown(_)) => pausing.known = None,
            Err(failure) => return Err(failed(failure)),
        }
        Ok(())
    }

    pub(super) async fn resume(&self, engine: &Shared) -> Result<(), EngineError> {
        let mut pausing = self.pausing.lock().await;
        let id = self.ready_id()?;
        self.want(&mut pausing, false);
        // Its pause was put off, and has not come to be.
        if pausing.known == Some(false) {
            return Ok(());
        }
        pausing.known = None;
        self.change(&engine.api, id, false).await.map_err(failed)?;
        pausing.known = Some(false);
        Ok(())
    }

    fn want(&self, pausing: &mut Pausing, pause: bool) {
        pausing.wanted = pause;
        self.wants_pause.store(pause, Ordering::Release);
    }

    fn ready_id(&self) -> Result<&str, EngineError> {
        if let Some(reason) = &*self.ended.borrow() {
            return Err(EngineError::Died(reason.clone()));
        }
        let ready = self.serving.load(Ordering::Acquire);
        self.docker_id().filter(|_| ready).ok_or_else(|| EngineError::Refused("it is still starting".into()))
    }

    async fn change(&self, api: &Api, id: &str, pause: bool) -> Result<(), Failure> {
        match if pause { api.pause(id).await } else { api.unpause(id).await } {
            // Mostly that it is so already.
            Err(Failure::Conflict(text)) | Err(Failure::Refused(text)) => {
                let state = api.inspect(id).await?.state.unwrap_or_default();
                let so = state.running == Some(true) && state.paused == Some(pause);
                if so { Ok(()) } else { Err(Failure::Conflict(text)) }
            }
            outcome => outcome,
        }
    }

    /// Whether the engine's word about it is nothing to look into: it is what was asked for, as most are. An inspection
    /// would only slow the call that waits for the change.
    pub(super) fn is_as_wanted(&self, paused: bool) -> bool {
        match self.pausing.try_lock() {
            Ok(pausing) => pausing.wanted == paused && pausing.known == Some(paused),
            // That change is under way.
            Err(_) => self.wants_pause.load(Ordering::Acquire) == paused,
        }
    }

    pub(super) fn ran_out_of_memory(&self) {
        self.out_of_memory.store(true, Ordering::Release);
    }

    /// It ended, and nobody here asked for that. Told once.
    pub(super) fn died(self: &Arc<Self>, engine: &Arc<Shared>, how: String) {
        if self.removal.is_cancelled() || self.has_ended() {
            return;
        }
        let (engine, container) = (engine.clone(), self.clone());
        tokio::spawn(async move {
            container.last_lines.settle().await;
            let how = match container.out_of_memory.load(Ordering::Acquire) {
                true => format!("out of memory: over the limit of {} MB ({how})", container.memory_mb),
                false => how,
            };
            let reason = format!("{how}{}", container.last_lines.said());
            if !container.end(&reason) || !container.serving.load(Ordering::Acquire) {
                // A start that fails tells it itself.
                return;
            }
            let died = EngineEvent::Died { id: container.id.to_string(), reason };
            tokio::select! {
                biased;
                () = container.removal.cancelled() => {}
                _ = engine.events.send(died) => {}
            }
        });
    }

    /// Whether this is the first word of its end.
    fn end(&self, reason: &str) -> bool {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| reason.to_owned());
            first
        });
        // Its sockets go before it does: a neighbour that takes its address would be mistaken for it.
        if let Some(client) = self.client.get() {
            client.close();
        }
        first
    }

    /// Ends it; returns when nothing of it is left.
    pub(super) async fn remove(&self, engine: &Shared) -> Result<(), EngineError> {
        self.removal.cancel();
        let given_up = timeout(GIVE_UP, self.starting.lock()).await;
        let _none_starts = given_up.map_err(|_| EngineError::Indeterminate("its start does not end".into()))?;
        self.clear(engine).await
    }

    async fn clear(&self, engine: &Shared) -> Result<(), EngineError> {
        self.end("it was removed");
        let _permit = engine.removals.acquire().await;
        match self.docker_id() {
            Some(id) => engine.api.remove(id).await?,
            // Whether it was created may be unknown.
            None => {
                for (docker_id, id) in engine.own_containers().await? {
                    if *id == *self.id {
                        engine.api.remove(&docker_id).await?;
                    }
                }
            }
        }
        if !self.stock {
            let folder = self.folder.clone();
            let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
            let failed = |why: String| EngineError::Indeterminate(format!("cannot remove its folder: {why}"));
            removed.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        }
        engine.forget(&self.id);
        Ok(())
    }

    /// Whether somebody is still to be argued with about its state.
    fn may_correct(&self) -> bool {
        let mut corrections = self.corrections.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        corrections.retain(|at| now - *at < MINUTE);
        corrections.push_back(now);
        corrections.len() <= MOST_CORRECTIONS
    }
}

/// Looks at what the engine says of it, and brings it to what is wanted of it: a container that somebody else
/// paused goes on, one that somebody else resumed is paused again. Nothing is sent to it before the
/// core has resumed it, so both are harmless; only somebody who insists ends it.
pub(super) async fn align(engine: &Arc<Shared>, container: &Arc<Container>) {
    if container.removal.is_cancelled() || container.has_ended() || !container.serving.load(Ordering::Acquire) {
        return;
    }
    let mut pausing = container.pausing.lock().await;
    let Some(id) = container.docker_id() else { return };
    let state = match engine.api.inspect(id).await {
        Ok(inspected) => inspected.state.unwrap_or_default(),
        Err(Failure::Missing(_)) => return container.died(engine, "it was removed by somebody else".to_owned()),
        // The next listing looks again.
        Err(_) => return,
    };
    if state.running != Some(true) {
        return container.died(engine, ended_with(state.exit_code));
    }
    let pause = pausing.wanted;
    if state.paused == Some(pause) || container.removal.is_cancelled() {
        pausing.known = state.paused;
        return;
    }
    let put_off = pause && pausing.known != Some(true);
    if !put_off {
        if !container.may_correct() {
            return container.died(engine, "somebody else pauses and resumes it again and again".to_owned());
        }
        tracing::warn!(container = %container.id, pause, "somebody else changed its state: it is changed back");
    }
    pausing.known = None;
    match container.change(&engine.api, id, pause).await {
        Ok(()) => pausing.known = Some(pause),
        Err(error) => tracing::warn!(container = %container.id, %error, "its state can't be changed back"),
    }
}

fn failed(failure: Failure) -> EngineError {
    match failure {
        Failure::Missing(text) => EngineError::Died(text),
        other => other.into(),
    }
}

/// The end of a container in words.
pub(super) fn ended_with(code: Option<i64>) -> String {
    match code {
        // A signal is told as shells do.
        Some(137) => "killed by SIGKILL".to_owned(),
        Some(143) => "killed by SIGTERM".to_owned(),
        Some(code) => format!("exit status {code}"),
        None => "unknown status".to_owned(),
    }
}
