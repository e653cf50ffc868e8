//! This node's own keys: the latest value of each, and which of them chitchat has not been told yet.
//!
//! Writers only touch this map under a short lock; the gossip task takes what changed and, after a restart of
//! chitchat, everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{GossipError, MAX_KEY_BYTES, MAX_KEYS, MAX_VALUE_BYTES, STATE_KEY, wire};

#[derive(Debug, Default)]
pub(super) struct OwnKeys {
    inner: Mutex<Inner>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    values: BTreeMap<String, String>,
    unpublished: BTreeSet<String>,
    closed: bool,
}

impl OwnKeys {
    pub(super) fn set(&self, key: &str, value: &str) -> Result<(), GossipError> {
        if !wire::is_name(key) || key.len() > MAX_KEY_BYTES {
            return Err(GossipError::Key { key: key.chars().take(MAX_KEY_BYTES).collect() });
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(GossipError::Value { key: key.to_owned(), bytes: value.len() });
        }
        let mut inner = self.lock();
        if inner.closed {
            return Err(GossipError::Closed);
        }
        if inner.values.get(key).is_some_and(|old| old == value) {
            return Ok(());
        }
        // One place is kept for the state that `close` sets.
        let room = if key == STATE_KEY || inner.values.contains_key(STATE_KEY) { MAX_KEYS } else { MAX_KEYS - 1 };
        if inner.values.len() >= room && !inner.values.contains_key(key) {
            return Err(GossipError::TooManyKeys { key: key.to_owned() });
        }
        inner.put(key, value);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Sets a last value, for which there is always room, and takes no more.
    pub(super) fn close(&self, key: &str, value: &str) {
        let mut inner = self.lock();
        inner.put(key, value);
        inner.closed = true;
    }

    /// Everything, for a fresh chitchat.
    pub(super) fn take_all(&self) -> Vec<(String, String)> {
        let mut inner = self.lock();
        inner.unpublished.clear();
        inner.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// What changed since the last call.
    pub(super) fn take_changes(&self) -> Vec<(String, String)> {
        let mut inner = self.lock();
        let keys = std::mem::take(&mut inner.unpublished);
        keys.into_iter().filter_map(|key| inner.values.get(&key).cloned().map(|value| (key, value))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, key: &str, value: &str) {
        self.values.insert(key.to_owned(), value.to_owned());
        self.unpublished.insert(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_latest_value_of_a_key_is_published_and_only_once() {
        let own = OwnKeys::default();
        own.set("n", "1").unwrap();
        own.set("n", "2").unwrap();
        assert_eq!(own.take_changes(), [("n".to_owned(), "2".to_owned())]);
        own.set("n", "2").unwrap();
        assert!(own.take_changes().is_empty(), "an unchanged value is no news");
        assert_eq!(own.take_all().len(), 1);
    }

    #[test]
    fn bad_keys_long_values_and_too_many_keys_are_refused_with_their_name() {
        let own = OwnKeys::default();
        for key in ["", "zwölf", "a b", &"k".repeat(MAX_KEY_BYTES + 1)] {
            assert!(matches!(own.set(key, "v"), Err(GossipError::Key { .. })), "{key}");
        }
        let long = "v".repeat(MAX_VALUE_BYTES + 1);
        assert!(matches!(own.set("n", &long), Err(GossipError::Value { bytes, .. }) if bytes == long.len()));
        own.set("n", &long[1..]).unwrap();
        for number in 2..MAX_KEYS {
            own.set(&format!("k{number}"), "v").unwrap();
        }
        assert!(matches!(own.set("more", "v"), Err(GossipError::TooManyKeys { .. })));
        own.set("n", "known keys still change").unwrap();
        own.close(STATE_KEY, "left");
        assert_eq!(own.take_all().len(), MAX_KEYS);
    }

    #[test]
    fn after_leaving_nothing_overwrites_the_last_word() {
        let own = OwnKeys::default();
        own.set("st", "live").unwrap();
        own.close("st", "left");
        assert!(matches!(own.set("st", "live"), Err(GossipError::Closed)));
        assert_eq!(own.take_all(), [("st".to_owned(), "left".to_owned())]);
    }
}
