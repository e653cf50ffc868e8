//! Ring 1: the checked model.

use std::time::Duration;

use embermesh_sim::model::{Mesh, Setting};

/// Longer than any configuration takes; one that is not done by then fails.
const LIMIT: Duration = Duration::from_secs(1_200);

#[test]
fn every_state_of_the_small_configurations_keeps_every_invariant() {
    check(Setting::small());
}

#[test]
#[ignore = "takes minutes to hours: cargo test -p embermesh-sim --test model -- --ignored --nocapture"]
fn every_state_of_the_large_configurations_keeps_every_invariant() {
    check(Setting::large());
}

fn check(settings: Vec<Setting>) {
    let mut wrong = Vec::new();
    let mut total = 0;
    let only = std::env::var("EMBERMESH_MODEL").unwrap_or_default();
    for setting in settings.into_iter().filter(|s| s.name.contains(&only)) {
        let name = setting.name;
        let report = Mesh::new(setting).check(LIMIT);
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
            wrong.push(format!("{name}: not done after {LIMIT:?}"));
        } else if !report.missing.is_empty() {
            wrong.push(format!("{name}: never reached {:?}, so it proves nothing", report.missing));
        }
    }
    println!("{total} states in all");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
