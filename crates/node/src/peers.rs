//! Peers as the driver knows them: their addresses, what they tell of themselves, and one connection
//! to each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use embermesh_core::{Epoch, NodeId};
use embermesh_proto::v1::mesh_client::MeshClient;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::codegen::http::{HeaderValue, Uri};

use crate::actions::exchange::Exchange;
use crate::net::Net;
use crate::rpc::channel::{CallError, Channel};
use crate::rpc::cluster;

pub(crate) type Client = MeshClient<Channel>;

/// Largest message taken from a peer, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What a node tells of itself in gossip, once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    #[serde(default)]
    pub(crate) instance: String,
    #[serde(default)]
    pub(crate) api: String,
    #[serde(default)]
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) memory_mb: u64,
    #[serde(default)]
    pub(crate) zone: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) epoch: Epoch,
    pub(crate) mesh: SocketAddr,
    pub(crate) live: bool,
    pub(crate) left: bool,
    pub(crate) draining: bool,
    pub(crate) about: About,
    pub(crate) exchange: Exchange,
    client: Client,
}

#[derive(Debug)]
pub(crate) struct Peers {
    net: Arc<dyn Net>,
    cluster: HeaderValue,
    table: Mutex<BTreeMap<NodeId, Peer>>,
}

impl Peers {
    pub(crate) fn new(net: Arc<dyn Net>, cluster: &str) -> Self {
        Self { net, cluster: cluster::header_value(cluster), table: Mutex::default() }
    }

    /// Notes a live peer; `false` if a newer epoch of it is known.
    pub(crate) fn up(&self, id: &NodeId, epoch: Epoch, mesh: SocketAddr) -> bool {
        let mut table = self.lock();
        if let Some(peer) = table.get_mut(id) {
            if peer.epoch > epoch {
                return false;
            }
            if peer.epoch == epoch && peer.mesh == mesh {
                peer.live = true;
                return true;
            }
        }
        let peer = Peer {
            epoch,
            mesh,
            live: true,
            left: false,
            draining: false,
            about: About::default(),
            exchange: Exchange::default(),
            client: connect(self.net.clone(), mesh, self.cluster.clone()),
        };
        table.insert(id.clone(), peer);
        true
    }

    pub(crate) fn down(&self, id: &NodeId, epoch: Epoch) {
        self.change(id, epoch, |peer| peer.live = false);
    }

    pub(crate) fn change(&self, id: &NodeId, epoch: Epoch, with: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.lock().get_mut(id).filter(|p| p.epoch == epoch) {
            with(peer);
        }
    }

    pub(crate) fn client(&self, id: &NodeId) -> Option<Client> {
        self.lock().get(id).map(|p| p.client.clone())
    }

    pub(crate) fn epoch(&self, id: &NodeId) -> Option<Epoch> {
        self.lock().get(id).map(|p| p.epoch)
    }

    /// What is known of that id: its highest epoch, and where it is if it counts as live.
    pub(crate) fn known(&self, id: &str) -> Option<(Epoch, Option<SocketAddr>)> {
        self.lock().get(&NodeId::new(id)).map(|p| (p.epoch, p.live.then_some(p.mesh)))
    }

    pub(crate) fn mesh_addr(&self, id: &str) -> Option<SocketAddr> {
        self.lock().get(&NodeId::new(id)).map(|p| p.mesh)
    }

    pub(crate) fn all(&self) -> Vec<(NodeId, Peer)> {
        self.lock().iter().map(|(id, peer)| (id.clone(), peer.clone())).collect()
    }

    pub(crate) fn live(&self) -> Vec<(NodeId, Client)> {
        self.lock().iter().filter(|(_, p)| p.live).map(|(id, p)| (id.clone(), p.client.clone())).collect()
    }

    pub(crate) fn live_addresses(&self) -> Vec<SocketAddr> {
        self.lock().values().filter(|p| p.live).map(|p| p.mesh).collect()
    }

    /// Whether an exchange of actions with it begins now: the epoch for which it does.
    pub(crate) fn begin_exchange(&self, id: &NodeId) -> Option<Epoch> {
        self.lock().get_mut(id).and_then(|p| p.exchange.begin().then_some(p.epoch))
    }

    pub(crate) fn exchanges_due(&self, own: u64, now: Instant) -> Vec<(NodeId, Epoch)> {
        let mut table = self.lock();
        let live = table.iter_mut().filter(|(_, p)| p.live);
        live.filter_map(|(id, p)| p.exchange.due(own, now).then(|| (id.clone(), p.epoch))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn connect(net: Arc<dyn Net>, to: SocketAddr, cluster: HeaderValue) -> Client {
    let origin =
        Uri::builder().scheme("http").authority(to.to_string()).path_and_query("/").build().unwrap_or_default();
    MeshClient::with_origin(Channel::new(net, to, cluster), origin)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Whether a failed call provably never left this node, or this mesh.
pub(crate) fn never_sent(status: &tonic::Status) -> bool {
    if cluster::was_foreign(status) {
        return true;
    }
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if matches!(error.downcast_ref(), Some(CallError::NotSent { .. })) {
            return true;
        }
        source = error.source();
    }
    false
}
