//! One container: its start, its calls, pause and resume, its end.
//!
//! ```text
//! begin(): image ─ folder or network ─ create ─ attach ─ start ─ accepts ─ serves ─ remove
//!              └────────────── any failure: what was made is removed ───────────────┘
//! ```
//!
//! `begin` is a task of its own, so that whoever asked for the start may go away. What the engine does by itself,
//! the monitor tells: [`Container::died`], [`align`].

mod adopted;
mod freezer;
mod lines;
mod pausing;
mod start;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::api::Failure;
use super::engine::Shared;
use super::spec;
use crate::containers::call;
use crate::containers::folder::Folder;
use crate::containers::http::{Address, Answer, Client, Connecting};
use crate::containers::last_lines::LastLines;
use crate::containers::{ContainerSpec, EngineError, EngineEvent, Reply, Runtime};

use freezer::Freezer;
use pausing::Pausing;

pub(super) use pausing::align;
pub(super) use start::begin;

/// A start that is being given up ends within this: its longest call of the engine, and more.
const GIVE_UP: Duration = Duration::from_secs(70);

/// Exit code of what SIGKILL ended.
const KILLED: i64 = 137;
/// From the moment that the kernel kills a process for its memory until the container has ended by that: its runtime
/// still tells of it.
const MEMORY_AND_END: Duration = Duration::from_secs(6);

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
    pausing: Arc<AsyncMutex<Pausing>>,
    /// Found when it is paused.
    freezer: OnceLock<Freezer>,
    /// What `pausing` wants, for whoever must not wait for it.
    wants_pause: AtomicBool,
    corrections: Mutex<VecDeque<Instant>>,
    /// When the engine last told that the kernel killed something in it for its memory.
    out_of_memory: Mutex<Option<Instant>>,
    pub(super) removal: CancellationToken,
    /// Why it ended.
    ended: watch::Sender<Option<String>>,
    last_lines: Arc<LastLines>,
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
            pausing: Arc::new(AsyncMutex::new(Pausing::new(false))),
            freezer: OnceLock::new(),
            wants_pause: AtomicBool::new(false),
            corrections: Mutex::default(),
            out_of_memory: Mutex::default(),
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

    fn ready_id(&self) -> Result<&str, EngineError> {
        if let Some(reason) = &*self.ended.borrow() {
            return Err(EngineError::Died(reason.clone()));
        }
        let ready = self.serving.load(Ordering::Acquire);
        self.docker_id().filter(|_| ready).ok_or_else(|| EngineError::Refused("it is still starting".into()))
    }

    pub(super) fn ran_out_of_memory(&self, ago: Duration) {
        let at = Instant::now().checked_sub(ago);
        let mut last = self.out_of_memory.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (*last).max(at);
    }

    /// Whether its end, with that exit code, is one for want of memory. A process in it may be killed for that, and its
    /// runtime end a moment later; or go on, and end by something else in the end.
    async fn ended_out_of_memory(&self, engine: &Shared, code: Option<i64>) -> bool {
        let told = *self.out_of_memory.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < MEMORY_AND_END) {
            return true;
        }
        // The event may have been missed.
        let Some(id) = self.docker_id().filter(|_| code == Some(KILLED)) else { return false };
        let state = engine.api.inspect(id).await.ok().and_then(|inspected| inspected.state);
        state.is_some_and(|state| state.oom_killed == Some(true))
    }

    /// It ended by itself, with that exit code, if it is known. As [`Container::died`].
    pub(super) fn exited(self: &Arc<Self>, engine: &Arc<Shared>, code: Option<i64>) {
        self.over(engine, ended_with(code), code);
    }

    /// It is gone, and nobody here asked for that. Told once.
    pub(super) fn died(self: &Arc<Self>, engine: &Arc<Shared>, how: &str) {
        self.over(engine, how.to_owned(), None);
    }

    fn over(self: &Arc<Self>, engine: &Arc<Shared>, how: String, code: Option<i64>) {
        if self.removal.is_cancelled() || self.has_ended() {
            return;
        }
        let (engine, container) = (engine.clone(), self.clone());
        tokio::spawn(async move {
            container.last_lines.settle().await;
            let how = match container.ended_out_of_memory(&engine, code).await {
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
        Some(KILLED) => "killed by SIGKILL".to_owned(),
        Some(143) => "killed by SIGTERM".to_owned(),
        Some(code) => format!("exit status {code}"),
        None => "unknown status".to_owned(),
    }
}
