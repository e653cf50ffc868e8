//! The database behind its lock: open, or closed by an I/O error until the next write opens it again.
//!
//! redb refuses everything after the first I/O error, and only opening the file again helps. Transactions hold the
//! lock for reading as long as they live, so that nothing is in use any more when the file is opened anew. Of writing
//! ones there is one at a time, as in redb itself; but the next begins only when the failure of the last is noted, so that
//! it meets the cause, not redb's word that something failed before.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::{CACHE_BYTES, failed, open_error};
use crate::store::StoreError;

const CLOSED: &str = "an earlier I/O error has closed it; it is opened again by itself";

#[derive(Debug)]
pub(super) struct Opened {
    database: RwLock<Option<Database>>,
    writer: Mutex<()>,
    /// None for one that is not in a file.
    path: Option<PathBuf>,
    /// Something failed: only opening it again tells what is stored.
    broken: AtomicBool,
}

type Open<'o> = RwLockReadGuard<'o, Option<Database>>;

/// A transaction; the database stays open as long as it lives.
pub(super) struct Reading<'o> {
    transaction: ReadTransaction,
    _open: Open<'o>,
}

pub(super) struct Writing<'o> {
    transaction: WriteTransaction,
    _open: Open<'o>,
    broken: &'o AtomicBool,
    _turn: MutexGuard<'o, ()>,
}

impl Opened {
    pub(super) fn file(path: &Path) -> Result<Self, StoreError> {
        let database = open(path)?;
        Ok(Self::new(database, Some(path.to_owned())))
    }

    pub(super) fn new(database: Database, path: Option<PathBuf>) -> Self {
        Self { database: RwLock::new(Some(database)), writer: Mutex::default(), path, broken: AtomicBool::new(false) }
    }

    pub(super) fn begin_read(&self, what: &'static str) -> Result<Reading<'_>, StoreError> {
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = open.as_ref().ok_or_else(|| failed(what)(CLOSED))?;
        let transaction = database.begin_read().map_err(failed(what))?;
        Ok(Reading { transaction, _open: open })
    }

    pub(super) fn begin_write(&self, what: &'static str) -> Result<Writing<'_>, StoreError> {
        let turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.broken.load(Ordering::Relaxed)
            && let Ok((transaction, open)) = self.try_write(what)
        {
            return Ok(Writing { transaction, _open: open, broken: &self.broken, _turn: turn });
        }
        self.reopen()?;
        let (transaction, open) = self.try_write(what)?;
        Ok(Writing { transaction, _open: open, broken: &self.broken, _turn: turn })
    }

    #[cfg(test)]
    pub(super) fn note_io_error(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    fn try_write(&self, what: &'static str) -> Result<(WriteTransaction, Open<'_>), StoreError> {
        let open = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = open.as_ref().ok_or_else(|| failed(what)(CLOSED))?;
        let transaction = database.begin_write().map_err(|error| {
            self.broken.store(true, Ordering::Relaxed);
            failed(what)(error)
        })?;
        Ok((transaction, open))
    }

    /// Opens the file again if something has failed on it.
    ///
    /// After a failed fsync the kernel may show data as written that never reached the disk: its cached pages are
    /// let go first, so that what is read is what is there.
    fn reopen(&self) -> Result<(), StoreError> {
        let Some(path) = &self.path else {
            self.broken.store(false, Ordering::Relaxed);
            return Ok(());
        };
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
        let Self { transaction, _open, broken, _turn } = self;
        // redb panics where something has failed since this one began.
        let committed = catch_unwind(AssertUnwindSafe(|| {
            if broken.load(Ordering::Relaxed) {
                Err(failed(what)(CLOSED))
            } else {
                transaction.commit().map_err(failed(what))
            }
        }));
        let committed = committed.unwrap_or_else(|_| Err(failed(what)(CLOSED)));
        if committed.is_err() {
            broken.store(true, Ordering::Relaxed);
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_transaction_that_was_begun_before_another_failed_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Opened::file(&dir.path().join("store.redb")).unwrap();
        let begun = opened.begin_write("write").unwrap();
        opened.note_io_error();
        let refused = begun.commit("write").unwrap_err();
        assert!(refused.to_string().contains("earlier I/O error"), "{refused}");
        opened.begin_write("write").unwrap().commit("write").unwrap();
    }

    #[test]
    fn a_write_that_waits_for_one_that_fails_opens_the_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Opened::file(&dir.path().join("store.redb")).unwrap();
        let opened = &opened;
        let first = opened.begin_write("write").unwrap();
        std::thread::scope(|scope| {
            let (began, begins) = std::sync::mpsc::channel();
            let second = scope.spawn(move || {
                began.send(()).unwrap();
                opened.begin_write("write")?.commit("write")
            });
            begins.recv().unwrap();
            opened.note_io_error();
            first.commit("write").unwrap_err();
            second.join().unwrap().unwrap();
        });
    }
}
