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

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bytes::Bytes;
use embermesh_core::ContainerId;
use futures::StreamExt;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::adoption::Left;
use super::api::{Api, Failure};
use super::engine::Shared;
use super::images::Image;
use super::{network, spec};
use crate::containers::call::{self, MAX_ANSWER_BYTES};
use crate::containers::folder::Folder;
use crate::containers::http::{Address, Answer, Client, Connecting};
use crate::containers::last_lines::LastLines;
use crate::containers::logs::{LineParser, Stream};
use crate::containers::{ContainerSpec, EngineError, EngineEvent, Reply, Runtime};

/// Where images that actions name serve.
const PORT: u16 = 8080;
const READY_POLL: Duration = Duration::from_millis(2);
/// A start that is being given up ends within this: its longest call of the engine, and more.
const GIVE_UP: Duration = Duration::from_secs(70);
/// For a runtime to say what is in it.
const ADOPT: Duration = Duration::from_secs(2);
/// Between two attempts to read on after the connection for a container's lines broke.
const ATTACH_AGAIN: Duration = Duration::from_secs(1);
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
            corrections: Mutex::default(),
            out_of_memory: AtomicBool::new(false),
            removal: CancellationToken::new(),
            ended: watch::Sender::new(None),
            last_lines: LastLines::new(spec.logs.clone()),
        }
    }

    /// One of an earlier life, which the engine has as `docker_id`.
    pub(super) fn left(spec: &ContainerSpec, left: &Left, folder: Folder) -> Self {
        let pausing = Pausing { wanted: left.paused, known: Some(left.paused) };
        Self {
            label: left.label.as_str().into(),
            docker_id: OnceLock::from(left.docker_id.clone()),
            pausing: AsyncMutex::new(pausing),
            unasked: AtomicBool::new(left.paused),
            ..Self::new(spec, folder)
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
        pausing.wanted = true;
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
        pausing.wanted = false;
        // Its pause was put off, and has not come to be.
        if pausing.known == Some(false) {
            return Ok(());
        }
        pausing.known = None;
        self.change(&engine.api, id, false).await.map_err(failed)?;
        pausing.known = Some(false);
        if self.unasked.swap(false, Ordering::AcqRel) && self.ask_runs().await? > 0 {
            return Err(EngineError::Refused("runs of an earlier life of this agent are in it".into()));
        }
        Ok(())
    }

    /// Takes a container of an earlier life into service: from here on it is called, and its lines are read. Returns
    /// how many runs are still in it.
    pub(super) async fn adopt(self: &Arc<Self>, engine: &Arc<Shared>, was_idle: bool) -> Result<u32, EngineError> {
        let id = self.docker_id().ok_or_else(|| EngineError::Unknown(self.id.to_string()))?;
        self.connect(engine, id).await?;
        let output = engine.api.attach(id).await?.output;
        tokio::spawn(read_lines(engine.api.clone(), self.clone(), output));
        let paused = self.unasked.load(Ordering::Acquire);
        let runs = match (paused, self.stock) {
            (true, _) => 0,
            (false, true) if was_idle => 0,
            (false, true) => {
                return Err(EngineError::Refused("what runs in an image like this one can't be told".into()));
            }
            (false, false) => self.ask_runs().await?,
        };
        self.serving.store(true, Ordering::Release);
        Ok(runs)
    }

    /// Has it take orders of this epoch only; how many runs of earlier ones are in it.
    pub(super) async fn ask_runs(&self) -> Result<u32, EngineError> {
        #[derive(serde::Deserialize)]
        struct Adopted {
            running: u32,
        }
        if self.stock {
            return Ok(0);
        }
        let reply = self.post("/adopt", Bytes::new(), ADOPT, Connecting::Once).await?;
        let adopted = serde_json::from_slice::<Adopted>(&reply.body).ok().filter(|_| reply.status == 200);
        adopted.map(|adopted| adopted.running).ok_or_else(|| {
            let said = String::from_utf8_lossy(&reply.body).into_owned();
            EngineError::Refused(format!("it can't be adopted: it answers {} {said}", reply.status))
        })
    }

    /// Finds out where it serves.
    async fn connect(&self, engine: &Shared, id: &str) -> Result<(), EngineError> {
        let address = match self.stock {
            false => Address::Unix(self.folder.socket()),
            true => Address::Tcp(SocketAddr::new(own_address(engine, self, id).await?, PORT)),
        };
        // A foreign server may close an idle connection at any moment, and so break a run: each gets a fresh one.
        let idle = if self.stock { 0 } else { self.concurrency + 1 };
        let client = Client::new(address, idle, MAX_ANSWER_BYTES);
        let epoch = self.id.parse::<ContainerId>().ok().filter(|_| !self.stock).map(|id| id.epoch.0);
        self.client.get_or_init(|| match epoch {
            Some(epoch) => client.of_epoch(epoch),
            None => client,
        });
        Ok(())
    }

    /// Closes its connections and leaves it alone.
    pub(super) fn let_go(&self) {
        if let Some(client) = self.client.get() {
            client.close();
        }
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

    /// Whether the engine's word about it is nothing to look into.
    pub(super) fn is_as_wanted(&self, paused: bool) -> bool {
        // A change is under way otherwise.
        self.pausing.try_lock().map_or(true, |pausing| pausing.wanted == paused)
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

/// A container's start, to its end: `caller` learns whether it serves. Without a caller it is removed.
pub(super) async fn begin(
    engine: Arc<Shared>,
    container: Arc<Container>,
    spec: ContainerSpec,
    mut caller: oneshot::Sender<Result<(), EngineError>>,
) {
    let starting = container.starting.lock().await;
    let outcome = match make(&engine, &container, &spec).await {
        Ok(()) => tokio::select! {
            biased;
            outcome = ready(&engine, &container) => outcome,
            () = container.removal.cancelled() => Err(EngineError::Refused("it was removed while it started".into())),
            () = caller.closed() => Err(EngineError::Refused("nobody waits for it any more".into())),
        },
        Err(error) => Err(error),
    };
    let outcome = match outcome {
        Ok(()) => {
            container.serving.store(true, Ordering::Release);
            match caller.send(Ok(())) {
                Ok(()) => return,
                Err(_) => None,
            }
        }
        Err(error) => Some((caller, error)),
    };
    container.removal.cancel();
    if let Err(error) = container.clear(&engine).await {
        // It stays in the table: the core asks for its removal until that succeeds.
        tracing::warn!(container = %container.id, %error, "what was left of a start could not be removed yet");
    }
    drop(starting);
    if let Some((caller, error)) = outcome {
        caller.send(Err(error)).ok();
    }
}

async fn unless_removed<T>(
    container: &Container,
    step: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    tokio::select! {
        biased;
        () = container.removal.cancelled() => Err(EngineError::Refused("it was removed while it started".into())),
        outcome = step => outcome,
    }
}

/// Creates and starts it. Each call has its own deadline and is not cut short: what was made is known.
async fn make(engine: &Arc<Shared>, container: &Arc<Container>, spec: &ContainerSpec) -> Result<(), EngineError> {
    // An image may take minutes to come: that step alone is cut short.
    let image = unless_removed(container, engine.images.choose(spec)).await?;
    if !container.stock {
        let folder = container.folder.clone();
        let made = tokio::task::spawn_blocking(move || folder.create_for_socket(spec::user())).await;
        let failed = |why: String| {
            let path = container.folder.path().display();
            EngineError::Refused(format!("cannot make the folder {path}: {why}"))
        };
        made.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    }
    let id = match create(engine, container, spec, &image).await {
        Err(Failure::Missing(_)) => {
            unless_removed(container, engine.images.obtain(&image)).await?;
            create(engine, container, spec, &image).await
        }
        outcome => outcome,
    };
    let id = id.map_err(|failure| explained(failure, container, &image))?;
    let id = container.docker_id.get_or_init(|| id).clone();
    let output = engine.api.attach(&id).await?.output;
    tokio::spawn(read_lines(engine.api.clone(), container.clone(), output));
    unless_removed(container, async { Ok(()) }).await?;
    engine.api.start(&id).await.map_err(|failure| explained(failure, container, &image))?;
    container.connect(engine, &id).await
}

async fn create(
    engine: &Shared,
    container: &Container,
    spec: &ContainerSpec,
    image: &Image,
) -> Result<String, Failure> {
    let network = match container.stock {
        true => Some(network::ensure(&engine.api, &engine.config.network).await.map_err(|error| match error {
            EngineError::Indeterminate(text) => Failure::Unknown(text),
            other => Failure::Refused(other.to_string()),
        })?),
        false => None,
    };
    let body = spec::body(&engine.config, &engine.owner, spec, image.name(), &container.folder, network);
    engine.api.create(&engine.owner.name(&spec.id), body).await
}

/// The usual reason why a container of ours does not start is an image that isn't meant for it.
fn explained(failure: Failure, container: &Container, image: &Image) -> EngineError {
    let text = failure.to_string();
    let no_program = ["no such file or directory", "executable file not found", "permission denied"];
    if !container.stock && text.contains(spec::PROGRAM) && no_program.iter().any(|words| text.contains(words)) {
        return EngineError::Refused(format!(
            "image `{}` has no Embermesh runtime in it: it needs one as {}; deploy/images makes such images ({text})",
            image.name(),
            spec::PROGRAM
        ));
    }
    if matches!(failure, Failure::Unknown(_)) {
        return failure.into();
    }
    EngineError::Refused(format!("a container of image `{}` can't be started: {text}", image.name()))
}

async fn own_address(engine: &Shared, container: &Container, id: &str) -> Result<IpAddr, EngineError> {
    let inspected = engine.api.inspect(id).await?;
    let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut addresses = networks.into_values().filter_map(|network| network.ip_address?.parse().ok());
    match addresses.next() {
        Some(address) => Ok(address),
        // The engine takes the address back as soon as it ends.
        None => {
            let state = inspected.state.unwrap_or_default();
            match state.running {
                Some(true) => Err(EngineError::Refused("the engine gave it no address".into())),
                _ => Err(ended_early(container, ended_with(state.exit_code)).await),
            }
        }
    }
}

async fn ended_early(container: &Container, how: String) -> EngineError {
    container.last_lines.settle().await;
    EngineError::Refused(format!("the container ended while it started: {how}{}", container.last_lines.said()))
}

/// Until it accepts connections.
async fn ready(engine: &Shared, container: &Container) -> Result<(), EngineError> {
    let Some(client) = container.client.get() else { return Err(EngineError::Unknown(container.id.to_string())) };
    let limit = engine.config.start_timeout;
    let mut ended = container.ended.subscribe();
    let accepts = async {
        // A connect may take a second on a bridge where the address was somebody else's a moment ago.
        while client.warm_up().await.is_err() {
            sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        biased;
        ended = ended.wait_for(Option::is_some) => {
            let reason = ended.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            Err(EngineError::Refused(format!("the container ended while it started: {reason}")))
        }
        () = sleep(limit) => {
            let at = if container.stock { format!("port {PORT}") } else { "its socket".to_owned() };
            let said = container.last_lines.said();
            Err(EngineError::Refused(format!(
                "the container did not accept connections on {at} within {limit:?} (docker.start_timeout){said}"
            )))
        }
        () = accepts => Ok(()),
    }
}

type Output = std::pin::Pin<Box<dyn futures::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

/// Hands on what it writes, until its end. A connection that breaks before is made again; what was written
/// meanwhile is lost to records, not to the engine's own log.
async fn read_lines(api: Api, container: Arc<Container>, output: Output) {
    let Some(id) = container.docker_id() else { return };
    let mut output = Some(output);
    let mut ended = container.ended.subscribe();
    loop {
        if let Some(output) = output.take() {
            read_output(container.last_lines.clone(), output).await;
        }
        tokio::select! {
            _ = ended.wait_for(Option::is_some) => return,
            () = container.removal.cancelled() => return,
            () = sleep(ATTACH_AGAIN) => {}
        }
        output = api.attach(id).await.ok().map(|attached| attached.output);
    }
}

async fn read_output(lines: Arc<LastLines>, mut output: Output) {
    let (mut stdout, mut stderr) = (LineParser::new(Stream::Stdout), LineParser::new(Stream::Stderr));
    while let Some(Ok(piece)) = output.next().await {
        match piece {
            LogOutput::StdErr { message } => stderr.feed(&message, &*lines),
            LogOutput::StdOut { message } | LogOutput::Console { message } => stdout.feed(&message, &*lines),
            LogOutput::StdIn { .. } => {}
        }
    }
    stdout.finish(&*lines);
    stderr.finish(&*lines);
}
