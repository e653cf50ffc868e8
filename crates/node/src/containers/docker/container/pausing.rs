//! Pause and resume, ours and what somebody else does of it.
//!
//! `pausing` is held while the engine changes it, so that nobody takes a change that is under way for somebody else's.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::OptionFuture;
use tokio::time::Instant;

use super::freezer::Freezer;
use super::{Container, failed};
use crate::containers::EngineError;
use crate::containers::docker::api::{Api, Failure};
use crate::containers::docker::engine::Shared;

/// Somebody who pauses or resumes our container more often than this within a minute is not argued with.
const MOST_CORRECTIONS: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);

/// Whether it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pausing {
    /// As the core wants it.
    wanted: bool,
    /// As the engine last said; none after a call of unknown outcome.
    known: Option<bool>,
}

impl Pausing {
    pub(super) fn new(paused: bool) -> Self {
        Self { wanted: paused, known: Some(paused) }
    }
}

impl Container {
    /// While the engine can't be asked, a pause is put off: the core counts it as paused and sends it nothing, and
    /// the monitor brings the engine's state in line as soon as it answers. So a warm container is not lost
    /// because the engine was away when it fell idle.
    pub(in super::super) async fn pause(self: &Arc<Self>, engine: &Shared) -> Result<(), EngineError> {
        let mut pausing = self.pausing.lock().await;
        let id = self.ready_id()?;
        self.want(&mut pausing, true);
        if engine.is_in_trouble() {
            return Ok(());
        }
        match self.change(&engine.api, id, true).await {
            Ok(()) => {
                pausing.known = Some(true);
                if self.freezer.get().is_none() {
                    tokio::spawn(self.clone().find_freezer(engine.api.clone(), id.to_owned()));
                }
            }
            Err(Failure::Unreachable(_)) => {}
            Err(Failure::Unknown(_)) => pausing.known = None,
            Err(failure) => return Err(failed(failure)),
        }
        Ok(())
    }

    /// Returns when it runs again, which the kernel shows some milliseconds before the engine says so: believed only of
    /// one that the engine has paused for certain, as no freeze of it can be under way. The next change waits for
    /// the engine's word.
    pub(in super::super) async fn resume(self: &Arc<Self>, engine: &Arc<Shared>) -> Result<(), EngineError> {
        let mut pausing = self.pausing.clone().lock_owned().await;
        let id = self.ready_id()?.to_owned();
        self.want(&mut pausing, false);
        // Its pause was put off, and has not come to be.
        if pausing.known == Some(false) {
            return Ok(());
        }
        let is_paused = pausing.known == Some(true);
        let freezer = self.freezer.get().filter(|freezer| is_paused && freezer.is_frozen());
        pausing.known = None;
        let (container, engine) = (self.clone(), engine.clone());
        let mut changed = tokio::spawn(async move {
            let outcome = container.change(&engine.api, &id, false).await;
            if outcome.is_ok() {
                pausing.known = Some(false);
            } else {
                // Told first, if nobody has seen it run; then what has become of it is looked into.
                drop(pausing);
                tokio::spawn(async move { align(&engine, &container).await });
            }
            outcome
        });
        tokio::select! {
            biased;
            outcome = &mut changed => outcome.map_err(|e| EngineError::Indeterminate(e.to_string()))?.map_err(failed),
            Some(()) = OptionFuture::from(freezer.map(Freezer::thawed)) => Ok(()),
        }
    }

    /// It is known for its own if it shows the pause that has just come to be.
    async fn find_freezer(self: Arc<Self>, api: Api, id: String) {
        if let Some(freezer) = Freezer::of(&api, &id).await.filter(Freezer::is_frozen) {
            let _ = self.freezer.set(freezer);
        }
    }

    fn want(&self, pausing: &mut Pausing, pause: bool) {
        pausing.wanted = pause;
        self.wants_pause.store(pause, Ordering::Release);
    }

    async fn change(&self, api: &Api, id: &str, pause: bool) -> Result<(), Failure> {
        match if pause { api.pause(id).await } else { api.unpause(id).await } {
            // Mostly that it is so already.
            Err(Failure::Conflict(text)) | Err(Failure::Refused(text)) => {
                let state = api.inspect(id).await?.state.unwrap_or_default();
                let so = state.running == Some(true) && state.paused == Some(pause);
                if so { Ok(()) } else { Err(Failure::Conflict(text)) }
            }
            outcome => outcome,
        }
    }

    /// Whether the engine's word about it is nothing to look into: it is what was asked for, as most are. An inspection
    /// would only slow the call that waits for the change.
    pub(in super::super) fn is_as_wanted(&self, paused: bool) -> bool {
        match self.pausing.try_lock() {
            Ok(pausing) => pausing.wanted == paused && pausing.known == Some(paused),
            // That change is under way.
            Err(_) => self.wants_pause.load(Ordering::Acquire) == paused,
        }
    }

    /// Whether somebody is still to be argued with about its state.
    fn may_correct(&self) -> bool {
        let mut corrections = self.corrections.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        corrections.retain(|at| now - *at < MINUTE);
        corrections.push_back(now);
        corrections.len() <= MOST_CORRECTIONS
    }
}

/// Looks at what the engine says of it, and brings it to what is wanted of it: a container that somebody else
/// paused goes on, one that somebody else resumed is paused again. Nothing is sent to it before the
/// core has resumed it, so both are harmless; only somebody who insists ends it.
pub(in super::super) async fn align(engine: &Arc<Shared>, container: &Arc<Container>) {
    if container.removal.is_cancelled() || container.has_ended() || !container.serving.load(Ordering::Acquire) {
        return;
    }
    let mut pausing = container.pausing.lock().await;
    let Some(id) = container.docker_id() else { return };
    let state = match engine.api.inspect(id).await {
        Ok(inspected) => inspected.state.unwrap_or_default(),
        Err(Failure::Missing(_)) => return container.died(engine, "it was removed by somebody else"),
        // The next listing looks again.
        Err(_) => return,
    };
    if state.running != Some(true) {
        return container.exited(engine, state.exit_code);
    }
    let pause = pausing.wanted;
    if state.paused == Some(pause) || container.removal.is_cancelled() {
        pausing.known = state.paused;
        return;
    }
    // A pause that was put off, or a change whose outcome nobody told.
    let own = pausing.known.is_none() || (pause && pausing.known != Some(true));
    if !own {
        if !container.may_correct() {
            return container.died(engine, "somebody else pauses and resumes it again and again");
        }
        tracing::warn!(container = %container.id, pause, "somebody else changed its state: it is changed back");
    }
    pausing.known = None;
    match container.change(&engine.api, id, pause).await {
        Ok(()) => pausing.known = Some(pause),
        Err(error) => tracing::warn!(container = %container.id, %error, "its state can't be changed back"),
    }
}
