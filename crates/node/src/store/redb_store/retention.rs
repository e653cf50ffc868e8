//! Removing the oldest activation records, in small transactions so that writers get between them.

use redb::{Durability, ReadableTable, StorageError};
use serde::Deserialize;

use super::{META_BYTES, RecordTables, RedbStore, decode, failed};
use crate::store::{Pruned, Retention, StoreError};

const BATCH: usize = 1_000;
/// One call removes at most this many batches; the next one goes on.
const MAX_BATCHES: usize = 100;
const WHAT: &str = "remove old activation records";

/// What the indexes need of a record to be removed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    activation_id: String,
    namespace: String,
    name: String,
    start: u64,
    end: u64,
}

pub(super) fn prune(store: &RedbStore, now_ms: u64, retention: Retention) -> Result<Pruned, StoreError> {
    let max_age_ms = u64::try_from(retention.max_age.as_millis()).unwrap_or(u64::MAX);
    let oldest_ms = now_ms.saturating_sub(max_age_ms);
    let mut total = Pruned::default();
    for _ in 0..MAX_BATCHES {
        let batch = prune_batch(store, oldest_ms, retention.max_bytes)?;
        total.records += batch.records;
        total.bytes += batch.bytes;
        if batch.records < BATCH as u64 {
            break;
        }
    }
    Ok(total)
}

fn prune_batch(store: &RedbStore, oldest_ms: u64, max_bytes: u64) -> Result<Pruned, StoreError> {
    let mut transaction = store.begin_write(WHAT)?;
    transaction.set_durability(Durability::None).map_err(failed(WHAT))?;
    let mut removed = Pruned::default();
    {
        let mut tables = RecordTables::open(&transaction)?;
        let mut bytes = tables.figure(META_BYTES).map_err(failed(WHAT))?;
        for _ in 0..BATCH {
            let Some((number, keys, size)) = oldest(&tables)? else {
                break;
            };
            if keys.end >= oldest_ms && bytes <= max_bytes {
                break;
            }
            remove(&mut tables, number, &keys).map_err(failed(WHAT))?;
            bytes = bytes.saturating_sub(size);
            removed.records += 1;
            removed.bytes += size;
        }
        if removed.records > 0 {
            tables.meta.insert(META_BYTES, bytes).map_err(failed(WHAT))?;
        }
    }
    if removed.records == 0 {
        transaction.abort(WHAT)?;
    } else {
        transaction.commit(WHAT)?;
    }
    Ok(removed)
}

fn oldest(tables: &RecordTables<'_>) -> Result<Option<(u64, Keys, u64)>, StoreError> {
    let Some((number, content)) = tables.records.first().map_err(failed(WHAT))? else {
        return Ok(None);
    };
    let number = number.value();
    let keys = decode(content.value(), || format!("activation record {number}"))?;
    Ok(Some((number, keys, content.value().len() as u64)))
}

fn remove(tables: &mut RecordTables<'_>, number: u64, keys: &Keys) -> Result<(), StorageError> {
    let (namespace, name) = (keys.namespace.as_str(), keys.name.as_str());
    tables.records.remove(number)?;
    tables.by_id.remove((namespace, keys.activation_id.as_str()))?;
    tables.by_time.remove((namespace, keys.start, number))?;
    tables.by_name.remove((namespace, name, keys.start, number))?;
    Ok(())
}
