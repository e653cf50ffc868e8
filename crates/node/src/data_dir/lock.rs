//! Exclusive lock files that say who holds them.
//!
//! `flock` goes with the open file, so the kernel releases a lock when its process ends, however it ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::DerefMut;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A file removed by its holder between our open and our lock is opened again, this often at most.
const MAX_TRIES: u32 = 20;
/// Of a foreign lock file, this much is shown.
const MAX_HOLDER_BYTES: u64 = 4096;

/// A held lock.
#[derive(Debug)]
pub(super) struct LockFile {
    path: PathBuf,
    remove_on_drop: bool,
    _file: Flock<File>,
}

#[derive(Debug)]
pub(super) enum LockError {
    /// `holder` in words: `pid 12`.
    Held {
        holder: String,
    },
    Io {
        path: PathBuf,
        source: io::Error,
    },
}

impl LockFile {
    /// Takes the lock or tells at once who holds it. `text` is what others are told.
    pub(super) fn take(path: &Path, text: &str) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::Io { path: path.to_owned(), source };
        for _ in 0..MAX_TRIES {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, Errno::EWOULDBLOCK)) => return Err(LockError::Held { holder: read_holder(file) }),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            if !still_at(path, &file).map_err(failed)? {
                continue;
            }
            write_holder(file.deref_mut(), text).map_err(failed)?;
            return Ok(Self { path: path.to_owned(), remove_on_drop: false, _file: file });
        }
        Err(failed(io::Error::other("the lock file is replaced again and again")))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if self.remove_on_drop {
            // While the lock is still held: who opened it before finds another file at the path and retries.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a holder writes into its lock: its pid, and the data folder it runs on.
pub(super) fn holder_text(folder: Option<&Path>) -> String {
    let pid = std::process::id();
    match folder {
        Some(folder) => format!("pid {pid}, data folder {}\n", folder.display()),
        None => format!("pid {pid}\n"),
    }
}

/// Where host-wide locks may live, best first: agents of one user agree on the first they can write.
pub(super) fn runtime_dirs() -> Vec<PathBuf> {
    let user = nix::unistd::geteuid();
    vec![PathBuf::from("/run/embermesh"), std::env::temp_dir().join(format!("embermesh-{user}"))]
}

/// The lock for (this host, cluster, node id).
pub(super) fn take_for_host(
    runtime_dirs: &[PathBuf],
    node_id: &str,
    cluster: &str,
    folder: &Path,
) -> Result<LockFile, LockError> {
    let mut key = blake3::Hasher::new();
    key.update(cluster.as_bytes()).update(&[0]).update(node_id.as_bytes());
    let name = format!("agent-{}.lock", &key.finalize().to_hex()[..32]);
    let text = holder_text(Some(folder));
    let mut failure = None;
    for dir in runtime_dirs {
        let taken = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| LockError::Io { path: dir.clone(), source })
            .and_then(|()| LockFile::take(&dir.join(&name), &text));
        match taken {
            Ok(mut lock) => {
                lock.remove_on_drop = true;
                return Ok(lock);
            }
            Err(held @ LockError::Held { .. }) => return Err(held),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| LockError::Io {
        path: PathBuf::new(),
        source: io::Error::new(io::ErrorKind::NotFound, "no folder for run-time files"),
    }))
}

/// A lock of that name for this host, if nobody holds it now; an error where no lock can be made at all.
pub(super) fn try_on_host(runtime_dirs: &[PathBuf], name: &str) -> io::Result<Option<Flock<File>>> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for dir in runtime_dirs {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir).and_then(|()| {
            let path = dir.join(format!("{name}.lock"));
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
        });
        match made {
            Ok(file) => return Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn still_at(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_holder(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn read_holder(file: File) -> String {
    let mut text = String::new();
    // Empty in the moment between a holder's lock and its note.
    match file.take(MAX_HOLDER_BYTES).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().escape_debug().to_string(),
        _ => "another process".to_owned(),
    }
}
