//! An engine whose containers are entries of a table. It answers each run with what the container itself knows, and
//! notes what no container may ever see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Reply, Runtime};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

const START: Duration = Duration::from_millis(150);
const INIT: Duration = Duration::from_millis(50);
const PAUSE_OR_RESUME: Duration = Duration::from_millis(5);
const REMOVE: Duration = Duration::from_millis(20);
const RUN: Duration = Duration::from_millis(5);

/// Clones share their containers: the test holds one.
#[derive(Debug, Clone, Default)]
pub(crate) struct EchoEngine(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    containers: BTreeMap<String, Container>,
    started: usize,
    /// How often each activation was run.
    runs: BTreeMap<String, u32>,
    wrongs: Vec<String>,
    released: bool,
}

#[derive(Debug)]
struct Container {
    slots: u32,
    running: u32,
    ready: bool,
    paused: bool,
}

/// What this engine reads of the body of `/run`.
#[derive(Deserialize)]
struct Run {
    activation_id: String,
    value: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    /// It goes on until all are released.
    #[serde(default)]
    held: bool,
    /// The answer is there as soon as it is asked for.
    #[serde(default)]
    at_once: bool,
}

impl EchoEngine {
    /// Containers started since the node's start.
    pub(crate) fn started(&self) -> usize {
        self.table().started
    }

    /// Runs of all activations.
    pub(crate) fn runs(&self) -> u32 {
        self.table().runs.values().sum()
    }

    /// How often that activation was run here.
    pub(crate) fn runs_of(&self, activation: &str) -> u32 {
        self.table().runs.get(activation).copied().unwrap_or(0)
    }

    /// What containers saw and should not have.
    pub(crate) fn wrongs(&self) -> Vec<String> {
        self.table().wrongs.clone()
    }

    /// Lets runs that are held come to their end.
    pub(crate) fn release(&self) {
        self.table().released = true;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap()
    }

    fn change(&self, id: &str, with: impl FnOnce(&mut Container)) -> Result<(), EngineError> {
        let mut table = self.table();
        let container = table.containers.get_mut(id).ok_or_else(|| EngineError::Unknown(id.to_owned()))?;
        with(container);
        Ok(())
    }

    /// Notes that a run begins; how many the container has then.
    fn begin(&self, id: &str, activation: &str) -> Result<u32, EngineError> {
        let mut table = self.table();
        let container = table.containers.get_mut(id).ok_or_else(|| EngineError::Unknown(id.to_owned()))?;
        container.running += 1;
        let (running, slots) = (container.running, container.slots);
        let wrong = match container {
            c if c.running > c.slots => Some(format!("L0_runs_within_slots: {running} runs in {slots} slots of {id}")),
            c if c.paused || !c.ready => Some(format!("{activation} came while {id} was paused or not ready")),
            _ => None,
        };
        table.wrongs.extend(wrong);
        *table.runs.entry(activation.to_owned()).or_default() += 1;
        Ok(running)
    }
}

#[async_trait]
impl Engine for EchoEngine {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn supports(&self, _: Runtime, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        sleep(START).await;
        let mut table = self.table();
        table.started += 1;
        let container = Container { slots: spec.concurrency, running: 0, ready: false, paused: false };
        if table.containers.insert(spec.id.to_string(), container).is_some() {
            table.wrongs.push(format!("{} was started twice", spec.id));
        }
        Ok(())
    }

    async fn init(&self, id: &str, _: Bytes, _: Duration) -> Result<Reply, EngineError> {
        sleep(INIT).await;
        self.change(id, |c| c.ready = true)?;
        Ok(reply(&json!({"ok": true})))
    }

    /// In a task of its own: a run goes on when its caller has gone.
    async fn run(&self, id: &str, body: Bytes, longest: Duration) -> Result<Reply, EngineError> {
        let run: Run = serde_json::from_slice(&body).map_err(|e| EngineError::Refused(e.to_string()))?;
        let running = self.begin(id, &run.activation_id)?;
        if run.value.at_once {
            self.change(id, |c| c.running -= 1)?;
            return Ok(reply(&json!({"container": id, "running": running, "activation": run.activation_id})));
        }
        let (engine, id) = (self.clone(), id.to_owned());
        let end = tokio::spawn(async move {
            sleep(RUN).await;
            while run.value.held && !engine.table().released {
                sleep(RUN).await;
            }
            engine.change(&id, |c| c.running -= 1)?;
            Ok(reply(&json!({"container": id, "running": running, "activation": run.activation_id})))
        });
        match timeout(longest, end).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(lost)) => Err(EngineError::Indeterminate(lost.to_string())),
            Err(_) => Err(EngineError::Timeout(longest)),
        }
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        sleep(PAUSE_OR_RESUME).await;
        self.change(id, |c| c.paused = true)
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        sleep(PAUSE_OR_RESUME).await;
        self.change(id, |c| c.paused = false)
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        sleep(REMOVE).await;
        self.table().containers.remove(id);
        Ok(())
    }

    /// Nothing ends by itself here.
    fn events(&self) -> Option<mpsc::Receiver<EngineEvent>> {
        None
    }

    async fn shutdown(&self) {
        self.table().containers.clear();
    }
}

fn reply(body: &serde_json::Value) -> Reply {
    Reply { status: 200, body: Bytes::from(body.to_string()), log_lines: Some(0) }
}
