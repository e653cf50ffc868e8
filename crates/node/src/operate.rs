//! What operators do by hand: intents, vetoes, releases, drain, leave. Each is an input like any other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use embermesh_core::ids::{IntentId, LeaseId};
use embermesh_core::output::{DrainEnd, Event, IntentEnd, IntentKind, IntentProblem, Output};
use embermesh_core::{ContainerId, Input};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::faults::{Faults, LinkFault};
use crate::node::{Leaving, Node};
use crate::shown::{end_words, kind_name, veto_views};
use crate::store::{ActivationFilter, ActivationRecord, ActivationSummary, StoreError};
use crate::views;

/// How much longer than its window an intent's end is waited for: the engine has to come free first.
const INTENT_PATIENCE: Duration = Duration::from_secs(30);

/// A clock that is made to drift still moves on, at half its rate at least.
const MAX_DRIFT_PPM: u64 = 500_000;

/// Why something can't be done by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    #[error("{0}")]
    BadId(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Forbidden(String),
}

impl Node {
    /// Opens an intent on an own container and waits for how it ends; with `force` it is ended without asking.
    pub async fn open_intent(
        &self,
        container: &str,
        kind: IntentKind,
        force: bool,
    ) -> Result<views::IntentOutcome, OperatorError> {
        let id: ContainerId = parse(container)?;
        if id.owner != *self.id() {
            return Err(OperatorError::Conflict(format!(
                "container {id} belongs to node {}: only its owner may {} it; ask there",
                id.owner,
                kind_name(kind)
            )));
        }
        if force && kind == IntentKind::Pause {
            return Err(OperatorError::Conflict(
                "a pause can't be forced: peers' leases have to end first; leave --force out".to_owned(),
            ));
        }
        let not_found = || OperatorError::NotFound(format!("no container {container} on this node"));
        if !self.driver().look(|core| core.owns(&id)) {
            return Err(not_found());
        }
        let mut events = self.core_events();
        let input = Input::IntentRequested { container: id.number, kind, force };
        let answer = self.tell_and_pick(input, |output| match output {
            Output::IntentAnswer { answer, .. } => Some(answer.clone()),
            _ => None,
        });
        let mut intent = match answer {
            Some(Ok(intent)) => intent,
            Some(Err(IntentProblem::UnknownContainer)) | None => return Err(not_found()),
            Some(Err(problem)) => return Err(OperatorError::Conflict(problem.to_string())),
        };
        let ended = async {
            let mut missed = false;
            loop {
                match events.recv().await {
                    // It is the same intent still, in its next round.
                    Ok(Event::IntentClosed { intent: closed, end: IntentEnd::Late, .. }) if closed == intent => {
                        missed = true;
                    }
                    Ok(Event::IntentOpened { intent: opened, .. })
                        if missed && opened.container == intent.container =>
                    {
                        intent = opened;
                        missed = false;
                    }
                    Ok(Event::IntentClosed { intent: closed, end, .. }) if closed == intent && !force => {
                        return Some(end);
                    }
                    // Retired without asking: nothing was opened that could be committed.
                    Ok(Event::ContainerRemoved { container, .. }) if container == id.number && force => {
                        return Some(IntentEnd::Committed);
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        };
        let Ok(Some(end)) = timeout(self.config().protocol.window + INTENT_PATIENCE, ended).await else {
            return Err(OperatorError::Unavailable(format!(
                "intent {intent} has not ended yet: see `embermesh intents` and `embermesh containers`"
            )));
        };
        let (outcome, reason) = match force {
            true => ("retired", "removed without asking".to_owned()),
            false => end_words(&end),
        };
        let vetoes = match &end {
            IntentEnd::Vetoed { by } => veto_views(by),
            _ => Vec::new(),
        };
        Ok(views::IntentOutcome {
            intent_id: intent.to_string(),
            container_id: id.to_string(),
            kind: kind_name(kind).to_owned(),
            outcome: outcome.to_owned(),
            reason,
            vetoes,
        })
    }

    /// What was made to go wrong here.
    pub fn faults_shown(&self) -> Result<views::FaultsView, OperatorError> {
        let faults = self.fault_injection()?;
        let links = faults.links_shown().into_iter().map(|(peer, fault)| views::LinkFaultView {
            peer: peer.to_string(),
            send: fault.send,
            receive: fault.receive,
        });
        Ok(views::FaultsView {
            links: links.collect(),
            engine_stalled: faults.engine_stalled(),
            clock_drift_ppm: faults.drift_ppm(),
        })
    }

    /// Makes things go wrong: all that is asked for, or nothing if one of it can't be.
    pub fn change_faults(&self, request: views::FaultsRequest) -> Result<(), OperatorError> {
        let faults = self.fault_injection()?;
        let mut links = Vec::new();
        for link in request.links {
            for direction in [link.send, link.receive] {
                direction.check().map_err(OperatorError::BadId)?;
            }
            if link.receive.delay_ms > 0 || link.receive.duplicate > 0.0 {
                let said = "`receive` takes `cut` and `loss`: what comes late or twice is its sender's `send`";
                return Err(OperatorError::BadId(said.to_owned()));
            }
            links.push((self.link_to(&link.peer)?, LinkFault { send: link.send, receive: link.receive }));
        }
        if let Some(ppm) = request.clock_drift_ppm.filter(|ppm| ppm.unsigned_abs() > MAX_DRIFT_PPM) {
            return Err(OperatorError::BadId(format!("`clock_drift_ppm` {ppm} is beyond \u{b1}{MAX_DRIFT_PPM}")));
        }
        for (peer, fault) in links {
            faults.set_link(peer, fault);
        }
        if let Some(stalled) = request.engine_stalled {
            faults.stall_engine(stalled);
        }
        if let Some(ppm) = request.clock_drift_ppm {
            faults.set_drift(ppm);
            self.driver().clock_changed();
        }
        tracing::warn!(faults = ?self.faults_shown()?, "faults were changed on purpose");
        Ok(())
    }

    pub fn heal_faults(&self) -> Result<(), OperatorError> {
        self.fault_injection()?.heal();
        self.driver().clock_changed();
        tracing::warn!("all faults that were made on purpose are healed");
        Ok(())
    }

    fn fault_injection(&self) -> Result<&Arc<Faults>, OperatorError> {
        let refused = "this agent takes no faults: start one with --enable-fault-injection, and never where it matters";
        self.faults().ok_or_else(|| OperatorError::Forbidden(refused.to_owned()))
    }

    /// A link's other end, by node id or address.
    fn link_to(&self, peer: &str) -> Result<SocketAddr, OperatorError> {
        if let Ok(address) = peer.parse() {
            return Ok(address);
        }
        self.peers().mesh_addr(peer).ok_or_else(|| {
            OperatorError::NotFound(format!(
                "no peer `{peer}` is known here: give a node id of `embermesh members`, or its mesh address"
            ))
        })
    }

    /// Objects to an intent, in this node's name.
    pub async fn veto(&self, intent: &str, hold: Option<Duration>) -> Result<(), OperatorError> {
        let id: IntentId = parse(intent)?;
        let known = self.driver().look(|core| {
            core.intents().iter().any(|i| i.notice.container == id.container && i.notice.round == id.round)
        });
        if !known {
            return Err(OperatorError::NotFound(format!("no open intent {intent} is known here")));
        }
        let hold_us = hold.map(|h| u64::try_from(h.as_micros()).unwrap_or(u64::MAX));
        self.tell(Input::VetoRequested { container: id.container, round: id.round, hold_us });
        Ok(())
    }

    /// Gives a held lease back; runs on it go on.
    pub async fn release(&self, lease: &str) -> Result<(), OperatorError> {
        let id: LeaseId = parse(lease)?;
        let held = self.driver().look(|core| core.held_leases().any(|l| l.owner == id.owner && l.fence == id.fence));
        if !held {
            return Err(OperatorError::NotFound(format!("this node holds no lease {lease}")));
        }
        self.tell(Input::ReleaseRequested { owner: id.owner, fence: id.fence });
        Ok(())
    }

    /// Stops taking work, finishes what runs and what was promised, and ends all containers.
    pub async fn drain(&self, deadline: Option<Duration>, force: bool) -> Result<views::DrainOutcome, OperatorError> {
        let deadline = deadline.unwrap_or(self.config().protocol.drain_deadline);
        let deadline_us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        match self.drained_by(Input::DrainRequested { deadline_us, force }, deadline).await {
            Some(end) => Ok(views::DrainOutcome {
                drained: end.is_empty(),
                left: end.containers.iter().map(|n| self.container_id(*n).to_string()).collect(),
                at_peers: end.at_peers,
                owed: end.owed,
                killed: end.killed,
                given_up: end.given_up,
            }),
            None => Err(OperatorError::Unavailable("the drain did not end; see `embermesh status`".to_owned())),
        }
    }

    /// Ends the node's work as its process ends, and its containers with it.
    pub(crate) async fn stop_work(&self, within: Duration) {
        let deadline_us = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        let end = self.drained_by(Input::StopRequested { deadline_us }, within).await;
        if let Some(end) = end.filter(|end| end.at_peers > 0) {
            tracing::warn!(runs = end.at_peers, "calls that run at peers had not ended in time");
        }
    }

    /// Has the core end its work; what is left of it at the deadline.
    pub(crate) async fn drained_by(&self, input: Input, deadline: Duration) -> Option<DrainEnd> {
        let mut drained = self.drained();
        drained.mark_unchanged();
        self.tell(input);
        self.publish_facts();
        // The core reports at the deadline; a forced end takes the engine's time on top.
        let ended = timeout(deadline + INTENT_PATIENCE, async {
            loop {
                drained.changed().await.ok()?;
                let end = drained.borrow_and_update().clone();
                if end.is_some() {
                    return end;
                }
            }
        });
        ended.await.ok().flatten()
    }

    /// Has the process drain, leave the mesh and end, once nothing is owed any more or, with `force`, whatever is.
    /// Returns at once.
    pub fn leave(&self, force: bool) {
        self.journal().promise_no_more();
        if force {
            return self.go(Leaving::Asked);
        }
        let node = self.clone();
        self.track(async move {
            tokio::select! {
                () = node.journal().emptied() => node.go(Leaving::Asked),
                () = node.stopped() => {}
            }
        });
    }

    pub async fn activation(
        &self,
        namespace: &str,
        id: &str,
    ) -> Result<Option<std::sync::Arc<ActivationRecord>>, StoreError> {
        let (node, namespace, id) = (self.clone(), namespace.to_owned(), id.to_owned());
        self.reading(move || node.records().get(&namespace, &id)).await
    }

    pub async fn activation_summaries(
        &self,
        namespace: &str,
        filter: ActivationFilter,
    ) -> Result<Vec<ActivationSummary>, StoreError> {
        let (node, namespace) = (self.clone(), namespace.to_owned());
        self.reading(move || node.records().list_summaries(&namespace, &filter)).await
    }

    pub async fn activation_records(
        &self,
        namespace: &str,
        filter: ActivationFilter,
    ) -> Result<Vec<ActivationRecord>, StoreError> {
        let (node, namespace) = (self.clone(), namespace.to_owned());
        self.reading(move || node.records().list(&namespace, &filter)).await
    }

    pub async fn activation_count(&self, namespace: &str, filter: ActivationFilter) -> Result<u64, StoreError> {
        let (node, namespace) = (self.clone(), namespace.to_owned());
        self.reading(move || node.records().count(&namespace, &filter)).await
    }

    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let failed = |e: tokio::task::JoinError| StoreError::Failed { what: "read", reason: e.to_string() };
        self.blocking_work().run(read).await.map_err(failed)?
    }
}

fn parse<T: std::str::FromStr<Err = embermesh_core::ids::BadId>>(text: &str) -> Result<T, OperatorError> {
    text.parse().map_err(|e: embermesh_core::ids::BadId| OperatorError::BadId(e.to_string()))
}
