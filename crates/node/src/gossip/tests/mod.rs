//! Gossip over an in-memory network, most of it in virtual time.
#![allow(clippy::unwrap_used)]

mod forge;
mod hostile;
mod life;
mod membership;
mod net;
mod scale;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::*;
use net::Net;

fn address(number: usize) -> SocketAddr {
    ([10, 0, 0, number as u8], 7411).into()
}

fn config(number: usize, epoch: u64, seeds: &[usize]) -> GossipConfig {
    GossipConfig {
        seeds: seeds.iter().map(|seed| address(*seed).to_string()).collect(),
        ..GossipConfig::new("test", format!("n{number}"), epoch, address(number))
    }
}

/// A node and what its events have told so far.
struct Node {
    gossip: Gossip,
    events: mpsc::Receiver<GossipEvent>,
    history: Vec<GossipEvent>,
    up: BTreeMap<String, u64>,
    entries: BTreeMap<(String, String), (u64, String)>,
    twins: BTreeSet<(u64, SocketAddr)>,
}

impl Node {
    async fn start(net: &Net, config: GossipConfig) -> Self {
        Self::start_with_room(net, config, 1024).await
    }

    async fn start_with_room(net: &Net, config: GossipConfig, room: usize) -> Self {
        let (sender, events) = mpsc::channel(room);
        let gossip = Gossip::start(config, Arc::new(net.clone()), sender).await.unwrap();
        Self {
            gossip,
            events,
            history: Vec::new(),
            up: BTreeMap::new(),
            entries: BTreeMap::new(),
            twins: BTreeSet::new(),
        }
    }

    /// Takes events in until `condition` holds; how long that took.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        self.until_within(what, Duration::from_secs(20), condition).await
    }

    async fn until_within(&mut self, what: &str, limit: Duration, condition: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        self.drain();
        while !condition(self) {
            let left = limit.saturating_sub(start.elapsed());
            match timeout(left, self.events.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("{what}: the events ended; up: {:?}", self.up),
                Err(_) => panic!("{what}: not within {limit:?}; up: {:?}, entries: {:?}", self.up, self.entries),
            }
        }
        start.elapsed()
    }

    /// Takes events in for `time`, whatever they are.
    async fn listen_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.events.recv()).await {
            self.take(event);
        }
    }

    fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
    }

    fn entry(&self, node: &str, key: &str) -> Option<&str> {
        self.entries.get(&(node.to_owned(), key.to_owned())).map(|(_, value)| value.as_str())
    }

    fn take(&mut self, event: GossipEvent) {
        self.history.push(event.clone());
        match event {
            GossipEvent::PeerUp { node_id, epoch, .. } => {
                self.up.insert(node_id, epoch);
            }
            GossipEvent::PeerDown { node_id, epoch } => {
                assert_eq!(self.up.remove(&node_id), Some(epoch), "{node_id} went down without being up");
                self.entries.retain(|(name, _), _| *name != node_id);
            }
            GossipEvent::Entry { node_id, epoch, key, value } => {
                assert_eq!(self.up.get(&node_id), Some(&epoch), "an entry of {node_id} that is not up");
                self.entries.insert((node_id, key), (epoch, value));
            }
            GossipEvent::Twin { epoch, advertise, .. } => {
                self.twins.insert((epoch, advertise));
            }
        }
    }
}

/// Nodes 1 to `count`, joining by node 1, started apart from each other, all seeing all.
async fn mesh(net: &Net, count: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 1..=count {
        nodes.push(Node::start(net, config(number, 100, &[1])).await);
        // Rounds of nodes that started together would stay in step, which real ones do not.
        net.pass(Duration::from_millis(37)).await;
    }
    for node in &mut nodes {
        node.until("all see all", |node| node.up.len() == count - 1).await;
    }
    nodes
}
