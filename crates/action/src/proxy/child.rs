//! The process behind the proxy, and every orphan that lands here.
//!
//! As PID 1 (or subreaper) the proxy must reap whatever ends. `Children` alone waits for processes, all of them, and
//! tells those who asked about one; nothing else here (`std`'s or tokio's `Child`) ever waits, so that no exit
//! status can be taken by the wrong one. This rests on the proxy's runtime having one thread: between a spawn
//! and its registration nothing is reaped.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal as on_signal};
use tokio::sync::watch;

/// A file just written may still be open for writing in a process that another thread is forking.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The pid to kill when the proxy goes in a hurry; 0 for none.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChildPid(Arc<AtomicI32>);

impl ChildPid {
    pub(crate) fn kill(&self) {
        let pid = self.0.load(Ordering::Acquire);
        if pid > 0 {
            let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[derive(Debug)]
pub(super) struct Children {
    /// Those somebody wants to hear about, until they end.
    known: Mutex<HashMap<i32, watch::Sender<Option<String>>>>,
    current: ChildPid,
}

impl Children {
    /// Starts to reap. `current` will name the latest child while it lives.
    pub(super) fn reap(current: ChildPid) -> io::Result<Arc<Self>> {
        let children = Arc::new(Self { known: Mutex::default(), current });
        let mut signals = on_signal(SignalKind::child())?;
        let reaper = children.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                reaper.reap_all();
            }
        });
        Ok(children)
    }

    /// Starts `command`. The error says what was wrong with it.
    pub(super) async fn spawn(&self, mut command: Command) -> Result<Child, String> {
        let mut busy = 0;
        loop {
            match command.spawn() {
                Ok(child) => return Ok(self.register(child.id())),
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && busy < BUSY_RETRIES => busy += 1,
                Err(e) => return Err(spawn_error(&command, &e)),
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }

    fn register(&self, pid: u32) -> Child {
        let pid = pid.cast_signed();
        let (sender, exit) = watch::channel(None);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, sender);
        self.current.0.store(pid, Ordering::Release);
        Child { pid, exit }
    }

    fn reap_all(&self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let pid = pid.as_raw();
            let _ = self.current.0.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
            if let Some(sender) = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid) {
                sender.send_replace(Some(how));
            }
        }
    }
}

/// A process that `Children` reaps.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pid: i32,
    exit: watch::Receiver<Option<String>>,
}

impl Child {
    /// Waits for its end: `exit code 1`, `killed by SIGSEGV`.
    pub(super) async fn ended(&self) -> String {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|how| how.clone()).unwrap_or_else(|| "nobody saw how".to_owned())
    }

    pub(super) fn kill(&self) {
        // Once reaped, its number may be another process's.
        if self.exit.borrow().is_none() {
            let _ = signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

fn spawn_error(command: &Command, error: &io::Error) -> String {
    let program = command.get_program().to_string_lossy();
    let advice = match error.kind() {
        ErrorKind::NotFound => "it, or the interpreter that its first line names, does not exist on this host",
        ErrorKind::PermissionDenied => "the container's folder must be on a file system that allows execution",
        _ => "check the container's limits on memory and processes",
    };
    format!("cannot start {program}: {error}; {advice}")
}
