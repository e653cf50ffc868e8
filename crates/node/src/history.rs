//! What this node's core tells of itself, in a file, and the judgement of such files.
//!
//! One JSON object a line. A life of a node begins with a header, which names the version of the format and ties the
//! node's own clock to the wall's; records follow. Steps of different tasks may be written out of order: `step` orders
//! them. Files of several nodes are merged by the wall clock, so what crosses nodes is judged well on one host only.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use embermesh_core::history::{Judge, Record, Violation};
use embermesh_core::{NodeId, Time};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, wall_us};

const VERSION: u32 = 1;

/// The line that a life begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    embermesh_history: u32,
    node: NodeId,
    /// The wall's clock in Unix microseconds, and the node's at the same moment.
    wall_us: u64,
    at: Time,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Header(Header),
    Record(Record),
}

/// Who is told a node's history, record by record, as it happens.
pub trait HistorySink: Send + Sync + std::fmt::Debug + 'static {
    fn write(&self, record: &Record);
}

/// Where a node's history is written.
#[derive(Debug)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    /// None once it could not be written: the node goes on without.
    lines: Mutex<Option<BufWriter<File>>>,
}

/// Why a history can't be kept or judged.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("the history {path} can't be opened: {source}; give a file in a folder that exists and may be written")]
    Open { path: PathBuf, source: io::Error },
    #[error("the history {path} can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("line {line} of {path} is no record of a history: {source}")]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} is of version {version}, this build reads {VERSION}: judge it with the build that wrote it")]
    Version { path: PathBuf, version: u32 },
    #[error("{path} has a record before any header: it is not whole")]
    NoHeader { path: PathBuf },
}

/// What came of judging.
#[derive(Debug)]
pub struct Judgement {
    pub records: usize,
    pub violation: Option<Violation>,
}

impl HistoryFile {
    /// Goes on with a file that is there.
    pub(crate) fn open(path: &Path, node: &NodeId, clock: &Clock) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::Open { path: path.to_owned(), source };
        let mut file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        let unfinished = is_unfinished(&mut file).map_err(failed)?;
        let mut lines = BufWriter::new(file);
        if unfinished {
            lines.write_all(b"\n").map_err(failed)?;
        }
        let header = Header { embermesh_history: VERSION, node: node.clone(), wall_us: wall_us(), at: clock.now() };
        write_line(&mut lines, &header).and_then(|()| lines.flush()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), lines: Mutex::new(Some(lines)) })
    }

    pub(crate) fn write(&self, record: &Record) {
        let mut open = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = open.as_mut() else { return };
        // To the kernel at once: a history is there for what happens when an agent is killed.
        if let Err(error) = write_line(lines, record).and_then(|()| lines.flush()) {
            tracing::error!(path = %self.path.display(), %error, "the history ends here");
            *open = None;
        }
    }
}

impl HistorySink for HistoryFile {
    fn write(&self, record: &Record) {
        HistoryFile::write(self, record);
    }
}

/// An agent that was killed may have left half a line.
fn is_unfinished(file: &mut File) -> io::Result<bool> {
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last != [b'\n'])
}

fn write_line(lines: &mut BufWriter<File>, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, line)?;
    lines.write_all(b"\n")
}

/// Judges what nodes of one mesh have written, all of it together.
pub fn judge(paths: &[PathBuf]) -> Result<Judgement, HistoryError> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(read(path)?);
    }
    // Stable: what one node did stays in its order.
    all.sort_by_key(|(wall_us, _)| *wall_us);
    let mut judge = Judge::with_story();
    let violation = all.iter().find_map(|(_, record)| judge.observe(record).err());
    Ok(Judgement { records: all.len(), violation })
}

/// The records of one file in the order of the node's steps, each with its moment on the wall's clock.
fn read(path: &Path) -> Result<Vec<(u64, Record)>, HistoryError> {
    let unreadable = |source| HistoryError::Read { path: path.to_owned(), source };
    let mut records = Vec::new();
    let mut header: Option<Header> = None;
    let lines: Vec<String> =
        BufReader::new(File::open(path).map_err(unreadable)?).lines().collect::<Result<_, _>>().map_err(unreadable)?;
    for (n, text) in lines.iter().enumerate() {
        let line = match serde_json::from_str(text) {
            Ok(line) => line,
            // Half a line of one that was killed; what follows is of another life.
            Err(error) if error.is_eof() => continue,
            Err(source) => return Err(HistoryError::Line { path: path.to_owned(), line: n + 1, source }),
        };
        match line {
            Line::Header(new) if new.embermesh_history != VERSION => {
                return Err(HistoryError::Version { path: path.to_owned(), version: new.embermesh_history });
            }
            Line::Header(new) => header = Some(new),
            Line::Record(record) => {
                let Some(header) = &header else { return Err(HistoryError::NoHeader { path: path.to_owned() }) };
                records.push((header.wall_us + record.at.since(header.at), record));
            }
        }
    }
    records.sort_by_key(|(_, record)| (record.epoch, record.step));
    // A step that was written late has its moment from its clock: times of one node never go back.
    let mut latest = 0;
    for (wall_us, _) in &mut records {
        latest = latest.max(*wall_us);
        *wall_us = latest;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use embermesh_core::{ActionId, ActionSpec, ActivationId, Config, Epoch, Input, Node, Output, Revision};

    use super::*;

    /// A node that accepts one activation and starts a container for it.
    fn play(file: &HistoryFile, epoch: u64) {
        let spec = Arc::new(ActionSpec {
            action: ActionId::new("guest", "hello"),
            revision: Revision { counter: 1, node: NodeId::new("n1") },
            concurrency: 1,
            memory_mb: 256,
            timeout_us: 1_000,
            idempotent: false,
            image: "image".into(),
        });
        let mut node = Node::new(NodeId::new("n1"), Epoch(epoch), Arc::new(Config::default()), 1).with_history();
        let activation = ActivationId(u128::MAX - u128::from(epoch));
        let inputs = [
            Input::InvokeRequested { activation, spec, body_bytes: 1, attempt: 0, journaled: false },
            Input::ContainerCreated { container: 1 },
            Input::ContainerReady { container: 1 },
        ];
        for (n, input) in inputs.into_iter().enumerate() {
            let mut outputs = Vec::new();
            node.handle(Time(2_000_000 + n as u64), input, &mut outputs);
            for output in outputs {
                if let Output::History(record) = output {
                    file.write(&record);
                }
            }
        }
    }

    #[test]
    fn a_history_that_was_written_is_read_and_judged_with_all_its_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        play(&HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap(), 1);
        let killed = std::fs::read_to_string(&path).unwrap() + "{\"at\":20000";
        std::fs::write(&path, killed).unwrap();
        play(&HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap(), 2);
        let judgement = judge(&[path]).unwrap();
        assert!(judgement.records > 10, "{judgement:?}");
        assert_eq!(judgement.violation, None);
    }

    #[test]
    fn a_history_in_which_an_epoch_comes_again_is_flagged_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        play(&HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap(), 7);
        let twice = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, twice.clone() + &twice).unwrap();
        let violation = judge(&[path]).unwrap().violation.unwrap();
        assert_eq!(violation.invariant, "G2_epoch_never_regresses");
    }

    #[test]
    fn a_file_that_is_no_history_is_an_error_that_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        std::fs::write(&path, "hello\n").unwrap();
        let error = judge(&[path]).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
