//! The database behind its lock: open, or closed by an I/O error until the next write opens it again.
//!
//! redb refuses everything after the first I/O error, and only opening the file again helps. Transactions hold the
//! lock for reading as long as they live, so that nothing is in use any more when the file is opened anew.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::{CACHE_BYTES, failed, open_error};
use crate::store::StoreError;

const CLOSED: &str = "an earlier I/O error has closed it; it is opened again by itself";

#[derive(Debug)]
pub(super) struct Opened {
    database: RwLock<Option<Database>>,
    /// None for one that is not in a file.
    path: Option<PathBuf>,
    /// Something failed: only opening it again tells what is stored.
    broken: AtomicBool,
}

/// A transaction; the database stays open as long as it lives.
pub(super) struct Reading<'o> {
    transaction: ReadTransaction,
    _open: RwLockReadGuard<'o, Option<Database>>,
}

pub(super) struct Writing<'o> {
    transaction: WriteTransaction,
    open: RwLockReadGuard<'o, Option<Database>>,
    broken: &'o AtomicBool,
}

impl Opened {
    pub(super) fn file(path: &Path) -> Result<Self, StoreError> {
        let database = open(path)?;
        Ok(Self::new(database, Some(path.to_owned())))
    }

    pub(super) fn new(database: Database, path: Option<PathBuf>) -> Self {
        Self { database: RwLock::new(Some(database)), path, broken: AtomicBool::new(false) }
    }

    pub(super) fn begin_read(&self, what: &'static str) -> Result<Reading<'_>, StoreError> {
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = open.as_ref().ok_or_else(|| failed(what)(CLOSED))?;
        let transaction = database.begin_read().map_err(failed(what))?;
        Ok(Reading { transaction, _open: open })
    }

    pub(super) fn begin_write(&self, what: &'static str) -> Result<Writing<'_>, StoreError> {
        if !self.broken.load(Ordering::Relaxed)
            && let Ok(writing) = self.try_write(what)
        {
            return Ok(writing);
        }
        self.reopen()?;
        self.try_write(what)
    }

    #[cfg(test)]
    pub(super) fn note_io_error(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    fn try_write(&self, what: &'static str) -> Result<Writing<'_>, StoreError> {
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = open.as_ref().ok_or_else(|| failed(what)(CLOSED))?;
        let transaction = database.begin_write().map_err(|error| {
            self.broken.store(true, Ordering::Relaxed);
            failed(what)(error)
        })?;
        Ok(Writing { transaction, open, broken: &self.broken })
    }

    /// Opens the file again if something has failed on it.
    ///
    /// After a failed fsync the kernel may show data as written that never reached the disk: its cached pages are
    /// let go first, so that what is read is what is there.
    fn reopen(&self) -> Result<(), StoreError> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if !self.broken.load(Ordering::Relaxed) {
            // Somebody else was quicker.
            return Ok(());
        }
        // The old one holds the file's lock. It may not like what it meets while it closes.
        let old = database.take();
        catch_unwind(AssertUnwindSafe(|| drop(old))).ok();
        if let Ok(file) = File::open(path) {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
        }
        *database = Some(open(path)?);
        self.broken.store(false, Ordering::Relaxed);
        tracing::info!(path = %path.display(), "the store was opened again after an I/O error");
        Ok(())
    }
}

impl Writing<'_> {
    pub(super) fn commit(self, what: &'static str) -> Result<(), StoreError> {
        let Self { transaction, open, broken } = self;
        let committed = transaction.commit().map_err(|error| {
            broken.store(true, Ordering::Relaxed);
            failed(what)(error)
        });
        drop(open);
        committed
    }

    pub(super) fn abort(self, what: &'static str) -> Result<(), StoreError> {
        self.transaction.abort().map_err(failed(what))
    }
}

impl Deref for Reading<'_> {
    type Target = ReadTransaction;

    fn deref(&self) -> &ReadTransaction {
        &self.transaction
    }
}

impl Deref for Writing<'_> {
    type Target = WriteTransaction;

    fn deref(&self) -> &WriteTransaction {
        &self.transaction
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut WriteTransaction {
        &mut self.transaction
    }
}

/// Opens the file, creating it when missing.
fn open(path: &Path) -> Result<Database, StoreError> {
    // redb meets some kinds of damage with a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| Database::builder().set_cache_size(CACHE_BYTES).create(path)));
    match opened {
        Ok(opened) => opened.map_err(|error| open_error(path, error)),
        Err(_) => {
            Err(StoreError::Corrupt { path: path.to_owned(), reason: "its pages contradict each other".to_owned() })
        }
    }
}
