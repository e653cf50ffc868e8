//! Action code in files named by its hash, so that a node can take it from any peer and trust the content.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::data_dir::write_durably;

/// OpenWhisk's limit for an action's code.
pub const MAX_CODE_BYTES: u64 = 48 << 20;

/// One folder of code. Calls block.
#[derive(Debug)]
pub struct CodeStore {
    dir: PathBuf,
    max_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error("the code has {bytes} bytes, and {limit} are allowed: leave out what the action doesn't need at run time")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("`{0}` is no code hash: it has 64 digits of 0-9 and a-f")]
    BadHash(String),
    #[error("code in {path} can't be read or written ({source}): check the disk and the permissions")]
    Io { path: PathBuf, source: io::Error },
}

impl CodeStore {
    /// Opens the folder, creating it when missing, and removes what an interrupted `put` left.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, CodeError> {
        Self::with_limit(dir, MAX_CODE_BYTES)
    }

    pub fn with_limit(dir: impl Into<PathBuf>, max_bytes: u64) -> Result<Self, CodeError> {
        let store = Self { dir: dir.into(), max_bytes };
        let failed = io_error(&store.dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&store.dir).map_err(&failed)?;
        for entry in fs::read_dir(&store.dir).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(store)
    }

    /// Stores the code and answers its hash (blake3, hex). On disk when it returns.
    pub fn put(&self, code: &[u8]) -> Result<String, CodeError> {
        let bytes = code.len() as u64;
        if bytes > self.max_bytes {
            return Err(CodeError::TooLarge { bytes, limit: self.max_bytes });
        }
        let hash = hash(code);
        if self.get(&hash)?.is_none() {
            let path = self.dir.join(&hash);
            write_durably(&path, code).map_err(io_error(&path))?;
        }
        Ok(hash)
    }

    /// The code of that hash. A file whose content doesn't match is removed and counts as absent.
    pub fn get(&self, hash: &str) -> Result<Option<Bytes>, CodeError> {
        let path = self.path(hash)?;
        let code = match fs::read(&path) {
            Ok(code) => code,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CodeError::Io { path, source }),
        };
        if self::hash(&code) == hash {
            return Ok(Some(code.into()));
        }
        tracing::warn!(path = %path.display(), "code does not match its hash: removed, to be fetched again");
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CodeError::Io { path, source }),
            _ => Ok(None),
        }
    }

    /// Whether there is a file of that hash; its content is checked when it is read.
    pub fn has(&self, hash: &str) -> bool {
        self.path(hash).is_ok_and(|path| path.is_file())
    }

    fn path(&self, hash: &str) -> Result<PathBuf, CodeError> {
        if is_hash(hash) { Ok(self.dir.join(hash)) } else { Err(CodeError::BadHash(hash.chars().take(80).collect())) }
    }
}

/// blake3, hex.
pub fn hash(code: &[u8]) -> String {
    blake3::hash(code).to_hex().to_string()
}

pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> CodeError + use<> {
    let path = path.to_owned();
    move |source| CodeError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn store() -> (tempfile::TempDir, CodeStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = CodeStore::open(dir.path().join("code")).unwrap();
        (dir, store)
    }

    #[test]
    fn code_is_found_by_its_hash() {
        let (_dir, store) = store();
        let hash = store.put(b"print(1)").unwrap();
        assert_eq!(hash, super::hash(b"print(1)"));
        assert!(store.has(&hash));
        assert_eq!(store.get(&hash).unwrap().unwrap(), "print(1)");
        assert_eq!(store.put(b"print(1)").unwrap(), hash);
        assert_eq!(store.get(&super::hash(b"other")).unwrap(), None);
        assert!(!store.has(&super::hash(b"other")));
    }

    #[test]
    fn code_that_does_not_match_its_hash_is_absent_and_can_be_put_again() {
        let (_dir, store) = store();
        let hash = store.put(b"print(1)").unwrap();
        fs::write(store.dir.join(&hash), "print(2)").unwrap();
        assert_eq!(store.get(&hash).unwrap(), None);
        assert!(!store.has(&hash));
        store.put(b"print(1)").unwrap();
        fs::write(store.dir.join(&hash), "").unwrap();
        store.put(b"print(1)").unwrap();
        assert_eq!(store.get(&hash).unwrap().unwrap(), "print(1)");
    }

    #[test]
    fn code_over_the_limit_is_refused_and_code_at_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = CodeStore::with_limit(dir.path(), 8).unwrap();
        store.put(b"12345678").unwrap();
        let error = store.put(b"123456789").unwrap_err();
        assert!(matches!(error, CodeError::TooLarge { bytes: 9, limit: 8 }), "{error}");
    }

    #[test]
    fn code_over_48_mb_is_refused() {
        let (_dir, store) = store();
        let error = store.put(&vec![0; 48 * 1024 * 1024 + 1]).unwrap_err();
        assert!(matches!(error, CodeError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_hash_that_names_another_path_is_refused() {
        let (_dir, store) = store();
        for bad in ["", "..", "../../etc/passwd", &"A".repeat(64), &"a".repeat(63), &format!("../{}", "a".repeat(61))] {
            assert!(matches!(store.get(bad).unwrap_err(), CodeError::BadHash(_)), "{bad}");
            assert!(!store.has(bad));
        }
    }

    #[test]
    fn what_an_interrupted_put_left_is_removed() {
        let (dir, store) = store();
        let hash = store.put(b"kept").unwrap();
        let left = store.dir.join("x.1-1.tmp");
        fs::write(&left, "half").unwrap();
        let store = CodeStore::open(dir.path().join("code")).unwrap();
        assert!(!left.exists() && store.has(&hash));
    }
}
