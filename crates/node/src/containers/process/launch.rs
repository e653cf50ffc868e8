//! Starting a container's supervisor.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::supervisor::{self, spawn_patiently};
use super::{Isolation, ProcessEngineConfig};
use crate::containers::ContainerSpec;
use crate::containers::folder::Folder;

/// What a runtime may allocate over the container's memory: what it reserves and does not touch (mostly
/// stacks of threads; Node.js has 40 MB of them) is not memory used. Use itself is watched.
const DATA_HEADROOM_MB: u64 = 64;
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
const PROBE_POLL: Duration = Duration::from_millis(1);
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The program that is run again for each container, held open.
#[derive(Debug)]
pub(super) struct Binary(File);

impl Binary {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        std::os::unix::process::CommandExt::arg0(&mut command, "embermesh").arg(supervisor::COMMAND);
        command
    }

    /// The strongest isolation that this host allows, `most` at most. Takes some milliseconds.
    pub(super) fn strongest_isolation(&self, most: Isolation) -> Isolation {
        let candidates = Isolation::ALL.into_iter().skip_while(|isolation| *isolation != most);
        for isolation in candidates.filter(|isolation| *isolation != Isolation::ProcessGroup) {
            match self.probe(isolation) {
                Ok(status) if status.success() => return isolation,
                Ok(status) => tracing::debug!(%isolation, %status, "isolation is not available"),
                Err(error) => tracing::warn!(%isolation, %error, "cannot find out whether isolation is available"),
            }
        }
        Isolation::ProcessGroup
    }

    fn probe(&self, isolation: Isolation) -> io::Result<ExitStatus> {
        let mut command = self.command();
        command.args(["--probe", isolation.as_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = spawn_patiently(|| command.spawn())?;
        let deadline = Instant::now() + PROBE_DEADLINE;
        loop {
            match child.try_wait()? {
                Some(status) => return Ok(status),
                None if Instant::now() < deadline => thread::sleep(PROBE_POLL),
                None => {
                    child.kill()?;
                    return child.wait();
                }
            }
        }
    }
}

/// Starts the supervisor of a new container. Blocks for some milliseconds; must be called inside the runtime.
pub(super) fn start(
    config: &ProcessEngineConfig,
    binary: &Binary,
    isolation: Isolation,
    spec: &ContainerSpec,
    folder: &Folder,
    interpreter: Option<&Path>,
) -> Result<tokio::process::Child, String> {
    folder.create().map_err(|error| format!("cannot make the folder {}: {error}", folder.path().display()))?;
    let work = folder.work();
    let mut command = binary.command();
    command
        .args(["--isolation", isolation.as_str()])
        .args(["--data-mb", &(spec.memory_mb + DATA_HEADROOM_MB).to_string()])
        .args(["--files", &config.max_files.to_string()])
        .args(["--processes", &config.max_processes.to_string()])
        .arg("--")
        .arg("--socket")
        .arg(folder.socket_argument())
        .args(["--runtime", spec.runtime.argument()])
        .args(["--concurrency", &spec.concurrency.to_string()])
        .arg("--workdir")
        .arg(&work);
    if let Some(interpreter) = interpreter {
        command.arg("--interpreter").arg(interpreter);
    }
    command
        .current_dir(&work)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
        .env("LANG", env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into()))
        .env("HOME", &work)
        .env("TMPDIR", work.join("tmp"))
        .env("__EMBERMESH_CONTAINER", &*spec.id)
        .env("__EMBERMESH_NODE", &config.node_id)
        .env("__OW_API_HOST", &config.api_url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if spec.concurrency > 1 {
        command.env("__OW_ALLOW_CONCURRENT", "true");
    }
    let mut command = tokio::process::Command::from(command);
    spawn_patiently(|| command.spawn()).map_err(|error| format!("cannot start the container's supervisor: {error}"))
}
