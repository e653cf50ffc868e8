//! The `docker` engine against a real Docker engine. Without libtest's harness, because this program is also what
//! runs in the containers: images are made of it.
//!
//! Without an engine it says SKIPPED, unless EMBERMESH_REQUIRE_DOCKER is 1.
#![allow(clippy::unwrap_used)]

mod bench;
mod cases;
mod images;
mod registry;
mod relay;
#[allow(dead_code, reason = "the process engine's tests use more of it")]
#[path = "../process_engine/stand_in.rs"]
mod stand_in;
mod stock;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("__container") => stand_in::serve(args),
        Some("__daemon") => stand_in::daemon(),
        Some("__hog") => stand_in::hog(args),
        Some("__stock") => stock::serve(args),
        first => run_tests(first.into_iter().map(str::to_owned).chain(args)),
    }
}

/// Like libtest: arguments without dashes choose cases by a part of their name.
fn run_tests(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let cases: Vec<_> = cases::ALL.iter().filter(|(name, _)| chosen(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let images = match runtime.block_on(images::TestImages::make()) {
        Ok(images) => images,
        Err(why) if std::env::var("EMBERMESH_REQUIRE_DOCKER").as_deref() == Ok("1") => {
            println!("FAILED: EMBERMESH_REQUIRE_DOCKER is set, and there is no Docker engine to test with: {why}");
            return ExitCode::FAILURE;
        }
        Err(why) => {
            println!("SKIPPED: {} tests need a Docker engine: {why}", cases.len());
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = Vec::new();
    for (name, case) in cases {
        let bench = runtime.block_on(bench::Bench::new(&images));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(case(&bench))));
        let left = runtime.block_on(bench.end());
        let passed = outcome.is_ok() && left.is_empty();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            println!("  left behind: {left:?}");
            failed.push(*name);
        }
    }
    runtime.block_on(images.remove());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailures: {}", failed.join(", "));
    ExitCode::FAILURE
}
