//! Making a container's folder and starting its supervisor.
//!
//! ```text
//! ROOT/ID/socket    where the proxy serves /init and /run
//! ROOT/ID/work      the action's own folder: cwd and HOME
//! ROOT/ID/work/tmp  TMPDIR
//! ```

use std::env;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::supervisor::{self, spawn_patiently};
use super::{Isolation, ProcessEngineConfig};
use crate::containers::{ContainerSpec, Runtime};

/// What a runtime may allocate over the container's memory: what it reserves and does not touch (mostly
/// stacks of threads; Node.js has 40 MB of them) is not memory used. Use itself is watched.
const DATA_HEADROOM_MB: u64 = 64;
/// A socket's address has room for 107 bytes; the proxy binds to a longer name first.
const MAX_SOCKET_ARGUMENT: usize = 90;
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

/// The folder of one container.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Not made yet. The id becomes a file name, so it must be one.
    pub(super) fn new(root: &Path, id: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.chars().all(plain) {
            return Err(format!("container id `{id}`: use letters, digits, `-`, `_` and `.`, at most 200"));
        }
        Ok(Self(root.join(id)))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// How the proxy is told where its socket is: from its own folder if the whole path is too long.
    fn socket_argument(&self) -> PathBuf {
        let socket = self.socket();
        if socket.as_os_str().len() <= MAX_SOCKET_ARGUMENT { socket } else { PathBuf::from("../socket") }
    }

    /// Whether `path` is a socket in this folder, and no link that leads elsewhere.
    pub(super) fn owns_socket(&self, path: &Path) -> bool {
        use std::os::unix::fs::FileTypeExt;
        let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let (Some(parent), Ok(own)) = (path.parent(), self.0.canonicalize()) else { return false };
        path.is_absolute() && is_socket && parent.canonicalize().is_ok_and(|parent| parent.starts_with(own))
    }

    fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.create(&self.0)?;
        builder.recursive(true).create(self.work().join("tmp"))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        remove_folder(&self.0)
    }
}

/// Makes `root` if it is missing and removes what earlier lives left in it.
pub(super) fn prepare_root(root: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    let root = root.canonicalize()?;
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_folder(&entry.path())?;
        }
    }
    Ok(root)
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
    folder.create().map_err(|error| format!("cannot make the folder {}: {error}", folder.0.display()))?;
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
        .args(["--runtime", argument(spec.runtime)])
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

fn argument(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Builtin => "builtin",
        Runtime::Native => "native",
        Runtime::ActionLoop => "actionloop",
        Runtime::Python => "python",
        Runtime::NodeJs => "nodejs",
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    let outcome = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        outcome => outcome,
    };
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// An action may have taken away its own right to write in a folder.
fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn leftovers_are_removed_and_the_root_is_made() {
        let data = tempfile::tempdir().unwrap();
        let root = prepare_root(&data.path().join("a/containers")).unwrap();
        Folder::new(&root, "n1-7-1").unwrap().create().unwrap();
        let locked = root.join("n1-7-1/work/tmp");
        fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
        fs::write(root.join("n1-7-1/work/file"), "x").unwrap();
        prepare_root(&root).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn an_id_that_is_no_plain_file_name_is_refused() {
        for id in ["", ".", "..", "a/b", "../a", "a b", "a\0"] {
            assert!(Folder::new(Path::new("/root"), id).is_err(), "{id:?}");
        }
        assert!(Folder::new(Path::new("/root"), "n1-1758540000000000-3").is_ok());
    }

    #[test]
    fn only_a_socket_in_the_own_folder_is_accepted() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path(), "c1").unwrap();
        folder.create().unwrap();
        let (inside, outside) = (folder.work().join("s"), data.path().join("s"));
        let _listeners = (UnixListener::bind(&inside).unwrap(), UnixListener::bind(&outside).unwrap());
        let (link, file) = (folder.work().join("link"), folder.work().join("file"));
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        fs::write(&file, "").unwrap();
        assert!(folder.owns_socket(&inside));
        for refused in [&outside, &link, &file, &folder.work().join("../../s"), &PathBuf::from("s")] {
            assert!(!folder.owns_socket(refused), "{}", refused.display());
        }
    }

    #[test]
    fn a_long_path_is_told_to_the_proxy_from_its_own_folder() {
        let short = Folder::new(Path::new("/data"), "c1").unwrap();
        assert_eq!(short.socket_argument(), Path::new("/data/c1/socket"));
        let long = Folder::new(Path::new(&format!("/{}", "d".repeat(100))), "c1").unwrap();
        assert_eq!(long.socket_argument(), Path::new("../socket"));
    }
}
