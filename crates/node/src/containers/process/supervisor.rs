//! `__supervise`: the program between an agent and a container.
//!
//! It stays outside the container's PID namespace and out of its group, so that stopping the container
//! does not stop it. It ends the container when its own stdin closes, that is when the agent lets go of
//! the container or is gone. It has one thread only: a user namespace can't be entered with more, a
//! thread can't be made after entering a PID namespace, and the proxy's death signal is tied to this one.
//!
//! Arguments: `--isolation NAME --data-mb N --files N --processes N -- ARGUMENTS`; the last are for
//! `__container`. `--probe NAME` exits with 0 if this host allows that isolation.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getgid, getpid, getuid, setsid};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::Isolation;
use super::freeze;
use super::members::Scope;

/// What the engine runs of its own binary, before any other argument.
pub(super) const COMMAND: &str = "__supervise";
const CONTAINER_COMMAND: &str = "__container";
const OWN_BINARY: &str = "/proc/self/exe";
/// Exit status of a supervisor that could not start its container.
const FAILED: u8 = 125;
/// A container is the first that the kernel takes when the host runs out of memory.
const OOM_SCORE: &str = "500";
const BUSY_ATTEMPTS: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const SWEEP_PASSES: u32 = 400;
const SWEEP_PAUSE: Duration = Duration::from_millis(2);
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Runs one container to its end. `args` are those after `__supervise`. To be called before the process
/// has any other thread.
pub fn supervise(args: impl Iterator<Item = String>) -> ExitCode {
    let outcome = match Task::parse(args) {
        Ok(Task::Probe(isolation)) => probe(isolation).map(|()| 0),
        Ok(Task::Run(options)) => run(&options),
        Err(message) => Err(message),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            eprintln!("supervisor: {message}");
            ExitCode::from(FAILED)
        }
    }
}

/// Starts a program again that some other thread may be about to finish writing or forking with.
pub(super) fn spawn_patiently<C>(mut spawn: impl FnMut() -> io::Result<C>) -> io::Result<C> {
    let mut attempt = 1;
    loop {
        match spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS => {
                attempt += 1;
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Task {
    Run(Options),
    Probe(Isolation),
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    isolation: Isolation,
    data_mb: u64,
    files: u64,
    processes: u64,
    container: Vec<String>,
}

impl Task {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Task, String> {
        let mut isolation = None;
        let (mut data_mb, mut files, mut processes) = (None, None, None);
        while let Some(name) = args.next() {
            if name == "--" {
                let missing = || "an option is missing: --isolation, --data-mb, --files, --processes".to_owned();
                return Ok(Task::Run(Options {
                    isolation: isolation.ok_or_else(missing)?,
                    data_mb: data_mb.ok_or_else(missing)?,
                    files: files.ok_or_else(missing)?,
                    processes: processes.ok_or_else(missing)?,
                    container: args.collect(),
                }));
            }
            let value = args.next().ok_or_else(|| format!("{name} has no value"))?;
            let number = || value.parse().map_err(|_| format!("{name} {value}: not a number"));
            match name.as_str() {
                "--isolation" => isolation = Some(value.parse()?),
                "--probe" => return Ok(Task::Probe(value.parse()?)),
                "--data-mb" => data_mb = Some(number()?),
                "--files" => files = Some(number()?),
                "--processes" => processes = Some(number()?),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Err("nothing to run: `--` is missing".to_owned())
    }
}

fn run(options: &Options) -> Result<u8, String> {
    prepare(options)?;
    isolate(options.isolation)?;
    if options.isolation == Isolation::UserAndPidNamespace {
        // Counted for each user namespace, so for this container alone. Elsewhere the kernel counts all
        // of a user's processes on the host, or for root none: there the engine's watcher counts.
        limit(Resource::RLIMIT_NPROC, options.processes)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot wait for events: {error}"))?;
    runtime.block_on(async {
        // Before the child is there, so that its end can't be missed.
        let mut children = signal(SignalKind::child()).map_err(|error| format!("cannot watch children: {error}"))?;
        let mut terminated =
            signal(SignalKind::terminate()).map_err(|error| format!("cannot watch SIGTERM: {error}"))?;
        let stdin = watch_stdin().map_err(|error| format!("stdin is not a pipe: {error}"))?;
        let child = spawn_container(&options.container)?;
        let child = Pid::from_raw(child.id().cast_signed());
        let exited = async {
            loop {
                if let Some(status) = reap(child) {
                    return status;
                }
                children.recv().await;
            }
        };
        tokio::pin!(exited);
        let status = tokio::select! {
            status = &mut exited => status,
            () = closed(&stdin) => end(child, &mut exited).await,
            _ = terminated.recv() => end(child, &mut exited).await,
        };
        if options.isolation == Isolation::ProcessGroup {
            sweep();
        }
        Ok(status)
    })
}

/// What holds for the supervisor and for all that it starts.
fn prepare(options: &Options) -> Result<(), String> {
    let _ = prctl::set_name(c"embermesh-sup");
    // Away from the agent's terminal: its Ctrl-C is for the agent. Fails only where it already leads one.
    let _ = setsid();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // Nothing inside may become another user, whom an unprivileged agent could not stop.
    prctl::set_no_new_privs().map_err(|error| format!("cannot give up gaining privileges: {error}"))?;
    if options.isolation == Isolation::ProcessGroup {
        prctl::set_child_subreaper(true).map_err(|error| format!("cannot adopt orphans: {error}"))?;
    }
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_NOFILE, options.files)?;
    limit(Resource::RLIMIT_DATA, options.data_mb.saturating_mul(1 << 20))
}

fn limit(resource: Resource, value: u64) -> Result<(), String> {
    let failed = |error: Errno| format!("cannot limit {resource:?} to {value}: {error}");
    let (_, hard) = getrlimit(resource).map_err(failed)?;
    let value = value.min(hard);
    setrlimit(resource, value, value).map_err(failed)
}

/// Takes effect for the processes that are started from now on.
fn isolate(isolation: Isolation) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("isolation {isolation} was refused: {error}");
    match isolation {
        Isolation::ProcessGroup => Ok(()),
        Isolation::PidNamespace => unshare(CloneFlags::CLONE_NEWPID).map_err(|error| failed(&error)),
        Isolation::UserAndPidNamespace => {
            let (user, group) = (getuid(), getgid());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID).map_err(|error| failed(&error))?;
            // Everybody is who they were: files that an action makes belong to the agent's user.
            fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| fs::write("/proc/self/uid_map", format!("{user} {user} 1")))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")))
                .map_err(|error| failed(&error))
        }
    }
}

/// Tries it for real, in this process, which is thrown away.
fn probe(isolation: Isolation) -> Result<(), String> {
    isolate(isolation)?;
    if isolation == Isolation::ProcessGroup {
        return Ok(());
    }
    let inside = spawn_patiently(|| {
        Command::new(OWN_BINARY).args([COMMAND, "--probe", Isolation::ProcessGroup.as_str()]).spawn()
    });
    match inside.and_then(|mut child| child.wait()) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("isolation {isolation}: its first process ended with {status}")),
        Err(error) => Err(format!("isolation {isolation}: no process can be started in it: {error}")),
    }
}

fn spawn_container(args: &[String]) -> Result<Child, String> {
    let mut command = Command::new(OWN_BINARY);
    command.arg0("embermesh").arg(CONTAINER_COMMAND).args(args).process_group(0);
    spawn_patiently(|| command.spawn()).map_err(|error| format!("cannot start {CONTAINER_COMMAND}: {error}"))
}

/// Opened anew, as it is to be non-blocking here and not in the proxy.
fn watch_stdin() -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver("/proc/self/fd/0")
}

/// Returns when no write end of stdin is left. Nobody writes to it.
async fn closed(stdin: &pipe::Receiver) {
    while stdin.readable().await.is_ok() {
        match stdin.try_read(&mut [0; 64]) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Kills the first process of a namespace, and the kernel all others; or the first of a group.
async fn end(child: Pid, exited: impl Future<Output = u8>) -> u8 {
    let _ = kill(child, Signal::SIGKILL);
    tokio::time::timeout(END_DEADLINE, exited).await.unwrap_or(FAILED)
}

/// Collects whatever ended, orphans that came back included; the child's status if it was among them.
fn reap(child: Pid) -> Option<u8> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => found = Some(code.to_le_bytes()[0]),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                found = Some(128 + (signal as i32).to_le_bytes()[0]);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return found,
        }
    }
}

/// Kills all that is left. Orphans come back to this process, so that none can hide.
fn sweep() {
    let scope = Scope::Supervisor(getpid().as_raw());
    for _ in 0..SWEEP_PASSES {
        if matches!(freeze::kill_members(&scope), Ok(0)) {
            return;
        }
        thread::sleep(SWEEP_PAUSE);
        reap(getpid());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        Task::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_follows_the_dashes_is_for_the_container() {
        let line = "--isolation process-group --data-mb 1 --files 2 --processes 3 -- --socket s --files 9";
        let Task::Run(options) = parse(line).unwrap() else { panic!("not a run") };
        assert_eq!((options.isolation, options.data_mb), (Isolation::ProcessGroup, 1));
        assert_eq!((options.files, options.processes), (2, 3));
        assert_eq!(options.container, ["--socket", "s", "--files", "9"]);
    }

    #[test]
    fn wrong_arguments_are_refused_and_named() {
        for (line, named) in [
            ("", "--"),
            ("--files 1 --", "missing"),
            ("--files x --", "--files x"),
            ("--files", "--files"),
            ("--isolation none --", "none"),
            ("--speed 1 --", "--speed"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(named), "{line}: {message}");
        }
    }

    #[test]
    fn a_busy_executable_is_tried_again_and_not_for_ever() {
        let mut calls = 0;
        let busy = || io::Error::from(io::ErrorKind::ExecutableFileBusy);
        let outcome = spawn_patiently(|| {
            calls += 1;
            if calls < 3 { Err(busy()) } else { Ok(calls) }
        });
        assert_eq!(outcome.unwrap(), 3);
        let mut calls = 0;
        let outcome = spawn_patiently::<()>(|| {
            calls += 1;
            Err(busy())
        });
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ExecutableFileBusy);
        assert_eq!(calls, BUSY_ATTEMPTS);
    }
}
