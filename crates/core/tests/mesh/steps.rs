//! Invariants of one step: what it was given, what it did, what was before.

use embermesh_core::container::Lifecycle;
use embermesh_core::output::{Event, IntentEnd, Output, ReserveAnswer, RunAnswer};
use embermesh_core::{ContainerId, Fence, Input, Node, RunId};

use crate::ledger::Granted;
use crate::world::{Step, World};

type Checked = Result<(), String>;

impl World {
    pub(crate) fn check_step(&mut self, step: &Step) {
        type Check = fn(&mut World, &Step) -> Checked;
        // In this order: the earlier ones keep what the later ones compare with.
        let checks: [(&str, Check); 13] = [
            ("L2_fence_monotonic", l2_fence_monotonic),
            ("L4_one_grant_per_request_id", l4_one_grant_per_request_id),
            ("L5_no_run_after_expiry", l5_no_run_after_expiry),
            ("L6_release_matches_fence", l6_release_matches_fence),
            ("R1_nothing_begins_on_a_used_container", r1_nothing_begins_on_a_used_container),
            ("R2_countable_veto_stops_commit", r2_countable_veto_stops_commit),
            ("R3_other_vetoes_change_nothing", r3_other_vetoes_change_nothing),
            ("R5_unopposed_intent_commits", r5_unopposed_intent_commits),
            ("R6_removed_is_final", r6_removed_is_final),
            ("R7_veto_bounded", r7_veto_bounded),
            ("R8_nothing_between_commit_and_engine", r8_nothing_between_commit_and_engine),
            ("S1_container_never_rebound", s1_container_never_rebound),
            ("G2_epoch_never_regresses", g2_epoch_never_regresses),
        ];
        for (name, check) in checks {
            if let Err(what) = check(self, step) {
                self.violate(name, format!("{what}; on {:?} at {:?}", step.input, self.hosts[step.host].id));
            }
        }
    }
}

/// Each fence of a node is greater than all before, restarts included.
fn l2_fence_monotonic(world: &mut World, step: &Step) -> Checked {
    for output in &step.outputs {
        let Output::Event(Event::LeaseGranted { fence, .. }) = output else { continue };
        if let Some(last) = world.ledger.fences.insert(step.host, *fence)
            && last >= *fence
        {
            return Err(format!("{fence:?} after {last:?}"));
        }
    }
    Ok(())
}

/// However often a request arrives, and however late: one grant in an owner's life.
fn l4_one_grant_per_request_id(world: &mut World, step: &Step) -> Checked {
    for output in &step.outputs {
        let Output::AnswerReserve { request, answer: ReserveAnswer::Granted { container, fence, run, first, .. } } =
            output
        else {
            continue;
        };
        let key = (step.host, world.hosts[step.host].epoch, request.clone());
        let granted = (*fence, container.clone(), *run);
        match world.ledger.grants.get(&key) {
            None if *first => {
                world.ledger.grants.insert(key, granted);
            }
            Some(before) if !*first && *before == granted => {}
            before => return Err(format!("{request:?} got {granted:?}, first: {first}, before: {before:?}")),
        }
    }
    Ok(())
}

/// The owner accepts until ttl + grace after the grant or the last renewing run, and not from then on.
fn l5_no_run_after_expiry(world: &mut World, step: &Step) -> Checked {
    let config = world.config.clone();
    let expires_at = step.now + config.ttl_us + config.grace_us;
    let fence_shown = match &step.input {
        Input::RunReceived { fence, .. } => Some(*fence),
        _ => None,
    };
    for output in &step.outputs {
        match output {
            Output::Event(Event::LeaseGranted { container, fence, .. }) => {
                world.ledger.leases.insert((step.host, *fence), Granted { container: *container, expires_at });
            }
            Output::AnswerRun { answer: RunAnswer::Accepted { container, renewed_us, .. }, .. } => {
                let shown = fence_shown.and_then(|f| world.ledger.leases.get_mut(&(step.host, f)));
                let Some(lease) = shown else { return Err(format!("accepted on no lease: {fence_shown:?}")) };
                if step.now >= lease.expires_at || lease.container != *container {
                    return Err(format!("{fence_shown:?} is {lease:?}, now is {:?}", step.now));
                }
                if *renewed_us > 0 {
                    lease.expires_at = expires_at;
                }
            }
            Output::Event(Event::LeaseExpired { fence, .. } | Event::LeaseReleased { fence, .. }) => {
                world.ledger.leases.remove(&(step.host, *fence));
            }
            _ => {}
        }
    }
    // A run over its time-out takes its slot, and with the last one its lease.
    if matches!(step.input, Input::RunFinished { .. }) {
        let granted: Vec<Fence> =
            world.hosts[step.host].node.iter().flat_map(Node::granted_leases).map(|l| l.fence).collect();
        world.ledger.leases.retain(|(host, fence), _| *host != step.host || granted.contains(fence));
    }
    Ok(())
}

/// A release changes the lease whose fence it names, if it is of that life of its holder, and no other.
fn l6_release_matches_fence(world: &mut World, step: &Step) -> Checked {
    let (Input::ReleaseReceived { fence, holder, holder_epoch, .. }, Some(before)) = (&step.input, &step.before) else {
        return Ok(());
    };
    let Some(after) = &world.hosts[step.host].node else { return Ok(()) };
    for view in before.containers() {
        let now = after.containers().find(|c| c.id == view.id);
        for (of, lease) in view.container.leases() {
            let kept = now.as_ref().and_then(|c| c.container.leases().get(of));
            let named = of == fence && lease.holder == *holder && lease.holder_epoch == *holder_epoch;
            if !named && kept.map(|l| (l.slots, l.running)) != Some((lease.slots, lease.running)) {
                return Err(format!("{of:?} {lease:?} became {kept:?}"));
            }
            if kept.is_some_and(|l| l.slots > lease.slots || l.slots < lease.running) {
                return Err(format!("{of:?} {lease:?} got more slots, or lost one in use: {kept:?}"));
            }
        }
    }
    Ok(())
}

/// No pause or removal begins with an unexpired lease or a run, but of a dead container or a timed-out run.
fn r1_nothing_begins_on_a_used_container(world: &mut World, step: &Step) -> Checked {
    for output in &step.outputs {
        let number = match output {
            Output::PauseContainer { container } | Output::RemoveContainer { container } => *container,
            _ => continue,
        };
        let host = &world.hosts[step.host];
        let failed = step
            .outputs
            .iter()
            .any(|o| matches!(o, Output::Event(Event::ContainerFailed { container, .. }) if *container == number));
        if failed {
            continue;
        }
        if let Some((key, lease)) =
            world.ledger.leases.iter().find(|((h, _), l)| *h == step.host && l.container == number)
        {
            return Err(format!("{output:?} with {key:?} {lease:?}"));
        }
        let inside = host.engine.boxes.get(&number).filter(|b| !b.dead);
        if inside.is_some_and(|b| b.runs.values().any(|r| !r.over_time)) {
            return Err(format!("{output:?} with a run inside"));
        }
    }
    Ok(())
}

/// A veto that names the open round of this life's container, in time, keeps it from committing.
fn r2_countable_veto_stops_commit(world: &mut World, step: &Step) -> Checked {
    if let Input::VetoReceived { container, round, .. } = &step.input {
        let countable = is_countable(step, container, *round);
        let counted = step.outputs.iter().any(|o| matches!(o, Output::Event(Event::VetoCounted { .. })));
        if countable != counted {
            return Err(format!("a veto of round {round} is countable: {countable}, counted: {counted}"));
        }
        if countable {
            *world.ledger.rounds.entry(container.clone()).or_default().vetoes.entry(*round).or_insert(0) += 1;
        }
    }
    if matches!(step.input, Input::VetoRequested { .. }) {
        // The owner's own operator objects.
        for output in &step.outputs {
            let Output::Event(Event::VetoCounted { intent, .. }) = output else { continue };
            let rounds = world.ledger.rounds.entry(intent.container.clone()).or_default();
            *rounds.vetoes.entry(intent.round).or_insert(0) += 1;
        }
    }
    for (intent, end) in closed_rounds(step) {
        let vetoes = world.ledger.rounds.get(&intent.container).and_then(|r| r.vetoes.get(&intent.round));
        if *end == IntentEnd::Committed && vetoes.is_some() {
            return Err(format!("{intent:?} committed over {vetoes:?} vetoes"));
        }
    }
    Ok(())
}

/// A veto of another round, epoch or container leaves no trace.
fn r3_other_vetoes_change_nothing(world: &mut World, step: &Step) -> Checked {
    let (Input::VetoReceived { container, round, .. }, Some(before)) = (&step.input, &step.before) else {
        return Ok(());
    };
    if is_countable(step, container, *round) || world.hosts[step.host].node.as_ref() == Some(before) {
        return Ok(());
    }
    Err("the state changed".to_owned())
}

/// A round ends without committing only for a reason: a veto, a lease or a run, a stall, another way out.
fn r5_unopposed_intent_commits(world: &mut World, step: &Step) -> Checked {
    for output in &step.outputs {
        if let Output::SendIntent { notice, .. } = output {
            let rounds = world.ledger.rounds.entry(notice.container.clone()).or_default();
            rounds.closes_at.insert(notice.round, step.now + notice.window_us);
        }
    }
    let late_after = world.config.gossip_interval_us;
    for (intent, end) in closed_rounds(step) {
        let number = intent.container.number;
        let node = world.hosts[step.host].node.as_ref();
        let container = node.and_then(|n| n.containers().find(|c| c.id.number == number)).map(|c| c.container);
        let state = container.map(|c| c.state());
        let used = container.is_some_and(|c| !c.unused()) || state == Some(Lifecycle::Resuming);
        let rounds = world.ledger.rounds.get(&intent.container);
        let vetoes = rounds.and_then(|r| r.vetoes.get(&intent.round));
        let closes_at = rounds.and_then(|r| r.closes_at.get(&intent.round));
        let reason = match end {
            IntentEnd::Committed => true,
            IntentEnd::Vetoed { by } => vetoes.is_some() && !by.is_empty(),
            IntentEnd::Used => used,
            IntentEnd::Late => closes_at.is_some_and(|at| step.now.since(*at) > late_after),
            IntentEnd::Overtaken => !matches!(state, Some(Lifecycle::Warm | Lifecycle::Paused)),
        };
        if !reason {
            return Err(format!("{intent:?} ended as {end:?} with {vetoes:?} vetoes in {state:?}"));
        }
    }
    Ok(())
}

/// After its removal began, a container's id is never named in a grant or a run again.
fn r6_removed_is_final(world: &mut World, step: &Step) -> Checked {
    for (id, what) in uses(world, step) {
        if world.ledger.removed.contains(&id) {
            return Err(format!("{id} was removed: {what}"));
        }
    }
    for output in &step.outputs {
        if let Output::RemoveContainer { container } = output {
            let id = world.container_id(step.host, *container);
            if !world.ledger.removed.insert(id.clone()) {
                return Err(format!("{id} is removed twice"));
            }
        }
    }
    Ok(())
}

/// Three rounds in a row may be cancelled by vetoes and by grants that bring no run; the next one not.
fn r7_veto_bounded(world: &mut World, step: &Step) -> Checked {
    for (container, _) in runs_begun(step) {
        let id = world.container_id(step.host, container);
        world.ledger.rounds.entry(id).or_default().in_vain = 0;
    }
    for (intent, end) in closed_rounds(step) {
        let id = intent.container.clone();
        let node = world.hosts[step.host].node.as_ref();
        let own_use = node.is_some_and(|n| n.queued() > 0);
        let container = node.and_then(|n| n.containers().find(|c| c.id == id)).map(|c| c.container);
        let granted = uses(world, step).iter().any(|(used, _)| *used == id);
        let in_vain = match end {
            IntentEnd::Vetoed { .. } => true,
            // What was granted before an operator opened the round may outlast it.
            IntentEnd::Used => container.is_some_and(|c| {
                let resumed = c.state() == Lifecycle::Resuming && !own_use;
                c.runs().is_empty() && (granted || resumed)
            }),
            _ => false,
        };
        if in_vain {
            let rounds = world.ledger.rounds.entry(id).or_default();
            rounds.in_vain += 1;
            if rounds.in_vain > 3 {
                return Err(format!("{intent:?} is number {} in vain", rounds.in_vain));
            }
        }
    }
    Ok(())
}

/// From the step that commits to the engine's answer, nothing is granted or started.
fn r8_nothing_between_commit_and_engine(world: &mut World, step: &Step) -> Checked {
    for (id, what) in uses(world, step) {
        if world.ledger.engine_busy.contains(&(step.host, id.number)) {
            return Err(format!("{id} is with the engine: {what}"));
        }
    }
    for output in &step.outputs {
        if let Output::PauseContainer { container } | Output::RemoveContainer { container } = output {
            world.ledger.engine_busy.insert((step.host, *container));
        }
    }
    Ok(())
}

/// A container serves one action in one revision for life.
fn s1_container_never_rebound(world: &mut World, step: &Step) -> Checked {
    let Input::RunReceived { action, revision, container, .. } = &step.input else { return Ok(()) };
    let accepted = runs_begun(step).any(|(number, _)| number == container.number);
    let made = world.hosts[step.host].engine.boxes.get(&container.number);
    match made.filter(|_| accepted) {
        Some(made) if made.action != *action || made.revision != *revision => {
            Err(format!("{container} was made for {} {}", made.action, made.revision))
        }
        _ => Ok(()),
    }
}

/// State of an older epoch never replaces that of a newer one.
fn g2_epoch_never_regresses(world: &mut World, step: &Step) -> Checked {
    let own_epoch = world.hosts[step.host].epoch;
    for output in &step.outputs {
        let shown = match output {
            Output::Event(Event::PeerUp { peer, epoch }) => Some((peer, *epoch)),
            Output::SendReserve(send) if world.ledger.sent.insert((step.host, own_epoch, send.request.number)) => {
                Some((&send.to, send.owner_epoch))
            }
            _ => None,
        };
        if let Some((peer, epoch)) = shown
            && let Some(known) = world.ledger.epochs.get(&(step.host, peer.clone()))
            && epoch < *known
        {
            return Err(format!("{peer} is taken for {epoch:?} after {known:?}"));
        }
    }
    Ok(())
}

fn is_countable(step: &Step, container: &ContainerId, round: u32) -> bool {
    let Some(before) = &step.before else { return false };
    let found = before.containers().find(|c| c.id == *container);
    found.and_then(|c| c.container.intent.as_ref()).is_some_and(|intent| {
        intent.round == round && !intent.last_word && !intent.awaits_permit && step.now < intent.closes_at
    })
}

fn closed_rounds(step: &Step) -> impl Iterator<Item = (&embermesh_core::ids::IntentId, &IntentEnd)> {
    step.outputs.iter().filter_map(|o| match o {
        Output::Event(Event::IntentClosed { intent, end, .. }) => Some((intent, end)),
        _ => None,
    })
}

/// Runs that begin in own containers by this step.
fn runs_begun(step: &Step) -> impl Iterator<Item = (u64, RunId)> {
    step.outputs.iter().filter_map(|o| match o {
        Output::RunLocal { container, run, .. }
        | Output::AnswerRun { answer: RunAnswer::Accepted { container, run, .. }, .. } => Some((*container, *run)),
        Output::AnswerReserve {
            answer: ReserveAnswer::Granted { container, run: Some(run), first: true, .. }, ..
        } => Some((container.number, *run)),
        _ => None,
    })
}

/// Grants and run starts of this step, by container.
fn uses(world: &World, step: &Step) -> Vec<(ContainerId, &'static str)> {
    let runs = runs_begun(step).map(|(number, _)| (world.container_id(step.host, number), "a run"));
    let grants = step.outputs.iter().filter_map(|o| match o {
        Output::Event(Event::LeaseGranted { container, .. }) => {
            Some((world.container_id(step.host, *container), "a grant"))
        }
        _ => None,
    });
    runs.chain(grants).collect()
}

impl World {
    fn container_id(&self, host: usize, number: u64) -> ContainerId {
        ContainerId { owner: self.hosts[host].id.clone(), epoch: self.hosts[host].epoch, number }
    }
}
