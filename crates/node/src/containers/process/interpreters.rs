//! Where Python and Node.js are. Each is asked for once, when it is first needed.
//!
//! What PATH names may be a shim that takes longer to find the interpreter than that takes to start,
//! so the interpreter itself is asked where it is.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::containers::Runtime;

/// For one candidate to tell where it is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_POLL: Duration = Duration::from_millis(2);
const MAX_ANSWER_BYTES: u64 = 16 * 1024;
/// How long a failure is believed: somebody may be installing what is missing.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The interpreters of this host.
#[derive(Debug)]
pub(super) struct Interpreters {
    python: Lookup,
    nodejs: Lookup,
}

impl Interpreters {
    pub(super) fn new() -> Self {
        Self {
            python: Lookup::new(Family {
                runtime: "Python 3 actions",
                names: &["python3", "python"],
                question: &[
                    "-c",
                    "import sys; print(sys.version_info[0] * 100 + sys.version_info[1]); print(sys.executable)",
                ],
                // contextvars in tasks and threads as the proxy needs them.
                least: 308,
                install: "Python 3.8 or newer, e.g. the package `python3`",
            }),
            nodejs: Lookup::new(Family {
                runtime: "Node.js actions",
                names: &["node", "nodejs"],
                question: &[
                    "-e",
                    "const v = process.versions.node.split('.'); console.log(v[0] * 100 + +v[1]); console.log(process.execPath)",
                ],
                // AsyncLocalStorage no longer experimental.
                least: 1604,
                install: "Node.js 16.4 or newer, e.g. the package `nodejs`",
            }),
        }
    }

    /// The interpreter that `runtime` needs, `None` if it needs none. May take as long as the interpreter
    /// takes to start the first time; the error says what is missing and what to install.
    pub(super) fn find(&self, runtime: Runtime) -> Result<Option<PathBuf>, String> {
        match runtime {
            Runtime::Builtin | Runtime::Native | Runtime::ActionLoop => Ok(None),
            Runtime::Python => self.python.find().map(Some),
            Runtime::NodeJs => self.nodejs.find().map(Some),
            Runtime::Image => Err("the process engine runs no images: start the node with --engine docker".to_owned()),
        }
    }
}

#[derive(Debug)]
struct Family {
    runtime: &'static str,
    /// Names on PATH, the first that will do is taken.
    names: &'static [&'static str],
    /// Makes it print its version as major · 100 + minor, and its own path, each on a line.
    question: &'static [&'static str],
    least: u32,
    install: &'static str,
}

#[derive(Debug)]
struct Lookup {
    family: Family,
    found: Mutex<Option<(Instant, Result<PathBuf, String>)>>,
}

impl Lookup {
    fn new(family: Family) -> Self {
        Self { family, found: Mutex::new(None) }
    }

    fn find(&self) -> Result<PathBuf, String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match &*found {
            Some((_, Ok(path))) => return Ok(path.clone()),
            Some((at, Err(error))) if at.elapsed() < RETRY_AFTER => return Err(error.clone()),
            _ => {}
        }
        let outcome = self.family.search(env::var_os("PATH").unwrap_or_default().as_os_str());
        *found = Some((Instant::now(), outcome.clone()));
        outcome
    }
}

impl Family {
    fn search(&self, path: &std::ffi::OsStr) -> Result<PathBuf, String> {
        let mut refused = Vec::new();
        for name in self.names {
            for candidate in env::split_paths(path).map(|folder| folder.join(name)).filter(|file| file.is_file()) {
                match self.ask(&candidate) {
                    Ok(found) => return Ok(found),
                    Err(error) => refused.push(format!("{}: {error}", candidate.display())),
                }
            }
        }
        let why = match refused.is_empty() {
            true => format!("`{}` is not on PATH", self.names[0]),
            false => refused.join("; "),
        };
        Err(format!("this host cannot run {}: {why}. Install {}", self.runtime, self.install))
    }

    fn ask(&self, candidate: &Path) -> Result<PathBuf, String> {
        let answer = answer(candidate, self.question)?;
        let (version, path) = answer.trim().split_once('\n').ok_or("it does not answer as expected")?;
        let version: u32 = version.trim().parse().map_err(|_| "it does not tell its version")?;
        if version < self.least {
            return Err(format!("version {}.{} is too old", version / 100, version % 100));
        }
        let path = PathBuf::from(path.trim());
        if path.is_absolute() && path.is_file() { Ok(path) } else { Err("it does not tell its own path".to_owned()) }
    }
}

fn answer(program: &Path, args: &[&str]) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(ANSWER_POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {ANSWER_DEADLINE:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    let mut text = String::new();
    let stdout = child.stdout.take().ok_or("its answer is not there")?;
    stdout.take(MAX_ANSWER_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FAMILY: Family =
        Family { runtime: "Test actions", names: &["tester"], question: &["x"], least: 200, install: "tester 2" };

    /// A folder with a shim `tester` that runs `script`, and an executable `real`.
    fn folder(script: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("tester", script), ("real", "exit 0")] {
            let file = folder.path().join(name);
            fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    /// Other tests fork while a script is open for writing, so that it may be busy for a moment.
    fn search(folder: &tempfile::TempDir) -> Result<PathBuf, String> {
        super::super::supervisor::spawn_patiently(|| match FAMILY.search(folder.path().as_os_str()) {
            Err(error) if error.contains("busy") => Err(std::io::ErrorKind::ExecutableFileBusy.into()),
            outcome => Ok(outcome),
        })
        .unwrap()
    }

    #[test]
    fn a_shim_is_asked_for_the_interpreter_behind_it() {
        let folder = folder("echo 205; echo \"$(dirname $0)/real\"");
        assert_eq!(search(&folder).unwrap(), folder.path().join("real"));
    }

    #[test]
    fn a_missing_interpreter_is_named_with_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let error = search(&empty).unwrap_err();
        assert!(error.contains("`tester` is not on PATH") && error.contains("Install tester 2"), "{error}");
    }

    #[test]
    fn one_that_is_too_old_or_fails_or_talks_rubbish_is_refused() {
        for (script, named) in [
            ("echo 108; echo $0", "1.8 is too old"),
            ("exit 3", "exit status: 3"),
            ("echo hello", "as expected"),
            ("echo a; echo b", "version"),
            ("echo 205; echo /nowhere/real", "own path"),
        ] {
            let error = search(&folder(script)).unwrap_err();
            assert!(error.contains(named), "{script}: {error}");
        }
    }

    #[test]
    fn runtimes_without_interpreter_need_none() {
        assert_eq!(Interpreters::new().find(Runtime::Builtin), Ok(None));
    }
}
