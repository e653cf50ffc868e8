//! Brings this node's actions and a peer's together: each takes what is newer at the other. Whoever hears in gossip of a
//! digest other than its own begins; and begins again, after a pause that grows, as long as they differ: an exchange
//! fails on a cut link or a full disk, and nobody says again what gossip has said.

use std::sync::Arc;
use std::time::Duration;

use embermesh_core::NodeId;
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
/// Between two exchanges with a peer that says nothing new.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How exchanges with one peer go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    /// The digest of its actions, as it told last.
    theirs: Option<u64>,
    /// What it had told when the last one began.
    seen: Option<u64>,
    under_way: bool,
    not_before: Option<Instant>,
    pause: Duration,
}

impl Exchange {
    pub(crate) fn told(&mut self, digest: u64) {
        self.theirs = Some(digest);
    }

    pub(crate) fn differs(&self, own: u64) -> bool {
        self.theirs.is_some_and(|theirs| theirs != own)
    }

    /// Whether one begins now: one at a time, and without news not at once after another.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let news = self.theirs != self.seen;
        if self.under_way || !news && self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.pause = if news { FIRST_PAUSE } else { (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        (self.under_way, self.seen) = (true, self.theirs);
        true
    }

    pub(crate) fn end(&mut self, now: Instant) {
        self.under_way = false;
        self.not_before = Some(now + self.pause);
    }
}

impl Node {
    /// Begins an exchange with every live peer whose digest is another than this node's.
    pub(crate) fn exchange_where_needed(&self) {
        let own = self.registry().digest();
        for peer in self.peers().with_other_actions(own) {
            self.spawn_exchange(peer);
        }
    }

    pub(crate) fn spawn_exchange(&self, peer: NodeId) {
        let Some(epoch) = self.peers().begin_exchange(&peer, Instant::now()) else { return };
        let node = self.clone();
        tokio::spawn(async move {
            if node.exchange(&peer).await.is_none() {
                tracing::debug!(peer = %peer, "the action registries were not brought together");
            }
            node.peers().change(&peer, epoch, |p| p.exchange.end(Instant::now()));
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
