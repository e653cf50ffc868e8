//! Holds a process stopped as long as somebody holds this one's standard input open: nothing stays stopped when
//! whoever stopped it is gone.

use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `embermesh __hold PID`.
pub(crate) fn hold(mut args: impl Iterator<Item = String>) -> ExitCode {
    let Some(pid) = args.next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw) else { return ExitCode::from(2) };
    let stopped = kill(pid, Signal::SIGSTOP);
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
    kill(pid, Signal::SIGCONT).ok();
    if stopped.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
