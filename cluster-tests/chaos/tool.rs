//! The tool as a process, with a temporary folder of its own by which everything it starts can be told.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// For what should happen soon, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(20);

/// Runs have the machine for themselves: what they demand is measured in seconds.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) struct Tool {
    /// Holds the temporary folder of the tool, and what tests write.
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Tool {
    pub(crate) fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("chaos-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tmp")).unwrap();
        Self { folder, _alone: alone }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embermesh"));
        command.arg("chaos").args(args).current_dir(self.folder.path()).env("TMPDIR", self.path("tmp"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Its exit code and what it said on standard error.
    pub(crate) fn refused(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Fails unless every process is gone, and every file that is not a test's own.
    #[track_caller]
    pub(crate) fn expect_nothing_left(&self) {
        self.expect_no_processes();
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    #[track_caller]
    pub(crate) fn expect_no_processes(&self) {
        let mark = self.path("tmp").display().to_string();
        until("all processes are gone", || processes_of(&mark).is_empty());
    }
}

/// The verdicts of `checks.json`, by name.
pub(crate) fn verdicts(report: &Path) -> Vec<(String, String)> {
    let checks: Value = serde_json::from_slice(&std::fs::read(report.join("checks.json")).unwrap()).unwrap();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    checks.as_array().unwrap().iter().map(|c| (text(c, "name"), text(c, "verdict"))).collect()
}

#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The command lines of processes that have the mark in their arguments or environment.
pub(crate) fn processes_of(mark: &str) -> Vec<String> {
    let has = |path: &Path, file: &str| {
        let text = std::fs::read(path.join(file)).unwrap_or_default();
        text.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| has(path, "cmdline") || has(path, "environ"))
        .map(|path| std::fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " "))
        .collect()
}
