//! Calls at all nodes, in an open loop: they come when they come, however long others take. Each is followed to its
//! end, and each action writes down that it ran.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::dice::Dice;
use super::evidence::{Outcome, Record, Request};
use super::scenario::{Action, Containers, Scenario};
use crate::client::{Answer, Client, ClientError};
use crate::local_mesh::{LocalMesh, POLL};

/// Longer than any call may take: an activation waits for at most 60 s in its queue.
pub(super) const LONGEST: Duration = Duration::from_secs(75);
/// Open calls; more are not made, and counted.
const MOST_OPEN: usize = 1_000;
/// How often a record is looked for that is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
/// What one action's container gets.
const MEMORY_MB: u64 = 128;

pub(super) struct Traffic {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    rate: f64,
    blocking: f64,
    dice: Dice,
    /// Calls under way.
    open: JoinSet<()>,
}

struct Shared {
    began: Instant,
    nodes: Vec<(String, Client)>,
    actions: Vec<Action>,
    /// Where actions write down that they ran; none where containers can't reach it.
    notes: Option<PathBuf>,
    next: AtomicU64,
    held_back: AtomicU64,
    room: Arc<Semaphore>,
    done: Mutex<Vec<Request>>,
    counts: Counts,
    stopped: watch::Receiver<bool>,
}

/// For whoever watches.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) made: AtomicU64,
    pub(super) well: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) unknown: AtomicU64,
}

impl Traffic {
    pub(super) fn new(mesh: &LocalMesh, scenario: &Scenario, notes: PathBuf, began: Instant) -> Self {
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            began,
            nodes: mesh.nodes.iter().map(|node| (node.id.clone(), node.client.clone())).collect(),
            actions: scenario.workload.actions.clone(),
            notes: (scenario.mesh.engine == Containers::Process).then_some(notes),
            next: AtomicU64::new(1),
            held_back: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(MOST_OPEN)),
            done: Mutex::default(),
            counts: Counts::default(),
            stopped,
        };
        Self {
            shared: Arc::new(shared),
            stop,
            rate: scenario.workload.rate,
            blocking: scenario.workload.blocking,
            dice: Dice::new(scenario.seed ^ 0x7aff_1c00),
            open: JoinSet::new(),
        }
    }

    /// Makes calls until [`Caller::stop`]; to be run beside whatever else goes on.
    pub(super) async fn flow(&mut self) {
        let mut due = Instant::now();
        let mut stopped = self.shared.stopped.clone();
        while !*stopped.borrow() {
            // Exponential: as if of many callers who don't know each other.
            due += Duration::from_secs_f64(-(1.0 - self.dice.share()).ln() / self.rate);
            tokio::select! {
                () = sleep_until(due) => {}
                _ = stopped.changed() => break,
            }
            let node = self.dice.between(0, self.shared.nodes.len() as u64 - 1) as usize;
            let action = self.action();
            let [least, most] = self.shared.actions[action].ms;
            let (ms, blocking) = (self.dice.between(least, most), self.dice.share() < self.blocking);
            let Ok(room) = self.shared.room.clone().try_acquire_owned() else {
                self.shared.held_back.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let shared = self.shared.clone();
            self.open.spawn(async move {
                shared.call(node, action, ms, blocking).await;
                drop(room);
            });
            while self.open.try_join_next().is_some() {}
        }
    }

    fn action(&mut self) -> usize {
        let weights: u64 = self.shared.actions.iter().map(|a| u64::from(a.weight)).sum();
        let mut left = self.dice.between(1, weights.max(1));
        for (n, action) in self.shared.actions.iter().enumerate() {
            match left.checked_sub(u64::from(action.weight)) {
                Some(rest) if rest > 0 => left = rest,
                _ => return n,
            }
        }
        0
    }

    pub(super) fn handle(&self) -> Caller {
        Caller { shared: self.shared.clone(), stop: self.stop.clone() }
    }

    /// Waits for the ends of all calls under way.
    pub(super) async fn settle(&mut self) {
        while self.open.join_next().await.is_some() {}
    }
}

/// Registers the actions and waits until every node knows them.
pub(super) async fn prepare(mesh: &LocalMesh, actions: &[Action]) -> anyhow::Result<()> {
    let Some(first) = mesh.nodes.first() else { bail!("the mesh has no node") };
    for action in actions {
        let body = json!({
            "exec": {"kind": "builtin:1", "main": "note"},
            "limits": {"concurrency": action.concurrency, "memory": MEMORY_MB, "timeout": 60_000},
        });
        let path = format!("{}?overwrite=true", path(&action.name));
        first.client.send(Method::PUT, &path, Some(&body), first.client.deadline()).await?.ok()?;
    }
    let began = Instant::now();
    for node in &mesh.nodes {
        for action in actions {
            while node.client.get(&format!("{}?code=false", path(&action.name))).await.is_err() {
                if began.elapsed() > KNOWN_WITHIN {
                    bail!("{} never heard of action {}", node.id, action.name);
                }
                sleep(POLL).await;
            }
        }
    }
    Ok(())
}

/// A hand on the traffic while it flows.
#[derive(Clone)]
pub(super) struct Caller {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

impl Caller {
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// One call more, which waits for its answer; whether it succeeded.
    pub(super) async fn probe(&self, node: usize, action: usize) -> bool {
        self.shared.call(node, action, 1, true).await == Outcome::Answered
    }

    pub(super) fn actions(&self) -> usize {
        self.shared.actions.len()
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub(super) fn held_back(&self) -> u64 {
        self.shared.held_back.load(Ordering::Relaxed)
    }

    pub(super) fn take_done(&self) -> Vec<Request> {
        let mut done = std::mem::take(&mut *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner));
        done.sort_by_key(|request| request.n);
        done
    }
}

impl Shared {
    async fn call(&self, node: usize, action: usize, ms: u64, blocking: bool) -> Outcome {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (id, client) = &self.nodes[node];
        let name = &self.actions[action].name;
        self.counts.made.fetch_add(1, Ordering::Relaxed);
        let mut request = Request {
            n,
            node: id.clone(),
            action: name.clone(),
            blocking,
            from_ms: self.now_ms(),
            to_ms: 0,
            outcome: Outcome::Silent,
            activation_id: None,
            said: String::new(),
            seen: None,
        };
        let mut params = json!({"n": n, "ms": ms});
        if let Some(notes) = &self.notes {
            params["file"] = json!(notes);
        }
        let path = format!("{}?blocking={blocking}", path(name));
        let answer = client.send(Method::POST, &path, Some(&params), LONGEST).await;
        request.to_ms = self.now_ms();
        judge(&mut request, answer);
        let outcome = request.outcome;
        let count = match outcome {
            Outcome::Answered | Outcome::Accepted => &self.counts.well,
            Outcome::Refused | Outcome::Unreached => &self.counts.refused,
            _ => &self.counts.unknown,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let (Outcome::Accepted, Some(activation)) = (outcome, &request.activation_id) {
            request.seen = self.first_record(id, client, activation).await;
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        outcome
    }

    /// Looks for a record until it is there, or nobody makes calls any more: those are looked for all together.
    async fn first_record(&self, node: &str, client: &Client, activation: &str) -> Option<Record> {
        let mut stopped = self.stopped.clone();
        let path = format!("/api/v1/namespaces/_/activations/{activation}");
        while !*stopped.borrow() {
            if let Ok(answer) = client.get(&path).await
                && let Ok(record) = answer.parse::<Value>()
            {
                return record_of(node, &record);
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                _ = stopped.changed() => {}
            }
        }
        None
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the nodes keep of all activations.
pub(super) async fn records(mesh: &LocalMesh) -> anyhow::Result<Vec<Record>> {
    const PAGE: usize = 200;
    let mut all = Vec::new();
    for node in &mesh.nodes {
        for skip in (0..).step_by(PAGE) {
            let path = format!("/api/v1/namespaces/_/activations?limit={PAGE}&skip={skip}");
            let page: Vec<Value> =
                node.client.get(&path).await.with_context(|| format!("records of {}", node.id))?.parse()?;
            all.extend(page.iter().filter_map(|record| record_of(&node.id, record)));
            if page.len() < PAGE {
                break;
            }
        }
    }
    // One that came in between two pages moves others to the next.
    let mut known = BTreeSet::new();
    all.retain(|record: &Record| known.insert((record.node.clone(), record.activation_id.clone())));
    Ok(all)
}

/// From a record, or from a summary of one.
fn record_of(node: &str, record: &Value) -> Option<Record> {
    let status = match record["response"]["status"].as_str() {
        None => u8::try_from(record["statusCode"].as_u64()?).ok()?,
        Some("success") => 0,
        Some("application error") => 1,
        Some("action developer error") => 2,
        Some(_) => 3,
    };
    Some(Record {
        node: node.to_owned(),
        activation_id: record["activationId"].as_str()?.to_owned(),
        status,
        indeterminate: is_indeterminate(record),
        start_ms: record["start"].as_u64()?,
        end_ms: record["end"].as_u64()?,
    })
}

fn is_indeterminate(record: &Value) -> bool {
    let annotations = record["annotations"].as_array();
    annotations.is_some_and(|all| all.iter().any(|a| a["key"] == "indeterminate" && a["value"] == true))
}

fn judge(request: &mut Request, answer: Result<Answer, ClientError>) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            request.said = error.to_string();
            request.outcome = match error {
                ClientError::Connect { .. } => Outcome::Unreached,
                ClientError::Deadline { .. } => Outcome::Silent,
                ClientError::Broken { .. } => Outcome::Broken,
                _ => Outcome::Odd,
            };
            return;
        }
    };
    let body: Value = answer.parse().unwrap_or_default();
    request.activation_id = body["activationId"].as_str().map(str::to_owned);
    let result = &body["response"]["result"];
    let error = [&body["error"], &result["error"]].into_iter().find_map(Value::as_str).unwrap_or_default();
    error.clone_into(&mut request.said);
    request.outcome = match answer.status {
        StatusCode::OK => {
            if result["n"] != request.n || result["activation_id"].as_str() != request.activation_id.as_deref() {
                request.said = format!("the answer is another call's: {result}");
            }
            Outcome::Answered
        }
        StatusCode::ACCEPTED if request.activation_id.is_some() => Outcome::Accepted,
        StatusCode::SERVICE_UNAVAILABLE if error.contains("has not ended") => Outcome::Unpromised,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::NOT_FOUND => Outcome::Refused,
        StatusCode::INTERNAL_SERVER_ERROR if is_indeterminate(&body) => Outcome::Indeterminate,
        StatusCode::INTERNAL_SERVER_ERROR if request.activation_id.is_some() => Outcome::Refused,
        StatusCode::BAD_GATEWAY => Outcome::Failed,
        status => {
            request.said = format!("{status}: {}", String::from_utf8_lossy(&answer.body));
            Outcome::Odd
        }
    };
}

fn path(action: &str) -> String {
    format!("/api/v1/namespaces/_/actions/{action}")
}
