//! Calls at all nodes, in an open loop: they come when they come, however long others take. Each is followed to its
//! end, and told as the reports of `embermesh chaos run` tell calls.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::support::api::{Answer, Api, action_path, annotation};
use crate::support::{Mesh, until};

/// Open calls; more are not made, and counted.
const MOST_OPEN: usize = 500;
/// Share of calls that wait for their answer; the others are answered 202 and looked for later.
pub(crate) const BLOCKING: f64 = 0.7;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a pause between two calls may take to notice the end of all.
const NOTICE: Duration = Duration::from_millis(100);
/// Bytes of a call that takes room on the disk, and its action; most that a node takes is 1 MiB.
const BURDEN: usize = 900 << 10;
const BURDENED: usize = 2;
/// Records that a node tells of at once.
const PAGE: usize = 200;

/// As those of a scenario: what an action is called, its slots, how long its runs take, and how often it is called.
pub(crate) const ACTIONS: [(&str, u32, [u64; 2], u64); 3] =
    [("quick", 1, [2, 20], 3), ("shared", 4, [20, 100], 3), ("slow", 2, [200, 800], 1)];

pub(crate) struct Traffic {
    began: Instant,
    /// The same by the wall's clock.
    began_unix_us: u64,
    api: Vec<(String, Api)>,
    /// Where actions write down that they ran; none where containers can't reach it.
    notes: Option<PathBuf>,
    /// Calls a second.
    rate: f64,
    seed: u64,
    stop: AtomicBool,
    next: AtomicU64,
    open: AtomicUsize,
    held_back: AtomicU64,
    done: Mutex<Vec<Request>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    pub(crate) n: u64,
    pub(crate) node: String,
    action: &'static str,
    blocking: bool,
    pub(crate) from_ms: u64,
    to_ms: u64,
    pub(crate) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_id: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) said: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Answered,
    Accepted,
    Refused,
    Failed,
    Indeterminate,
    Unpromised,
    Unreached,
    Broken,
    Silent,
    Odd,
}

impl Traffic {
    /// Registers the actions, and waits until every node knows them.
    pub(crate) fn new(mesh: &Mesh, notes: Option<PathBuf>, rate: f64, seed: u64) -> Self {
        for (name, concurrency, ..) in ACTIONS {
            let limits = json!({"concurrency": concurrency, "memory": 128, "timeout": 60_000});
            mesh[1].create(name, &json!({"exec": {"kind": "builtin:1", "main": "note"}, "limits": limits}));
        }
        for (agent, (name, ..)) in mesh.agents.iter().flat_map(|agent| ACTIONS.map(|action| (agent, action))) {
            until("every node knows the actions", || agent.get(&action_path(name)).status == 200);
        }
        Self {
            began: Instant::now(),
            began_unix_us: wall_us(),
            api: mesh.agents.iter().map(|agent| (agent.id().to_owned(), **agent)).collect(),
            notes,
            rate,
            seed,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            held_back: AtomicU64::new(0),
            done: Mutex::default(),
        }
    }

    /// The moment from which all others are counted.
    pub(crate) fn began_unix_us(&self) -> u64 {
        self.began_unix_us
    }

    /// Makes calls until it is told to stop. All have ended when the scope has.
    pub(crate) fn flow<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut dice = Dice::new(self.seed ^ 0x7aff_1c00);
        let mut due = Instant::now();
        while !self.stopped() {
            // Exponential: as if of many callers who don't know each other.
            due += Duration::from_secs_f64(-(1.0 - dice.share()).ln() / self.rate);
            while Instant::now() < due && !self.stopped() {
                thread::sleep(due.saturating_duration_since(Instant::now()).min(NOTICE));
            }
            let node = dice.between(0, self.api.len() as u64 - 1) as usize;
            let action = pick(&mut dice);
            let [least, most] = ACTIONS[action].2;
            let (ms, blocking) = (dice.between(least, most), dice.share() < BLOCKING);
            if self.open.load(Ordering::Relaxed) >= MOST_OPEN {
                self.held_back.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.open.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || {
                self.call(node, action, ms, blocking);
                self.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    pub(crate) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// One call more at a node; whether it succeeded.
    pub(crate) fn probe(&self, node: usize, action: usize) -> bool {
        self.call(node, action, 1, true) == Outcome::Answered
    }

    /// Calls that have ended, by their numbers.
    pub(crate) fn done(&self) -> Vec<Request> {
        let mut done = self.done.lock().unwrap().clone();
        done.sort_by_key(|request| request.n);
        done
    }

    /// A call with a large body that nobody waits for; whether its node could not promise to go on with it.
    pub(crate) fn burdens(&self, node: usize) -> bool {
        let pad = "x".repeat(BURDEN);
        let request = self.call_once(node, BURDENED, ACTIONS[BURDENED].2[1], false, &pad);
        let refused = request.outcome == Outcome::Refused && request.said.contains("can't promise");
        self.done.lock().unwrap().push(request);
        refused
    }

    fn call(&self, node: usize, action: usize, ms: u64, blocking: bool) -> Outcome {
        let mut request = self.call_once(node, action, ms, blocking, "");
        if let (Outcome::Accepted, Some(activation)) = (request.outcome, &request.activation_id) {
            request.seen = self.first_record(node, activation);
        }
        let outcome = request.outcome;
        self.done.lock().unwrap().push(request);
        outcome
    }

    fn call_once(&self, node: usize, action: usize, ms: u64, blocking: bool, pad: &str) -> Request {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (id, api) = &self.api[node];
        let (name, ..) = ACTIONS[action];
        let mut params = json!({"n": n, "ms": ms, "pad": pad});
        if let Some(notes) = &self.notes {
            params["file"] = json!(notes);
        }
        let from_ms = self.now_ms();
        let path = format!("{}?blocking={blocking}", action_path(name));
        let answer = api.try_call("POST", &path, params.to_string().as_bytes());
        let (outcome, activation_id, said) = told(n, answer);
        let (node, to_ms) = (id.clone(), self.now_ms());
        Request { n, node, action: name, blocking, from_ms, to_ms, outcome, activation_id, said, seen: None }
    }

    /// Looks for a record until it is there, or nobody makes calls any more: those are looked for all together.
    fn first_record(&self, node: usize, activation: &str) -> Option<Value> {
        let (node, api) = &self.api[node];
        let path = format!("/api/v1/namespaces/_/activations/{activation}");
        while !self.stopped() {
            if let Ok(answer) = api.try_call("GET", &path, b"")
                && answer.status == 200
            {
                return record_of(node, &answer.json());
            }
            let looked = Instant::now();
            while looked.elapsed() < LOOK_EVERY && !self.stopped() {
                thread::sleep(NOTICE);
            }
        }
        None
    }
}

fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

fn pick(dice: &mut Dice) -> usize {
    let weights: u64 = ACTIONS.iter().map(|action| action.3).sum();
    let mut left = dice.between(1, weights);
    for (n, (.., weight)) in ACTIONS.iter().enumerate() {
        if left <= *weight {
            return n;
        }
        left -= weight;
    }
    unreachable!("{left} is no more than all weights")
}

/// What an answer comes to, whose activation it names, and what it complains of.
fn told(n: u64, answer: io::Result<Answer>) -> (Outcome, Option<String>, String) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let outcome = match error.kind() {
                io::ErrorKind::NotConnected => Outcome::Unreached,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Outcome::Silent,
                _ => Outcome::Broken,
            };
            return (outcome, None, error.to_string());
        }
    };
    let body = answer.json();
    let activation_id = body["activationId"].as_str().map(str::to_owned);
    let result = &body["response"]["result"];
    let said = [&body["error"], &result["error"]].into_iter().find_map(Value::as_str).unwrap_or_default();
    let outcome = match answer.status {
        200 if result["n"] != n || result["activation_id"].as_str() != activation_id.as_deref() => {
            return (Outcome::Answered, activation_id, format!("the answer is another call's: {result}"));
        }
        200 => Outcome::Answered,
        202 if activation_id.is_some() => Outcome::Accepted,
        503 if said.contains("has not ended") => Outcome::Unpromised,
        503 | 429 | 404 => Outcome::Refused,
        500 if annotation(&body, "indeterminate") == true => Outcome::Indeterminate,
        500 if activation_id.is_some() => Outcome::Refused,
        502 => Outcome::Failed,
        _ => return (Outcome::Odd, activation_id, answer.to_string()),
    };
    (outcome, activation_id, said.to_owned())
}

/// What the nodes keep of all activations.
pub(crate) fn records(mesh: &Mesh) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for agent in &mesh.agents {
        let before = all.len();
        for skip in (0..).step_by(PAGE) {
            let path = format!("/api/v1/namespaces/_/activations?limit={PAGE}&skip={skip}");
            let page = agent.get(&path).expect(200).as_array().cloned().unwrap();
            all.extend(page.iter().filter_map(|record| record_of(agent.id(), record)));
            if page.len() < PAGE {
                break;
            }
        }
        // One that came in between two pages moves others to the next.
        let mut known = std::collections::BTreeSet::new();
        let own = all.split_off(before);
        all.extend(own.into_iter().filter(|record| known.insert(record["activation_id"].to_string())));
    }
    all
}

/// From a record, or from a summary of one.
fn record_of(node: &str, record: &Value) -> Option<Value> {
    let status = match record["response"]["status"].as_str() {
        None => record["statusCode"].as_u64()?,
        Some("success") => 0,
        Some("application error") => 1,
        Some("action developer error") => 2,
        Some(_) => 3,
    };
    Some(json!({
        "node": node,
        "activation_id": record["activationId"],
        "status": status,
        "indeterminate": annotation(record, "indeterminate") == true,
        "start_ms": record["start"],
        "end_ms": record["end"],
    }))
}
