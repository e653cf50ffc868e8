//! What a run leaves: the same folder that `embermesh chaos run --report` makes, judged by `embermesh chaos check`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::Mesh;
use crate::support::agent::BINARY;

/// Of the folder's format.
const VERSION: u32 = 1;
const HISTORIES: &str = "history";
const LOGS: &str = "logs";
const NOTES: &str = "notes.jsonl";
/// Lines of logs that are quoted.
const MOST_PANICS: usize = 20;

pub(crate) struct Report {
    path: PathBuf,
    /// Where nobody asked for one: kept if something does not hold.
    passing: Option<TempDir>,
}

/// A promise, as it was judged.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) verdict: String,
    pub(crate) seen: String,
}

impl Report {
    /// Where `EMBERMESH_NEMESIS_REPORT` says, which must not be there yet.
    pub(crate) fn new() -> Self {
        let report = match std::env::var_os("EMBERMESH_NEMESIS_REPORT") {
            Some(wanted) => {
                fs::create_dir(&wanted).unwrap_or_else(|error| panic!("the report {wanted:?} can't be made: {error}"));
                Self { path: fs::canonicalize(wanted).unwrap(), passing: None }
            }
            None => {
                let passing = tempfile::Builder::new().prefix("embermesh-nemesis-").tempdir().unwrap();
                Self { path: passing.path().to_owned(), passing: Some(passing) }
            }
        };
        for below in [HISTORIES, LOGS] {
            fs::create_dir(report.path.join(below)).unwrap();
        }
        fs::write(report.notes(), "").unwrap();
        report
    }

    pub(crate) fn histories(&self) -> PathBuf {
        self.path.join(HISTORIES)
    }

    pub(crate) fn notes(&self) -> PathBuf {
        self.path.join(NOTES)
    }

    /// Copies the agents' logs; the lines in which one panicked.
    pub(crate) fn keep_logs(&self, mesh: &Mesh) -> Vec<String> {
        let mut panics = Vec::new();
        for agent in &mesh.agents {
            let log = agent.log();
            fs::write(self.path.join(LOGS).join(format!("{}.log", agent.id())), &log).unwrap();
            let panicked = log.lines().filter(|line| line.contains("panicked at"));
            panics.extend(panicked.map(|line| format!("{}: {line}", agent.id())).take(MOST_PANICS));
        }
        panics
    }

    pub(crate) fn write_lines(&self, name: &str, lines: &[impl Serialize]) {
        let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        fs::write(self.path.join(name), text).unwrap();
    }

    pub(crate) fn write_scenario(&self, scenario: &Value) {
        fs::write(self.path.join("scenario.toml"), toml::to_string(scenario).unwrap()).unwrap();
    }

    /// Written last: it tells the sizes of all other files.
    pub(crate) fn write_run(&self, mut run: Value) {
        run["embermesh_chaos"] = VERSION.into();
        run["files"] =
            json!(["", HISTORIES, LOGS].into_iter().flat_map(|below| self.sizes(below)).collect::<BTreeMap<_, _>>());
        fs::write(self.path.join("run.json"), serde_json::to_vec_pretty(&run).unwrap()).unwrap();
    }

    fn sizes(&self, below: &str) -> Vec<(String, u64)> {
        let files = fs::read_dir(self.path.join(below)).unwrap().map(Result::unwrap);
        let sizes = files.filter(|file| file.metadata().unwrap().is_file()).map(|file| {
            let name = Path::new(below).join(file.file_name()).to_string_lossy().into_owned();
            (name, file.metadata().unwrap().len())
        });
        sizes.collect()
    }

    /// Has it judged, and draws its time line.
    pub(crate) fn judge(&self) -> Vec<Verdict> {
        let mut command = Command::new(BINARY);
        command.args(["chaos", "check", "--output", "json"]).arg(&self.path);
        command.arg("--timeline").arg(self.path.join("timeline.html"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "the report can't be judged: {said}");
        fs::write(self.path.join("checks.json"), &output.stdout).unwrap();
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
        let verdict = |check: &Value| Verdict {
            name: text(check, "name"),
            verdict: text(check, "verdict"),
            seen: text(check, "seen"),
        };
        let verdicts: Vec<Verdict> = checks.as_array().unwrap().iter().map(verdict).collect();
        let violated = verdicts.iter().any(|verdict| verdict.verdict == "violated");
        assert_eq!(output.status.code(), Some(i32::from(violated)), "{said}");
        verdicts
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(passing) = self.passing.take()
        {
            eprintln!("report: {}", passing.keep().display());
        }
    }
}
