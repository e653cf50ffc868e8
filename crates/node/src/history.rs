//! What this node's core tells of itself, in a file, and the judgement of such files.
//!
//! One JSON object a line. A life of a node begins with a header, which names the version of the format and ties the
//! node's own clock to the wall's; records follow, and now and then another header, since clocks drift apart. Steps of
//! different tasks may be written out of order: their moments and `step` order them. Files of several nodes are merged
//! by the wall clock, so what crosses nodes is judged well on one host only.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use embermesh_core::history::{Judge, Record, Violation, What};
use embermesh_core::{Epoch, NodeId, Time};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, wall_us};

const VERSION: u32 = 1;
/// The clocks are tied again after so long; in between the node's is taken to run at one rate.
const TIE_EVERY_US: u64 = 200_000;
/// Looks at both clocks, of which the quickest counts: whoever looks may lose the processor in between.
const LOOKS: usize = 5;

/// No header's line is as long.
const LONGEST_HEADER: u64 = 4096;
const HEAD: &[u8] = b"{\"embermesh_history\"";

/// The line that a life begins with, and that ties its clock to the wall's anew.
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
    node: NodeId,
    clock: Clock,
    /// None once it could not be written: the node goes on without.
    lines: Mutex<Option<Lines>>,
}

#[derive(Debug)]
struct Lines {
    file: BufWriter<File>,
    /// When the clocks were tied last, by the node's.
    tied: Time,
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
    #[error("{path} has a record before any header: its beginning is missing; give the whole file")]
    NoHeader { path: PathBuf },
    #[error("{path} lacks the beginning of {node}'s life under epoch {epoch}: it was cut off; give the whole file")]
    Headless { path: PathBuf, node: NodeId, epoch: u64 },
    #[error(
        "line {line} of {path} is half a line, and no life begins behind it: a piece is missing; give the whole file"
    )]
    Torn { path: PathBuf, line: usize },
    #[error("{path} is empty: no agent has written its history there")]
    Empty { path: PathBuf },
    #[error(
        "{path} is there and no history of {node} that this build can go on with ({why}): name another file, or move that one away"
    )]
    Foreign { path: PathBuf, node: NodeId, why: String },
}

/// What came of judging.
#[derive(Debug)]
pub struct Judgement {
    pub records: usize,
    /// What happened first that must not.
    pub violation: Option<Violation>,
    /// The first violation of each other invariant.
    pub further: Vec<Violation>,
    /// Files that end in half a line: their agent was killed while it wrote, or they were cut off since.
    pub unfinished: Vec<PathBuf>,
    /// Whether the nodes told what entered and left their containers: L0 is judged by that.
    pub told_of_insides: bool,
}

impl HistoryFile {
    /// Goes on with a history of this node that is there.
    pub(crate) fn open(path: &Path, node: &NodeId, clock: &Clock) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::Open { path: path.to_owned(), source };
        let mut file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        if let Some(why) = foreign(&file, node).map_err(failed)? {
            return Err(HistoryError::Foreign { path: path.to_owned(), node: node.clone(), why });
        }
        let unfinished = is_unfinished(&mut file).map_err(failed)?;
        let mut lines = BufWriter::new(file);
        if unfinished {
            lines.write_all(b"\n").map_err(failed)?;
        }
        let mut lines = Lines { file: lines, tied: Time::default() };
        lines.tie(node, clock).and_then(|()| lines.file.flush()).map_err(failed)?;
        let (node, clock) = (node.clone(), clock.clone());
        Ok(Self { path: path.to_owned(), node, clock, lines: Mutex::new(Some(lines)) })
    }

    pub(crate) fn write(&self, record: &Record) {
        let mut open = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = open.as_mut() else { return };
        // To the kernel at once: a history is there for what happens when an agent is killed.
        let written =
            if record.at.since(lines.tied) < TIE_EVERY_US { Ok(()) } else { lines.tie(&self.node, &self.clock) };
        if let Err(error) = written.and_then(|()| lines.write(record)).and_then(|()| lines.file.flush()) {
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

impl Lines {
    fn tie(&mut self, node: &NodeId, clock: &Clock) -> io::Result<()> {
        let look = || {
            let (before, at, after) = (wall_us(), clock.now(), wall_us());
            (after.saturating_sub(before), before + after.saturating_sub(before) / 2, at)
        };
        let quickest = (0..LOOKS).map(|_| look()).min_by_key(|(took, ..)| *took);
        let Some((_, wall_us, at)) = quickest else { return Ok(()) };
        self.tied = at;
        self.write(&Header { embermesh_history: VERSION, node: node.clone(), wall_us, at })
    }

    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, line)?;
        self.file.write_all(b"\n")
    }
}

/// Why a file that is there is none to go on with, by its first line.
fn foreign(file: &File, node: &NodeId) -> io::Result<Option<String>> {
    // A pipe or a terminal has nothing to look at, and would let us wait.
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    let mut first = Vec::new();
    BufReader::new(file.take(LONGEST_HEADER)).read_until(b'\n', &mut first)?;
    // Where half a line was gone on with, the next life ended it.
    let first = first.strip_suffix(b"\n").unwrap_or(&first);
    Ok(match serde_json::from_slice::<Header>(first) {
        // A life that was over before its first line was written whole: what follows begins anew.
        Err(error) if error.is_eof() && first.starts_with(HEAD) => None,
        Err(_) => Some("it does not begin as a history does".to_owned()),
        Ok(Header { embermesh_history: VERSION, node: of, .. }) if of == *node => None,
        Ok(Header { embermesh_history: VERSION, node: of, .. }) => Some(format!("it is of node {of}")),
        Ok(Header { embermesh_history: version, .. }) => {
            Some(format!("it is of version {version}, this build writes {VERSION}"))
        }
    })
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

/// Judges what nodes of one mesh have written, all of it together.
pub fn judge(paths: &[PathBuf]) -> Result<Judgement, HistoryError> {
    let (mut all, mut unfinished) = (Vec::new(), Vec::new());
    for path in paths {
        let (records, whole) = read(path)?;
        all.extend(records);
        if !whole {
            unfinished.push(path.clone());
        }
    }
    // Stable: what one node did stays in its order.
    all.sort_by_key(|(wall_us, _)| *wall_us);
    let mut judge = Judge::with_story();
    let mut violations: Vec<Violation> = Vec::new();
    for (_, record) in &all {
        for violation in judge.observe_all(record) {
            if violations.iter().all(|known| known.invariant != violation.invariant) {
                violations.push(violation);
            }
        }
    }
    let mut violations = violations.into_iter();
    Ok(Judgement {
        records: all.len(),
        violation: violations.next(),
        further: violations.collect(),
        unfinished,
        told_of_insides: all.iter().any(|(_, record)| matches!(record.what, What::Entered { .. })),
    })
}

/// The records of one file in the order in which they happened, each with its moment on the wall's clock; and whether
/// its last line is whole.
fn read(path: &Path) -> Result<(Vec<(u64, Record)>, bool), HistoryError> {
    let unreadable = |source| HistoryError::Read { path: path.to_owned(), source };
    let mut records = Vec::new();
    let mut header: Option<Header> = None;
    // The first record after the last header.
    let mut tied = 0;
    let mut whole = true;
    for (n, text) in BufReader::new(File::open(path).map_err(unreadable)?).split(b'\n').enumerate() {
        let line = match serde_json::from_slice(&text.map_err(unreadable)?) {
            Ok(line) => line,
            // Half a line of one that was killed; what follows is of another life.
            Err(error) if error.is_eof() && whole => {
                whole = false;
                continue;
            }
            Err(source) => return Err(HistoryError::Line { path: path.to_owned(), line: n + 1, source }),
        };
        if !std::mem::replace(&mut whole, true) && !matches!(line, Line::Header(_)) {
            return Err(HistoryError::Torn { path: path.to_owned(), line: n });
        }
        match line {
            Line::Header(new) if new.embermesh_history != VERSION => {
                return Err(HistoryError::Version { path: path.to_owned(), version: new.embermesh_history });
            }
            Line::Header(new) => {
                if let Some(old) = &header {
                    bend(&mut records[tied..], old, &new);
                }
                (tied, header) = (records.len(), Some(new));
            }
            Line::Record(record) => {
                let Some(header) = &header else { return Err(HistoryError::NoHeader { path: path.to_owned() }) };
                // One that was written late may be of before.
                let wall_us = (header.wall_us + record.at.0).saturating_sub(header.at.0);
                records.push((wall_us, record));
            }
        }
    }
    if header.is_none() {
        return Err(HistoryError::Empty { path: path.to_owned() });
    }
    if let Some((node, epoch)) = headless(&records) {
        return Err(HistoryError::Headless { path: path.to_owned(), node, epoch: epoch.0 });
    }
    // By their moments first: what a container saw is told beside the node's steps.
    records.sort_by_key(|(_, record)| (record.epoch, record.at, record.step));
    // A step that was written late has its moment from its clock: times of one node never go back.
    let mut latest = 0;
    for (wall_us, _) in &mut records {
        latest = latest.max(*wall_us);
        *wall_us = latest;
    }
    Ok((records, whole))
}

/// A life that does not tell how it began. Headers come again and again: a file may begin with one and lack what was
/// before it, and nothing of that life would be judged.
fn headless(records: &[(u64, Record)]) -> Option<(NodeId, Epoch)> {
    let life = |record: &Record| (record.node.clone(), record.epoch);
    let began = records.iter().filter(|(_, record)| matches!(record.what, What::Began(_)));
    let began: BTreeSet<_> = began.map(|(_, record)| life(record)).collect();
    records.iter().map(|(_, record)| life(record)).find(|life| !began.contains(life))
}

/// What was written between two headers of one life goes by the rate that its clock had there.
fn bend(records: &mut [(u64, Record)], from: &Header, to: &Header) {
    let (shown, real) = (to.at.since(from.at), to.wall_us.saturating_sub(from.wall_us));
    // Another life's clock begins anew; and none runs faster or slower than by half.
    if shown == 0 || real > shown * 5 / 2 || real < shown / 2 {
        return;
    }
    for (wall_us, record) in records {
        *wall_us = from.wall_us + record.at.since(from.at) * real / shown;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use embermesh_core::{ActionId, ActionSpec, ActivationId, Config, Epoch, Input, Node, Output, Revision, RunId};

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
        let whole = |path: &PathBuf| judge(std::slice::from_ref(path)).unwrap().unfinished.is_empty();
        assert!(!whole(&path), "half a line at the end is told of");
        play(&HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap(), 2);
        assert!(whole(&path), "another life went on behind it");
        let judgement = judge(&[path]).unwrap();
        assert!(judgement.records > 10, "{judgement:?}");
        assert_eq!(judgement.violation, None);
    }

    #[test]
    fn what_containers_saw_is_judged_between_the_steps_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let file = HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap();
        play(&file, 1);
        let enters = |at: u64, run: u64| {
            let (node, what) = (NodeId::new("n1"), What::Entered { container: 1, run: RunId(run) });
            file.write(&Record { at: Time(at), node, epoch: Epoch(1), step: 0, what });
        };
        // Before the container was made nothing is known of its slots.
        enters(1_999_999, 7);
        assert!(judge(std::slice::from_ref(&path)).unwrap().told_of_insides);
        assert_eq!(judge(std::slice::from_ref(&path)).unwrap().violation, None);
        enters(3_000_000, 8);
        enters(3_000_001, 9);
        let violation = judge(&[path]).unwrap().violation.unwrap();
        assert_eq!(violation.invariant, "L0_runs_within_slots");
    }

    #[test]
    fn a_clock_that_runs_fast_is_tied_to_the_walls_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let clock = Clock::with_drift(500_000);
        let file = HistoryFile::open(&path, &NodeId::new("n1"), &clock).unwrap();
        let record = |at: Time, what| Record { at, node: NodeId::new("n1"), epoch: Epoch(1), step: 0, what };
        file.write(&record(clock.now() + 10_000_000, What::Left { container: 1, run: RunId(1) }));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("embermesh_history").count(), 2, "{text}");
    }

    #[test]
    fn files_that_are_empty_or_of_another_version_or_lack_their_beginning_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n7.history");
        play(&HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).unwrap(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        let without = |word: &str| -> String {
            text.lines().filter(|line| !line.contains(word)).map(|line| format!("{line}\n")).collect()
        };
        let (header, _) = text.split_once('\n').unwrap();
        let half = "{\"at\":2";
        let records = without("embermesh_history");
        for (content, said) in [
            (String::new(), "empty"),
            (text.replace("\"embermesh_history\":1", "\"embermesh_history\":9"), "version 9"),
            (records.clone(), "beginning is missing"),
            // Cut off where the clocks were tied again, and in the middle.
            (without("\"began\""), "lacks the beginning of n1's life under epoch 1"),
            (format!("{header}\n{half}\n{records}"), "line 2 of"),
            (format!("{header}\n{records}{half}\n{half}"), "is no record"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = judge(std::slice::from_ref(&path)).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("n7.history"), "{error}");
        }
    }

    #[test]
    fn a_node_writes_into_no_file_that_is_not_its_own_history() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n7.history");
        let open = || HistoryFile::open(&path, &NodeId::new("n1"), &Clock::default()).map(|_| ());
        let header = |version: u32, node: &str| {
            format!("{{\"embermesh_history\":{version},\"node\":\"{node}\",\"wall_us\":1,\"at\":1}}\n")
        };
        for (content, said) in [
            ("dear diary\n".to_owned(), "does not begin as a history"),
            ("x".repeat(1 << 20), "does not begin as a history"),
            (header(9, "n1"), "of version 9"),
            (header(1, "n2"), "of node n2"),
        ] {
            std::fs::write(&path, &content).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("n7.history") && error.contains("another file"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "it is not touched");
        }
        for content in [String::new(), header(1, "n1"), header(1, "n1")[..40].to_owned()] {
            std::fs::write(&path, &content).unwrap();
            // Whatever a life before found, the next may go on with it as well.
            open().unwrap();
            open().unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().starts_with(&content));
        }
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
