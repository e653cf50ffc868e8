//! A container engine whose containers are entries of a table. They live in simulated time and outside the agent that
//! started them: a run goes on when its caller has gone, or its agent. What no container may ever see is told to the
//! [`Witness`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Found, Reply, Runtime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::random::Random;
use super::witness::Witness;

/// What waits for a stalled engine looks again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const EVENT_BACKLOG: usize = 256;
/// How many times as long all takes that a slow engine does.
const SLOW: u64 = 8;
/// Percent of containers of an engine that is not well which don't like what they are initialised with.
const UNWILLING: u64 = 20;

/// Clones are handles to the same engine.
#[derive(Debug, Clone)]
pub struct SimulatedEngine {
    /// Containers outlive their agent, for its next life to adopt.
    adopts: bool,
    table: Arc<Mutex<Table>>,
    witness: Arc<Witness>,
}

#[derive(Debug)]
struct Table {
    random: Random,
    mood: Mood,
    containers: BTreeMap<String, Container>,
    now: Duration,
    started: usize,
    events: Option<mpsc::Sender<EngineEvent>>,
}

/// How the engine takes what it is told to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// Nothing gets on.
    Stalled,
    /// All gets on, late.
    Slow,
    /// Half of what is asked for is refused.
    Failing,
    /// Half of what is asked for ends without it being known whether it was done.
    Vague,
}

/// What becomes of a call that the engine has taken.
#[derive(Debug, Clone, Copy)]
struct Taken {
    done: bool,
    /// Its caller hears of it.
    told: bool,
}

impl Taken {
    fn told(self) -> Result<(), EngineError> {
        if self.told { Ok(()) } else { Err(EngineError::Indeterminate("the engine did not say".to_owned())) }
    }
}

#[derive(Debug)]
struct Container {
    namespace: String,
    action: String,
    revision: String,
    slots: u32,
    ready: bool,
    paused: bool,
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    ends_at: Duration,
    body: RunBody,
    /// Nobody, if the connection broke or the caller has gone.
    caller: Option<oneshot::Sender<Result<Reply, EngineError>>>,
}

/// What this engine reads of the body of `/run`.
#[derive(Debug, Deserialize)]
struct RunBody {
    activation_id: String,
    value: Parameters,
}

/// What a call of the simulation's workload says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// Number of the call; 0 is nobody's.
    #[serde(default)]
    pub call: u64,
    /// The action that it is meant for.
    #[serde(default)]
    pub action: String,
    #[serde(default)]
    pub work_ms: u64,
    #[serde(default)]
    pub fate: Fate,
}

/// How a run fares in its container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    #[default]
    Answers,
    /// The connection breaks, the run goes on.
    Breaks,
    /// The first container that is asked does not take it.
    UnwillingOnce,
}

/// What a container answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    pub container: String,
    /// How many runs were in it when this one began, itself included.
    pub running: usize,
    pub activation: String,
    pub call: u64,
}

impl SimulatedEngine {
    pub(super) fn new(adopts: bool, random: Random, witness: Arc<Witness>) -> Self {
        let table = Table {
            random,
            mood: Mood::Well,
            containers: BTreeMap::new(),
            now: Duration::ZERO,
            started: 0,
            events: None,
        };
        Self { adopts, table: Arc::new(Mutex::new(table)), witness }
    }

    /// Containers started so far.
    pub fn started(&self) -> usize {
        self.table().started
    }

    pub(super) fn containers(&self) -> Vec<String> {
        self.table().containers.keys().cloned().collect()
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.table().mood = mood;
    }

    /// Brings the containers to that moment: runs whose time has come answer.
    pub(super) fn advance(&self, now: Duration) {
        let mut table = self.table();
        table.now = now;
        for (id, container) in &mut table.containers {
            if container.paused {
                continue;
            }
            let running = container.runs.len();
            for run in container.runs.extract_if(.., |run| run.ends_at <= now) {
                if let Some(caller) = run.caller {
                    caller.send(Ok(answer(id, running, &run.body))).ok();
                }
            }
        }
    }

    /// One container ends by itself.
    pub(super) fn kill(&self, nth: usize) {
        let mut table = self.table();
        let Some(id) = table.containers.keys().nth(nth % table.containers.len().max(1)).cloned() else { return };
        table.end(&id);
        self.witness.note("container died");
        if let Some(events) = &table.events {
            events.try_send(EngineEvent::Died { id, reason: "killed by the simulation".to_owned() }).ok();
        }
    }

    /// The agent is gone, without a word.
    pub(super) fn agent_died(&self) {
        let mut table = self.table();
        table.events = None;
        if !self.adopts {
            table.containers.clear();
        }
        for container in table.containers.values_mut() {
            container.runs.iter_mut().for_each(|run| run.caller = None);
        }
    }

    /// Nobody will ever ask for these containers again.
    pub(super) fn clear(&self) {
        self.table().containers.clear();
    }

    /// Waits while the engine is stalled, and for as long as it takes.
    async fn take_call(&self, least_ms: u64, most_ms: u64) -> Result<Taken, EngineError> {
        while self.table().mood == Mood::Stalled {
            sleep(LOOK_AGAIN).await;
        }
        let (wait, mood, odd, skips) = {
            let mut table = self.table();
            (table.random.within(least_ms, most_ms), table.mood, table.random.chance(50), table.random.chance(50))
        };
        sleep(Duration::from_millis(if mood == Mood::Slow { wait * SLOW } else { wait })).await;
        match mood {
            Mood::Failing if odd => {
                self.witness.note("engine call refused");
                Err(EngineError::Refused("the engine has no more of it".to_owned()))
            }
            Mood::Vague if odd => {
                let what = if skips { "not done" } else { "done" };
                self.witness.note(&format!("engine call indeterminate, {what}"));
                Ok(Taken { done: !skips, told: false })
            }
            _ => Ok(Taken { done: true, told: true }),
        }
    }

    fn change(&self, id: &str, with: impl FnOnce(&mut Container)) -> Result<(), EngineError> {
        let mut table = self.table();
        let container = table.containers.get_mut(id).ok_or_else(|| EngineError::Unknown(id.to_owned()))?;
        with(container);
        Ok(())
    }

    /// A run enters its container; where its answer will come.
    fn begin(&self, id: &str, body: RunBody) -> Result<oneshot::Receiver<Result<Reply, EngineError>>, EngineError> {
        let mut table = self.table();
        let now = table.now;
        let container = table.containers.get_mut(id).ok_or_else(|| EngineError::Unknown(id.to_owned()))?;
        if body.value.fate == Fate::UnwillingOnce && self.witness.is_first_refusal(body.value.call) {
            self.witness.note("run refused by its container");
            return Err(EngineError::Refused("not this one".to_owned()));
        }
        let (caller, answer) = oneshot::channel();
        let (activation, called) = (body.activation_id.clone(), body.value.clone());
        let ends_at = now + Duration::from_millis(called.work_ms);
        let caller = (called.fate != Fate::Breaks).then_some(caller);
        container.runs.push(Run { ends_at, body, caller });
        let running = container.runs.len();
        let wrong = match container {
            c if running > c.slots as usize => {
                Some(format!("L0_runs_within_slots: {running} runs in {} slots of {id}", c.slots))
            }
            c if c.paused || !c.ready => Some(format!(
                "R1_nothing_begins_on_a_used_container: {activation} came while {id} was paused or not ready"
            )),
            c if !called.action.is_empty() && called.action != c.action => Some(format!(
                "S1_container_never_rebound: {id} serves {} and got a call of {}",
                c.action, called.action
            )),
            _ => None,
        };
        drop(table);
        self.witness.ran(&activation, called.call, id, wrong);
        Ok(answer)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The container and all that runs in it.
    fn end(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        for run in container.runs {
            if let Some(caller) = run.caller {
                caller.send(Err(EngineError::Died("it was ended".to_owned()))).ok();
            }
        }
    }
}

#[async_trait]
impl Engine for SimulatedEngine {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn supports(&self, _: Runtime, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        let taken = self.take_call(20, 180).await?;
        if taken.done {
            let mut table = self.table();
            table.started += 1;
            let container = Container {
                namespace: spec.namespace,
                action: spec.action,
                revision: spec.revision,
                slots: spec.concurrency,
                ready: false,
                paused: false,
                runs: Vec::new(),
            };
            if table.containers.insert(spec.id.to_string(), container).is_some() {
                self.witness.wrong(format!("R6_removed_is_final: {} was started twice", spec.id));
            }
        }
        taken.told()
    }

    async fn init(&self, id: &str, _: Bytes, longest: Duration) -> Result<Reply, EngineError> {
        let taken = timeout(longest, self.take_call(5, 60)).await.map_err(|_| EngineError::Timeout(longest))??;
        let unwilling = {
            let mut table = self.table();
            table.mood != Mood::Well && table.random.chance(UNWILLING)
        };
        if unwilling {
            self.witness.note("init refused by its container");
            return Ok(Reply { status: 502, ..reply(&json!({"error": "not with this code"})) });
        }
        if taken.done {
            self.change(id, |c| c.ready = true)?;
        }
        taken.told()?;
        Ok(reply(&json!({"ok": true})))
    }

    async fn run(&self, id: &str, body: Bytes, longest: Duration) -> Result<Reply, EngineError> {
        let body: RunBody = serde_json::from_slice(&body).map_err(|e| EngineError::Refused(e.to_string()))?;
        match timeout(longest, self.begin(id, body)?).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(EngineError::Indeterminate("the connection broke".to_owned())),
            Err(_) => Err(EngineError::Timeout(longest)),
        }
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        let taken = self.take_call(2, 15).await?;
        if taken.done {
            self.change(id, |c| c.paused = true)?;
        }
        taken.told()
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        let taken = self.take_call(2, 15).await?;
        if taken.done {
            self.change(id, |c| c.paused = false)?;
        }
        taken.told()
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let taken = self.take_call(5, 40).await?;
        if taken.done {
            self.table().end(id);
        }
        taken.told()
    }

    fn events(&self) -> Option<mpsc::Receiver<EngineEvent>> {
        let (sender, events) = mpsc::channel(EVENT_BACKLOG);
        self.table().events = Some(sender);
        Some(events)
    }

    async fn shutdown(&self) {
        self.table().containers.clear();
    }

    fn hands_over(&self) -> bool {
        self.adopts
    }

    async fn hand_over(&self, _idle: &[String]) {
        self.agent_died();
    }

    /// Those that never served are of no use.
    async fn found(&self) -> Result<Vec<Found>, EngineError> {
        let mut table = self.table();
        table.containers.retain(|_, container| container.ready);
        let found = table.containers.iter().map(|(id, container)| Found {
            id: id.clone(),
            namespace: container.namespace.clone(),
            action: container.action.clone(),
            revision: container.revision.clone(),
            paused: container.paused,
        });
        Ok(found.collect())
    }

    async fn adopt(&self, found: &Found, spec: ContainerSpec) -> Result<u32, EngineError> {
        let mut table = self.table();
        let container = table.containers.remove(&found.id).ok_or_else(|| EngineError::Unknown(found.id.clone()))?;
        let runs = container.runs.len();
        table.containers.insert(spec.id.to_string(), container);
        self.witness.note(if runs > 0 { "adopted with runs in it" } else { "adopted" });
        Ok(u32::try_from(runs).unwrap_or(u32::MAX))
    }

    async fn runs_left(&self, id: &str) -> Result<u32, EngineError> {
        let table = self.table();
        let container = table.containers.get(id).ok_or_else(|| EngineError::Unknown(id.to_owned()))?;
        Ok(u32::try_from(container.runs.len()).unwrap_or(u32::MAX))
    }

    async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        self.table().end(&found.id);
        Ok(())
    }
}

fn answer(container: &str, running: usize, body: &RunBody) -> Reply {
    let answered = Answered {
        container: container.to_owned(),
        running,
        activation: body.activation_id.clone(),
        call: body.value.call,
    };
    reply(&json!(answered))
}

fn reply(body: &serde_json::Value) -> Reply {
    Reply { status: 200, body: Bytes::from(body.to_string()), log_lines: Some(0) }
}
