//! Ring 1: the checked model.

use std::time::Duration;

use embermesh_sim::model::{Mesh, Paths, Setting};

/// Longer than any small configuration takes; one that is not done by then fails.
const LIMIT: Duration = Duration::from_secs(1_200);

#[test]
fn every_state_of_the_small_configurations_keeps_every_invariant() {
    check(Setting::small());
}

/// R5, L7 and A4 come true: what is quiet is at rest, so it is enough that every path comes to where all is quiet.
#[test]
fn every_path_of_the_small_configurations_ends_and_then_all_is_quiet() {
    for setting in Setting::small() {
        let name = setting.name;
        match Mesh::new(setting).paths(LIMIT) {
            Paths::End(states) => println!("{name}: all paths end, {states} states"),
            other => panic!("{name}: {other:#?}"),
        }
    }
}

#[test]
fn states_that_are_spared_would_have_told_nothing_new() {
    // One fault of most kinds, and two peers; the others take longer and have no rule more.
    for setting in Setting::small().into_iter().take(7).chain(Setting::prompt().into_iter().take(4)) {
        let name = setting.name;
        let whole = Mesh::new(Setting { whole: true, ..setting.clone() }).check(LIMIT, 2);
        let fewer = Mesh::new(setting).check(LIMIT, 2);
        println!("{name}: {} different states, of {}", fewer.unique, whole.unique);
        assert!(whole.complete && fewer.complete, "{name}: {whole:#?} {fewer:#?}");
        assert_eq!(whole.reached, fewer.reached, "{name}");
        assert!(fewer.unique < whole.unique, "{name}: none is spared");
    }
}

#[test]
fn every_state_of_the_prompt_configurations_keeps_every_invariant() {
    check(Setting::prompt());
}

#[test]
#[ignore = "takes minutes: cargo test --release -p embermesh-sim --test model -- --ignored --nocapture; EMBERMESH_MODEL names one"]
fn every_state_of_the_large_configurations_keeps_every_invariant() {
    check(Setting::large());
}

fn check(settings: Vec<Setting>) {
    let mut wrong = Vec::new();
    let mut total = 0;
    let only = std::env::var("EMBERMESH_MODEL").unwrap_or_default();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let limit = number("EMBERMESH_MODEL_SECONDS").map_or(LIMIT, Duration::from_secs);
    let threads = number("EMBERMESH_MODEL_THREADS").unwrap_or(2) as usize;
    for setting in settings.into_iter().filter(|s| s.name.contains(&only)) {
        let name = setting.name;
        let report = Mesh::new(setting).check(limit, threads);
        println!(
            "{name}: {} states, {} different, depth {}, {:.1} s",
            report.states,
            report.unique,
            report.depth,
            report.took.as_secs_f64()
        );
        total += report.states;
        if let Some((violation, path)) = report.violation {
            wrong.push(format!("{name}: {violation}\n{path:#?}"));
        } else if !report.complete {
            wrong.push(format!("{name}: not done after {limit:?}"));
        } else if !report.missing.is_empty() {
            wrong.push(format!("{name}: never reached {:?}, so it proves nothing", report.missing));
        }
    }
    println!("{total} states in all");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
