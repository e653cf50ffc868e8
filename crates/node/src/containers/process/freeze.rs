//! Stopping, continuing and killing all processes of a container, those included that left its group.

use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::members::{Scope, Stat, members};

/// A pass costs a millisecond or so; a container that is still running after all of them forks faster
/// than it can be stopped.
const MAX_PASSES: u32 = 200;
const BETWEEN_PASSES: Duration = Duration::from_micros(300);

#[derive(Debug, thiserror::Error)]
pub(super) enum FreezeError {
    #[error("no process of the container is left")]
    Gone,
    #[error("{running} processes were still running after {MAX_PASSES} attempts to stop them")]
    StillRunning { running: usize },
    #[error("cannot read /proc: {0}")]
    Proc(#[from] io::Error),
}

/// Stops all members; returns when none of them runs. On failure all of them run.
pub(super) fn stop(scope: &Scope) -> Result<(), FreezeError> {
    let mut running = Vec::new();
    for pass in 0..MAX_PASSES {
        let pids = members(scope)?;
        if pids.is_empty() {
            return Err(FreezeError::Gone);
        }
        if pass == 0 {
            // All, whatever their state: that of a process is only its first thread's.
            signal_all(&pids, Signal::SIGSTOP);
            running = pids;
        } else {
            running = pids.into_iter().filter(|pid| runs(*pid)).collect();
            if running.is_empty() {
                return Ok(());
            }
            signal_all(&running, Signal::SIGSTOP);
        }
        thread::sleep(BETWEEN_PASSES);
    }
    // One that waits in the kernel stops before it runs another instruction of its own.
    running.retain(|pid| Stat::read(*pid).is_some_and(|stat| stat.state != b'D'));
    if running.is_empty() {
        return Ok(());
    }
    resume(scope)?;
    Err(FreezeError::StillRunning { running: running.len() })
}

/// Continues all members.
pub(super) fn resume(scope: &Scope) -> Result<(), FreezeError> {
    let pids = members(scope)?;
    if pids.is_empty() {
        return Err(FreezeError::Gone);
    }
    signal_all(&pids, Signal::SIGCONT);
    Ok(())
}

/// Kills what is there now; returns how many that were, zombies not counted. Call it until it is 0.
pub(super) fn kill_members(scope: &Scope) -> io::Result<usize> {
    let mut pids = members(scope)?;
    pids.retain(|pid| Stat::read(*pid).is_some_and(|stat| !matches!(stat.state, b'Z' | b'X')));
    signal_all(&pids, Signal::SIGKILL);
    Ok(pids.len())
}

fn runs(pid: i32) -> bool {
    Stat::read(pid).is_some_and(|stat| !matches!(stat.state, b'T' | b't' | b'Z' | b'X'))
}

fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        // It may have ended meanwhile: the next pass tells.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// A shell with ten descendants, half of them outside its session.
    fn family() -> (Child, Scope) {
        let script = "for i in 1 2 3 4 5; do sleep 100 & setsid sleep 100 & done; echo up; wait";
        let mut shell = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
        let scope = Scope::Supervisor(shell.id().cast_signed());
        (shell, scope)
    }

    #[test]
    fn all_descendants_stop_continue_and_are_killed() {
        let (mut shell, scope) = family();
        let all = members(&scope).unwrap();
        assert!(all.len() >= 10);
        let begun = Instant::now();
        stop(&scope).unwrap();
        println!("stopped {} processes in {:?}", all.len(), begun.elapsed());
        for pid in members(&scope).unwrap() {
            assert_eq!(Stat::read(pid).unwrap().state, b'T');
        }
        resume(&scope).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while members(&scope).unwrap().iter().any(|pid| !runs(*pid)) {
            assert!(Instant::now() < deadline, "some stayed stopped");
        }
        assert!(kill_members(&scope).unwrap() >= 10);
        while kill_members(&scope).unwrap() > 0 {
            assert!(Instant::now() < deadline, "some are still there");
        }
        shell.wait().unwrap();
        assert!(matches!(stop(&scope), Err(FreezeError::Gone)));
    }
}
