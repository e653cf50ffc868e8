//! Which nodes this gossip domain has taken in, so that it can refuse to outgrow a datagram.
//!
//! chitchat sends its whole digest in one datagram and panics when that gets near 64 KB, and it takes in every
//! node that a digest names. The transport asks here first.

use std::collections::HashMap;
use std::time::Duration;

use chitchat::{ChitchatId, Serializable};
use tokio::time::Instant;

use super::{DIGEST_MAX_BYTES, MAX_NODES};

/// Heartbeat, last collected version and version of a digest entry.
const ENTRY_BYTES: usize = 24;
/// How long a node counts that was let in but is not among chitchat's nodes: its message is on the way there.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Ids as chitchat writes them.
    known: HashMap<Box<[u8]>, Instant>,
    digest_bytes: usize,
}

impl Roster {
    /// Whether the node may stay in a digest that chitchat will read.
    pub(super) fn admits(&mut self, id: &[u8], now: Instant) -> bool {
        if self.known.contains_key(id) {
            return true;
        }
        let grown = self.digest_bytes + id.len() + ENTRY_BYTES;
        if self.known.len() >= MAX_NODES || grown > DIGEST_MAX_BYTES {
            return false;
        }
        self.digest_bytes = grown;
        self.known.insert(id.into(), now);
        true
    }

    /// Takes over the nodes that chitchat has; true figures again after it forgot some.
    pub(super) fn refresh<'a>(&mut self, ids: impl Iterator<Item = &'a ChitchatId>, now: Instant) {
        let old = std::mem::take(&mut self.known);
        self.known = ids.map(|id| (id.serialize_to_vec().into_boxed_slice(), now)).collect();
        for (id, admitted) in old {
            // An entry that chitchat has keeps its own time of now, which `entry` leaves as it is.
            if now.saturating_duration_since(admitted) < SETTLE {
                self.known.entry(id).or_insert(admitted);
            }
        }
        self.digest_bytes = 2 + self.known.keys().map(|id| id.len() + ENTRY_BYTES).sum::<usize>();
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn digest_bytes(&self) -> usize {
        self.digest_bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn id(number: usize, name_length: usize) -> ChitchatId {
        let name = format!("{number:0>name_length$}");
        ChitchatId::new(name, 1, ([10, 0, 0, 1], 7411).into())
    }

    #[tokio::test(start_paused = true)]
    async fn the_roster_is_full_at_its_bound_and_takes_in_others_once_some_are_forgotten() {
        let mut roster = Roster::default();
        let now = Instant::now();
        for number in 0..MAX_NODES {
            assert!(roster.admits(&id(number, 4).serialize_to_vec(), now));
        }
        assert!(!roster.admits(&id(MAX_NODES, 4).serialize_to_vec(), now));
        assert!(roster.admits(&id(0, 4).serialize_to_vec(), now), "a known node stays");

        let kept: Vec<_> = (0..10).map(|number| id(number, 4)).collect();
        roster.refresh(kept.iter(), now);
        assert_eq!(roster.len(), MAX_NODES, "what was just let in may still be on its way");
        roster.refresh(kept.iter(), now + 2 * SETTLE);
        // Those seen at the first refresh were confirmed then, at `now`.
        assert_eq!(roster.len(), 10);
        assert!(roster.admits(&id(MAX_NODES, 4).serialize_to_vec(), now));
    }

    #[test]
    fn long_node_ids_fill_the_digest_before_the_count_does() {
        let mut roster = Roster::default();
        let now = Instant::now();
        let admitted = (0..MAX_NODES).filter(|number| roster.admits(&id(*number, 64).serialize_to_vec(), now)).count();
        assert!(admitted < MAX_NODES, "{admitted}");
        assert!(roster.digest_bytes() <= DIGEST_MAX_BYTES);
    }
}
