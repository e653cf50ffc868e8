//! The folder that all files of one test's agents are in, by which the host's processes are told apart as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::within;

/// What has been told to end has ended after this, on a busy machine too.
const ENDED: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
    /// Unique, so that meshes of tests that run at the same time don't mix.
    pub(crate) cluster: String,
}

/// One of the host's processes that belongs to a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// As in `/proc/PID/stat`: `T` is stopped.
    pub(crate) state: char,
    pub(crate) args: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cluster = format!("test-{}-{number}", std::process::id());
        let folder = tempfile::Builder::new().prefix("embermesh-").tempdir().unwrap();
        Self { folder, cluster }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All processes that have this folder in their arguments or environment: agents and what is in containers.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes_of(self.path())
    }

    /// Containers' sockets, and mounts in this folder. A namespace lives no longer than its last process, unless it is
    /// mounted.
    fn left_in_kernel(&self) -> Vec<String> {
        let mark = self.path().display().to_string();
        let of = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let [sockets, mounts] = ["/proc/net/unix", "/proc/self/mounts"].map(of);
        let sockets = sockets.lines().filter(|line| line.contains("/containers/"));
        sockets.chain(mounts.lines()).filter(|line| line.contains(&mark)).map(str::to_owned).collect()
    }

    /// Fails when a process of these agents is still there.
    #[track_caller]
    pub(crate) fn expect_no_processes(&self) {
        within(ENDED, "no process of this test is left", || self.processes().is_empty().then_some(()));
    }
}

impl Drop for Place {
    /// Agents that were killed leave their locks for the host behind: harmless, but they would pile up.
    fn drop(&mut self) {
        let own = self.path().display().to_string();
        let user = nix::unistd::geteuid();
        for folder in [PathBuf::from("/run/embermesh"), std::env::temp_dir().join(format!("embermesh-{user}"))] {
            for lock in fs::read_dir(folder).into_iter().flatten().flatten() {
                if fs::read_to_string(lock.path()).is_ok_and(|holder| holder.contains(&own)) {
                    let _ = fs::remove_file(lock.path());
                }
            }
        }
        if !std::thread::panicking() {
            self.expect_no_processes();
            within(ENDED, "no socket and no mount of this test is left", || {
                self.left_in_kernel().is_empty().then_some(())
            });
        }
    }
}

/// Those that have the path in their arguments or environment. Zombies have neither.
pub(crate) fn processes_of(path: &Path) -> Vec<Process> {
    let mark = path.display().to_string();
    let names = |pid: i32, file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    let own = i32::try_from(std::process::id()).unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own && (names(*pid, "environ") || names(*pid, "cmdline")))
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let state = stat.rsplit(") ").next()?.chars().next()?;
            let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
            Some(Process { pid, state, args })
        })
        .collect()
}
