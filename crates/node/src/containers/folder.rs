//! The folder of one container, by which agent and container meet.
//!
//! ```text
//! ROOT/ID/socket    where the proxy serves /init and /run
//! ROOT/ID/work      the action's own folder: cwd and HOME (process engine)
//! ROOT/ID/work/tmp  TMPDIR
//! ```

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A socket's address has room for 107 bytes; the proxy binds to a longer name first.
const MAX_SOCKET_ARGUMENT: usize = 90;

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

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// How the proxy is told where its socket is: from its own folder if the whole path is too long.
    pub(super) fn socket_argument(&self) -> PathBuf {
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

    pub(super) fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.create(&self.0)?;
        builder.recursive(true).create(self.work().join("tmp"))
    }

    /// Without a place to work in: for a container that has its own, which runs as `owner`.
    pub(super) fn create_for_socket(&self, owner: (u32, u32)) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.0)?;
        std::os::unix::fs::chown(&self.0, Some(owner.0), Some(owner.1))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        remove_folder(&self.0)
    }
}

/// Makes `root` if it is missing.
pub(super) fn make_root(root: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    root.canonicalize()
}

/// Removes what earlier lives left in `root`, but for the folders of containers that `stay`.
pub(super) fn clear_root(root: &Path, stay: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let stays = entry.file_name().to_str().is_some_and(&stay);
        if entry.file_type()?.is_dir() && !stays {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
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
        let root = make_root(&data.path().join("a/containers")).unwrap();
        Folder::new(&root, "n1-7-1").unwrap().create().unwrap();
        let locked = root.join("n1-7-1/work/tmp");
        fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
        fs::write(root.join("n1-7-1/work/file"), "x").unwrap();
        Folder::new(&root, "n1-7-2").unwrap().create().unwrap();
        clear_root(&root, |id| id == "n1-7-2").unwrap();
        assert!(!root.join("n1-7-1").exists() && root.join("n1-7-2").exists());
        clear_root(&root, |_| false).unwrap();
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
