//! The scenarios of docs/chaos.md, as they stand there.

use crate::tool::{Tool, verdicts};

const DOC: &str = include_str!("../../docs/chaos.md");

#[test]
fn the_first_example_of_the_documentation_keeps_its_promises() {
    example(0, &["partition"]);
}

#[test]
fn the_second_example_of_the_documentation_keeps_its_promises() {
    example(1, &["delay", "loss", "clock"]);
}

#[test]
fn the_third_example_of_the_documentation_keeps_its_promises() {
    example(2, &["kill", "engine", "kill", "kill"]);
}

#[track_caller]
fn example(n: usize, kinds: &[&str]) {
    let examples: Vec<&str> = DOC.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3, "each has a test here");
    let tool = Tool::new();
    tool.file("scenario.toml", examples[n]);
    let output = tool.run(&["run", "--scenario", "scenario.toml", "--report", "report"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(verdicts(&tool.path("report")).iter().any(|(_, verdict)| verdict == "held"));
    let faults = std::fs::read_to_string(tool.path("report").join("faults.jsonl")).unwrap();
    for kind in kinds {
        let made = faults.matches(&format!("\"kind\":\"{kind}\"")).count();
        assert_eq!(made, kinds.iter().filter(|k| *k == kind).count(), "{kind}: {faults}");
    }
    tool.expect_nothing_left();
}
