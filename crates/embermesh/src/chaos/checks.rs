//! What a run's evidence comes to: each promise with its verdict. Everything is read from the report's folder, so that
//! the same comes out whenever it is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use embermesh_core::history::INVARIANTS;
use embermesh_node::history::{self, HistoryError, Judgement};
use serde::Serialize;

use super::evidence::{Evidence, Made, Note, Outcome, Record, ReportError, Request};
use super::scenario::{Containers, Kind};

/// How far two moments of different clocks and processes may be apart and still belong together.
const SLACK_MS: u64 = 2_000;
/// Examples that a check tells at most.
const EXAMPLES: usize = 5;
const AT_REST_WITHIN_MS: u64 = 30_000;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) says: String,
    pub(crate) verdict: Verdict,
    pub(crate) seen: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Held,
    Violated,
    /// Nothing was there to judge it by: no pass.
    NotJudged,
}

/// Why nothing could be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JudgeError {
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(
        "{path} ends in half a line, and the report tells of nobody who killed its agent: it was cut off when it was written; make a new run"
    )]
    CutOff { path: PathBuf },
}

/// Judges a report's folder.
pub(super) fn judge(folder: &Path) -> Result<(Evidence, Vec<Check>), JudgeError> {
    let evidence = Evidence::read(folder)?;
    let histories = evidence.histories(folder);
    let judgement = history::judge(&histories)?;
    for (id, path) in evidence.run.nodes.iter().zip(histories) {
        if judgement.unfinished.contains(&path) && !evidence.may_have_been_killed(id) {
            return Err(JudgeError::CutOff { path });
        }
    }
    let mut checks = evidence.checks();
    checks.extend(of_histories(&judgement));
    Ok((evidence, checks))
}

/// The invariants, by what the nodes told of themselves.
pub(crate) fn of_histories(judgement: &Judgement) -> Vec<Check> {
    let violated: BTreeMap<&str, String> =
        judgement.violation.iter().chain(&judgement.further).map(|v| (v.invariant, v.to_string())).collect();
    let checks = INVARIANTS.iter().map(|invariant| {
        let judged = invariant.told && (invariant.name != "L0_runs_within_slots" || judgement.told_of_insides);
        let (verdict, seen) = match violated.get(invariant.name) {
            Some(what) => (Verdict::Violated, what.clone()),
            None if judgement.records == 0 => (Verdict::NotJudged, "there are no records".to_owned()),
            None if judged => (Verdict::Held, format!("{} records", judgement.records)),
            None => (Verdict::NotJudged, "histories don't tell".to_owned()),
        };
        Check { name: invariant.name.to_owned(), says: invariant.says.to_owned(), verdict, seen }
    });
    checks.collect()
}

/// Collects what speaks against a promise.
struct Against {
    name: &'static str,
    says: &'static str,
    found: Vec<String>,
}

impl Against {
    fn new(name: &'static str, says: &'static str) -> Self {
        Self { name, says, found: Vec::new() }
    }

    fn add(&mut self, what: String) {
        self.found.push(what);
    }

    /// `seen`: what it was judged by.
    fn check(self, seen: String) -> Check {
        let Self { name, says, found } = self;
        let (verdict, seen) = match found.len() {
            0 => (Verdict::Held, seen),
            count => {
                let examples = found.iter().take(EXAMPLES).map(String::as_str).collect::<Vec<_>>().join("; ");
                let more = if count > EXAMPLES { format!("; and {} more", count - EXAMPLES) } else { String::new() };
                (Verdict::Violated, format!("{examples}{more}"))
            }
        };
        Check { name: name.to_owned(), says: says.to_owned(), verdict, seen }
    }

    fn unless(self, judged: bool, why_not: &str, seen: String) -> Check {
        if judged {
            return self.check(seen);
        }
        let (name, says) = (self.name.to_owned(), self.says.to_owned());
        Check { name, says, verdict: Verdict::NotJudged, seen: why_not.to_owned() }
    }
}

impl Evidence {
    fn checks(&self) -> Vec<Check> {
        let begun = Begun::of(&self.notes);
        let mut checks = vec![
            self.accepted_end_once(),
            self.nothing_runs_twice(&begun),
            self.outcomes_are_true(&begun),
            self.within_slots(&begun),
            self.every_call_is_answered(),
            self.calls_came_when_due(),
            self.healed(),
            self.at_rest(),
            self.nothing_left_behind(),
            self.agents_stay(),
            self.faults_were_made(),
            self.expectations(),
        ];
        checks.extend(self.left_out());
        checks
    }

    /// An agent that was killed, or ended in a way that is told, may have left half a line.
    fn may_have_been_killed(&self, id: &str) -> bool {
        let killed = |made: &Made| made.kind == Kind::Kill && made.nodes.iter().any(|node| node == id);
        self.faults.iter().any(killed) || !self.run.agents_astray.is_empty()
    }

    fn takes_notes(&self) -> bool {
        self.scenario.mesh.engine == Containers::Process
    }

    /// A5: each 202 ends in one record at its node, which never changes.
    fn accepted_end_once(&self) -> Check {
        let mut against = Against::new(
            "A5_accepted_has_one_outcome",
            "each 202 ends in exactly one record, which never changes: none is lost",
        );
        let mut kept: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in &self.records {
            kept.entry(&record.activation_id).or_default().push(record);
        }
        let accepted: Vec<&Request> = self.requests.iter().filter(|r| r.outcome == Outcome::Accepted).collect();
        for request in &accepted {
            let id = request.activation_id.as_deref().unwrap_or_default();
            match kept.get(id).map(Vec::as_slice).unwrap_or_default() {
                [] => against.add(format!("{id}, accepted by {}, has no record", request.node)),
                [one] if one.node != request.node => {
                    against.add(format!("{id}, accepted by {}, has its record at {}", request.node, one.node));
                }
                [one] => {
                    if let Some(first) = request.seen.as_ref().filter(|first| first != one) {
                        against.add(format!("the record of {id} was {first:?} and is {one:?}"));
                    }
                }
                several => against.add(format!("{id} has {} records", several.len())),
            }
        }
        against.unless(!accepted.is_empty(), "no call was accepted with a 202", format!("{} accepted", accepted.len()))
    }

    /// A1, by what the actions wrote down.
    fn nothing_runs_twice(&self, begun: &Begun<'_>) -> Check {
        let mut against =
            Against::new("A1_started_at_most_once", "no call ran twice, as the actions themselves wrote down");
        for (n, notes) in &begun.by_call {
            if notes.len() > 1 {
                let places: Vec<String> =
                    notes.iter().map(|note| format!("{} as {}", note.container, note.activation_id)).collect();
                against.add(format!("call {n} ran in {}", places.join(" and in ")));
            }
        }
        against.unless(
            self.takes_notes(),
            "containers can't reach the notes here",
            format!("{} runs", begun.by_call.len()),
        )
    }

    /// A2, A3, by what the actions wrote down: who is told of a success had one, and who is refused had no run.
    fn outcomes_are_true(&self, begun: &Begun<'_>) -> Check {
        let mut against = Against::new(
            "A2_A3_outcomes_are_true",
            "a success is that call's own run, begun and ended; what is refused or failed for inner reasons has not run",
        );
        let records: BTreeMap<&str, &Record> = self.records.iter().map(|r| (r.activation_id.as_str(), r)).collect();
        for request in &self.requests {
            let ran = begun.by_call.get(&request.n);
            let record = request.activation_id.as_deref().and_then(|id| records.get(id));
            let (must, must_not) = match request.outcome {
                Outcome::Answered => (true, false),
                Outcome::Refused | Outcome::Unreached => (false, true),
                Outcome::Accepted => match record {
                    Some(record) => (record.status == 0, record.status == 3 && !record.indeterminate),
                    None => (false, false),
                },
                Outcome::Odd => {
                    against.add(format!("call {}: {}", request.n, request.said));
                    continue;
                }
                _ => (false, false),
            };
            if request.outcome == Outcome::Answered && !request.said.is_empty() {
                against.add(format!("call {}: {}", request.n, request.said));
            }
            if !self.takes_notes() {
                continue;
            }
            if must && (ran.is_none() || !begun.ended.contains(&request.n)) {
                against.add(format!("call {} succeeded and has not run to its end", request.n));
            }
            if must_not && let Some(note) = ran.and_then(|notes| notes.first()) {
                against.add(format!(
                    "call {} ({:?}: {}) ran in {}",
                    request.n, request.outcome, request.said, note.container
                ));
            }
        }
        against.check(format!("{} calls", self.requests.len()))
    }

    /// L0, by what the containers counted.
    fn within_slots(&self, begun: &Begun<'_>) -> Check {
        let mut against =
            Against::new("L0_runs_within_slots", "never more runs at once in a container than it has slots");
        let slots: BTreeMap<&str, u64> =
            self.scenario.workload.actions.iter().map(|a| (a.name.as_str(), u64::from(a.concurrency))).collect();
        let action_of: BTreeMap<u64, &str> = self.requests.iter().map(|r| (r.n, r.action.as_str())).collect();
        let mut inside: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for note in &self.notes {
            let Some(slots) = action_of.get(&note.n).and_then(|action| slots.get(action)) else { continue };
            let there = inside.entry(&note.container).or_default();
            if note.event == "end" {
                there.remove(&note.n);
                continue;
            }
            there.insert(note.n);
            let most = note.running.max(there.len() as u64);
            if most > *slots {
                against.add(format!("{most} runs at once in {}, which has {slots} slots", note.container));
            }
        }
        // A container turns away what is too much, and says so.
        for request in self.requests.iter().filter(|r| r.said.contains("runs are in progress")) {
            against.add(format!("call {} was one too many for its container: {}", request.n, request.said));
        }
        let seen = format!("{} runs in {} containers", begun.by_call.len(), inside.len());
        against.unless(self.takes_notes(), "containers can't reach the notes here", seen)
    }

    /// A4: no answer only from nodes that were killed, or held for as long.
    fn every_call_is_answered(&self) -> Check {
        let mut against =
            Against::new("A4_every_request_answered", "every call is answered, unless its node was killed meanwhile");
        for request in &self.requests {
            let excused = match request.outcome {
                Outcome::Broken | Outcome::Unreached => self.away(request, &[Kind::Kill]),
                Outcome::Silent => false,
                _ => continue,
            };
            if !excused {
                against.add(format!(
                    "call {} at {} ended as {:?}: {}",
                    request.n, request.node, request.outcome, request.said
                ));
            }
        }
        against.check(format!("{} calls", self.requests.len()))
    }

    /// Without that, faults would be tried on a mesh with less to do than was meant.
    fn calls_came_when_due(&self) -> Check {
        let name = "calls came when due";
        let against = Against::new(name, "calls were made when they were due, however long others took");
        let held_back = self.run.held_back;
        let why_not = format!("{held_back} calls were not made, since too many others were open");
        against.unless(held_back == 0, &why_not, format!("{} calls", self.requests.len()))
    }

    /// Whether its node suffered one of these while the call was open.
    fn away(&self, request: &Request, kinds: &[Kind]) -> bool {
        self.faults.iter().any(|made: &Made| {
            kinds.contains(&made.kind)
                && made.nodes.contains(&request.node)
                && made.from_ms <= request.to_ms + SLACK_MS
                && request.from_ms <= made.to_ms + SLACK_MS
        })
    }

    fn healed(&self) -> Check {
        let within = self.scenario.expect.healed_within;
        let mut against = Against::new(
            "G3_views_converge",
            "after the last fault, every node soon knows every other and serves every action",
        );
        let took = self.run.healed_ms.map(|at| at.saturating_sub(self.run.faults_ended_ms));
        match took {
            None => against.add(format!("it never healed: {}", self.run.not_healed.join("; "))),
            Some(took) if took > within.as_ms() => against.add(format!("it took {took} ms, allowed are {within}")),
            Some(_) => {}
        }
        against.check(format!("healed {} ms after the last fault", took.unwrap_or_default()))
    }

    fn at_rest(&self) -> Check {
        let mut against = Against::new(
            "L7_no_slot_leak",
            "after the last call no lease, no run and no waiting call is left at any node",
        );
        let took = self.run.at_rest_ms.map(|at| at.saturating_sub(self.run.calls_ended_ms));
        if took.is_none_or(|took| took > AT_REST_WITHIN_MS) {
            against.add(format!("there still are: {}", self.run.not_at_rest.join("; ")));
        }
        against.check(format!("nothing left {} ms after the last call", took.unwrap_or_default()))
    }

    fn nothing_left_behind(&self) -> Check {
        let mut against = Against::new("O1_no_orphan", "no process and no container outlives the mesh");
        self.run.left_behind.iter().for_each(|left| against.add(left.clone()));
        against.check("nothing was left".to_owned())
    }

    fn agents_stay(&self) -> Check {
        let mut against =
            Against::new("agents stay up", "no agent ends or panics by itself, and each ends when it is told to");
        self.run.agents_astray.iter().chain(&self.run.panics).for_each(|what| against.add(what.clone()));
        against.check(format!("{} agents", self.run.nodes.len()))
    }

    fn faults_were_made(&self) -> Check {
        let mut against = Against::new("faults were made", "each fault of the scenario came about and ended");
        for made in &self.faults {
            if let Some(why) = &made.failed {
                against.add(format!("{}: {why}", made.says));
            }
        }
        let planned = self.scenario.faults.iter().filter(|f| !self.run.left_out.contains_key(&f.kind)).count();
        if self.faults.len() != planned {
            against.add(format!("{planned} were planned, {} were made", self.faults.len()));
        }
        against.check(format!("{} faults", self.faults.len()))
    }

    /// What was asked for and could not be made here is nothing that the mesh has borne.
    fn left_out(&self) -> impl Iterator<Item = Check> {
        self.run.left_out.iter().map(|(kind, why)| Check {
            name: format!("fault {}", kind.name()),
            says: "the mesh bears it".to_owned(),
            verdict: Verdict::NotJudged,
            seen: format!("left out: {why}"),
        })
    }

    fn expectations(&self) -> Check {
        let expect = &self.scenario.expect;
        let mut against = Against::new("expectations", "calls succeed as the scenario expects");
        let succeeded = self.successes();
        let made = self.requests.len() as u64;
        if succeeded < expect.successes {
            against.add(format!("{succeeded} of {made} calls succeeded, expected were {}", expect.successes));
        }
        let failed = (made - succeeded) as f64 / made.max(1) as f64;
        if failed > expect.failed_share {
            against.add(format!("{failed:.3} of the calls did not succeed, allowed are {}", expect.failed_share));
        }
        against.check(format!("{succeeded} of {made} calls succeeded"))
    }

    /// Calls with a success as their answer or in their record.
    pub(super) fn successes(&self) -> u64 {
        let well: BTreeSet<&str> =
            self.records.iter().filter(|r| r.status == 0).map(|r| r.activation_id.as_str()).collect();
        let succeeded = self.requests.iter().filter(|r| match r.outcome {
            Outcome::Answered => true,
            Outcome::Accepted => r.activation_id.as_deref().is_some_and(|id| well.contains(id)),
            _ => false,
        });
        succeeded.count() as u64
    }
}

/// Which calls the actions began, and which they ended.
struct Begun<'a> {
    by_call: BTreeMap<u64, Vec<&'a Note>>,
    ended: BTreeSet<u64>,
}

impl<'a> Begun<'a> {
    fn of(notes: &'a [Note]) -> Self {
        let (mut by_call, mut ended) = (BTreeMap::<u64, Vec<&Note>>::new(), BTreeSet::new());
        for note in notes {
            if note.event == "end" {
                ended.insert(note.n);
            } else {
                by_call.entry(note.n).or_default().push(note);
            }
        }
        Self { by_call, ended }
    }
}
