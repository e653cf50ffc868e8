//! The [`Store`] on redb.
//!
//! Records are numbered as they come, which is about the order of their age and keeps writes at the end of
//! the tree; two indexes by start time make a list cost what it returns.
//!
//! ```text
//! meta        schema, next_record, record_bytes
//! actions     (namespace, name)               -> ActionEntry, JSON
//! records     number                          -> ActivationRecord, JSON
//! by_id       (namespace, id)                 -> number
//! by_time     (namespace, start, number)
//! by_name     (namespace, name, start, number)
//! journal     activation id                   -> what is needed to run it (`journal::Kept`)
//! started     activation id                   -> where its body was handed on to (`journal::Started`)
//! ```

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableTable, StorageBackend, StorageError, Table,
    TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;

use super::activation::{ActivationRecord, ActivationStatus, ActivationSummary};
use super::journal::{Entry, Step};
use super::{ActivationFilter, MAX_LIST_BYTES, Pruned, Retention, Store, StoreError};
use crate::registry::action::ActionEntry;

mod journal;
mod opened;
mod retention;

use opened::{Opened, Reading, Writing};

/// 2: with the journal.
const SCHEMA: u64 = 2;
/// redb's own default is a gigabyte.
const CACHE_BYTES: usize = 8 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ACTIONS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("actions");
const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const BY_ID: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("by_id");
const BY_TIME: TableDefinition<'_, (&str, u64, u64), ()> = TableDefinition::new("by_time");
const BY_NAME: TableDefinition<'_, (&str, &str, u64, u64), ()> = TableDefinition::new("by_name");

const META_SCHEMA: &str = "schema";
const META_NEXT: &str = "next_record";
const META_BYTES: &str = "record_bytes";

/// The database in one file, or in memory.
#[derive(Debug)]
pub struct RedbStore {
    opened: Opened,
}

impl RedbStore {
    /// Opens the file, creating it when missing. A damaged file is an error and stays as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let store = Self { opened: Opened::file(path)? };
        // redb meets some kinds of damage with a panic.
        match catch_unwind(AssertUnwindSafe(|| store.prepare(path))) {
            Ok(prepared) => prepared.map(|()| store),
            Err(_) => {
                Err(StoreError::Corrupt { path: path.to_owned(), reason: "its pages contradict each other".to_owned() })
            }
        }
    }

    /// The same database without a file, for simulations.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::on(InMemoryBackend::new())
    }

    pub(super) fn on(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let path = PathBuf::from("(in memory)");
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(|error| open_error(&path, error))?;
        let store = Self { opened: Opened::new(database, None) };
        store.prepare(&path)?;
        Ok(store)
    }

    #[cfg(test)]
    pub(super) fn note_io_error(&self) {
        self.opened.note_io_error();
    }

    /// Checks the schema, and makes all tables so that readers find them.
    fn prepare(&self, path: &Path) -> Result<(), StoreError> {
        let transaction = self.begin_write("prepare its tables")?;
        let found = {
            let mut meta = transaction.open_table(META).map_err(failed("open its tables"))?;
            let found = meta.get(META_SCHEMA).map_err(failed("read its schema"))?.map(|schema| schema.value());
            let found = found.unwrap_or(SCHEMA);
            if found <= SCHEMA {
                meta.insert(META_SCHEMA, SCHEMA).map_err(failed("write its schema"))?;
            }
            found
        };
        if found > SCHEMA {
            return Err(StoreError::NewerSchema { path: path.to_owned(), found, known: SCHEMA });
        }
        transaction.open_table(ACTIONS).map_err(failed("open its tables"))?;
        RecordTables::open(&transaction)?;
        journal::Tables::open(&transaction)?;
        transaction.commit("prepare its tables")
    }

    fn begin_write(&self, what: &'static str) -> Result<Writing<'_>, StoreError> {
        self.opened.begin_write(what)
    }

    fn begin_read(&self, what: &'static str) -> Result<Reading<'_>, StoreError> {
        self.opened.begin_read(what)
    }

    /// Calls `each` with the numbers of the chosen records, in order, until it answers false.
    fn for_each_match(
        &self,
        transaction: &ReadTransaction,
        namespace: &str,
        filter: &ActivationFilter,
        mut each: impl FnMut(u64) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        const WHAT: &str = "list activations";
        let since = filter.since_ms.unwrap_or(0);
        let upto = filter.upto_ms.unwrap_or(u64::MAX);
        if since > upto {
            return Ok(());
        }
        let mut visit = |number: Result<u64, StorageError>| each(number.map_err(failed(WHAT))?);
        match &filter.name {
            Some(name) => {
                let range: RangeInclusive<_> =
                    (namespace, name.as_str(), since, 0)..=(namespace, name.as_str(), upto, u64::MAX);
                let table = transaction.open_table(BY_NAME).map_err(failed(WHAT))?;
                let mut keys =
                    table.range(range).map_err(failed(WHAT))?.map(|entry| entry.map(|(key, _)| key.value().3));
                walk(&mut keys, filter, &mut visit)
            }
            None => {
                let range: RangeInclusive<_> = (namespace, since, 0)..=(namespace, upto, u64::MAX);
                let table = transaction.open_table(BY_TIME).map_err(failed(WHAT))?;
                let mut keys =
                    table.range(range).map_err(failed(WHAT))?.map(|entry| entry.map(|(key, _)| key.value().2));
                walk(&mut keys, filter, &mut visit)
            }
        }
    }

    /// Reads the chosen records as `T`, until there are `limit` of them or they are too large together.
    pub(super) fn list<T: DeserializeOwned>(
        &self,
        namespace: &str,
        filter: &ActivationFilter,
        max_bytes: usize,
    ) -> Result<Vec<T>, StoreError> {
        const WHAT: &str = "list activations";
        let transaction = self.begin_read(WHAT)?;
        let records = transaction.open_table(RECORDS).map_err(failed(WHAT))?;
        let mut found = Vec::new();
        let mut bytes = 0;
        if filter.limit == 0 {
            return Ok(found);
        }
        self.for_each_match(&transaction, namespace, filter, |number| {
            if let Some(content) = records.get(number).map_err(failed(WHAT))? {
                let content = content.value();
                bytes += content.len();
                if bytes > max_bytes && !found.is_empty() {
                    return Ok(false);
                }
                found.push(decode(content, || format!("activation record {number}"))?);
            }
            Ok(found.len() < filter.limit)
        })?;
        Ok(found)
    }
}

impl Store for RedbStore {
    fn load_actions(&self) -> Result<Vec<ActionEntry>, StoreError> {
        const WHAT: &str = "load actions";
        let transaction = self.begin_read(WHAT)?;
        let table = transaction.open_table(ACTIONS).map_err(failed(WHAT))?;
        let entries = table.iter().map_err(failed(WHAT))?;
        entries
            .map(|entry| {
                let (key, content) = entry.map_err(failed(WHAT))?;
                decode(content.value(), || format!("action {}/{}", key.value().0, key.value().1))
            })
            .collect()
    }

    fn put_actions(&self, entries: &[Arc<ActionEntry>]) -> Result<(), StoreError> {
        const WHAT: &str = "write actions";
        let transaction = self.begin_write(WHAT)?;
        {
            let mut table = transaction.open_table(ACTIONS).map_err(failed(WHAT))?;
            for entry in entries {
                let content = serde_json::to_vec(&**entry).map_err(failed(WHAT))?;
                let key = (entry.namespace.as_str(), entry.name.as_str());
                table.insert(key, content.as_slice()).map_err(failed(WHAT))?;
            }
        }
        transaction.commit(WHAT)
    }

    fn append_activations(&self, records: &[Arc<ActivationRecord>]) -> Result<(), StoreError> {
        const WHAT: &str = "write activation records";
        let mut transaction = self.begin_write(WHAT)?;
        transaction.set_durability(Durability::None).map_err(failed(WHAT))?;
        {
            let mut tables = RecordTables::open(&transaction)?;
            for record in records {
                let content = serde_json::to_vec(&**record).map_err(failed(WHAT))?;
                tables.append(record, &content).map_err(failed(WHAT))?;
            }
        }
        transaction.commit(WHAT)
    }

    fn sync(&self) -> Result<(), StoreError> {
        // An empty transaction makes those before it durable.
        self.begin_write("sync")?.commit("sync")
    }

    fn activation(&self, namespace: &str, id: &str) -> Result<Option<ActivationRecord>, StoreError> {
        const WHAT: &str = "read an activation record";
        let transaction = self.begin_read(WHAT)?;
        let numbers = transaction.open_table(BY_ID).map_err(failed(WHAT))?;
        let Some(number) = numbers.get((namespace, id)).map_err(failed(WHAT))?.map(|number| number.value()) else {
            return Ok(None);
        };
        let records = transaction.open_table(RECORDS).map_err(failed(WHAT))?;
        let content = records.get(number).map_err(failed(WHAT))?;
        content.map(|content| decode(content.value(), || format!("activation record {id}"))).transpose()
    }

    fn list_activations(
        &self,
        namespace: &str,
        filter: &ActivationFilter,
    ) -> Result<Vec<ActivationRecord>, StoreError> {
        self.list(namespace, filter, MAX_LIST_BYTES)
    }

    fn list_summaries(&self, namespace: &str, filter: &ActivationFilter) -> Result<Vec<ActivationSummary>, StoreError> {
        let stored: Vec<Stored> = self.list(namespace, filter, usize::MAX)?;
        Ok(stored.into_iter().map(Stored::into_summary).collect())
    }

    fn count_activations(&self, namespace: &str, filter: &ActivationFilter) -> Result<u64, StoreError> {
        let transaction = self.begin_read("count activations")?;
        let mut count = 0;
        self.for_each_match(&transaction, namespace, filter, |_| {
            count += 1;
            Ok(true)
        })?;
        Ok(count)
    }

    fn prune(&self, now_ms: u64, retention: Retention) -> Result<Pruned, StoreError> {
        retention::prune(self, now_ms, retention)
    }

    fn load_journal(&self) -> Result<Vec<Entry>, StoreError> {
        journal::load(self)
    }

    fn commit_journal(&self, steps: &[Step]) -> Result<(), StoreError> {
        journal::commit(self, steps)
    }
}

/// The tables that a record is in, open for writing.
struct RecordTables<'t> {
    meta: Table<'t, &'static str, u64>,
    records: Table<'t, u64, &'static [u8]>,
    by_id: Table<'t, (&'static str, &'static str), u64>,
    by_time: Table<'t, (&'static str, u64, u64), ()>,
    by_name: Table<'t, (&'static str, &'static str, u64, u64), ()>,
}

impl<'t> RecordTables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        const WHAT: &str = "open its tables";
        Ok(Self {
            meta: transaction.open_table(META).map_err(failed(WHAT))?,
            records: transaction.open_table(RECORDS).map_err(failed(WHAT))?,
            by_id: transaction.open_table(BY_ID).map_err(failed(WHAT))?,
            by_time: transaction.open_table(BY_TIME).map_err(failed(WHAT))?,
            by_name: transaction.open_table(BY_NAME).map_err(failed(WHAT))?,
        })
    }

    fn append(&mut self, record: &ActivationRecord, content: &[u8]) -> Result<(), StorageError> {
        let (namespace, name) = (record.namespace.as_str(), record.name.as_str());
        let id = (namespace, record.activation_id.as_str());
        if self.by_id.get(id)?.is_some() {
            return Ok(());
        }
        let number = self.figure(META_NEXT)?;
        self.meta.insert(META_NEXT, number + 1)?;
        let bytes = self.figure(META_BYTES)?;
        self.meta.insert(META_BYTES, bytes.saturating_add(content.len() as u64))?;
        self.records.insert(number, content)?;
        self.by_id.insert(id, number)?;
        self.by_time.insert((namespace, record.start_ms, number), ())?;
        self.by_name.insert((namespace, name, record.start_ms, number), ())?;
        Ok(())
    }

    fn figure(&self, key: &str) -> Result<u64, StorageError> {
        Ok(self.meta.get(key)?.map_or(0, |figure| figure.value()))
    }
}

/// A stored record as far as a summary needs it; logs and result are passed over.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    activation_id: String,
    namespace: String,
    name: String,
    version: String,
    subject: String,
    start: u64,
    end: u64,
    duration: u64,
    publish: bool,
    cause: Option<String>,
    annotations: Vec<crate::registry::action::KeyValue>,
    response: StoredResponse,
}

#[derive(serde::Deserialize)]
struct StoredResponse {
    status: ActivationStatus,
}

impl Stored {
    fn into_summary(self) -> ActivationSummary {
        ActivationSummary {
            activation_id: self.activation_id,
            namespace: self.namespace,
            name: self.name,
            version: self.version,
            subject: self.subject,
            start_ms: self.start,
            end_ms: self.end,
            duration_ms: self.duration,
            publish: self.publish,
            cause: self.cause,
            annotations: self.annotations,
            status_code: self.response.status.code(),
        }
    }
}

/// Visits numbers in the filter's direction, past those to skip.
fn walk(
    numbers: &mut dyn DoubleEndedIterator<Item = Result<u64, StorageError>>,
    filter: &ActivationFilter,
    visit: &mut dyn FnMut(Result<u64, StorageError>) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let mut skip = filter.skip;
    while let Some(number) = if filter.descending { numbers.next_back() } else { numbers.next() } {
        if skip > 0 && number.is_ok() {
            skip -= 1;
        } else if !visit(number)? {
            break;
        }
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(content: &[u8], what: impl FnOnce() -> String) -> Result<T, StoreError> {
    serde_json::from_slice(content).map_err(|error| StoreError::Entry { what: what(), reason: error.to_string() })
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Failed { what, reason: error.to_string() }
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(StorageError::Corrupted(reason)) => StoreError::Corrupt { path, reason },
        // redb's word for a file that does not begin or end as its own do.
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            StoreError::Corrupt { path, reason: "it is cut short, or not a store".to_owned() }
        }
        DatabaseError::UpgradeRequired(found) => {
            StoreError::Open { path, reason: format!("its file format {found} is of another database version") }
        }
        other => StoreError::Open { path, reason: other.to_string() },
    }
}
