//! Own containers: what the core wants of the engine, and runs in them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::history::What;
use embermesh_core::input::{RunEnd, StartFailure};
use embermesh_core::{ActionId, ActivationId, ContainerId, Input, Revision, RunId};
use tokio::time::{Instant, timeout};

use crate::containers::{ContainerSpec, EngineError, EngineEvent, Runtime};
use crate::invoke::merged_params;
use crate::logbook::ContainerLog;
use crate::node::Node;
use crate::outcome::{Outcome, init_error};
use crate::registry::action::{ActionEntry, Kind};

/// How long a container may take for `/init` at least, whatever its action's time-out.
const INIT_AT_LEAST: Duration = Duration::from_secs(10);
/// How long its code may take to come from peers; a start waits with its memory and its permit.
const FETCH_CODE: Duration = Duration::from_secs(20);
/// Actions whose last failure to start is remembered.
const MOST_START_ERRORS: usize = 1000;

/// What the driver keeps of each own container.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    id: Arc<str>,
    entry: Arc<ActionEntry>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) init_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum EngineCall {
    Pause,
    Resume,
    Remove,
}

#[derive(Debug, Default)]
pub(crate) struct OwnedTable {
    /// Calls only read it, several at a time.
    containers: RwLock<HashMap<u64, Owned>>,
    start_errors: Mutex<HashMap<(String, String), String>>,
}

impl OwnedTable {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Owned>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Owned>> {
        self.containers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn errors(&self) -> MutexGuard<'_, HashMap<(String, String), String>> {
        self.start_errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    pub(crate) fn spawn_start(&self, container: u64, action: ActionId, revision: Revision) {
        let node = self.clone();
        tokio::spawn(async move {
            let input = match node.start_container(container, &action, &revision).await {
                Ok(()) => Input::ContainerReady { container },
                Err((failure, error)) => {
                    tracing::warn!(container, action = %action, %error, "a container did not start");
                    let mut errors = node.owned().errors();
                    if errors.len() >= MOST_START_ERRORS {
                        errors.clear();
                    }
                    errors.insert((action.namespace().to_owned(), action.name().to_owned()), error);
                    drop(errors);
                    Input::ContainerFailed { container, failure }
                }
            };
            node.tell(input);
        });
    }

    async fn start_container(
        &self,
        container: u64,
        action: &ActionId,
        revision: &Revision,
    ) -> Result<(), (StartFailure, String)> {
        let engine = |error: EngineError| {
            let failure = if matches!(error, EngineError::Busy(_)) { StartFailure::Busy } else { StartFailure::Engine };
            (failure, error.to_string())
        };
        let entry = self
            .registry()
            .get(action.namespace(), action.name())
            .filter(|e| e.revision.counter == revision.counter && e.revision.node_id == revision.node.as_str())
            .ok_or_else(|| (StartFailure::Engine, format!("revision {revision} is no longer the newest")))?;
        let spec = self.enlist(container, &entry);
        let id = spec.id.clone();
        let code = match &entry.code_hash {
            None => None,
            Some(hash) => Some(timeout(FETCH_CODE, self.code_by_hash(hash)).await.ok().flatten().ok_or_else(|| {
                (StartFailure::Engine, format!("the code {hash} is neither here nor at any live peer"))
            })?),
        };
        self.engine().start(spec).await.map_err(engine)?;
        if !self.owned().read().contains_key(&container) {
            // Given up meanwhile (a forced drain): nobody else would end it.
            self.engine().remove(&id).await.ok();
            return Err((StartFailure::Engine, "the container was given up while it started".to_owned()));
        }
        self.tell(Input::ContainerCreated { container });
        let began = Instant::now();
        let longest = Duration::from_millis(entry.limits.timeout).max(INIT_AT_LEAST);
        let body = init_body(&entry, code);
        let reply = self.engine().init(&id, body, longest).await.map_err(|e| match e {
            EngineError::Timeout(limit) => {
                (StartFailure::Init, format!("Initialization did not answer within {} ms", limit.as_millis()))
            }
            other => (StartFailure::Init, format!("Initialization has failed: {other}")),
        })?;
        if reply.status != 200 {
            return Err((StartFailure::Init, init_error(&reply)));
        }
        if let Some(owned) = self.owned().write().get_mut(&container) {
            owned.init_ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
        }
        Ok(())
    }

    /// Takes an own container into the table; what the engine has to know of it.
    pub(crate) fn enlist(&self, container: u64, entry: &Arc<ActionEntry>) -> ContainerSpec {
        let id: Arc<str> = self.container_id(container).to_string().into();
        let limit_bytes = usize::try_from(entry.limits.logs << 20).unwrap_or(usize::MAX);
        let log = self.logbook().container(id.clone(), entry.limits.concurrency, limit_bytes);
        let owned = Owned { id: id.clone(), entry: entry.clone(), log: log.clone(), init_ms: None };
        self.owned().write().insert(container, owned);
        ContainerSpec {
            id,
            namespace: entry.namespace.clone(),
            action: entry.name.clone(),
            revision: entry.revision.to_string(),
            runtime: runtime_for(entry.kind),
            image: entry.image.clone(),
            memory_mb: entry.limits.memory,
            concurrency: entry.limits.concurrency,
            logs: log,
        }
    }

    pub(crate) fn spawn_pause(&self, container: u64) {
        let node = self.clone();
        tokio::spawn(async move {
            let ok = node.engine_call(container, EngineCall::Pause).await;
            node.tell(Input::PauseEnded { container, ok });
        });
    }

    pub(crate) fn spawn_resume(&self, container: u64) {
        let node = self.clone();
        tokio::spawn(async move {
            let ok = node.engine_call(container, EngineCall::Resume).await;
            node.tell(Input::ResumeEnded { container, ok });
        });
    }

    /// Removes a container for good: a failure is tried again with growing pauses, since a container that only
    /// seems gone would be an orphan.
    pub(crate) fn spawn_remove(&self, container: u64) {
        let node = self.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(100);
            while !node.engine_call(container, EngineCall::Remove).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            // What goes with it may be long: not under the lock.
            let gone = node.owned().write().remove(&container);
            drop(gone);
            node.tell(Input::RemoveEnded { container });
        });
    }

    async fn engine_call(&self, container: u64, call: EngineCall) -> bool {
        // A container that failed before the engine heard of it needs nothing.
        let Some(id) = self.owned().read().get(&container).map(|o| o.id.clone()) else { return true };
        let ended = match call {
            EngineCall::Pause => self.engine().pause(&id).await,
            EngineCall::Resume => self.engine().resume(&id).await,
            EngineCall::Remove => self.engine().remove(&id).await,
        };
        match ended {
            Ok(()) | Err(EngineError::Unknown(_)) => true,
            Err(error) => {
                tracing::warn!(container = %id, ?call, %error, "an engine call failed");
                false
            }
        }
    }

    /// Runs an activation in an own container. No outcome: the body provably never reached it.
    pub(crate) async fn run_in(
        &self,
        owned: Option<&Owned>,
        (container, run): (u64, RunId),
        activation: ActivationId,
        params: &Bytes,
        transaction_id: &str,
    ) -> (Option<Outcome>, RunEnd) {
        let Some(owned) = owned else { return (None, RunEnd::NeverStarted) };
        let limit = Duration::from_millis(owned.entry.limits.timeout);
        let payload_bytes = self.payload_bytes();
        let hex = activation.to_string();
        owned.log.run_begins(&hex);
        let deadline_ms = self.wall_ms() + u64::try_from(limit.as_millis()).unwrap_or(u64::MAX / 2);
        let body = run_body(&owned.entry, params, &hex, transaction_id, deadline_ms);
        let began = Instant::now();
        self.tell_history(What::Entered { container, run });
        let answer = self.engine().run(&owned.id, body, limit).await;
        let took = began.elapsed();
        let (outcome, end) = match answer {
            Ok(reply) => (Some(Outcome::of_reply(reply, payload_bytes, took)), RunEnd::Answered),
            Err(EngineError::Refused(_) | EngineError::Busy(_) | EngineError::Unknown(_)) => {
                (None, RunEnd::NeverStarted)
            }
            Err(error) => {
                let end = match error {
                    EngineError::Timeout(_) => RunEnd::TimedOut,
                    EngineError::TooLarge { .. } => RunEnd::Answered,
                    _ => RunEnd::Lost,
                };
                (Some(Outcome::of_error(&error, limit, payload_bytes, took)), end)
            }
        };
        // One that timed out or was lost may still be inside.
        if !matches!(end, RunEnd::TimedOut | RunEnd::Lost) {
            self.tell_history(What::Left { container, run });
        }
        (outcome, end)
    }

    /// A container that takes runs; none if it is gone.
    pub(crate) fn own_container(&self, container: u64) -> Option<Owned> {
        self.owned().read().get(&container).cloned()
    }

    /// Why the action's containers do not start.
    pub(crate) fn start_error(&self, namespace: &str, name: &str) -> String {
        let known = self.owned().errors().get(&(namespace.to_owned(), name.to_owned())).cloned();
        known.unwrap_or_else(|| "The action's container could not be started.".to_owned())
    }

    /// Containers that end by themselves.
    pub(crate) async fn watch_engine(self) {
        let Some(mut events) = self.engine().events() else { return };
        while let Some(EngineEvent::Died { id, reason }) = events.recv().await {
            tracing::warn!(container = %id, %reason, "a container ended by itself");
            if let Ok(id) = id.parse::<ContainerId>() {
                self.tell(Input::ContainerDied { container: id.number });
            }
        }
    }
}

/// What serves a kind's code.
pub(crate) fn runtime_for(kind: Kind) -> Runtime {
    match kind {
        Kind::Builtin => Runtime::Builtin,
        Kind::Native => Runtime::Native,
        Kind::ActionLoop => Runtime::ActionLoop,
        Kind::Python => Runtime::Python,
        Kind::NodeJs => Runtime::NodeJs,
        Kind::Blackbox => Runtime::Image,
    }
}

/// The body of `/init`. Text is sent as it is, anything else as base64.
fn init_body(entry: &ActionEntry, code: Option<Bytes>) -> Bytes {
    let (code, binary) = match code {
        None => (String::new(), false),
        Some(code) => match entry.kind {
            Kind::Python | Kind::NodeJs | Kind::Blackbox if std::str::from_utf8(&code).is_ok() => {
                (String::from_utf8_lossy(&code).into_owned(), false)
            }
            _ => {
                use base64::Engine as _;
                (base64::engine::general_purpose::STANDARD.encode(&code), true)
            }
        },
    };
    let value = serde_json::json!({"value": {
        "name": entry.name,
        "main": entry.main,
        "code": code,
        "binary": binary,
        "env": {
            "__OW_NAMESPACE": entry.namespace,
            "__OW_ACTION_NAME": format!("/{}/{}", entry.namespace, entry.name),
            "__OW_ACTION_VERSION": entry.version,
        },
    }});
    Bytes::from(value.to_string())
}

/// The body of `/run`, written by hand: the parameters go in as the bytes they are.
fn run_body(entry: &ActionEntry, params: &Bytes, activation: &str, transaction_id: &str, deadline_ms: u64) -> Bytes {
    let params = merged_params(&entry.parameters, params).unwrap_or_else(|| params.clone());
    let mut body = Vec::with_capacity(params.len() + 256);
    let mut text = |key: &str, value: &str| {
        body.extend_from_slice(key.as_bytes());
        // Names may hold anything that JSON has to escape.
        serde_json::to_writer(&mut body, value).ok();
    };
    text("{\"namespace\":", &entry.namespace);
    text(",\"action_name\":", &format!("/{}/{}", entry.namespace, entry.name));
    text(",\"action_version\":", &entry.version);
    text(",\"activation_id\":", activation);
    text(",\"transaction_id\":", transaction_id);
    text(",\"deadline\":", &deadline_ms.to_string());
    body.extend_from_slice(b",\"value\":");
    body.extend_from_slice(&params);
    body.push(b'}');
    Bytes::from(body)
}
