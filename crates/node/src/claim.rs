//! This node's claim to its id, made before it serves: the nodes to join by are asked which epoch they know of the
//! id, and whoever answers for it now keeps it.
//!
//! The data folder's lock keeps out a second agent on the folder, the host's lock one on this host; this is for
//! the rest: an agent elsewhere, or a folder that was copied. Two that could not know of each other find out by
//! gossip later (`Node::on_twin`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use embermesh_proto::v1;
use futures::future::join_all;
use tokio::time::timeout;

use crate::config::NodeConfig;
use crate::gossip::Datagrams;
use crate::net::Net;
use crate::peers::connect;
use crate::rejoin::kept_peers;
use crate::rpc::cluster;

/// A start waits no longer for nodes that don't answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// One address's time to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Addresses asked: a few that know the mesh are enough.
const MOST_ASKED: usize = 16;

/// Another agent answers for this node's id.
#[derive(Debug, thiserror::Error)]
#[error(
    "node `{node_id}` of cluster `{cluster}` is already up at {at} (instance {instance}): stop that agent first, or choose another --node-id; each agent needs a data folder of its own, not a copy"
)]
pub struct Taken {
    pub node_id: String,
    pub cluster: String,
    pub at: SocketAddr,
    pub instance: String,
}

/// The highest epoch that the mesh knows for this node's id; refused while somebody else answers for it.
pub(crate) async fn ask(
    config: &NodeConfig,
    net: &Arc<dyn Net>,
    datagrams: &dyn Datagrams,
) -> Result<Option<u64>, Taken> {
    let seeds = timeout(PATIENCE, addresses(config, datagrams)).await.unwrap_or_default();
    let known = identify_all(config, net, seeds.iter().copied()).await;
    // They may still count as live what died a moment ago: only its own answer tells.
    let said_to_live = known.iter().filter(|(_, reply)| reply.known_live).filter_map(|(_, r)| r.known_at.parse().ok());
    // At this node's own address that is its earlier life: the port is its own already.
    let own = own_addresses(config);
    let lives: BTreeSet<SocketAddr> = said_to_live.filter(|at| !seeds.contains(at) && !own.contains(at)).collect();
    let lives = identify_all(config, net, lives.into_iter()).await;
    let taken = known.iter().chain(&lives).find(|(_, reply)| reply.node_id == config.node.id);
    if let Some((at, reply)) = taken {
        return Err(Taken {
            node_id: config.node.id.clone(),
            cluster: config.node.cluster.clone(),
            at: *at,
            instance: reply.instance.clone(),
        });
    }
    Ok(known.iter().map(|(_, reply)| reply.known_epoch).max().filter(|epoch| *epoch > 0))
}

/// Those of this node's cluster that answer.
async fn identify_all(
    config: &NodeConfig,
    net: &Arc<dyn Net>,
    addresses: impl Iterator<Item = SocketAddr>,
) -> Vec<(SocketAddr, v1::IdentifyReply)> {
    let asked = addresses.take(MOST_ASKED).map(|at| async move {
        let request = v1::IdentifyRequest { node_id: config.node.id.clone() };
        let mut client = connect(net.clone(), at, cluster::header_value(&config.node.cluster));
        let reply = timeout(ANSWER, client.identify(request)).await.ok()?.ok()?.into_inner();
        (reply.cluster == config.node.cluster).then_some((at, reply))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn addresses(config: &NodeConfig, datagrams: &dyn Datagrams) -> BTreeSet<SocketAddr> {
    let found = join_all(config.join.iter().map(|seed| async move {
        match seed.parse::<SocketAddr>() {
            Ok(address) => vec![address],
            Err(_) => datagrams.resolve(seed).await.unwrap_or_default(),
        }
    }));
    let own = own_addresses(config);
    let seeds = found.await.into_iter().flatten();
    seeds.chain(kept_peers(&config.node.data_dir)).filter(|address| !own.contains(address)).collect()
}

fn own_addresses(config: &NodeConfig) -> [SocketAddr; 2] {
    [config.listen.mesh, config.listen.advertise.unwrap_or(config.listen.mesh)]
}
