//! Sees all that happens, in the order in which it happens: what the nodes tell of themselves goes to the judge, what
//! callers and containers see is compared with it, and everything together is the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use embermesh_core::history::{Glance, Judge, Record, Violation, What};
use embermesh_core::output::IntentEnd;
use embermesh_core::{ActivationId, Node as Core, Time};
use embermesh_node::history::HistorySink;
use embermesh_node::invocation::{InvokeError, Invoked};
use embermesh_node::store::{ActivationRecord, ActivationStatus};

use super::engine::Answered;

/// An activation that may be run again has as many attempts at most.
const MOST_RUNS: usize = 3;
/// Lines of a trace that are kept, the oldest first.
const MOST_LINES: usize = 400_000;

#[derive(Debug)]
pub struct Witness(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    now: Duration,
    judge: Judge,
    wrong: Option<String>,
    records: u64,
    trace: Trace,
    /// How often each thing happened.
    counts: BTreeMap<String, u64>,
    calls: BTreeMap<u64, Called>,
    /// How often containers began to run each activation.
    runs: BTreeMap<String, usize>,
    /// Calls whose first container refused them.
    refused_once: BTreeSet<u64>,
    /// Activations that were accepted with a promise: the call, and the node.
    promised: BTreeMap<ActivationId, (u64, usize)>,
}

#[derive(Debug, Default)]
struct Called {
    at: usize,
    idempotent: bool,
    runs: usize,
    /// Somebody was told that it did not run.
    refused: bool,
    ended: bool,
    given_up: bool,
}

/// All that happened, a line each.
#[derive(Debug)]
struct Trace {
    hash: blake3::Hasher,
    kept: Option<Vec<String>>,
}

impl Witness {
    pub(super) fn new(keeps_trace: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Seen {
            now: Duration::ZERO,
            judge: Judge::with_story(),
            wrong: None,
            records: 0,
            trace: Trace { hash: blake3::Hasher::new(), kept: keeps_trace.then(Vec::new) },
            counts: BTreeMap::new(),
            calls: BTreeMap::new(),
            runs: BTreeMap::new(),
            refused_once: BTreeSet::new(),
            promised: BTreeMap::new(),
        })))
    }

    pub(super) fn set_now(&self, now: Duration) {
        self.seen().now = now;
    }

    /// Something that is not a node's: a fault, a call, a container's fate.
    pub(super) fn say(&self, text: &str) {
        self.seen().line(text);
    }

    pub(super) fn note(&self, what: &str) {
        self.seen().count(what);
    }

    pub(super) fn wrong(&self, what: String) {
        self.seen().wrong(what);
    }

    /// What is wrong, if something is.
    pub fn wrongs(&self) -> Option<String> {
        self.seen().wrong.clone()
    }

    pub(super) fn calls(&self, call: u64, at: usize, idempotent: bool) {
        self.seen().calls.insert(call, Called { at, idempotent, ..Called::default() });
    }

    pub(super) fn is_first_refusal(&self, call: u64) -> bool {
        self.seen().refused_once.insert(call)
    }

    /// How often containers began to run that activation.
    pub fn runs_of(&self, activation: &str) -> usize {
        self.seen().runs.get(activation).copied().unwrap_or(0)
    }

    /// A container begins to run an activation.
    pub(super) fn ran(&self, activation: &str, call: u64, container: &str, wrong: Option<String>) {
        let mut seen = self.seen();
        seen.line(&format!("{container} runs {activation} (call {call})"));
        if let Some(wrong) = wrong {
            seen.wrong(wrong);
        }
        let runs = seen.runs.entry(activation.to_owned()).or_default();
        *runs += 1;
        let Some(called) = seen.calls.get_mut(&call) else { return };
        called.runs += 1;
        let most = if called.idempotent { MOST_RUNS } else { 1 };
        let wrong = match called {
            c if c.runs > most => Some(format!("A1_started_at_most_once: call {call} runs for the {}th time", c.runs)),
            c if c.refused => Some(format!(
                "A2_indeterminate_iff_unknown: call {call} runs after its caller was told that it did not"
            )),
            _ => None,
        };
        if let Some(wrong) = wrong {
            seen.wrong(wrong);
        }
    }

    /// A caller hears of its call.
    pub(super) fn ended(&self, call: u64, at: usize, waited: bool, result: &Result<Invoked, InvokeError>) {
        let mut seen = self.seen();
        let told = match result {
            Ok(Invoked::Ended(record)) => {
                let wrong = seen.judge_answer(call, record);
                if let Some(wrong) = wrong {
                    seen.wrong(wrong);
                }
                let how = record.annotations.iter().find(|a| a.key == "served");
                let served = how.and_then(|a| a.value.as_str()).unwrap_or("without a run").to_owned();
                let indeterminate = record.annotations.iter().any(|a| a.key == "indeterminate");
                seen.count(&format!("answered: {served}"));
                if indeterminate {
                    seen.count("answered: indeterminate");
                }
                let odd = if indeterminate { ", indeterminate" } else { "" };
                format!("call {call} ends: {:?}, {served}{odd}", record.response.status)
            }
            Ok(Invoked::Accepted { activation_id }) => {
                seen.count(if waited { "promised while its caller waited" } else { "promised" });
                if let Ok(id) = u128::from_str_radix(activation_id, 16) {
                    seen.promised.insert(ActivationId(id), (call, at));
                }
                format!("call {call} is promised: {activation_id}")
            }
            Err(error) => {
                seen.count(&format!("refused: {}", name_of(error)));
                // A promise that can't be kept may be on disk all the same.
                let certain = match error {
                    InvokeError::NotKept { .. } | InvokeError::NotPromised { .. } => false,
                    InvokeError::Draining => waited,
                    _ => true,
                };
                let called = seen.calls.entry(call).or_default();
                called.refused = certain;
                if certain && called.runs > 0 {
                    let runs = called.runs;
                    seen.wrong(format!(
                        "A2_indeterminate_iff_unknown: call {call} ran {runs} times and is refused: {error}"
                    ));
                }
                format!("call {call} is refused: {error}")
            }
        };
        seen.calls.entry(call).or_default().ended = true;
        seen.line(&told);
    }

    /// Promised activations, each with its call and the node that promised.
    pub(super) fn promised(&self) -> Vec<(ActivationId, u64, usize)> {
        self.seen().promised.iter().map(|(id, (call, at))| (*id, *call, *at)).collect()
    }

    /// A call that was made and has no answer, unless its node went down or its caller left.
    pub(super) fn unanswered(&self) -> Option<u64> {
        self.seen().calls.iter().find(|(_, called)| !called.ended && !called.given_up).map(|(call, _)| *call)
    }

    /// Nobody is left to hear how these calls end: those made at a node that goes down, or one whose caller left.
    pub(super) fn give_up(&self, fits: impl Fn(u64, usize) -> bool) {
        for (call, called) in &mut self.seen().calls {
            called.given_up |= !called.ended && fits(*call, called.at);
        }
    }

    /// The node has lost all it knew: nobody answers for what it promised.
    pub(super) fn forget_promises_of(&self, node: usize) {
        self.seen().promised.retain(|_, (_, at)| *at != node);
    }

    /// Looks at the nodes themselves, each with what its clock shows.
    pub(super) fn look(&self, cores: &[(Core, Time)]) {
        let glance = Glance { nodes: cores.iter().map(|(core, now)| (core, *now)).collect(), step: None };
        let mut seen = self.seen();
        let looked = seen.judge.look(&glance);
        seen.judged(looked);
    }

    /// What is not over though it should be.
    pub(super) fn at_rest(&self, cores: &[(Core, Time)]) -> Result<(), Violation> {
        let glance = Glance { nodes: cores.iter().map(|(core, now)| (core, *now)).collect(), step: None };
        self.seen().judge.at_rest(&glance)
    }

    pub(super) fn records(&self) -> u64 {
        self.seen().records
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.seen().counts.clone()
    }

    /// A hash of all lines.
    pub(super) fn trace_hash(&self) -> String {
        self.seen().trace.hash.finalize().to_hex().to_string()
    }

    pub(super) fn take_trace(&self) -> Option<Vec<String>> {
        self.seen().trace.kept.take()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HistorySink for Witness {
    fn write(&self, record: &Record) {
        let mut seen = self.seen();
        seen.records += 1;
        let mut line = String::with_capacity(160);
        write!(line, "{} {:?} step {}: {:?}", record.node, record.at, record.step, record.what).ok();
        seen.line(&line);
        if let Some(name) = told(&record.what) {
            seen.count(name);
        }
        let observed = seen.judge.observe(record);
        seen.judged(observed);
    }
}

impl Seen {
    fn line(&mut self, text: &str) {
        let line = format!("{:>10.3}  {text}", self.now.as_secs_f64());
        self.trace.hash.update(line.as_bytes()).update(b"\n");
        if let Some(kept) = &mut self.trace.kept
            && kept.len() < MOST_LINES
        {
            kept.push(line);
        }
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// The first thing that is wrong is told; what follows from it is not.
    fn wrong(&mut self, what: String) {
        if self.wrong.is_none() {
            self.line(&format!("VIOLATION {what}"));
            self.wrong = Some(what);
        }
    }

    fn judged(&mut self, judged: Result<(), Violation>) {
        if let Err(violation) = judged {
            self.wrong(format!("{}: {}", violation.invariant, violation.what));
        }
    }

    /// What is wrong with an answer.
    fn judge_answer(&self, call: u64, record: &ActivationRecord) -> Option<String> {
        if record.response.status != ActivationStatus::Success {
            return None;
        }
        let text = record.response.result.as_ref().map(|r| r.get()).unwrap_or_default();
        let Ok(answer) = serde_json::from_str::<Answered>(text) else {
            return Some(format!("A3_success_is_that_runs_result: call {call} was answered {text}"));
        };
        if (answer.call, &answer.activation) != (call, &record.activation_id) {
            return Some(format!("A3_success_is_that_runs_result: call {call} has the answer {answer:?}"));
        }
        let ran = self.calls.get(&call).is_some_and(|called| called.runs > 0);
        (!ran).then(|| format!("A3_success_is_that_runs_result: call {call} succeeded and never ran"))
    }
}

/// What is counted of the nodes' own words: a run of many seeds has to reach all of it.
fn told(what: &What) -> Option<&'static str> {
    Some(match what {
        What::Granted { .. } => "lease granted",
        What::GrantRepeated { .. } => "grant repeated",
        What::RunJoined { .. } => "run joined",
        What::Expired { .. } => "lease expired",
        What::Released { .. } => "lease released",
        What::Veto { counted: true, .. } => "veto counted",
        What::Veto { counted: false, .. } => "veto not counted",
        What::Closed { end: IntentEnd::Committed, .. } => "round committed",
        What::Closed { end: IntentEnd::Vetoed { .. }, .. } => "round vetoed",
        What::Closed { end: IntentEnd::Used, .. } => "round cancelled by use",
        What::Closed { end: IntentEnd::Late, .. } => "round late",
        What::Began(_) => "life of a node",
        What::RunBegan { lease: Some(_), .. } => "run on a lease",
        What::RunBegan { lease: None, .. } => "run without a lease",
        _ => return None,
    })
}

fn name_of(error: &InvokeError) -> &'static str {
    match error {
        InvokeError::NotFound { .. } => "not found",
        InvokeError::QueueFull { .. } => "queue full",
        InvokeError::NoCapacity { .. } => "no capacity",
        InvokeError::Draining => "draining",
        InvokeError::Deleted { .. } => "deleted",
        InvokeError::Cancelled => "cancelled",
        InvokeError::NotKept { .. } => "not kept",
        InvokeError::NotPromised { .. } => "not promised",
    }
}
