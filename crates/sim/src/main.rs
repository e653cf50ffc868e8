//! `embermesh-sim`: plays seeds of the deterministic simulator.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use embermesh_sim::simulator::{Campaign, Mode, Outcome, Summary, play};

/// Failures are alike from here on.
const MOST_FAILURES: usize = 20;

/// Plays production nodes in a simulated network, on simulated clocks, disks and container engines. One seed decides
/// everything that happens; the same seed in the same build always plays the same.
#[derive(Debug, Parser)]
#[command(name = "embermesh-sim", version)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["seed", "seeds", "minutes"]))]
struct Args {
    /// Play this seed, tell what it means, and make it small if it fails.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Play these seeds: from A to before B.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Play seeds that nobody chose for so long: 60, or 0.5.
    #[arg(long, value_name = "M", value_parser = parse_minutes)]
    minutes: Option<Duration>,
    /// What is demanded: that nothing wrong happens, or also that after the faults everything comes to its end.
    #[arg(long, value_enum, default_value = "safety")]
    mode: Mode,
    /// How many nodes, 2 to 9; the seed decides if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=9))]
    nodes: Option<u64>,
    /// Simulated seconds of calls and faults.
    #[arg(long, value_name = "S", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seeds at a time; as many as there are cores if not given.
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Of the seed's events only those with these numbers (comma between them), or `none`.
    #[arg(long, value_name = "LIST", requires = "seed", value_parser = parse_numbers)]
    only: Option<Numbers>,
    /// Write all that happens to this file, which must not exist.
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Where the time lines of failing seeds are written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// A bug on purpose, in a build with the feature `mutations`: to see that it is found.
    #[arg(long, value_name = "NAME")]
    mutation: Option<String>,
    /// Print the outcome as JSON and nothing else.
    #[arg(long, hide = true, requires = "seed")]
    outcome: bool,
}

#[derive(Debug, Clone)]
struct Numbers(Vec<usize>);

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing was wrong.
fn run(args: &Args) -> Result<bool, String> {
    plant(args.mutation.as_deref())?;
    let length = Duration::from_secs(args.seconds);
    let campaign = Campaign {
        program: std::env::current_exe().map_err(|e| format!("this program can't be found: {e}"))?,
        mode: args.mode,
        nodes: args.nodes.map(|n| n as usize),
        length,
        jobs: args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        enough: MOST_FAILURES,
        mutation: args.mutation.clone(),
    };
    if let Some(seed) = args.seed {
        return one(args, &campaign, seed);
    }
    let (seeds, until) = match (&args.seeds, args.minutes) {
        (Some(seeds), _) => (seeds.clone(), None),
        (None, minutes) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let until = Instant::now() + minutes.unwrap_or_default();
            (now * 1_000_000..u64::MAX, Some(until))
        }
    };
    println!("{:?} mode, seeds from {}, {} at a time", args.mode, seeds.start, campaign.jobs);
    let shows = io::stderr().is_terminal();
    let tell = |seed: u64, outcome: &Outcome, so_far: &Summary| {
        if let Some(violation) = &outcome.violation {
            println!("{}\n  {violation}\n  {}", campaign.plan(seed, None), campaign.reproduction(seed, None));
        }
        if shows || so_far.seeds.is_multiple_of(50) {
            let line = format!("{} seeds, {} failed", so_far.seeds, so_far.failures.len());
            if shows {
                eprint!("\r{line} ")
            } else {
                eprintln!("{line}")
            }
            io::stderr().flush().ok();
        }
    };
    let summary = campaign.run(seeds, until, tell).map_err(|e| format!("a seed can't be played: {e}"))?;
    if shows {
        eprintln!();
    }
    print_summary(&summary);
    if let Some((seed, violation)) = summary.failures.first_key_value() {
        make_small(args, &campaign, *seed, violation)?;
    }
    Ok(summary.failures.is_empty())
}

fn one(args: &Args, campaign: &Campaign, seed: u64) -> Result<bool, String> {
    let plan = campaign.plan(seed, args.only.as_ref().map(|numbers| numbers.0.clone()));
    let faults = plan.events.iter().filter(|(_, event)| event.is_fault()).count();
    if !args.outcome {
        println!("{plan}");
        println!("{} calls and {faults} faults in {:?}", plan.events.len() - faults, plan.length);
    }
    let outcome = play(&plan, args.trace.is_some());
    if let (Some(path), Some(trace)) = (&args.trace, &outcome.trace) {
        write_new(path, &trace.join("\n"))?;
    }
    let fine = outcome.violation.is_none();
    if args.outcome {
        println!("{}", serde_json::to_string(&outcome).map_err(|e| e.to_string())?);
        return Ok(fine);
    }
    let speed = outcome.simulated_ms as f64 / outcome.real_ms.max(1) as f64;
    let Outcome { simulated_ms, calls, records, trace_hash, .. } = &outcome;
    println!(
        "{:.1} s simulated at {speed:.0} times real time: {calls} calls, {records} records, trace {trace_hash}",
        *simulated_ms as f64 / 1000.0
    );
    if let Some(violation) = &outcome.violation {
        println!("VIOLATION {violation}");
        if args.only.is_none() {
            make_small(args, campaign, seed, violation)?;
        }
    }
    Ok(fine)
}

/// Finds the few events that a failure needs, and writes what happens then.
fn make_small(args: &Args, campaign: &Campaign, seed: u64, violation: &str) -> Result<(), String> {
    println!("making seed {seed} small…");
    let failed = |e: io::Error| format!("the seed can't be played again: {e}");
    let failure = campaign.minimise(seed, violation).map_err(failed)?;
    let name = format!("simulation-{:?}-{seed}", campaign.mode).to_lowercase();
    let path = (1..).map(|n| args.out.join(format!("{name}-{n}.txt"))).find(|path| !path.exists());
    let path = path.ok_or("no name is free for the time line")?;
    campaign.play(seed, Some(&failure.only), Some(&path)).map_err(failed)?;
    println!(
        "{} of {} events are left after {} tries: {}\nreproduce: {}\ntime line: {}",
        failure.only.len(),
        failure.of,
        failure.tries,
        failure.violation,
        campaign.reproduction(seed, Some(&failure.only)),
        path.display()
    );
    Ok(())
}

fn print_summary(summary: &Summary) {
    for (what, times) in &summary.counts {
        println!("{times:>10}  {what}");
    }
    println!(
        "{} seeds, {} failed; {:.0} s simulated in {:.0} s ({:.0} times real time in one process); {} calls, {} records",
        summary.seeds,
        summary.failures.len(),
        summary.simulated.as_secs_f64(),
        summary.took.as_secs_f64(),
        summary.speed(),
        summary.calls,
        summary.records
    );
}

fn write_new(path: &Path, text: &str) -> Result<(), String> {
    let mut file = fs::File::create_new(path).map_err(|e| format!("{} can't be written: {e}", path.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("give a range such as 0..200")?;
    let number =
        |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no number: give a range such as 0..200"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err(format!("there is no seed from {from} to before {to}")) } else { Ok(range) }
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse::<f64>().ok().filter(|minutes| (0.001..=1e6).contains(minutes));
    let seconds = 60.0 * minutes.ok_or_else(|| format!("`{text}` is no time: give minutes such as 60 or 0.5"))?;
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_numbers(text: &str) -> Result<Numbers, String> {
    if text == "none" {
        return Ok(Numbers(Vec::new()));
    }
    let number =
        |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is no event's number: give 3,7,12 or none"));
    text.split(',').map(number).collect::<Result<_, _>>().map(Numbers)
}

#[cfg(feature = "mutations")]
fn plant(name: Option<&str>) -> Result<(), String> {
    use embermesh_core::mutations::{Mutation, set};
    let Some(name) = name else { return Ok(()) };
    let all: Vec<Mutation> = Mutation::CORE.into_iter().chain(Mutation::DRIVER).collect();
    let known = all.iter().find(|mutation| format!("{mutation:?}") == name);
    let mutation = *known.ok_or_else(|| format!("no bug is called `{name}`: there are {all:?}"))?;
    set(Some(mutation));
    Ok(())
}

#[cfg(not(feature = "mutations"))]
fn plant(name: Option<&str>) -> Result<(), String> {
    match name {
        Some(name) => {
            Err(format!("this build has no bugs on purpose, `{name}` neither: build with --features mutations"))
        }
        None => Ok(()),
    }
}
