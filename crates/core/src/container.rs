//! One own container: its life cycle, its slots, and who has a right to them.
//!
//! ```text
//! Starting -> Initializing -> Warm <-> Pausing -> Paused -> Resuming -> Warm
//!                 Adopting ----+--------------------+
//!                              |                    |
//!                              +----- Retiring -----+-----> Removing -> Removed
//! Failed -> Removing
//! ```
//!
//! The container is the only authority over its slots: every grant, run and removal goes through the checks
//! here, in one step each. An open intent is no state: the container stays usable while it is open.

mod intent;
mod lifecycle;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use crate::ids::{ActionId, ActivationId, Epoch, Fence, NodeId, Revision, RunId};
use crate::mutations::{Mutation, on};
use crate::output::{RunRefusal, Served};
use crate::time::{Micros, Time};

pub use intent::{Cause, Closing, OpenIntent, Rounds};
pub use lifecycle::{IllegalMove, Lifecycle};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub action: ActionId,
    pub revision: Revision,
    pub slots: u32,
    pub memory_mb: u64,
    state: Lifecycle,
    /// When it came into its state.
    pub since: Time,
    pub created_at: Time,
    leases: BTreeMap<Fence, Lease>,
    runs: BTreeMap<RunId, Run>,
    /// Σ slots of `leases`.
    leased: u32,
    /// Runs on no lease, those over their time-out included.
    outside: u32,
    /// Since when it has neither run nor lease.
    pub idle_since: Time,
    /// Runs started since it began, and ended.
    pub runs_started: u64,
    pub runs_ended: u64,
    pub intent: Option<OpenIntent>,
    pub rounds: Rounds,
    /// Set by a start or a resume, taken by the first run after it.
    pub fresh: Option<Served>,
    /// When its idle timer comes, so that there is one.
    pub idle_timer: Option<Time>,
    /// It retires only to make place for the next life of its node.
    pub stays: bool,
}

/// A right of a holder to `slots` slots, as its owner keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    pub holder: NodeId,
    pub holder_epoch: Epoch,
    pub slots: u32,
    /// Runs of the holder in flight on it, ≤ slots.
    pub running: u32,
    pub granted_at: Time,
    /// The owner accepts runs before this moment and not from it on.
    pub expires_at: Time,
    /// It is not renewed any more.
    pub recalled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Run {
    pub activation: ActivationId,
    /// The lease it runs on; none for own runs, and once that lease has ended.
    pub lease: Option<Fence>,
    pub started_at: Time,
    /// Over its time-out: answered as failed, its slot never returns.
    pub overdue: bool,
    /// That it was the first after a start or a resume.
    pub fresh: Option<Served>,
}

/// Moments that no step will read again make no difference to a model checker: when it was created, once it has served;
/// since when it is warm; since when it was idle, while it isn't.
impl Hash for Container {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self {
            action, revision, slots, memory_mb, state, since, created_at, leases, runs, leased, outside, ..
        } = self;
        let Self { idle_since, runs_started, runs_ended, intent, rounds, fresh, idle_timer, stays, .. } = self;
        (action, revision, slots, memory_mb, state, leases, runs, leased, outside).hash(hasher);
        (runs_started, runs_ended, intent, rounds, fresh, idle_timer, stays).hash(hasher);
        (*runs_ended == 0).then_some(created_at).hash(hasher);
        let warm = *state == Lifecycle::Warm;
        ((!warm).then_some(since), (warm && self.unused()).then_some(idle_since)).hash(hasher);
    }
}

impl Container {
    pub fn new(action: ActionId, revision: Revision, slots: u32, memory_mb: u64, now: Time) -> Self {
        Self {
            action,
            revision,
            slots,
            memory_mb,
            state: Lifecycle::Starting,
            since: now,
            created_at: now,
            leases: BTreeMap::new(),
            runs: BTreeMap::new(),
            leased: 0,
            outside: 0,
            idle_since: now,
            runs_started: 0,
            runs_ended: 0,
            intent: None,
            rounds: Rounds::default(),
            fresh: None,
            idle_timer: None,
            stays: false,
        }
    }

    /// One that outlived an earlier life of its node.
    pub fn found(action: ActionId, revision: Revision, slots: u32, memory_mb: u64, now: Time) -> Self {
        Self { state: Lifecycle::Adopting, ..Self::new(action, revision, slots, memory_mb, now) }
    }

    pub fn state(&self) -> Lifecycle {
        self.state
    }

    pub fn leases(&self) -> &BTreeMap<Fence, Lease> {
        &self.leases
    }

    pub fn runs(&self) -> &BTreeMap<RunId, Run> {
        &self.runs
    }

    pub fn leased_slots(&self) -> u32 {
        self.leased
    }

    /// Slots that are neither leased nor busy; none unless it is warm.
    pub fn free(&self) -> u32 {
        if self.state == Lifecycle::Warm { self.slots - self.leased - self.outside } else { 0 }
    }

    /// Leased slots that their holders don't use now.
    pub fn leased_idle(&self) -> u32 {
        self.leased - self.leases.values().map(|l| l.running).sum::<u32>()
    }

    /// Neither run nor lease.
    pub fn unused(&self) -> bool {
        self.leases.is_empty() && self.runs.is_empty()
    }

    /// No lease, and no run but such as are over their time-out: a retiring container may go.
    pub fn may_end(&self) -> bool {
        self.leases.is_empty() && self.runs.values().all(|r| r.overdue)
    }

    /// Moves to another state, or says why that can't be.
    pub fn transition(&mut self, to: Lifecycle, now: Time) -> Result<(), IllegalMove> {
        self.state = self.state.moved(to)?;
        self.since = now;
        if to == Lifecycle::Warm {
            self.idle_since = now;
        }
        Ok(())
    }

    /// Grants a lease. The caller has checked that `slots` are free.
    pub fn grant(&mut self, fence: Fence, lease: Lease) {
        debug_assert!(lease.slots <= self.free() && lease.slots > 0);
        self.leased += lease.slots;
        self.leases.insert(fence, lease);
    }

    /// Starts an own run. The caller has checked that a slot is free.
    pub fn start_own(&mut self, run: RunId, activation: ActivationId, fresh: Option<Served>, now: Time) {
        debug_assert!(self.free() > 0);
        self.outside += 1;
        self.begin(run, Run { activation, lease: None, started_at: now, overdue: false, fresh });
    }

    /// Starts a run on a lease: the owner's one check of fence, holder, time and slot.
    pub fn start_leased(
        &mut self,
        run: RunId,
        activation: ActivationId,
        holder: (&NodeId, Epoch),
        fence: Fence,
        keep: u32,
        now: Time,
    ) -> Result<(), RunRefusal> {
        match self.state {
            Lifecycle::Warm => {}
            Lifecycle::Retiring => return Err(RunRefusal::Retiring),
            _ => return Err(RunRefusal::UnknownContainer),
        }
        let fence = self.meant(fence, holder, on(Mutation::FenceUnchecked));
        let lease = self.leases.get_mut(&fence).ok_or(RunRefusal::UnknownLease)?;
        let over = now >= lease.expires_at && !on(Mutation::RenewsExpired);
        if (&lease.holder, lease.holder_epoch) != holder || over {
            return Err(RunRefusal::UnknownLease);
        }
        if lease.running >= lease.slots {
            return Err(RunRefusal::NoSlot);
        }
        lease.running += 1;
        let kept = keep.clamp(lease.running, lease.slots);
        self.leased -= lease.slots - kept;
        lease.slots = kept;
        self.begin(run, Run { activation, lease: Some(fence), started_at: now, overdue: false, fresh: None });
        Ok(())
    }

    /// Renews a lease from `now`, unless it was recalled, is too old, or `refuse` says so.
    pub fn renew(&mut self, fence: Fence, now: Time, ttl_and_grace: Micros, max_age: Micros, refuse: bool) -> bool {
        let warm = self.state == Lifecycle::Warm;
        let Some(lease) = self.leases.get_mut(&fence) else { return false };
        let renew = warm && !refuse && !lease.recalled && now.since(lease.granted_at) < max_age;
        if renew {
            lease.expires_at = now + ttl_and_grace;
        }
        renew
    }

    /// Marks a lease as not to be renewed; `false` if it was already, or is gone.
    pub fn recall(&mut self, fence: Fence) -> bool {
        self.leases.get_mut(&fence).is_some_and(|l| !std::mem::replace(&mut l.recalled, true))
    }

    /// Gives back what the holder doesn't keep; runs in flight keep their slots.
    pub fn release(&mut self, fence: Fence, holder: (&NodeId, Epoch), keep: u32, now: Time) -> bool {
        let fence = self.meant(fence, holder, on(Mutation::ReleaseIgnoresFence));
        let Some(lease) = self.leases.get_mut(&fence) else { return false };
        if (&lease.holder, lease.holder_epoch) != holder {
            return false;
        }
        let kept = keep.max(lease.running).min(lease.slots);
        self.leased -= lease.slots - kept;
        lease.slots = kept;
        if kept == 0 {
            self.leases.remove(&fence);
            self.note_idle(now);
        }
        true
    }

    /// Ends a lease whose time has come: its runs keep their slots, outside of it.
    pub fn expire(&mut self, fence: Fence, now: Time) -> Option<Lease> {
        let lease = self.leases.remove(&fence)?;
        self.leased -= lease.slots;
        self.outside += lease.running;
        for run in self.runs.values_mut().filter(|r| r.lease == Some(fence)) {
            run.lease = None;
        }
        self.note_idle(now);
        Some(lease)
    }

    /// Ends a run that the container has answered, or that never reached it.
    pub fn end_run(&mut self, run: RunId, now: Time) -> Option<Run> {
        let ended = self.take_run(run, now)?;
        self.runs_ended += 1;
        Some(ended)
    }

    /// Takes a run back that was not begun: the container is as before.
    pub fn withdraw_run(&mut self, run: RunId, now: Time) -> Option<Run> {
        let withdrawn = self.take_run(run, now)?;
        self.runs_started -= 1;
        self.fresh = self.fresh.or(withdrawn.fresh);
        Some(withdrawn)
    }

    fn take_run(&mut self, run: RunId, now: Time) -> Option<Run> {
        let ended = self.runs.remove(&run)?;
        match ended.lease.and_then(|fence| self.leases.get_mut(&fence)) {
            Some(lease) => lease.running -= 1,
            None => self.outside -= 1,
        }
        self.note_idle(now);
        Some(ended)
    }

    /// A run is over its time-out: it leaves its lease, and its slot never comes back.
    pub fn overdue(&mut self, run: RunId) -> Option<&Run> {
        let found = self.runs.get_mut(&run)?;
        found.overdue = true;
        if let Some(fence) = found.lease.take()
            && let Some(lease) = self.leases.get_mut(&fence)
        {
            lease.running -= 1;
            lease.slots -= 1;
            self.leased -= 1;
            self.outside += 1;
            if lease.slots == 0 {
                self.leases.remove(&fence);
            }
        }
        self.runs.get(&run)
    }

    /// The container is dead: all leases on it are void and all runs are over.
    pub fn void(&mut self) -> (BTreeMap<Fence, Lease>, BTreeMap<RunId, Run>) {
        self.leased = 0;
        self.outside = 0;
        self.intent = None;
        (std::mem::take(&mut self.leases), std::mem::take(&mut self.runs))
    }

    /// What must hold after every step.
    pub fn check(&self) -> Result<(), String> {
        let leased: u32 = self.leases.values().map(|l| l.slots).sum();
        let running: u32 = self.leases.values().map(|l| l.running).sum();
        let outside = self.runs.values().filter(|r| r.lease.is_none()).count();
        if leased != self.leased || outside != self.outside as usize {
            return Err(format!(
                "counters are off: {leased}/{} leased, {outside}/{} outside",
                self.leased, self.outside
            ));
        }
        if running as usize + outside != self.runs.len() {
            return Err("a run belongs to no lease and is not outside either".to_owned());
        }
        if self.leased + self.outside > self.slots {
            return Err(format!("L1_owner_table_within_slots: {leased} + {outside} > {}", self.slots));
        }
        if self.leases.values().any(|l| l.running > l.slots || l.slots == 0) {
            return Err("a lease has more runs than slots, or no slot".to_owned());
        }
        let used = !self.may_end();
        if used && matches!(self.state, Lifecycle::Pausing | Lifecycle::Paused | Lifecycle::Removing) {
            return Err(format!("R1_nothing_begins_on_a_used_container: {:?}", self.state));
        }
        Ok(())
    }

    fn begin(&mut self, id: RunId, run: Run) {
        self.runs_started += 1;
        self.rounds.used();
        self.runs.insert(id, run);
    }

    /// The lease that a fence means: that one and no other, but for a bug on purpose.
    fn meant(&self, fence: Fence, holder: (&NodeId, Epoch), any: bool) -> Fence {
        if !any || self.leases.contains_key(&fence) {
            return fence;
        }
        let mut of_holder = self.leases.iter().filter(|(_, l)| (&l.holder, l.holder_epoch) == holder);
        of_holder.next().map_or(fence, |(other, _)| *other)
    }

    fn note_idle(&mut self, now: Time) {
        if self.unused() {
            self.idle_since = now;
        }
    }
}

#[cfg(test)]
mod tests;
