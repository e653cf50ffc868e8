//! Reports judged again: whole ones, damaged ones, and ones in which something is wrong.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::tool::Tool;

const SCENARIO: &str = "
duration = '8s'
[mesh]
nodes = 3
[workload]
blocking = 0.5
[[faults]]
kind = 'kill'
at = '3s'
for = '1s'
nodes = ['n2']
";

#[test]
fn a_report_is_judged_by_what_is_in_it_and_refused_if_it_was_damaged() {
    let tool = Tool::new();
    tool.file("scenario.toml", SCENARIO);
    let output = tool.run(&["run", "--scenario", "scenario.toml", "--report", "report"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = tool.path("report");
    assert_eq!(tool.run(&["check", "report"]).status.code(), Some(0));

    // Its time line can be drawn again, and into no file that is there.
    let drawn = ["check", "report", "--timeline", "again.html"];
    assert_eq!(tool.run(&drawn).status.code(), Some(0));
    let pages = ["report/timeline.html", "again.html"].map(|page| fs::read_to_string(tool.path(page)).unwrap());
    assert_eq!(pages[0], pages[1]);
    let (code, said) = tool.refused(&drawn);
    assert!(code == Some(4) && said.contains("again.html exists already"), "{said}");
    let (code, said) = tool.refused(&["check", "report/history/n1.history", "--timeline", "other.html"]);
    assert!(code == Some(2) && said.contains("time line"), "{said}");

    // Something happened that must not: each is seen, and by its name.
    let records = fs::read_to_string(report.join("records.jsonl")).unwrap();
    let requests = fs::read_to_string(report.join("requests.jsonl")).unwrap();
    let accepted = lines(&requests).into_iter().find(|r| r["outcome"] == "accepted").unwrap();
    let id = accepted["activation_id"].as_str().unwrap();
    let without: String = records.lines().filter(|line| !line.contains(id)).map(|line| format!("{line}\n")).collect();
    violated(&tool, "records.jsonl", &without, "A5_accepted_has_one_outcome", id);
    let notes = fs::read_to_string(report.join("notes.jsonl")).unwrap();
    let twice = format!("{notes}{}\n", notes.lines().next().unwrap());
    violated(&tool, "notes.jsonl", &twice, "A1_started_at_most_once", "ran in");
    let crowded = notes.replacen("\"running\":1", "\"running\":9", 1);
    violated(&tool, "notes.jsonl", &crowded, "L0_runs_within_slots", "9 runs at once");
    let answered = requests.replacen("\"outcome\":\"answered\"", "\"outcome\":\"refused\"", 1);
    violated(&tool, "requests.jsonl", &answered, "A2_A3_outcomes_are_true", "Refused");
    let history = fs::read_to_string(report.join("history/n1.history")).unwrap();
    let grant = history.lines().find(|line| line.contains("\"run_began\"")).unwrap();
    violated(&tool, "history/n1.history", &format!("{history}{grant}\n"), "A1_started_at_most_once", "begins twice");

    // Calls that were held back are no open loop.
    let run = fs::read_to_string(report.join("run.json")).unwrap();
    fs::write(report.join("run.json"), run.replace("\"held_back\": 0", "\"held_back\": 3")).unwrap();
    let told = String::from_utf8(tool.run(&["check", "report"]).stdout).unwrap();
    let line = told.lines().find(|line| line.starts_with("calls came when due")).unwrap_or_default();
    assert!(line.contains("not judged") && line.contains("3 calls were not made"), "{told}");
    fs::write(report.join("run.json"), run).unwrap();

    // Damage is named: here it ends in the midst of a line.
    let whole_lines = history[..history.len() / 2].rfind('\n').unwrap();
    let cut = &history[..whole_lines + 10];
    fs::write(report.join("history/n1.history"), cut).unwrap();
    let (code, said) = tool.refused(&["check", "report"]);
    assert!(code == Some(1) && said.contains("n1.history") && said.contains("cut off"), "{said}");
    let alone = ["check", "report/history/n1.history"];
    let (code, said) = tool.refused(&alone);
    assert!(
        code == Some(1) && said.contains("n1.history ends in half a line") && said.contains("--unfinished"),
        "{said}"
    );
    let (code, said) = tool.refused(&[&alone[..], &["--unfinished"]].concat());
    assert!(code == Some(0) && said.contains("n1.history ends in half a line"), "{said}");
    // From a moment on at which the clocks were tied anew, as they are again and again.
    let tie = history.rfind("{\"embermesh_history\"").unwrap();
    let (code, said) = tool.refused(&["check", &tool.file("headless.history", &history[tie..]).display().to_string()]);
    assert!(code == Some(1) && said.contains("headless.history lacks the beginning of n1's life"), "{said}");
    fs::write(report.join("history/n1.history"), &history).unwrap();
    // Half a line is nothing odd of an agent that was killed, which the report knows; of another it is.
    let half = |node: &str| {
        let name = format!("history/{node}.history");
        let [whole, run] = [&name, "run.json"].map(|name| fs::read_to_string(report.join(name)).unwrap());
        let cut = format!("{whole}{}", &grant[..grant.len() / 2]);
        fs::write(report.join(&name), &cut).unwrap();
        sized(&report, &name, cut.len());
        let judged = tool.refused(&["check", "report"]);
        fs::write(report.join(&name), whole).unwrap();
        fs::write(report.join("run.json"), run).unwrap();
        judged
    };
    let (code, said) = half("n2");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = half("n1");
    assert!(code == Some(1) && said.contains("n1.history ends in half a line"), "{said}");
    let run = fs::read_to_string(report.join("run.json")).unwrap();
    fs::write(report.join("run.json"), run.replace("\"embermesh_chaos\": 1", "\"embermesh_chaos\": 2")).unwrap();
    let (code, said) = tool.refused(&["check", "report"]);
    assert!(code == Some(1) && said.contains("version 2") && said.contains("run.json"), "{said}");
    let newer = history.replace("\"embermesh_history\":1", "\"embermesh_history\":2");
    let (code, said) = tool.refused(&["check", &tool.file("newer.history", &newer).display().to_string()]);
    assert!(code == Some(1) && said.contains("version 2") && said.contains("newer.history"), "{said}");
}

/// Judges the report with another content of one file, then puts it back.
#[track_caller]
fn violated(tool: &Tool, name: &str, content: &str, promise: &str, said: &str) {
    let report = tool.path("report");
    let (before, run) = (fs::read(report.join(name)).unwrap(), fs::read(report.join("run.json")).unwrap());
    assert_ne!(before, content.as_bytes(), "{name} was not changed");
    fs::write(report.join(name), content).unwrap();
    sized(&report, name, content.len());
    let output = tool.run(&["check", "report"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let line = told.lines().find(|line| line.starts_with(&format!("{promise}:"))).unwrap_or_default();
    assert!(!line.is_empty() && told.contains(said), "{promise} is not violated:\n{told}");
    fs::write(report.join(name), before).unwrap();
    fs::write(report.join("run.json"), run).unwrap();
}

/// As if the file had been written that way.
fn sized(report: &Path, name: &str, bytes: usize) {
    let mut run: Value = serde_json::from_slice(&fs::read(report.join("run.json")).unwrap()).unwrap();
    run["files"][name] = bytes.into();
    fs::write(report.join("run.json"), serde_json::to_vec(&run).unwrap()).unwrap();
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
