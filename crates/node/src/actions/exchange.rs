//! Brings this node's actions and a peer's together: each takes what is newer at the other. Whoever hears in gossip of a
//! digest other than its own begins; and begins again, after a pause that grows, as long as they differ: an exchange
//! fails on a cut link or a full disk, and nobody says again what gossip has said.

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::{Epoch, NodeId};
use embermesh_proto::v1;
use tokio::time::{Instant, timeout};

use super::LOOK_UP;
use crate::node::Node;
use crate::peers::MAX_MESSAGE_BYTES;
use crate::registry::SummaryItem;
use crate::registry::action::{ActionEntry, Revision};
use crate::rpc::server::entry_json;

const ANSWER: Duration = LOOK_UP.saturating_mul(5);
/// Entries in one message, in number and in bytes; what is left follows in the next.
const ENTRIES_PER_MESSAGE: usize = 500;
const ENTRY_BYTES_PER_MESSAGE: usize = MAX_MESSAGE_BYTES / 2;
const MOST_MESSAGES: usize = 300;
/// Two digests differ for so long before an exchange is begun for that alone: mostly gossip is still on its way.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How exchanges with one peer go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    /// The digest of its actions, as it told last.
    theirs: Option<u64>,
    under_way: bool,
    differing: Option<Differing>,
}

/// Digests that differ although nobody tells anything new.
#[derive(Debug, Clone)]
struct Differing {
    own: u64,
    theirs: u64,
    next: Instant,
    pause: Duration,
}

impl Exchange {
    /// The peer told its digest; whether an exchange begins with that.
    pub(crate) fn told(&mut self, theirs: u64, own: u64) -> bool {
        let news = self.theirs.replace(theirs) != Some(theirs);
        news && theirs != own && self.begin()
    }

    /// Whether one begins because the digests differ for long.
    pub(crate) fn due(&mut self, own: u64, now: Instant) -> bool {
        let Some(theirs) = self.theirs.filter(|theirs| *theirs != own) else {
            self.differing = None;
            return false;
        };
        match &self.differing {
            Some(known) if (known.own, known.theirs) == (own, theirs) => now >= known.next && self.begin(),
            _ => {
                self.differing = Some(Differing { own, theirs, next: now + FIRST_PAUSE, pause: FIRST_PAUSE });
                false
            }
        }
    }

    /// One at a time.
    pub(crate) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.under_way, true)
    }

    fn end(&mut self, now: Instant) {
        self.under_way = false;
        if let Some(known) = &mut self.differing {
            known.pause = (known.pause * 2).min(LONGEST_PAUSE);
            known.next = now + known.pause;
        }
    }
}

/// Ends it whichever way its task ends.
struct UnderWay {
    node: Node,
    peer: NodeId,
    epoch: Epoch,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.node.peers().change(&self.peer, self.epoch, |p| p.exchange.end(Instant::now()));
    }
}

impl Node {
    /// A peer told the digest of its actions.
    pub(crate) fn on_actions_told(&self, peer: NodeId, epoch: Epoch, digest: u64) {
        let own = self.registry().digest();
        let mut begins = false;
        self.peers().change(&peer, epoch, |p| begins = p.exchange.told(digest, own));
        if begins {
            self.exchange_with(peer, epoch);
        }
    }

    /// Begins exchanges with those live peers from which this node differs for long.
    pub(crate) fn exchange_where_due(&self) {
        for (peer, epoch) in self.peers().exchanges_due(self.registry().digest(), Instant::now()) {
            self.exchange_with(peer, epoch);
        }
    }

    /// A peer is known to have what is newer.
    pub(crate) fn spawn_exchange(&self, peer: NodeId) {
        if let Some(epoch) = self.peers().begin_exchange(&peer) {
            self.exchange_with(peer, epoch);
        }
    }

    fn exchange_with(&self, peer: NodeId, epoch: Epoch) {
        let under_way = UnderWay { node: self.clone(), peer, epoch };
        tokio::spawn(async move {
            let UnderWay { node, peer, .. } = &under_way;
            if node.exchange(peer).await.is_none() {
                tracing::debug!(peer = %peer, "the action registries were not brought together");
            }
        });
    }

    async fn exchange(&self, peer: &NodeId) -> Option<()> {
        let mut client = self.peers().client(peer)?;
        let mut entries = Vec::new();
        let mut sent: Vec<v1::Known> = Vec::new();
        for _ in 0..MOST_MESSAGES {
            let known = known_messages(&self.registry().summary());
            let message = v1::SyncActionsRequest { known, entries: std::mem::take(&mut entries) };
            let reply = timeout(ANSWER, client.sync_actions(message)).await.ok()?.ok()?.into_inner();
            // What it wants again it can't take: an older version, a full disk.
            let wanted: Vec<_> = reply.wanted.into_iter().filter(|known| !sent.contains(known)).collect();
            if reply.entries.is_empty() && wanted.is_empty() {
                break;
            }
            let learned = self.take_entries(reply.entries).await;
            let found = wanted.iter().filter_map(|k| self.registry().get_any(&k.namespace, &k.name));
            entries = fill_message(found);
            if learned == 0 && entries.is_empty() {
                break;
            }
            sent.extend(wanted.into_iter().take(entries.len()));
        }
        Some(())
    }

    /// The other side of an exchange.
    pub(crate) async fn take_exchange(&self, request: v1::SyncActionsRequest) -> (Vec<Vec<u8>>, Vec<v1::Known>) {
        self.take_entries(request.entries).await;
        let theirs: Vec<_> = request.known.into_iter().map(summary_item).collect();
        let newer = self.registry().newer_than(&theirs);
        let entries = fill_message(newer.into_iter());
        let wanted = theirs
            .into_iter()
            .filter(|(namespace, name, revision)| {
                self.registry().get_any(namespace, name).is_none_or(|known| known.revision < *revision)
            })
            .take(ENTRIES_PER_MESSAGE)
            .collect::<Vec<_>>();
        (entries, known_messages(&wanted))
    }
}

/// As many entries as one message takes, from the first on; always one, if there is one.
fn fill_message(entries: impl Iterator<Item = Arc<ActionEntry>>) -> Vec<Vec<u8>> {
    let mut filled: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for entry in entries.take(ENTRIES_PER_MESSAGE) {
        let json = entry_json(&entry);
        bytes += json.len();
        if bytes > ENTRY_BYTES_PER_MESSAGE && !filled.is_empty() {
            break;
        }
        filled.push(json);
    }
    filled
}

fn summary_item(known: v1::Known) -> SummaryItem {
    let revision = Revision { counter: known.revision_counter, node_id: known.revision_node };
    (known.namespace, known.name, revision)
}

fn known_messages(items: &[SummaryItem]) -> Vec<v1::Known> {
    let message = |(namespace, name, revision): &SummaryItem| v1::Known {
        namespace: namespace.clone(),
        name: name.clone(),
        revision_counter: revision.counter,
        revision_node: revision.node_id.clone(),
    };
    items.iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_that_reaches_all_directly_and_then_by_gossip_makes_no_exchange() {
        let mut exchange = Exchange::default();
        let now = Instant::now();
        assert!(!exchange.told(1, 1));
        // The change has come here; that it has come there is still to be heard.
        assert!(!exchange.due(2, now) && !exchange.due(2, now + SECOND));
        assert!(!exchange.told(2, 2));
        assert!(!exchange.due(2, now + 9 * SECOND));
    }

    #[test]
    fn digests_that_differ_make_an_exchange_at_once_and_then_again_after_pauses_that_grow() {
        let mut exchange = Exchange::default();
        let mut now = Instant::now();
        assert!(exchange.told(2, 1));
        assert!(!exchange.told(3, 1), "one is under way");
        exchange.end(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let since = now;
            while !exchange.due(1, now) {
                now += SECOND;
            }
            pauses.push((now - since).as_secs());
            assert!(!exchange.begin(), "one at a time");
            exchange.end(now);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30]);
        assert!(exchange.told(4, 1), "news is not held up");
        exchange.end(now);
        assert!(exchange.begin(), "nor is who knows that the peer has what is newer");
    }
}
