//! The proxy: the first process in a container. It serves the contract on the container's Unix socket and
//! hands the work to what the runtime says.
//!
//! | runtime | behind the proxy |
//! | --- | --- |
//! | `builtin` | the examples of this crate, in the proxy's process |
//! | `native` | an executable made with the SDK; after `/init` its own socket is used |
//! | `actionloop` | an executable that reads requests on stdin and answers on fd 3 |
//! | `python`, `nodejs` | an interpreter with a launcher, which this crate carries, over a socket on fd 3 |
//!
//! Code comes with `/init`: `value.code`, text or base64 (`binary`). `main` names the function; `main` by default.
//!
//! **Concurrency.** With more than one run at a time, Python and Node.js runs are told apart by context
//! (`contextvars`, `AsyncLocalStorage`): lines that a run prints, from threads and executors it started too, carry
//! its activation's id, and `os.environ` / `process.env` show each run its own `__OW_…` values. Code that
//! reads the C environment (extensions, Python's child processes without `env=`) sees those of `/init`; only with a
//! concurrency of 1 is the C environment set for each run. A synchronous Python handler runs in a pool
//! of threads (at most 256), an asynchronous one on one event loop.
//!
//! **Attribution.** What child processes and native code print reaches the container's streams as lines of nobody.
//! An ActionLoop executable's own output belongs to the run in progress.
//!
//! **Ends.** The proxy exits with 0 as soon as its stdin ends: the agent holds the other end. When the process
//! behind it dies, it answers what is in progress (502, with the reason), stays long enough to be heard, and
//! exits with 1. It also reaps orphans, which come to it as PID 1 or as their subreaper.

mod actionloop;
mod channel;
mod child;
mod code;
mod launched;
mod line_buffer;
mod native;
mod options;
mod pump;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use crate::contract::CONTAINER_VARIABLE;
use crate::examples::Examples;
use crate::gate::Gate;
use crate::http::{self, Listener};
use crate::lines::{Lines, Stream};
use crate::sdk::HandlerTarget;
use crate::server::{Server, Target};

pub use options::{ContainerOptions, Runtime};

pub(crate) use child::ChildPid;
use child::Children;

/// How long the proxy stays after its child died, so that answers on their way arrive.
const LINGER: Duration = Duration::from_millis(250);
/// The longest it waits for runs to be answered then.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Pause where stdin was made non-blocking by a process that shares it.
const STDIN_PAUSE: Duration = Duration::from_millis(10);
const DEFAULT_INIT_PATIENCE: Duration = Duration::from_secs(60);
const MIN_INIT_PATIENCE: Duration = Duration::from_secs(1);
const MAX_INIT_PATIENCE: Duration = Duration::from_secs(600);
/// Stack of this process's helper threads; none of them calls deep.
const THREAD_STACK_BYTES: usize = 256 * 1024;
/// Threads for blocking work, of which only the `cpu` example has any.
const MAX_BLOCKING_THREADS: usize = 4;

/// Runs a container's proxy until its stdin ends or the process behind it does. Builds its own runtime.
pub fn run(options: ContainerOptions) -> ExitCode {
    // First of all: proof of when this process started, and a tie to the one that started it.
    let examples = Examples::new();
    // Where the kernel refuses either, the agent's own clean-up is left.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = prctl::set_child_subreaper(true);
    match start(options, examples) {
        Ok(()) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Why a proxy could not start.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("cannot enter the container's folder {folder}: {source}; create it first")]
    Workdir { folder: String, source: io::Error },
    #[error(
        "cannot listen on {socket}: {source}; a socket's path may have at most 106 bytes and nothing may serve there yet"
    )]
    Bind { socket: String, source: io::Error },
    #[error("the proxy could not be set up: {0}")]
    Setup(#[from] io::Error),
}

fn start(mut options: ContainerOptions, examples: Examples) -> Result<(), ProxyError> {
    let child = ChildPid::default();
    exit_with_stdin(child.clone())?;
    // Both are given relative to where this process was started.
    options.socket = std::path::absolute(&options.socket)?;
    options.workdir = std::path::absolute(&options.workdir)?;
    env::set_current_dir(&options.workdir)
        .map_err(|source| ProxyError::Workdir { folder: options.workdir.display().to_string(), source })?;
    // One thread: spawning and reaping children never race, and a container stays small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_stack_size(THREAD_STACK_BYTES)
        .build()?;
    runtime.block_on(serve(options, examples, child))
}

/// Returns when the process behind the proxy is gone and its runs are answered.
async fn serve(options: ContainerOptions, examples: Examples, child: ChildPid) -> Result<(), ProxyError> {
    let socket = options.socket.clone();
    let runtime = options.runtime;
    let (deaths, mut died) = mpsc::channel(1);
    let host = Host {
        children: Children::reap(child)?,
        gate: Gate::new(options.concurrency),
        lines: Arc::new(Lines::stdio(env::var_os(CONTAINER_VARIABLE).is_some())?),
        options: Arc::new(options),
        deaths,
    };
    let target: Box<dyn Target> = match runtime {
        Runtime::Builtin => Box::new(HandlerTarget::new(examples, host.gate.clone())),
        Runtime::Native => Box::new(native::Native::new(host.clone())),
        Runtime::ActionLoop => Box::new(actionloop::ActionLoop::new(host.clone())),
        Runtime::Python => Box::new(launched::Launched::new(host.clone(), launched::Language::Python)),
        Runtime::NodeJs => Box::new(launched::Launched::new(host.clone(), launched::Language::NodeJs)),
    };
    let server = Server::new(host.gate.clone(), host.lines.clone(), target);
    let listener =
        Listener::unix(&socket).map_err(|source| ProxyError::Bind { socket: socket.display().to_string(), source })?;
    tokio::spawn(http::serve(listener, server));
    // `host` holds a sender, so this is a death and nothing else.
    let reason = died.recv().await.unwrap_or_default();
    let line = format!("embermesh: {}", crate::gate::ended(&reason));
    host.lines.unattributed(Stream::Stderr, line.as_bytes());
    let _ = tokio::time::timeout(LAST_ANSWERS, host.gate.quiet()).await;
    tokio::time::sleep(LINGER).await;
    Ok(())
}

/// What every kind of target shares.
#[derive(Debug, Clone)]
struct Host {
    options: Arc<ContainerOptions>,
    lines: Arc<Lines>,
    gate: Arc<Gate>,
    children: Arc<Children>,
    deaths: mpsc::Sender<String>,
}

impl Host {
    /// The process behind the proxy is gone: refuse further runs, and exit when those in progress are answered.
    fn ended(&self, reason: &str) {
        self.gate.end(reason);
        // Full means that a death is known already.
        let _ = self.deaths.try_send(reason.to_owned());
    }
}

/// Ends this process, and `child`, as soon as stdin does. A thread of its own: it must work whatever the runtime
/// is busy with, and stdin's pipe is shared with processes that expect it to block.
pub(crate) fn exit_with_stdin(child: ChildPid) -> io::Result<()> {
    let watch = move || {
        let mut ignored = [0; 64];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut ignored) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(STDIN_PAUSE),
                Err(_) => break,
            }
        }
        child.kill();
        std::process::exit(0);
    };
    std::thread::Builder::new().name("stdin".to_owned()).stack_size(THREAD_STACK_BYTES).spawn(watch)?;
    Ok(())
}

/// How long an initialisation may take: until its deadline, or a minute without one. The agent stops waiting then.
fn init_patience(env: &BTreeMap<String, String>) -> Duration {
    let deadline = env.get("__OW_DEADLINE").and_then(|text| text.parse().ok());
    let Some(deadline) = deadline.map(Duration::from_millis) else { return DEFAULT_INIT_PATIENCE };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    deadline.saturating_sub(now).clamp(MIN_INIT_PATIENCE, MAX_INIT_PATIENCE)
}
