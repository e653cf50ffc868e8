//! Ring 1: the checked model.

use std::time::Duration;

use embermesh_sim::model::{Mesh, Paths, Seen, Setting};

/// Longer than any small configuration takes; one that is not done by then fails.
const LIMIT: Duration = Duration::from_secs(1_200);

#[test]
fn every_state_of_the_small_configurations_keeps_every_invariant() {
    check(Setting::small());
}

/// R5, L7 and A4 come true: what is quiet is at rest, so it is enough that every path comes to where all is quiet.
#[test]
fn every_path_of_the_small_and_the_prompt_configurations_ends_and_then_all_is_quiet() {
    for setting in Setting::small().into_iter().chain(Setting::prompt()) {
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
    for setting in Setting::small().into_iter().take(7).chain(Setting::prompt().into_iter().take(6)) {
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

/// A run that proves nothing must not pass for proof.
#[test]
fn a_configuration_that_misses_what_it_names_or_is_not_done_in_time_is_wrong() {
    let [calm, ..] = &Setting::small()[..] else { panic!("there are none") };
    // Nothing fails in it.
    let blind = Setting { name: "blind", expects: &[Seen::Grant, Seen::NotBegun], ..calm.clone() };
    let wrong = wrong_of(blind, LIMIT, 1);
    assert_eq!(wrong.as_deref(), Some("blind: never reached [NotBegun], so it proves nothing"));
    let slow = Setting { name: "slow", ..calm.clone() };
    let wrong = wrong_of(slow, Duration::from_millis(1), 1);
    assert_eq!(wrong.as_deref(), Some("slow: not done after 1ms"));
    assert_eq!(wrong_of(calm.clone(), LIMIT, 1), None);
}

fn check(settings: Vec<Setting>) {
    let only = std::env::var("EMBERMESH_MODEL").unwrap_or_default();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let limit = number("EMBERMESH_MODEL_SECONDS").map_or(LIMIT, Duration::from_secs);
    let threads = number("EMBERMESH_MODEL_THREADS").unwrap_or(2) as usize;
    let settings = settings.into_iter().filter(|s| s.name.contains(&only));
    let wrong: Vec<_> = settings.filter_map(|setting| wrong_of(setting, limit, threads)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with a configuration, or with what was looked at of it.
fn wrong_of(setting: Setting, limit: Duration, threads: usize) -> Option<String> {
    let name = setting.name;
    let report = Mesh::new(setting).check(limit, threads);
    println!(
        "{name}: {} states, {} different, depth {}, {:.1} s",
        report.states,
        report.unique,
        report.depth,
        report.took.as_secs_f64()
    );
    if let Some((violation, path)) = report.violation {
        return Some(format!("{name}: {violation}\n{path:#?}"));
    }
    if !report.complete {
        return Some(format!("{name}: not done after {limit:?}"));
    }
    let missing = report.missing;
    (!missing.is_empty()).then(|| format!("{name}: never reached {missing:?}, so it proves nothing"))
}
