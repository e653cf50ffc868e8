//! The gate: every known bug is planted in the production path, one after the other, and the checkers must see it; the
//! code as it ships they must not flag. Bugs in the driver need a real node: `crates/node/tests/gate`.
//!
//! `cargo test -p embermesh-sim --features mutations --test gate -- --nocapture` prints the table.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use embermesh_core::mutations::{Mutation, set};
use embermesh_sim::mesh::{self, plan};
use embermesh_sim::model::{Mesh, Setting};
use embermesh_sim::rules;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// Seeded cases of the mesh before it counts as blind to a bug.
const CASES: usize = 300;
/// Of the model's small configurations so many; the others are the largest and see nothing more.
const CONFIGURATIONS: usize = 12;
/// For one of them.
const LIMIT: Duration = Duration::from_secs(120);

/// What a ring has to say of a bug.
struct Caught {
    by: String,
    after: String,
}

#[test]
fn each_planted_bug_is_caught_and_the_code_as_it_ships_is_not_flagged() {
    // Bugs make nodes panic; which one it was is in the table.
    std::panic::set_hook(Box::new(|_| {}));
    set(None);
    let flagged: Vec<_> = rings().into_iter().flatten().map(|c| c.by).collect();
    let mut blind = Vec::new();
    println!("| planted bug | model | mesh | rules |\n| --- | --- | --- | --- |");
    for mutation in Mutation::CORE {
        set(Some(mutation));
        let caught = rings();
        set(None);
        let cells = caught.each_ref().map(|c| c.as_ref().map_or("-".to_owned(), |c| format!("{} ({})", c.by, c.after)));
        println!("| {mutation:?} | {} |", cells.join(" | "));
        if caught.iter().all(Option::is_none) {
            blind.push(mutation);
        }
    }
    let _ = std::panic::take_hook();
    assert!(flagged.is_empty(), "the code as it ships is flagged: {flagged:?}");
    assert!(blind.is_empty(), "nothing sees {blind:?}");
}

fn rings() -> [Option<Caught>; 3] {
    [by_model(), by_mesh(), by_rules()]
}

fn by_model() -> Option<Caught> {
    let mut states = 0;
    for setting in Setting::small().into_iter().take(CONFIGURATIONS) {
        let name = setting.name;
        let report = Mesh::new(setting).check(LIMIT, 2);
        states += report.states;
        if let Some((violation, path)) = report.violation {
            let after = format!("{states} states, {} moves, {name}", path.len());
            return Some(Caught { by: violation.invariant.to_owned(), after });
        }
    }
    None
}

fn by_mesh() -> Option<Caught> {
    let mut runner = TestRunner::deterministic();
    for case in 1..=CASES {
        let plan = plan::plans().new_tree(&mut runner).unwrap().current();
        let by = match catch_unwind(AssertUnwindSafe(|| mesh::run(&plan))) {
            Ok(outcome) => outcome.violation.map(|v| v.invariant.to_owned()),
            Err(_) => Some("the core's own assertions".to_owned()),
        };
        if let Some(by) = by {
            return Some(Caught { by, after: format!("case {case}") });
        }
    }
    None
}

fn by_rules() -> Option<Caught> {
    let caught = |by: &str, after| Some(Caught { by: by.to_owned(), after });
    if rules::one_keeper(3).is_err() {
        return caught("one keeper", "3 siblings".to_owned());
    }
    let unfair = (1..200).find(|seed| rules::fair_share(*seed).is_err());
    unfair.and_then(|seed| caught("Q1_fair_share", format!("seed {seed}")))
}
