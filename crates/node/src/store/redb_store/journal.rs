//! The journal's two tables. An entry leaves them in the transaction that adds its record, so that an activation is
//! either owed or has ended, never both.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use embermesh_core::ActivationId;
use redb::{ReadableTable, StorageError, Table, TableDefinition, WriteTransaction};

use super::{META, RecordTables, RedbStore, failed};
use crate::store::StoreError;
use crate::store::journal::{Entry, Kept, Request, Started, Step};

/// Namespace, name, version, subject, transaction id, when it was accepted, parameters.
type KeptRow = (&'static str, &'static str, &'static str, &'static str, &'static str, u64, &'static [u8]);
/// Owner, its epoch, attempt, which request, the request.
type StartedRow = (&'static str, u64, u32, u8, &'static [u8]);

const JOURNAL: TableDefinition<'_, u128, KeptRow> = TableDefinition::new("journal");
const STARTED: TableDefinition<'_, u128, StartedRow> = TableDefinition::new("started");
/// Counts transactions that had nothing else to write.
const META_PROBES: &str = "probes";

const LOCAL: u8 = 0;
const RUN: u8 = 1;
const RESERVE: u8 = 2;

const WRITE: &str = "write the journal";
const READ: &str = "read the journal";

pub(super) struct Tables<'t> {
    journal: Table<'t, u128, KeptRow>,
    started: Table<'t, u128, StartedRow>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            journal: transaction.open_table(JOURNAL).map_err(failed(WRITE))?,
            started: transaction.open_table(STARTED).map_err(failed(WRITE))?,
        })
    }

    fn accept(&mut self, kept: &Kept) -> Result<(), StorageError> {
        let row = (
            kept.namespace.as_str(),
            kept.name.as_str(),
            kept.version.as_str(),
            kept.subject.as_str(),
            kept.transaction_id.as_str(),
            kept.accepted_ms,
            &kept.params[..],
        );
        self.journal.insert(kept.id.0, row)?;
        Ok(())
    }

    fn start(&mut self, id: ActivationId, started: &Started) -> Result<(), StorageError> {
        let (kind, request): (u8, &[u8]) = match &started.request {
            None => (LOCAL, &[]),
            Some(Request::Run(message)) => (RUN, message),
            Some(Request::Reserve(message)) => (RESERVE, message),
        };
        self.started.insert(id.0, (started.owner.as_str(), started.epoch, started.attempt, kind, request))?;
        Ok(())
    }

    fn came_back(&mut self, id: ActivationId, attempt: u32) -> Result<(), StorageError> {
        match Started::nowhere(attempt) {
            Some(nowhere) => self.start(id, &nowhere),
            None => self.started.remove(id.0).map(drop),
        }
    }

    fn forget(&mut self, id: ActivationId) -> Result<(), StorageError> {
        self.journal.remove(id.0)?;
        self.started.remove(id.0)?;
        Ok(())
    }
}

pub(super) fn commit(store: &RedbStore, steps: &[Step]) -> Result<(), StoreError> {
    let transaction = store.begin_write(WRITE)?;
    {
        let mut tables = Tables::open(&transaction)?;
        let mut records = None;
        for step in steps {
            match step {
                Step::Accepted(kept, started) => {
                    tables.accept(kept).map_err(failed(WRITE))?;
                    if let Some(started) = started {
                        tables.start(kept.id, started).map_err(failed(WRITE))?;
                    }
                }
                Step::Started(id, started) => tables.start(*id, started).map_err(failed(WRITE))?,
                Step::CameBack(id, attempt) => tables.came_back(*id, *attempt).map_err(failed(WRITE))?,
                Step::Ended(id, record) => {
                    let content = serde_json::to_vec(&**record).map_err(failed(WRITE))?;
                    let records = match &mut records {
                        Some(open) => open,
                        None => records.insert(RecordTables::open(&transaction)?),
                    };
                    records.append(record, &content).map_err(failed(WRITE))?;
                    tables.forget(*id).map_err(failed(WRITE))?;
                }
                Step::Forgotten(id) => tables.forget(*id).map_err(failed(WRITE))?,
            }
        }
    }
    if steps.is_empty() {
        let mut meta = transaction.open_table(META).map_err(failed(WRITE))?;
        let probes = meta.get(META_PROBES).map_err(failed(WRITE))?.map_or(0, |n| n.value());
        meta.insert(META_PROBES, probes.wrapping_add(1)).map_err(failed(WRITE))?;
    }
    transaction.commit(WRITE)
}

pub(super) fn load(store: &RedbStore) -> Result<Vec<Entry>, StoreError> {
    let transaction = store.begin_read(READ)?;
    let table = transaction.open_table(STARTED).map_err(failed(READ))?;
    let mut started = HashMap::new();
    for row in table.iter().map_err(failed(READ))? {
        let (id, value) = row.map_err(failed(READ))?;
        let (owner, epoch, attempt, kind, message) = value.value();
        let request = match kind {
            RUN => Some(Request::Run(Bytes::copy_from_slice(message))),
            RESERVE => Some(Request::Reserve(Bytes::copy_from_slice(message))),
            _ => None,
        };
        started.insert(id.value(), Started { owner: owner.to_owned(), epoch, attempt, request });
    }
    let table = transaction.open_table(JOURNAL).map_err(failed(READ))?;
    let entry = |row: Result<_, StorageError>| {
        let (id, value): (redb::AccessGuard<'_, u128>, redb::AccessGuard<'_, KeptRow>) = row.map_err(failed(READ))?;
        let (namespace, name, version, subject, transaction_id, accepted_ms, params) = value.value();
        let kept = Kept {
            id: ActivationId(id.value()),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            subject: subject.to_owned(),
            transaction_id: transaction_id.to_owned(),
            accepted_ms,
            params: Bytes::copy_from_slice(params),
        };
        Ok(Entry { started: started.remove(&id.value()), kept: Arc::new(kept) })
    };
    table.iter().map_err(failed(READ))?.map(entry).collect()
}
