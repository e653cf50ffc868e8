//! `embermesh chaos run`: a throw-away mesh of real agents, calls, faults, and the judgement of what came of it.
//!
//! `scenario` says what is to be done, `seeded` makes one of a seed, `possible` refuses what makes no sense. `run` does
//! it, with `nemesis` for the faults (`relay` before Docker's socket) and `traffic` for the calls; all that it sees goes
//! into a folder as `evidence`. `checks` judges such a folder, now or later, and `timeline` draws it.

mod checks;
mod dice;
mod evidence;
mod hold;
mod host;
mod nemesis;
mod possible;
mod progress;
mod relay;
mod run;
pub(crate) mod scenario;
mod seeded;
mod timeline;
mod traffic;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;

use crate::cli::ChaosRunArgs;
use crate::commands::{CommandError, Exit};
use crate::output::{Output, table};

pub(crate) use checks::{Check, Verdict, of_histories};
pub(crate) use hold::hold;
use scenario::{Containers, Kind, Scenario, Span};

/// The hidden command that holds a process stopped.
pub(crate) const HOLD: &str = "__hold";

const DEFAULT_NODES: u32 = 5;
const DEFAULT_DURATION: Span = Span::ms(120_000);

pub(crate) async fn run(args: ChaosRunArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let wanted = wanted(&args)?;
    let (scenario, left_out) = feasible(wanted, &args)?;
    let report = Report::reserve(args.report.as_deref())?;
    for (kind, why) in &left_out {
        output.remark(&format!("left out: {}, {why}", kind.name()));
    }
    output.remark(&format!(
        "{} nodes for {}, {} faults; seed {}",
        scenario.mesh.nodes,
        scenario.duration,
        scenario.faults.len(),
        scenario.seed
    ));
    if let Err(error) = run::run(scenario, left_out, &report.folder).await {
        report.discard();
        return Err(CommandError::Input(format!("{error:#}")));
    }
    let (evidence, checks) = checks::judge(&report.folder).map_err(|e| CommandError::Input(e.to_string()))?;
    let timeline = timeline::draw(&evidence, &checks);
    evidence::write_judgement(&report.folder, &checks, &timeline).map_err(|e| CommandError::Input(e.to_string()))?;
    let exit = tell(&checks, output)?;
    if let Some(kept) = report.keep_if(exit != Exit::Ok) {
        output.remark(&format!("report: {}, time line: {}", kept.display(), kept.join("timeline.html").display()));
    }
    Ok(exit)
}

/// `embermesh chaos check DIR`.
pub(crate) fn check(folder: &Path, timeline: Option<&Path>, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let (evidence, checks) = checks::judge(folder).map_err(|e| CommandError::Input(e.to_string()))?;
    if let Some(path) = timeline {
        write_new(path, &timeline::draw(&evidence, &checks))?;
    }
    tell(&checks, output)
}

fn write_new(path: &Path, text: &str) -> Result<(), CommandError> {
    let written = std::fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CommandError::Conflict(format!("{} exists already, and is not touched: name a new file", path.display()))
        }
        _ => CommandError::Input(format!("the time line {} can't be written: {error}", path.display())),
    })
}

/// Prints the verdicts; fails if something does not hold, or nothing could be judged.
pub(crate) fn tell(checks: &[Check], output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let json = serde_json::to_vec(checks).map_err(|e| CommandError::Input(e.to_string()))?;
    output.answer(&json, || {
        let row = |check: &Check| {
            let verdict = match check.verdict {
                Verdict::Held => "held",
                Verdict::Violated => "VIOLATED",
                Verdict::NotJudged => "not judged",
            };
            // The story of a violation follows below.
            let seen = check.seen.lines().next().unwrap_or_default().to_owned();
            vec![check.name.clone(), verdict.to_owned(), seen]
        };
        let mut text = table(&["PROMISE", "VERDICT", "SEEN"], checks.iter().map(row));
        for check in checks.iter().filter(|check| check.verdict == Verdict::Violated) {
            text.push_str(&format!("\n\n{}: {}\n{}", check.name, check.says, check.seen));
        }
        text
    })?;
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (held, violated) = (count(Verdict::Held), count(Verdict::Violated));
    if violated == 0 && held == 0 {
        output.remark("error: nothing could be judged: there is nothing in it to judge by");
        return Ok(Exit::Failure);
    }
    if violated == 0 {
        output.remark(&format!("{held} promises held, {} not judged", count(Verdict::NotJudged)));
        return Ok(Exit::Ok);
    }
    output.remark(&format!("error: {violated} of {} promises do not hold", checks.len()));
    Ok(Exit::Failure)
}

/// What the command line asks for; kinds that can't be made here included.
fn wanted(args: &ChaosRunArgs) -> Result<Scenario, CommandError> {
    let Some(path) = &args.scenario else {
        let kinds = if args.faults.is_empty() { Kind::value_variants().to_vec() } else { args.faults.clone() };
        let kinds: Vec<Kind> = kinds.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let wishes = seeded::Wishes {
            nodes: args.nodes.unwrap_or(DEFAULT_NODES),
            duration: args.duration.map_or(DEFAULT_DURATION, Span),
            kinds: kinds.into_iter().filter(|kind| host::lacks(*kind).is_none()).collect(),
            seed: args.seed.unwrap_or_else(host::any_seed),
            engine: engine(args, None),
        };
        return Ok(seeded::scenario(&wishes));
    };
    let wrong = |why: String| CommandError::Usage(format!("the scenario {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("it can't be read: {e}")))?;
    let mut scenario = Scenario::parse(&text).map_err(wrong)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    scenario.mesh.engine = engine(args, Some(&scenario));
    Ok(scenario)
}

fn engine(args: &ChaosRunArgs, scenario: Option<&Scenario>) -> Containers {
    let default = scenario.map_or(Containers::Process, |scenario| scenario.mesh.engine);
    args.engine.map_or(default, Containers::from)
}

/// The scenario without what this host can't do, and why; an error for what nobody can.
fn feasible(mut scenario: Scenario, args: &ChaosRunArgs) -> Result<(Scenario, BTreeMap<Kind, String>), CommandError> {
    let impossible = scenario.impossible();
    if !impossible.is_empty() {
        let list = impossible.join("\n  - ");
        return Err(CommandError::Usage(format!("this scenario is impossible:\n  - {list}")));
    }
    let mut left_out = BTreeMap::new();
    let asked: Vec<Kind> = match (&args.scenario, args.faults.as_slice()) {
        (Some(_), _) => scenario.faults.iter().map(|fault| fault.kind).collect(),
        (None, []) => Kind::value_variants().to_vec(),
        (None, some) => some.to_vec(),
    };
    for kind in asked {
        if let Some(why) = host::lacks(kind) {
            left_out.insert(kind, why);
        } else if !scenario.faults.iter().any(|fault| fault.kind == kind) {
            left_out.insert(kind, format!("{} have no room for it: give a longer --duration", scenario.duration));
        }
    }
    let had = scenario.faults.len();
    scenario.faults.retain(|fault| !left_out.contains_key(&fault.kind));
    if scenario.faults.is_empty() && (had > 0 || args.scenario.is_none()) {
        let whys: Vec<String> = left_out.iter().map(|(kind, why)| format!("{}: {why}", kind.name())).collect();
        return Err(CommandError::Usage(format!("no fault is left to be made: {}", whys.join("; "))));
    }
    Ok((scenario, left_out))
}

/// The folder that the report goes to.
struct Report {
    folder: PathBuf,
    /// Where nobody asked for one: kept if something does not hold.
    passing: Option<tempfile::TempDir>,
}

impl Report {
    /// Makes the folder; one that is there is never touched.
    fn reserve(wanted: Option<&Path>) -> Result<Self, CommandError> {
        let Some(wanted) = wanted else {
            let passing = tempfile::Builder::new().prefix("embermesh-chaos-report-").tempdir();
            let passing = passing.map_err(|e| CommandError::Input(format!("no temporary folder: {e}")))?;
            return Ok(Self { folder: passing.path().to_owned(), passing: Some(passing) });
        };
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => CommandError::Conflict(format!(
                "the report {} exists already, and is not touched: name a new folder, or remove that one",
                wanted.display()
            )),
            _ => CommandError::Input(format!("the report {} can't be made: {error}", wanted.display())),
        };
        std::fs::create_dir(wanted).map_err(failed)?;
        let folder = wanted.canonicalize().map_err(failed)?;
        Ok(Self { folder, passing: None })
    }

    /// What was begun is of no use.
    fn discard(self) {
        if self.passing.is_none() {
            // It was made by us, a moment ago.
            std::fs::remove_dir_all(&self.folder).ok();
        }
    }

    /// Where it can be found from now on, if it can.
    fn keep_if(self, telling: bool) -> Option<PathBuf> {
        match self.passing {
            None => Some(self.folder),
            Some(passing) if telling => Some(passing.keep()),
            Some(_) => None,
        }
    }
}
