//! What happens to containers without us having asked for it, and whether the engine answers at all.
//!
//! Events come within milliseconds; a listing after each (re)connection and now and then finds what no event told.
//! Nobody trusts an event's words: it only says which container to look at.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bollard::models::{ContainerSummaryStateEnum as State, EventMessage};
use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::api::Failure;
use super::container::align;
use super::engine::Shared;
use super::labels::CONTAINER;
use crate::clock::wall_ms;

const PING_EVERY: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(2);
const LIST_EVERY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Events of the last moments are asked for again: each has its date, and looking twice does no harm.
const OVERLAP_SECS: u64 = 5;

/// Until the engine is let go of.
pub(super) async fn watch(engine: Arc<Shared>) {
    let stop = engine.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch_on(&engine) => {}
    }
}

async fn watch_on(engine: &Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let why = follow(engine).await;
        trouble(engine, Some(why));
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection for events, to its end: why it ended.
async fn follow(engine: &Arc<Shared>) -> Failure {
    if let Err(failure) = engine.api.ping(PING).await {
        return failure;
    }
    let since = (wall_ms() / 1000).saturating_sub(OVERLAP_SECS);
    let mut events = pin!(engine.api.events(&engine.owner.filter(), since));
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listed: Option<Instant> = None;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => on_event(engine, &event),
                Some(Err(error)) => return engine.api.failure(&error),
                None => return Failure::Unreachable("the Docker engine closed its stream of events".to_owned()),
            },
            _ = pings.tick() => {
                if let Err(failure) = engine.api.ping(PING).await {
                    return failure;
                }
                if listed.is_none_or(|at| at.elapsed() >= LIST_EVERY) {
                    if let Err(failure) = reconcile(engine).await {
                        return failure;
                    }
                    listed = Some(Instant::now());
                }
                trouble(engine, None);
            }
        }
    }
}

fn on_event(engine: &Arc<Shared>, event: &EventMessage) {
    let Some(actor) = &event.actor else { return };
    let attribute = |key: &str| actor.attributes.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let Some(container) = attribute(CONTAINER).and_then(|label| engine.find_labelled(label)) else { return };
    // The labels may be somebody's copy.
    if container.docker_id().is_none() || container.docker_id() != actor.id.as_deref() {
        return;
    }
    match event.action.as_deref() {
        Some("die") => container.exited(engine, attribute("exitCode").and_then(|code| code.parse().ok())),
        Some("oom") => container.ran_out_of_memory(age(event)),
        Some("destroy") => container.died(engine, "it was removed by somebody else"),
        told => {
            if container.is_as_wanted(told == Some("pause")) {
                return;
            }
            let engine = engine.clone();
            tokio::spawn(async move { align(&engine, &container).await });
        }
    }
}

/// How long ago that was: after a break the engine tells the last moments again.
fn age(event: &EventMessage) -> Duration {
    let at_ms = event.time_nano.map_or(0, |at| u64::try_from(at).unwrap_or(0) / 1_000_000);
    Duration::from_millis(if at_ms == 0 { 0 } else { wall_ms().saturating_sub(at_ms) })
}

/// Compares the table with what the engine has.
async fn reconcile(engine: &Arc<Shared>) -> Result<(), Failure> {
    // Another agent of this host may have made a bridge.
    engine.bar_containers_if_possible().await;
    // Looked at before the listing: what is created meanwhile is in neither.
    let known: Vec<_> = engine.all().into_iter().filter(|container| container.docker_id().is_some()).collect();
    let listed = engine.api.list(&engine.owner.filter()).await?;
    let states: HashMap<&str, Option<State>> =
        listed.iter().filter_map(|container| Some((container.id.as_deref()?, container.state))).collect();
    for container in known {
        let Some(id) = container.docker_id() else { continue };
        match states.get(id) {
            None => container.died(engine, "it is not on the engine any more"),
            Some(None | Some(State::CREATED)) => {}
            Some(Some(state @ (State::RUNNING | State::PAUSED))) => {
                if container.is_as_wanted(*state == State::PAUSED) {
                    continue;
                }
                let engine = engine.clone();
                tokio::spawn(async move { align(&engine, &container).await });
            }
            Some(Some(_)) => {
                let state = engine.api.inspect(id).await.ok().and_then(|inspected| inspected.state);
                container.exited(engine, state.and_then(|state| state.exit_code));
            }
        }
    }
    for container in &listed {
        // An id is in the table from before its container is created until after it is removed.
        let Some(id) = engine.owner.own_id(container).filter(|id| !engine.knows(id)) else { continue };
        let Some(docker_id) = container.id.clone() else { continue };
        tracing::warn!(container = %id, "a container that a start left behind is removed");
        let engine = engine.clone();
        tokio::spawn(async move {
            let _permit = engine.removals.acquire().await;
            // Tried again after the next listing.
            engine.api.remove(&docker_id).await.ok();
        });
    }
    Ok(())
}

fn trouble(engine: &Shared, why: Option<Failure>) {
    let mut trouble = engine.trouble.lock().unwrap_or_else(PoisonError::into_inner);
    match (&why, trouble.is_some()) {
        (Some(why), false) => {
            tracing::warn!(%why, "the Docker engine does not answer: what runs goes on, nothing starts")
        }
        (None, true) => tracing::info!("the Docker engine answers again"),
        _ => {}
    }
    *trouble = why.map(|why| why.to_string());
}
