//! What a node shows of itself: the views of `/mesh/v1`.

use std::sync::atomic::Ordering;

use embermesh_core::ids::{IntentId, LeaseId};
use embermesh_core::output::{Event, IntentEnd, IntentKind};
use embermesh_core::{ActionId, ContainerId, Fence, NodeId};
use futures::future::join_all;

use crate::clock::wall_ms;
use crate::node::Node;
use crate::views;

impl Node {
    pub fn members(&self) -> views::Members {
        let mut members = vec![views::Member {
            node_id: self.id().to_string(),
            instance: self.instance().to_owned(),
            epoch: self.epoch().0,
            mesh_addr: self.mesh_addr().to_string(),
            api_addr: self.api_addr().to_string(),
            state: if self.driver().look(|c| c.draining()) { "draining" } else { "live" }.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            memory_mb: self.memory_mb(),
            rtt_us: 0,
            is_self: true,
        }];
        for (id, peer) in self.peers().all() {
            let state = match (peer.left, peer.live, peer.draining) {
                (true, ..) => "left",
                (_, false, _) => "dead",
                (_, _, true) => "draining",
                _ => "live",
            };
            members.push(views::Member {
                instance: peer.about.instance,
                epoch: peer.epoch.0,
                mesh_addr: peer.mesh.to_string(),
                api_addr: peer.about.api,
                state: state.to_owned(),
                version: peer.about.version,
                memory_mb: peer.about.memory_mb,
                rtt_us: self.driver().look(|c| c.estimates().measured_rtt(&id)).unwrap_or(0),
                is_self: false,
                node_id: id.to_string(),
            });
        }
        members.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        views::Members { members }
    }

    /// Own containers, and with `all_nodes` those of all live peers.
    pub async fn containers(&self, all_nodes: bool) -> views::Containers {
        let mut shown = views::Containers { containers: self.own_containers(), unreachable: Vec::new() };
        if all_nodes {
            let ask = |(id, client)| async move { (id, self.call_inspect(client, "containers").await) };
            for (id, json) in join_all(self.peers().live().into_iter().map(ask)).await {
                match json.and_then(|j| serde_json::from_slice::<Vec<views::Container>>(&j).ok()) {
                    Some(theirs) => shown.containers.extend(theirs),
                    None => shown.unreachable.push(NodeId::to_string(&id)),
                }
            }
        }
        shown
    }

    pub(crate) fn own_containers(&self) -> Vec<views::Container> {
        self.driver().look(|core| {
            let view = |c: embermesh_core::node::ContainerView<'_>| views::Container {
                intent: c
                    .container
                    .intent
                    .as_ref()
                    .map(|i| IntentId { container: c.id.clone(), round: i.round }.to_string()),
                container_id: c.id.to_string(),
                node_id: c.id.owner.to_string(),
                namespace: c.container.action.namespace().to_owned(),
                action: c.container.action.name().to_owned(),
                revision: c.container.revision.to_string(),
                state: c.container.state().to_string(),
                slots: c.container.slots,
                busy: u32::try_from(c.container.runs().len()).unwrap_or(u32::MAX),
                leased: c.container.leased_slots(),
                idle_ms: c.idle_us / 1000,
                memory_mb: c.container.memory_mb,
                runs: c.container.runs_started,
            };
            core.containers().map(view).collect()
        })
    }

    pub fn leases(&self) -> views::Leases {
        let view = |lease: embermesh_core::node::LeaseView| views::Lease {
            lease_id: LeaseId { owner: lease.owner.clone(), fence: lease.fence }.to_string(),
            owner: lease.owner.to_string(),
            holder: lease.holder.to_string(),
            container_id: lease.container.to_string(),
            namespace: lease.action.namespace().to_owned(),
            action: lease.action.name().to_owned(),
            slots: lease.slots,
            busy: lease.running,
            expires_in_ms: lease.expires_in_us / 1000,
        };
        self.driver().look(|core| views::Leases {
            held: core.held_leases().map(view).collect(),
            granted: core.granted_leases().map(view).collect(),
        })
    }

    pub fn intents(&self) -> views::Intents {
        let view = |i: embermesh_core::node::IntentView| views::Intent {
            intent_id: IntentId { container: i.notice.container.clone(), round: i.notice.round }.to_string(),
            owner: i.notice.container.owner.to_string(),
            container_id: i.notice.container.to_string(),
            namespace: i.action.as_ref().map_or_else(String::new, |a| a.namespace().to_owned()),
            action: i.action.as_ref().map_or_else(String::new, |a| a.name().to_owned()),
            kind: kind_name(i.notice.kind).to_owned(),
            urgent: i.notice.urgent,
            round: i.notice.round,
            closes_in_ms: i.closes_in_us / 1000,
            vetoes: veto_views(&i.vetoes),
        };
        views::Intents { intents: self.driver().look(|core| core.intents()).into_iter().map(view).collect() }
    }

    pub fn status(&self) -> views::Status {
        let (draining, peers_live, containers, memory_used_mb, queued, running) = self.driver().look(|core| {
            (
                core.draining(),
                core.live_peers(),
                core.containers().count(),
                core.memory_used_mb(),
                core.queued(),
                core.running(),
            )
        });
        let gossip = self.gossip_handle().map(|g| (g.counters().snapshot(), g.joining(), g.restarts()));
        let (stats, joining, gossip_restarts) = gossip.unwrap_or_default();
        let not_ready = self.not_ready();
        views::Status {
            node_id: self.id().to_string(),
            instance: self.instance().to_owned(),
            epoch: self.epoch().0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.config().node.cluster.clone(),
            engine: self.engine().name().to_owned(),
            mesh_addr: self.mesh_addr().to_string(),
            api_addr: self.api_addr().to_string(),
            uptime_ms: u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX),
            ready: not_ready.is_empty(),
            not_ready,
            draining,
            fault_injection: self.faults().is_some(),
            peers_live: u32::try_from(peers_live).unwrap_or(u32::MAX),
            joining,
            containers: u32::try_from(containers).unwrap_or(u32::MAX),
            memory_mb: self.memory_mb(),
            memory_used_mb,
            queued: queued as u64,
            running: running as u64,
            owed: self.journal().owed() as u64,
            actions: self.registry().total() as u64,
            gossip_bytes_sent: stats.sent_bytes,
            gossip_bytes_received: stats.received_bytes,
            gossip_dropped: stats.dropped_total() + self.metrics().malformed_facts.load(Ordering::Relaxed),
            gossip_restarts,
            served: self.metrics().shown(),
        }
    }

    /// Why this node should get no new work; empty when it should.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.driver().look(|c| c.draining()) {
            reasons.push("draining".to_owned());
        } else if self.journal().promises_no_more() {
            reasons.push(format!("leaving, once {} accepted activations have ended", self.journal().owed()));
        }
        if let Some(trouble) = self.journal().trouble() {
            reasons.push(format!("only calls that somebody waits for are taken: {trouble}"));
        }
        if !self.gossip_handle().is_some_and(|g| g.healthy()) {
            reasons.push("gossip is not running".to_owned());
        }
        reasons.extend(self.engine().trouble());
        reasons
    }

    /// Prometheus text.
    pub fn render_metrics(&self) -> String {
        let status = self.status();
        let gauges = &self.metrics().gauges;
        gauges.queued.set(status.queued as f64);
        gauges.running.set(status.running as f64);
        gauges.owed.set(status.owed as f64);
        let (commits, steps) = self.journal().written();
        gauges.journal_commits.absolute(commits);
        gauges.journal_steps.absolute(steps);
        gauges.containers.set(f64::from(status.containers));
        gauges.memory_bytes.set((status.memory_used_mb << 20) as f64);
        gauges.peers.set(f64::from(status.peers_live));
        gauges.gossip_sent.absolute(status.gossip_bytes_sent);
        gauges.gossip_received.absolute(status.gossip_bytes_received);
        gauges.gossip_dropped.absolute(status.gossip_dropped);
        gauges.records_dropped.absolute(self.records().stats().dropped);
        gauges.core_entered.absolute(self.driver().entered());
        self.metrics().render()
    }

    /// An event as watchers see it.
    pub(crate) fn event_view(&self, event: Event) -> views::Event {
        let mut view = views::Event {
            at_ms: wall_ms(),
            node_id: self.id().to_string(),
            kind: String::new(),
            container_id: None,
            action: None,
            peer: None,
            detail: None,
        };
        let own = |number: u64| Some(self.container_id(number).to_string());
        let mut container = |kind: &str, number: u64, action: &ActionId| {
            view.kind = kind.to_owned();
            view.container_id = own(number);
            view.action = Some(action.to_string());
        };
        match &event {
            Event::ContainerStarting { container: n, action } => container("container_starting", *n, action),
            Event::ContainerWarm { container: n, action, cold_us } => {
                container("container_warm", *n, action);
                view.detail = Some(format!("cold start took {} ms", cold_us / 1000));
            }
            Event::ContainerAdopted { container: n, action } => container("container_adopted", *n, action),
            Event::ContainerFailed { container: n, action } => container("container_failed", *n, action),
            Event::ContainerDied { container: n, action } => container("container_died", *n, action),
            Event::ContainerPaused { container: n, action } => container("container_paused", *n, action),
            Event::ContainerResumed { container: n, action } => container("container_resumed", *n, action),
            Event::ContainerRetiring { container: n, action } => container("container_retiring", *n, action),
            Event::ContainerRemoved { container: n, action } => container("container_removed", *n, action),
            _ => self.other_event(&event, &mut view),
        }
        view
    }

    fn other_event(&self, event: &Event, view: &mut views::Event) {
        let own = |number: &u64| Some(self.container_id(*number).to_string());
        let intent = |id: &IntentId, view: &mut views::Event, kind: &str| {
            view.kind = kind.to_owned();
            view.container_id = Some(ContainerId::to_string(&id.container));
        };
        let lease = |view: &mut views::Event, kind: &str, holder: &NodeId, number: &u64, fence: &Fence| {
            view.kind = kind.to_owned();
            view.peer = Some(holder.to_string());
            view.container_id = own(number);
            view.detail = Some(LeaseId { owner: self.id().clone(), fence: *fence }.to_string());
        };
        let peer = |view: &mut views::Event, kind: &str, peer: &NodeId, detail: String| {
            view.kind = kind.to_owned();
            view.peer = Some(peer.to_string());
            view.detail = Some(detail).filter(|d| !d.is_empty());
        };
        match event {
            Event::PeerUp { peer: id, .. } => peer(view, "peer_up", id, String::new()),
            Event::PeerDown { peer: id, .. } => peer(view, "peer_down", id, String::new()),
            Event::LeaseGranted { holder, container, fence, slots } => {
                lease(view, "lease_granted", holder, container, fence);
                view.detail = view.detail.take().map(|d| format!("{d} for {slots} slots"));
            }
            Event::LeaseExpired { holder, container, fence } => lease(view, "lease_expired", holder, container, fence),
            Event::LeaseReleased { holder, container, fence } => {
                lease(view, "lease_released", holder, container, fence)
            }
            Event::LeaseDenied { holder, action, denial } => {
                peer(view, "lease_denied", holder, format!("{denial:?}"));
                view.action = Some(action.to_string());
            }
            Event::LeaseHeld { owner, container, fence, slots } => {
                let id = LeaseId { owner: owner.clone(), fence: *fence };
                peer(view, "lease_held", owner, format!("{id} for {slots} slots"));
                view.container_id = Some(container.to_string());
            }
            Event::LeaseLost { owner, fence } => {
                peer(view, "lease_lost", owner, LeaseId { owner: owner.clone(), fence: *fence }.to_string());
            }
            Event::RunRefused { holder, refusal } => peer(view, "run_refused", holder, format!("{refusal:?}")),
            Event::IntentOpened { intent: id, kind, urgent, operator } => {
                intent(id, view, "intent_opened");
                let why = if *operator {
                    " by hand"
                } else if *urgent {
                    " for memory"
                } else {
                    ""
                };
                view.detail = Some(format!("{id} to {}{why}", kind_name(*kind)));
            }
            Event::VetoCounted { intent: id, peer, hold_us } => {
                intent(id, view, "veto_received");
                view.peer = Some(peer.to_string());
                view.detail = Some(format!("{id} for {} ms", hold_us / 1000));
            }
            Event::VetoIgnored { peer: id, container, round } => {
                peer(view, "veto_ignored", id, format!("round {round} is not open"));
                view.container_id = Some(container.to_string());
            }
            Event::VetoSent { owner, intent: id, hold_us } => {
                intent(id, view, "veto_sent");
                view.peer = Some(owner.to_string());
                view.detail = Some(format!("{id} for {} ms", hold_us / 1000));
            }
            Event::IntentClosed { intent: id, kind, end } => {
                let (name, _) = end_words(end);
                intent(id, view, &format!("intent_{name}"));
                view.detail = Some(format!("{id} to {}: {}", kind_name(*kind), end_words(end).1));
            }
            Event::Evicting { container, needed_mb } => {
                view.kind = "evicting".to_owned();
                view.container_id = own(container);
                view.detail = Some(format!("{needed_mb} MB are needed"));
            }
            Event::HomeAsked { home, action } => {
                peer(view, "home_asked", home, String::new());
                view.action = Some(action.to_string());
            }
            Event::HomeSaidReserve { action, at } => {
                peer(view, "home_said_reserve", at, String::new());
                view.action = Some(action.to_string());
            }
            Event::Draining => view.kind = "draining".to_owned(),
            Event::Drained => view.kind = "drained".to_owned(),
            // The containers' own are told by `event_view`.
            _ => view.kind = "other".to_owned(),
        }
    }
}

pub(crate) fn kind_name(kind: IntentKind) -> &'static str {
    match kind {
        IntentKind::Pause => "pause",
        IntentKind::Remove => "remove",
    }
}

pub(crate) fn veto_views(vetoes: &[(NodeId, u64)]) -> Vec<views::VetoView> {
    vetoes.iter().map(|(peer, hold)| views::VetoView { peer: peer.to_string(), hold_ms: hold / 1000 }).collect()
}

/// How a round ended: one word, and in words.
pub(crate) fn end_words(end: &IntentEnd) -> (&'static str, String) {
    match end {
        IntentEnd::Committed => ("committed", "nobody objected".to_owned()),
        IntentEnd::Vetoed { by } => {
            let each: Vec<String> = by.iter().map(|(n, h)| format!("{n} vetoed for {} ms", h / 1000)).collect();
            ("vetoed", each.join(", "))
        }
        IntentEnd::Used => ("cancelled", "a lease or a run came first".to_owned()),
        IntentEnd::Late => ("cancelled", "this node was stalled past the window; a new round follows".to_owned()),
        IntentEnd::Overtaken => ("cancelled", "the container left the state that the intent was for".to_owned()),
    }
}
