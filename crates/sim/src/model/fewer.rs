//! Fewer states, and nothing that can happen left out. `Setting::whole` turns these rules off; a test holds that the
//! small configurations then reach the same and keep the same.
//!
//! - **What is over is forgotten.** A host that has no activation left to accept and none on its way, and of whose requests
//!   nothing is under way, *asks no more*: it will never send a request again, nor will a copy of one arrive. So nobody
//!   will read again what its requests were answered, which runs were its, or when it asked last: owners forget that, and
//!   the judge forgets its activations, each of which has had its end. Leases, fences, containers and rounds stay.
//! - **Nobody is told what he has no word on.** One that asks no more and holds no lease objects to no intent, now or
//!   later (unless it objects to everything): to hear of one changes its memory of intents and nothing else, which nobody
//!   else can see. So it is told of none, instead of at each moment at which it could be.
//! - **Mirror images are spared.** Peers that are alike differ in their names only, and each path has a mirror image: what
//!   rests on names is whose home an action has, which matters to whoever starts containers, and no peer has room for one.
//!   So one of both is enough, that on which the first of them is the first to accept an activation.

use embermesh_core::Input;

use super::network::{Flying, Message};
use super::setting::Setting;
use super::state::State;

/// How far a host is with all that it will ever do for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Still,
    NoMore,
    /// And has nothing to say.
    Silent,
}

/// Which of the rules there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fewer {
    forgets: bool,
    /// Both peers are the same but for their names.
    alike: bool,
}

impl Fewer {
    pub(super) fn of(setting: &Setting) -> Self {
        let alike = setting.nodes == 3
            && setting.invokes[0] == 0
            && setting.invokes[1] == setting.invokes[2]
            && setting.rates[1] == setting.rates[2];
        Self { forgets: !setting.whole, alike: alike && !setting.whole }
    }
}

impl State {
    /// Whether an activation accepted there now is the mirror image of one accepted elsewhere.
    pub(super) fn is_mirrored(&self, host: usize) -> bool {
        self.fewer.alike && host == 2 && self.invoked[1] == 0
    }

    /// After each move.
    pub(super) fn forget_what_is_over(&mut self) {
        if !self.fewer.forgets {
            return;
        }
        for host in 0..self.hosts.len() {
            if self.asks[host] == Asks::Still && self.asks_no_more(host) {
                self.asks[host] = Asks::NoMore;
                self.forget_asker(host);
            }
            if self.asks[host] == Asks::NoMore && self.is_silent(host) {
                self.asks[host] = Asks::Silent;
                if let Some(node) = &mut self.hosts[host].node {
                    node.forget_heard();
                }
            }
        }
        if self.asks.contains(&Asks::Silent) {
            let asks = self.asks;
            let intent = |flying: &Flying| matches!(*flying.message, Message::OneWay(Input::IntentReceived { .. }));
            self.flying.retain(|flying| asks[flying.to] != Asks::Silent || !intent(flying));
        }
    }

    fn asks_no_more(&self, host: usize) -> bool {
        let here = &self.hosts[host];
        let calls = |flying: &Flying| match &*flying.message {
            Message::Call { request, .. } | Message::Reply { request, .. } => request.holder == here.id,
            Message::OneWay(_) => false,
        };
        self.invokes[host] == 0
            && here.node.as_ref().is_some_and(|node| !node.has_own_requests())
            && !self.flying.iter().any(calls)
            && self.hosts.iter().all(|owner| {
                owner.parked.iter().all(|request| request.holder != here.id)
                    && owner.runs.values().all(|run| run.request.holder != here.id || run.ended.is_some())
                    && owner.node.as_ref().is_none_or(|node| !node.keeps_waiting(&here.id))
            })
    }

    fn is_silent(&self, host: usize) -> bool {
        let here = &self.hosts[host];
        !here.stubborn() && here.node.as_ref().is_some_and(|node| node.held_leases().next().is_none())
    }

    fn forget_asker(&mut self, host: usize) {
        let id = self.hosts[host].id.clone();
        for owner in &mut self.hosts {
            owner.runs.retain(|_, run| run.request.holder != id);
            if let Some(node) = &mut owner.node {
                node.forget_asker(&id);
            }
        }
        self.judge.forget_asker(&id);
    }
}
