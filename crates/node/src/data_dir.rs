//! The folder that makes a node the same node after a restart: its instance, its epochs, its files.
//!
//! One agent holds it at a time. The `DataDir` owns two locks, both released when it is dropped: one in
//! the folder, and one for (this host, cluster, node id), so that a second agent with the same id is
//! refused even when it brings another folder.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

mod lock;

use lock::{LockError, LockFile};

/// The layout that this version writes; a folder with a larger number is left alone.
const FORMAT: u32 = 1;
const IDENTITY: &str = "node.toml";
const EPOCH: &str = "epoch";
const LOCK: &str = "agent.lock";
const HOST_LOCK_PATIENCE: Duration = Duration::from_secs(20);
const HOST_LOCK_POLL: Duration = Duration::from_millis(20);

/// A node's data folder, held by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    instance: Uuid,
    /// Serialises epochs within the process; the lock keeps other processes out.
    epoch: Mutex<()>,
    _host_lock: LockFile,
    _lock: LockFile,
}

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "data folder {path} belongs to node `{found}`, not to `{wanted}`: start with --node-id {found}, or give `{wanted}` a folder of its own with --data-dir"
    )]
    OtherNode { path: PathBuf, found: String, wanted: String },
    #[error(
        "data folder {path} belongs to cluster `{found}`, not to `{wanted}`: start with that cluster's name, or give this one a folder of its own with --data-dir"
    )]
    OtherCluster { path: PathBuf, found: String, wanted: String },
    #[error(
        "data folder {path} has format {found}, and this version knows formats up to {FORMAT}: start the newer version that wrote it, or use another folder"
    )]
    NewerFormat { path: PathBuf, found: u64 },
    #[error("data folder {path} is in use by {holder}: stop that agent first, or use another folder")]
    Locked { path: PathBuf, holder: String },
    #[error(
        "node `{node_id}` of cluster `{cluster}` already runs on this host ({holder}): stop that agent first, or choose another --node-id"
    )]
    NodeRuns { node_id: String, cluster: String, holder: String },
    #[error(
        "data folder {path} can't be written ({source}): make it writable for this user, or choose another with --data-dir"
    )]
    NotWritable { path: PathBuf, source: io::Error },
    #[error("{path} is not a folder: --data-dir needs one (it is created when missing)")]
    NotAFolder { path: PathBuf },
    #[error(
        "{path} is damaged ({reason}): restore it from a backup, or move the data folder away to start as a new node (its actions come back from peers)"
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error(
        "no epoch is left above {highest}: a peer or {path} tells a value that no clock gives; find out which, and leave the cluster with that node"
    )]
    EpochExhausted { path: PathBuf, highest: u64 },
    #[error("{path}: {source}: check the disk and the permissions")]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    node_id: String,
    cluster: String,
    /// UUID.
    instance: String,
}

/// Takes away what an agent that was killed left behind of its claim to (this host, cluster, node id). Does nothing
/// while one lives.
pub fn clear_host_lock(node_id: &str, cluster: &str) {
    drop(lock::take_for_host(&lock::runtime_dirs(), node_id, cluster, Path::new("")));
}

/// Keeps other agents of this host from doing what `name` says until it is dropped. After some seconds, and where
/// no lock can be made, it gives up: rather both at once than not at all.
pub(crate) async fn lock_on_host(name: &str) -> Option<nix::fcntl::Flock<std::fs::File>> {
    let deadline = tokio::time::Instant::now() + HOST_LOCK_PATIENCE;
    while tokio::time::Instant::now() < deadline {
        match lock::try_on_host(&lock::runtime_dirs(), name) {
            Ok(None) => tokio::time::sleep(HOST_LOCK_POLL).await,
            Ok(taken) => return taken,
            Err(_) => return None,
        }
    }
    None
}

impl DataDir {
    /// Opens the folder of that node and takes both locks; creates the folder (mode 0700) when missing.
    pub fn open(path: impl AsRef<Path>, node_id: &str, cluster: &str) -> Result<Self, DataDirError> {
        Self::open_with(path.as_ref(), node_id, cluster, &lock::runtime_dirs())
    }

    /// UUID made with the folder.
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One folder a container; sockets and working folders.
    pub fn containers_dir(&self) -> PathBuf {
        self.path.join("containers")
    }

    /// Action code, by content hash.
    pub fn code_dir(&self) -> PathBuf {
        self.path.join("code")
    }

    /// The embedded store of actions and activation records.
    pub fn store_file(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// The next epoch: greater than every one this folder ever gave, than `now_us`'s past ones and than
    /// `highest_known` (the highest that peers know for this node id). On disk before it returns.
    pub fn next_epoch(&self, now_us: u64, highest_known: Option<u64>) -> Result<u64, DataDirError> {
        let _serial = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join(EPOCH);
        let persisted = read_epoch(&path)?;
        let highest = persisted.max(highest_known.unwrap_or(0));
        let above = highest.checked_add(1).ok_or(DataDirError::EpochExhausted { path: path.clone(), highest })?;
        let epoch = above.max(now_us);
        write_durably(&path, format!("{epoch}\n").as_bytes()).map_err(|source| unusable(&path, source))?;
        Ok(epoch)
    }

    /// The same with the host's lock in the first of `runtime_dirs` that can be written: who looks elsewhere does not
    /// meet this node.
    pub fn open_with(
        path: &Path,
        node_id: &str,
        cluster: &str,
        runtime_dirs: &[PathBuf],
    ) -> Result<Self, DataDirError> {
        create_folder(path)?;
        let path = path.canonicalize().map_err(|source| unusable(path, source))?;
        let lock = LockFile::take(&path.join(LOCK), &lock::holder_text(None)).map_err(|e| match e {
            LockError::Held { holder } => DataDirError::Locked { path: path.clone(), holder },
            LockError::Io { path, source } => unusable(&path, source),
        })?;
        let known = read_identity(&path)?;
        if let Some(identity) = &known {
            check_identity(&path, identity, node_id, cluster)?;
        }
        let host_lock = lock::take_for_host(runtime_dirs, node_id, cluster, &path).map_err(|e| match e {
            LockError::Held { holder } => {
                DataDirError::NodeRuns { node_id: node_id.to_owned(), cluster: cluster.to_owned(), holder }
            }
            LockError::Io { path, source } => DataDirError::Io { path, source },
        })?;
        let instance = match known {
            Some(identity) => Uuid::parse_str(&identity.instance).map_err(|_| DataDirError::Corrupt {
                path: path.join(IDENTITY),
                reason: format!("instance `{}` is no UUID", identity.instance.escape_debug()),
            })?,
            None => write_identity(&path, node_id, cluster)?,
        };
        let dir = Self { path, instance, epoch: Mutex::new(()), _host_lock: host_lock, _lock: lock };
        for folder in [dir.containers_dir(), dir.code_dir()] {
            create_folder(&folder)?;
        }
        Ok(dir)
    }
}

/// Replaces a file so that after a crash either the old or the new content is there, and the new one is
/// on disk when this returns.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Unique, as two threads may write the same file at once.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!("{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The error that matters is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn create_folder(path: &Path) -> Result<(), DataDirError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(DataDirError::NotAFolder { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(unusable(path, source)),
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| unusable(path, source))
}

fn read_identity(folder: &Path) -> Result<Option<Identity>, DataDirError> {
    /// What every format, known or not, has.
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u64,
    }

    let path = folder.join(IDENTITY);
    let corrupt = |reason: String| DataDirError::Corrupt { path: path.clone(), reason };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // An epoch without an identity: the file was lost, and with a new instance the node would
            // take over what it can't know.
            if folder.join(EPOCH).exists() {
                return Err(corrupt("it is missing, though the folder has been used".to_owned()));
            }
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(corrupt("it is not text".to_owned())),
        Err(source) => return Err(unusable(&path, source)),
    };
    let AnyFormat { format } = toml::from_str(&text).map_err(|e| corrupt(e.message().to_owned()))?;
    if format > u64::from(FORMAT) {
        return Err(DataDirError::NewerFormat { path: folder.to_owned(), found: format });
    }
    toml::from_str(&text).map(Some).map_err(|e| corrupt(e.message().to_owned()))
}

fn check_identity(path: &Path, identity: &Identity, node_id: &str, cluster: &str) -> Result<(), DataDirError> {
    if identity.cluster != cluster {
        let (found, wanted) = (identity.cluster.clone(), cluster.to_owned());
        return Err(DataDirError::OtherCluster { path: path.to_owned(), found, wanted });
    }
    if identity.node_id != node_id {
        let (found, wanted) = (identity.node_id.clone(), node_id.to_owned());
        return Err(DataDirError::OtherNode { path: path.to_owned(), found, wanted });
    }
    Ok(())
}

fn write_identity(folder: &Path, node_id: &str, cluster: &str) -> Result<Uuid, DataDirError> {
    let path = folder.join(IDENTITY);
    let instance = Uuid::new_v4();
    let identity = Identity {
        format: FORMAT,
        node_id: node_id.to_owned(),
        cluster: cluster.to_owned(),
        instance: instance.to_string(),
    };
    let text =
        toml::to_string(&identity).map_err(|e| DataDirError::Corrupt { path: path.clone(), reason: e.to_string() })?;
    write_durably(&path, text.as_bytes()).map_err(|source| unusable(&path, source))?;
    Ok(instance)
}

fn read_epoch(path: &Path) -> Result<u64, DataDirError> {
    let corrupt = |reason: String| DataDirError::Corrupt { path: path.to_owned(), reason };
    match fs::read_to_string(path) {
        Ok(text) => {
            let number = text.strip_suffix('\n').unwrap_or(&text);
            number.parse().map_err(|_| corrupt(format!("`{}` is no epoch", number.escape_debug())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(corrupt("it is not text".to_owned())),
        Err(source) => Err(unusable(path, source)),
    }
}

fn unusable(path: &Path, source: io::Error) -> DataDirError {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            DataDirError::NotWritable { path: path.to_owned(), source }
        }
        io::ErrorKind::NotADirectory => DataDirError::NotAFolder { path: path.to_owned() },
        _ => DataDirError::Io { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests;
