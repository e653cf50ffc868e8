//! Many seeds, each in a process of its own: tokio draws one process-wide number for each runtime, so that only a fresh
//! process plays a seed exactly as another did; and a seed that panics or spins takes nobody along.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Mode, Options, Outcome, Plan};

/// Runs with fewer events before a failing plan is small enough as it is.
const MOST_TRIES: u32 = 80;
/// How seeds are played.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// This program: it plays one seed and prints its outcome.
    pub program: PathBuf,
    pub mode: Mode,
    pub nodes: Option<usize>,
    pub length: Duration,
    /// Seeds at a time.
    pub jobs: usize,
    /// Failures after which no more seeds are played.
    pub enough: usize,
    /// A bug on purpose, in a build that can have one.
    pub mutation: Option<String>,
}

/// What came of many seeds.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub seeds: u64,
    /// In order of seeds.
    pub failures: BTreeMap<u64, String>,
    pub simulated: Duration,
    /// Of all processes together.
    pub busy: Duration,
    pub took: Duration,
    pub calls: u64,
    pub records: u64,
    pub counts: BTreeMap<String, u64>,
}

/// A plan that fails, made small.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub violation: String,
    /// The numbers of the events that are left, of so many.
    pub only: Vec<usize>,
    pub of: usize,
    pub tries: u32,
}

impl Campaign {
    /// Plays seeds until there are no more, the time is over, or too many have failed. `tell` hears of each.
    pub fn run(
        &self,
        seeds: impl Iterator<Item = u64> + Send,
        until: Option<Instant>,
        tell: impl Fn(u64, &Outcome, &Summary) + Sync,
    ) -> io::Result<Summary> {
        let began = Instant::now();
        let (seeds, summary) = (Mutex::new(seeds), Mutex::new(Summary::default()));
        let failed = Mutex::new(None);
        let work = || {
            loop {
                let over = until.is_some_and(|until| Instant::now() >= until);
                if over || lock(&failed).is_some() || lock(&summary).failures.len() >= self.enough {
                    return;
                }
                let Some(seed) = lock(&seeds).next() else { return };
                match self.play(seed, None, None) {
                    Ok(outcome) => {
                        let mut summary = lock(&summary);
                        summary.add(seed, &outcome);
                        tell(seed, &outcome, &summary);
                    }
                    Err(error) => *lock(&failed) = Some(error),
                }
            }
        };
        thread::scope(|scope| (0..self.jobs.max(1)).for_each(|_| drop(scope.spawn(work))));
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Summary { took: began.elapsed(), ..summary })
    }

    /// Plays one seed, with some of its events, and perhaps writes its trace.
    pub fn play(&self, seed: u64, only: Option<&[usize]>, trace: Option<&Path>) -> io::Result<Outcome> {
        let mut command = Command::new(&self.program);
        command.args(self.arguments(seed, only)).arg("--outcome");
        if let Some(trace) = trace {
            command.arg("--trace").arg(trace);
        }
        let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
        Ok(outcome_of(&output))
    }

    /// What the seed means, or what is left of it.
    pub fn plan(&self, seed: u64, only: Option<Vec<usize>>) -> Plan {
        Plan::draw(&Options { seed, mode: self.mode, nodes: self.nodes, length: self.length, only })
    }

    /// One line that plays it again.
    pub fn reproduction(&self, seed: u64, only: Option<&[usize]>) -> String {
        let quoted = |argument: String| if argument.contains(' ') { format!("'{argument}'") } else { argument };
        let arguments: Vec<String> = self.arguments(seed, only).into_iter().map(quoted).collect();
        let feature = if self.mutation.is_some() { " --features mutations" } else { "" };
        format!("cargo run -p embermesh-sim{feature} -- {}", arguments.join(" "))
    }

    fn arguments(&self, seed: u64, only: Option<&[usize]>) -> Vec<String> {
        let mode = if self.mode == Mode::Safety { "safety" } else { "liveness" };
        let mut arguments = vec!["--seed".to_owned(), seed.to_string(), "--mode".to_owned(), mode.to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("--seconds", self.length.as_secs().to_string());
        if let Some(nodes) = self.nodes {
            add("--nodes", nodes.to_string());
        }
        if let Some(only) = only {
            let numbers: Vec<String> = only.iter().map(ToString::to_string).collect();
            add("--only", if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") });
        }
        if let Some(mutation) = &self.mutation {
            add("--mutation", mutation.clone());
        }
        arguments
    }

    /// Leaves out what the failure does not need: ever smaller parts of the plan, for so many tries.
    pub fn minimise(&self, seed: u64, violation: &str) -> io::Result<Failure> {
        let all: Vec<usize> = self.plan(seed, None).events.iter().map(|(number, _)| *number).collect();
        let mut failure = Failure { seed, violation: violation.to_owned(), only: all.clone(), of: all.len(), tries: 0 };
        let mut part = all.len().div_ceil(2);
        while part > 0 && failure.tries < MOST_TRIES {
            let mut at = 0;
            let mut smaller = false;
            while at < failure.only.len() && failure.tries < MOST_TRIES {
                let end = (at + part).min(failure.only.len());
                let rest: Vec<usize> = failure.only[..at].iter().chain(&failure.only[end..]).copied().collect();
                failure.tries += 1;
                match self.play(seed, Some(&rest), None)?.violation {
                    Some(again) if kind_of(&again) == kind_of(violation) => {
                        (failure.violation, failure.only, smaller) = (again, rest, true);
                    }
                    _ => at = end,
                }
            }
            if part == 1 && !smaller {
                break;
            }
            part = if smaller { part.min(failure.only.len().div_ceil(2)) } else { part / 2 };
        }
        Ok(failure)
    }
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated += Duration::from_millis(outcome.simulated_ms);
        self.busy += Duration::from_millis(outcome.real_ms);
        self.calls += outcome.calls;
        self.records += outcome.records;
        for (what, times) in &outcome.counts {
            *self.counts.entry(what.clone()).or_default() += times;
        }
        if let Some(violation) = &outcome.violation {
            self.failures.insert(seed, violation.clone());
        }
    }

    /// How much faster than real time one process simulates.
    pub fn speed(&self) -> f64 {
        self.simulated.as_secs_f64() / self.busy.as_secs_f64().max(0.001)
    }
}

/// What is violated, without by whom.
fn kind_of(violation: &str) -> &str {
    violation.split([':', '\n']).next().unwrap_or_default()
}

/// A process that could not tell its outcome has failed as well.
fn outcome_of(output: &Output) -> Outcome {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        let violation = Some(format!("its process ended ({}): {last}", output.status));
        Outcome { violation, ..Outcome::default() }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
