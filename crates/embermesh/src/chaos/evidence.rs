//! What a run leaves to be judged: plain files in one folder, written once, read by whoever judges.
//!
//! | file | holds |
//! | --- | --- |
//! | `run.json` | what was run, what was observed of the mesh as a whole, and how large each file is |
//! | `scenario.toml` | the scenario, to be run again |
//! | `faults.jsonl`, `requests.jsonl`, `records.jsonl` | each fault as it was made, each call with its outcome, each record that a node keeps |
//! | `notes.jsonl` | what the actions wrote down when they began and ended |
//! | `history/n1.history` … | what each node told of itself |
//! | `logs/n1.log` … | each agent's log |
//! | `checks.json`, `timeline.html` | what the judgement came to |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::scenario::{Kind, Scenario};

pub(super) const VERSION: u32 = 1;
const RUN: &str = "run.json";
const SCENARIO: &str = "scenario.toml";
const FAULTS: &str = "faults.jsonl";
const REQUESTS: &str = "requests.jsonl";
const RECORDS: &str = "records.jsonl";
pub(super) const NOTES: &str = "notes.jsonl";
pub(super) const HISTORIES: &str = "history";
pub(super) const LOGS: &str = "logs";
const CHECKS: &str = "checks.json";
const TIMELINE: &str = "timeline.html";

/// About the run as a whole. Moments are milliseconds since it began.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    /// The version of this folder's format.
    pub(super) embermesh_chaos: u32,
    pub(super) began_unix_ms: u64,
    pub(super) nodes: Vec<String>,
    /// How to do the same again, if not by the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<String>,
    /// Kinds that were asked for and can't be made here: why.
    pub(super) left_out: BTreeMap<Kind, String>,
    /// When the last fault had ended.
    pub(super) faults_ended_ms: u64,
    /// When every node served every action again and knew every other.
    pub(super) healed_ms: Option<u64>,
    /// What was not whole at the end of the wait, if it did not heal.
    pub(super) not_healed: Vec<String>,
    pub(super) calls_ended_ms: u64,
    /// Calls that were due and not made, since too many others were open.
    pub(super) held_back: u64,
    /// Leases, runs and waiting calls that were there long after the last call.
    pub(super) not_at_rest: Vec<String>,
    /// When nothing of that was left.
    pub(super) at_rest_ms: Option<u64>,
    /// Agents that ended by themselves, or did not end when they were told to.
    pub(super) agents_astray: Vec<String>,
    /// Processes and containers of the mesh that were there after its end.
    pub(super) left_behind: Vec<String>,
    /// Lines of logs in which an agent panicked.
    pub(super) panics: Vec<String>,
    /// Bytes of each other file.
    pub(super) files: BTreeMap<String, u64>,
}

/// One fault as it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) nodes: Vec<String>,
    pub(super) says: String,
    pub(super) from_ms: u64,
    /// For a kill: until it serves again.
    pub(super) to_ms: u64,
    /// Why it could not be made or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
}

/// One call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// Its number, which the action writes down.
    pub(super) n: u64,
    pub(super) node: String,
    pub(super) action: String,
    pub(super) blocking: bool,
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
    pub(super) outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) activation_id: Option<String>,
    /// What was said of a failure; for a success what does not fit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) said: String,
    /// The record as it was seen first, for one that was answered 202.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// 200, with the result.
    Answered,
    /// 202.
    Accepted,
    /// It has not run, and will not.
    Refused,
    /// Its container failed; it may have run.
    Failed,
    /// Nobody knows whether it ran, as its record says.
    Indeterminate,
    /// The node could not promise to go on with it.
    Unpromised,
    /// No connection: it never left.
    Unreached,
    /// The connection broke.
    Broken,
    /// No answer in time.
    Silent,
    /// An answer that must not be.
    Odd,
}

/// A record that a node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) node: String,
    pub(super) activation_id: String,
    /// OpenWhisk's: 0 a success, 1 and 2 the action's failures, 3 an internal one.
    pub(super) status: u8,
    pub(super) indeterminate: bool,
    pub(super) start_ms: u64,
    pub(super) end_ms: u64,
}

/// What an action wrote down.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Note {
    pub(super) n: u64,
    pub(super) event: String,
    pub(super) activation_id: String,
    pub(super) container: String,
    pub(super) running: u64,
}

/// Everything but the histories.
pub(super) struct Evidence {
    pub(super) run: Run,
    pub(super) scenario: Scenario,
    pub(super) faults: Vec<Made>,
    pub(super) requests: Vec<Request>,
    pub(super) records: Vec<Record>,
    pub(super) notes: Vec<Note>,
}

/// Why a folder can't be written or judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("{path} can't be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no report of `embermesh chaos run`: it has no {RUN}")]
    NoReport { path: PathBuf },
    #[error("{path} is not to be understood: {why}")]
    Garbled { path: PathBuf, why: String },
    #[error("{path} is of version {version}, this build reads {VERSION}: judge it with the build that wrote it")]
    Version { path: PathBuf, version: u64 },
    #[error("{path} has {found} bytes and had {expected} when it was written: it was cut off or changed since")]
    Truncated { path: PathBuf, expected: u64, found: u64 },
}

impl Evidence {
    /// Writes everything into a folder that has the histories, notes and logs already.
    pub(super) fn write(&mut self, folder: &Path) -> Result<(), ReportError> {
        let scenario = self.scenario.to_toml().map_err(|e| garbled(&folder.join(SCENARIO), e))?;
        write(&folder.join(SCENARIO), scenario.as_bytes())?;
        write_lines(&folder.join(FAULTS), &self.faults)?;
        write_lines(&folder.join(REQUESTS), &self.requests)?;
        write_lines(&folder.join(RECORDS), &self.records)?;
        self.run.embermesh_chaos = VERSION;
        self.run.files = sizes(folder)?;
        write_json(&folder.join(RUN), &self.run)
    }

    pub(super) fn read(folder: &Path) -> Result<Self, ReportError> {
        let path = folder.join(RUN);
        if !path.is_file() {
            return Err(ReportError::NoReport { path: folder.to_owned() });
        }
        let run: serde_json::Value = serde_json::from_slice(&read(&path)?).map_err(|e| garbled(&path, e))?;
        let version = run["embermesh_chaos"].as_u64().unwrap_or(0);
        if version != u64::from(VERSION) {
            return Err(ReportError::Version { path, version });
        }
        let run: Run = serde_json::from_value(run).map_err(|e| garbled(&path, e))?;
        for (name, expected) in &run.files {
            let path = folder.join(name);
            let found = fs::metadata(&path).map_err(|source| ReportError::Read { path: path.clone(), source })?.len();
            if found != *expected {
                return Err(ReportError::Truncated { path, expected: *expected, found });
            }
        }
        let path = folder.join(SCENARIO);
        let scenario = Scenario::parse(&String::from_utf8_lossy(&read(&path)?)).map_err(|e| garbled(&path, e))?;
        Ok(Self {
            faults: read_lines(&folder.join(FAULTS))?,
            requests: read_lines(&folder.join(REQUESTS))?,
            records: read_lines(&folder.join(RECORDS))?,
            notes: read_lines(&folder.join(NOTES))?,
            run,
            scenario,
        })
    }

    pub(super) fn histories(&self, folder: &Path) -> Vec<PathBuf> {
        self.run.nodes.iter().map(|id| folder.join(HISTORIES).join(format!("{id}.history"))).collect()
    }
}

pub(super) fn write_judgement(folder: &Path, checks: &impl Serialize, timeline: &str) -> Result<(), ReportError> {
    write_json(&folder.join(CHECKS), checks)?;
    write(&folder.join(TIMELINE), timeline.as_bytes())
}

/// The sizes of all files so far.
fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>, ReportError> {
    let mut sizes = BTreeMap::new();
    for below in ["", HISTORIES, LOGS] {
        let path = folder.join(below);
        let failed = |source| ReportError::Read { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_file() {
                let name = Path::new(below).join(entry.file_name());
                sizes.insert(name.to_string_lossy().into_owned(), metadata.len());
            }
        }
    }
    Ok(sizes)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ReportError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| garbled(path, e))?;
    text.push(b'\n');
    write(path, &text)
}

fn write_lines<T: Serialize>(path: &Path, lines: &[T]) -> Result<(), ReportError> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(|e| garbled(path, e))?;
        text.push(b'\n');
    }
    write(path, &text)
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let text = read(path)?;
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(n, line)| serde_json::from_slice(line).map_err(|e| garbled(path, format!("line {}: {e}", n + 1))))
        .collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    fs::write(path, bytes).map_err(|source| ReportError::Write { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, ReportError> {
    fs::read(path).map_err(|source| ReportError::Read { path: path.to_owned(), source })
}

fn garbled(path: &Path, why: impl ToString) -> ReportError {
    ReportError::Garbled { path: path.to_owned(), why: why.to_string() }
}
