//! What a node shows of itself: plain copies for people's tables and for tests.

use super::Node;
use crate::container::Container;
use crate::ids::{ActionId, ContainerId, Fence, NodeId};
use crate::output::IntentNotice;
use crate::time::{Micros, Time};

#[derive(Debug, Clone)]
pub struct ContainerView<'a> {
    pub id: ContainerId,
    pub container: &'a Container,
    pub idle_us: Micros,
}

/// A lease, held by this node or granted by it.
#[derive(Debug, Clone)]
pub struct LeaseView {
    pub owner: NodeId,
    pub holder: NodeId,
    pub container: ContainerId,
    pub action: ActionId,
    pub fence: Fence,
    pub slots: u32,
    pub running: u32,
    /// Until this node stops using it, or takes the slots back.
    pub expires_in_us: Micros,
}

/// An intent, own or heard of.
#[derive(Debug, Clone)]
pub struct IntentView {
    pub notice: IntentNotice,
    pub action: Option<ActionId>,
    pub closes_in_us: Micros,
    pub vetoes: Vec<(NodeId, Micros)>,
}

impl Node {
    pub fn containers(&self) -> impl Iterator<Item = ContainerView<'_>> {
        self.containers.iter().map(|(number, container)| ContainerView {
            id: self.container_id(*number),
            container,
            idle_us: if container.unused() { self.now.since(container.idle_since) } else { 0 },
        })
    }

    pub fn held_leases(&self) -> impl Iterator<Item = LeaseView> {
        self.held.iter().map(|((owner, fence), lease)| LeaseView {
            owner: owner.clone(),
            holder: self.id.clone(),
            container: lease.container.clone(),
            action: lease.action.clone(),
            fence: *fence,
            slots: lease.slots,
            running: lease.running,
            expires_in_us: lease.expires_at.since(self.now),
        })
    }

    pub fn granted_leases(&self) -> impl Iterator<Item = LeaseView> {
        self.containers.iter().flat_map(|(number, container)| {
            container.leases().iter().map(|(fence, lease)| LeaseView {
                owner: self.id.clone(),
                holder: lease.holder.clone(),
                container: self.container_id(*number),
                action: container.action.clone(),
                fence: *fence,
                slots: lease.slots,
                running: lease.running,
                expires_in_us: lease.expires_at.since(self.now),
            })
        })
    }

    pub fn intents(&self) -> Vec<IntentView> {
        let own = self.containers.iter().filter_map(|(number, container)| {
            let intent = container.intent.as_ref()?;
            Some(IntentView {
                notice: IntentNotice {
                    container: self.container_id(*number),
                    hash: crate::ids::ActionHash::of(&container.action, &container.revision),
                    round: intent.round,
                    kind: intent.kind,
                    urgent: intent.urgent(),
                    window_us: self.window_us(intent.cause),
                    last_copy: self.is_last_copy(*number),
                },
                action: Some(container.action.clone()),
                closes_in_us: intent.closes_at.since(self.now),
                vetoes: intent.vetoes.iter().map(|(n, h)| (n.clone(), *h)).collect(),
            })
        });
        let heard = self.heard.values().filter(|h| h.until > self.now).map(|h| IntentView {
            notice: h.notice.clone(),
            action: self.actions.values().find(|a| a.hash == h.notice.hash).map(|a| a.spec.action.clone()),
            closes_in_us: h.until.since(self.now),
            vetoes: Vec::new(),
        });
        own.chain(heard).collect()
    }

    /// Own activations that wait.
    pub fn queued(&self) -> usize {
        self.actions.values().map(|a| a.queue.len()).sum()
    }

    pub fn running(&self) -> usize {
        self.containers.values().map(|c| c.runs().len()).sum()
    }

    pub fn memory_used_mb(&self) -> u64 {
        self.memory_used_mb
    }

    pub fn draining(&self) -> bool {
        self.is_draining()
    }

    pub fn live_peers(&self) -> usize {
        self.peers.values().filter(|p| p.live).count()
    }

    /// Whether the activation waits or runs.
    pub fn knows_activation(&self, id: crate::ids::ActivationId) -> bool {
        self.activations.contains_key(&id)
    }

    /// Whether it has an activation or a request of its own to see to.
    pub fn has_own_requests(&self) -> bool {
        !self.activations.is_empty() || !self.kept.is_empty() || !self.requests.is_empty()
    }

    /// Whether a request of that peer waits here for a slot.
    pub fn keeps_waiting(&self, peer: &NodeId) -> bool {
        self.waiting.keys().any(|request| request.holder == *peer)
    }

    /// Forgets what that peer was answered and when it asked, not that it did: for a model that knows that nothing of
    /// it is under way and that it will never ask again. So does the peer itself forget how often it asked.
    pub fn forget_asker(&mut self, peer: &NodeId) {
        self.answers.forget(peer);
        for at in self.actions.values_mut().filter_map(|action| action.askers.get_mut(peer)) {
            *at = Time::FAR;
        }
        if *peer == self.id {
            self.counters.request = 0;
            self.peers.values_mut().for_each(|peer| peer.sent = 0);
        }
    }

    /// Forgets the intents that it heard of: for a model that knows that it will have nothing to say to any.
    pub fn forget_heard(&mut self) {
        self.heard.clear();
    }

    pub fn owns(&self, container: &ContainerId) -> bool {
        container.owner == self.id && container.epoch == self.epoch && self.containers.contains_key(&container.number)
    }
}
