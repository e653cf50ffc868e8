//! The `process` engine with real processes. Without libtest's harness, because this program is also run
//! again as the engine's supervisor, as what is in a container, and as an agent that gets killed.
#![allow(clippy::unwrap_used)]

mod cases;
mod processes;
mod stand_in;

use std::process::ExitCode;

use embermesh_node::containers::process::{Isolation, supervisor};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("__supervise") => supervisor::supervise(args),
        Some("__container") => stand_in::serve(args),
        Some("__daemon") => stand_in::daemon(),
        Some("__hog") => stand_in::hog(args),
        Some("__agent") => cases::agent(args),
        first => run_tests(first.into_iter().map(str::to_owned).chain(args)),
    }
}

/// Like libtest: arguments without dashes choose cases by a part of their name.
fn run_tests(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = Vec::new();
    for isolation in Isolation::ALL {
        for (name, case) in cases::ALL {
            let name = format!("{isolation}::{name}");
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(*filter)) {
                continue;
            }
            if args.iter().any(|arg| arg == "--list") {
                println!("{name}: test");
                continue;
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let Some(bench) = cases::Bench::new(isolation) else {
                println!("test {name} ... ignored, this host refuses that isolation");
                continue;
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(case(&bench))));
            runtime.block_on(bench.end());
            println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
            if outcome.is_err() {
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailures: {}", failed.join(", "));
    ExitCode::FAILURE
}
