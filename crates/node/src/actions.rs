//! Actions across the mesh: whoever changes one tells all live peers at once, and an `exchange` brings what that missed.
//! Code travels by its hash, from any peer that has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use embermesh_core::{ActionId, ActionSpec, Input, NodeId, Revision};
use embermesh_proto::v1;
use futures::future::join_all;
use serde::Deserialize;
use tokio::time::timeout;

use crate::containers::EngineError;
use crate::node::Node;
use crate::owned::runtime_for;
use crate::registry::action::{self, ActionEntry, Kind};
use crate::registry::{ActionChange, CodeRef, Merge, RegistryError};
use crate::rpc::server::entry_json;
use crate::store::{CodeError, code};

pub(crate) mod exchange;

/// How long a change waits for peers to take it: gossip brings it to the others.
const TELL_PEERS: Duration = Duration::from_secs(1);
const LOOK_UP: Duration = Duration::from_secs(1);
const FETCH_CODE: Duration = Duration::from_secs(30);

/// Why an action can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Code(#[from] CodeError),
    #[error("this node can't run that: {0}")]
    Unsupported(#[from] EngineError),
    #[error("the change was given up: this node is going down")]
    GoingDown,
}

impl Node {
    /// Makes or changes an action, and tells all live peers.
    pub async fn put_action(
        &self,
        namespace: &str,
        name: &str,
        mut change: ActionChange,
        code: Option<Bytes>,
        overwrite: bool,
    ) -> Result<Arc<ActionEntry>, ActionError> {
        // What another node knows decides whether it exists.
        self.find_action(namespace, name).await;
        let (node, namespace, name) = (self.clone(), namespace.to_owned(), name.to_owned());
        let entry = self
            .blocking(move || {
                if let Some(code) = code {
                    let hash = node.codes().put(&code)?;
                    change.code = Some(CodeRef { hash, bytes: code.len() as u64 });
                }
                let known = node.registry().get(&namespace, &name);
                let kind = change.kind.or(known.as_ref().map(|k| k.kind)).unwrap_or(Kind::Builtin);
                let concurrency = change.limits.concurrency.unwrap_or(1);
                node.engine().supports(runtime_for(kind), concurrency)?;
                let now = node.wall_ms();
                Ok(match overwrite {
                    true => node.registry().update(&namespace, &name, change, true, now)?,
                    false => node.registry().create(&namespace, &name, change, now)?,
                })
            })
            .await?;
        self.learned(&entry);
        self.tell_peers(&entry).await;
        Ok(entry)
    }

    /// Deletes an action; its entry stays as a tombstone.
    pub async fn delete_action(&self, namespace: &str, name: &str) -> Result<Arc<ActionEntry>, ActionError> {
        self.find_action(namespace, name).await;
        let (node, namespace, name) = (self.clone(), namespace.to_owned(), name.to_owned());
        let deleted = self.blocking(move || Ok(node.registry().delete(&namespace, &name, node.wall_ms())?)).await?;
        self.learned(&deleted.tombstone);
        self.tell_peers(&deleted.tombstone).await;
        Ok(deleted.last)
    }

    /// The action as this node knows it, or, when it knows none, as a peer does.
    pub async fn find_action(&self, namespace: &str, name: &str) -> Option<Arc<ActionEntry>> {
        if let Some(known) = self.registry().get_any(namespace, name) {
            return (!known.deleted).then_some(known);
        }
        let ask = |(_, mut client): (NodeId, crate::peers::Client)| {
            let message = v1::LookupActionRequest { namespace: namespace.to_owned(), name: name.to_owned() };
            async move { timeout(LOOK_UP, client.lookup_action(message)).await.ok()?.ok().map(|r| r.into_inner().entry) }
        };
        let answers = join_all(self.peers().live().into_iter().map(ask)).await;
        for entry in answers.into_iter().flatten().filter(|e| !e.is_empty()) {
            self.take_entry(&entry).await;
        }
        self.registry().get(namespace, name)
    }

    /// The action at that revision or a newer one, fetched from the peer that speaks of it if need be.
    pub(crate) async fn known_at_least(
        &self,
        action: &ActionId,
        revision: &Revision,
        from: &NodeId,
    ) -> Option<Arc<ActionEntry>> {
        let wanted = action::Revision { counter: revision.counter, node_id: revision.node.to_string() };
        let known = || self.registry().get_any(action.namespace(), action.name());
        if known().is_none_or(|k| k.revision < wanted)
            && let Some(mut client) = self.peers().client(from)
        {
            let message =
                v1::LookupActionRequest { namespace: action.namespace().to_owned(), name: action.name().to_owned() };
            if let Ok(Ok(reply)) = timeout(LOOK_UP, client.lookup_action(message)).await {
                self.take_entry(&reply.into_inner().entry).await;
            }
        }
        known().filter(|k| !k.deleted)
    }

    pub fn actions(&self, namespace: &str, skip: usize, limit: usize) -> Vec<Arc<ActionEntry>> {
        self.registry().list(namespace, skip, limit)
    }

    pub fn action_count(&self, namespace: &str) -> usize {
        self.registry().count(namespace)
    }

    /// An action's code, from here or a peer.
    pub async fn code(&self, entry: &ActionEntry) -> Option<Bytes> {
        self.code_by_hash(entry.code_hash.as_deref()?).await
    }

    pub(crate) async fn own_code(&self, hash: &str) -> Option<Bytes> {
        let (node, hash) = (self.clone(), hash.to_owned());
        self.blocking(move || Ok(node.codes().get(&hash)?)).await.ok().flatten()
    }

    pub(crate) async fn code_by_hash(&self, hash: &str) -> Option<Bytes> {
        if let Some(code) = self.own_code(hash).await {
            return Some(code);
        }
        for (peer, mut client) in self.peers().live() {
            let fetch = async {
                let mut chunks =
                    client.fetch_code(v1::FetchCodeRequest { hash: hash.to_owned() }).await.ok()?.into_inner();
                let most = self.limits().code_max.bytes() as usize;
                let mut code = BytesMut::new();
                while let Some(chunk) = chunks.message().await.ok()? {
                    if code.len() + chunk.data.len() > most {
                        return None;
                    }
                    code.extend_from_slice(&chunk.data);
                }
                Some(code.freeze())
            };
            let Ok(Some(fetched)) = timeout(FETCH_CODE, fetch).await else { continue };
            let (node, kept, wanted) = (self.clone(), fetched.clone(), hash.to_owned());
            let is_right = self.blocking(move || {
                let is_right = code::hash(&kept) == wanted;
                if is_right && let Err(error) = node.codes().put(&kept) {
                    tracing::warn!(hash = wanted, %error, "fetched code could not be kept");
                }
                Ok(is_right)
            });
            if is_right.await.ok()? {
                return Some(fetched);
            }
            tracing::warn!(peer = %peer, hash, "a peer sent other code than was asked for");
        }
        None
    }

    /// What the core has to know of a revision, made once.
    pub(crate) fn spec(&self, entry: &Arc<ActionEntry>) -> Arc<ActionSpec> {
        self.specs().get(entry)
    }

    async fn tell_peers(&self, entry: &Arc<ActionEntry>) {
        self.publish_facts();
        let json = entry_json(entry);
        let tell = |(peer, mut client): (NodeId, crate::peers::Client)| {
            let message = v1::SyncActionsRequest { known: Vec::new(), entries: vec![json.clone()] };
            async move {
                if !matches!(timeout(TELL_PEERS, client.sync_actions(message)).await, Ok(Ok(_))) {
                    tracing::debug!(peer = %peer, "a peer will hear of a changed action by gossip only");
                }
            }
        };
        join_all(self.peers().live().into_iter().map(tell)).await;
    }

    async fn take_entry(&self, json: &[u8]) {
        self.take_entries(vec![json.to_vec()]).await;
    }

    /// How many of them were news.
    async fn take_entries(&self, entries: Vec<Vec<u8>>) -> usize {
        if entries.iter().all(Vec::is_empty) {
            return 0;
        }
        let node = self.clone();
        let merged = self
            .blocking(move || {
                let mut parsed: Vec<_> = entries.iter().filter_map(|json| node.readable(json)).collect();
                if let [_] = parsed.as_slice()
                    && let Some(entry) = parsed.pop()
                {
                    return Ok(match node.registry().merge(entry)? {
                        Merge::Newer(entry) => vec![entry],
                        Merge::Same(_) | Merge::Older(_) => Vec::new(),
                    });
                }
                Ok(node.registry().merge_all(parsed)?.newer)
            })
            .await;
        let newer = merged.unwrap_or_else(|error| {
            tracing::warn!(%error, "actions of a peer could not be taken");
            Vec::new()
        });
        newer.iter().for_each(|entry| self.learned(entry));
        self.publish_facts();
        newer.len()
    }

    /// Work that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ActionError> + Send + 'static,
    ) -> Result<T, ActionError> {
        self.blocking_work().run(work).await.unwrap_or(Err(ActionError::GoingDown))
    }

    /// A kind of a newer version is left to those who can read it; rubbish is counted.
    fn readable(&self, json: &[u8]) -> Option<ActionEntry> {
        match serde_json::from_slice(json) {
            Ok(entry) => Some(entry),
            Err(_) if json.is_empty() => None,
            Err(error) => {
                if !is_newer(json) {
                    self.metrics().malformed_calls.add();
                }
                tracing::warn!(%error, "an action of a peer can't be read here");
                None
            }
        }
    }

    /// A newer revision is known here: containers of older ones retire.
    fn learned(&self, entry: &Arc<ActionEntry>) {
        let revision = Revision { counter: entry.revision.counter, node: NodeId::new(&entry.revision.node_id) };
        let action = ActionId::new(&entry.namespace, &entry.name);
        self.tell(match entry.deleted {
            true => Input::ActionDeleted { action, revision },
            false => Input::ActionChanged { spec: self.spec(entry) },
        });
        tracing::debug!(action = %entry.name, revision = %entry.revision, "an action changed");
    }
}

/// Whether an entry that can't be read here is of a kind that a newer version knows.
fn is_newer(json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        kind: String,
    }
    serde_json::from_slice::<Probe>(json).is_ok_and(|probe| probe.kind.parse::<Kind>().is_err())
}
