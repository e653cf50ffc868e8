//! Containers of earlier lives of this agent: what a start finds, takes over or discards, and what an end leaves.
//!
//! They keep their labels and their folder, and with them the id of the life that made them (`label`). Which of them
//! were idle when the agent ended is in a file beside their folders; it is good for one start only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State};

use super::engine::Shared;
use crate::containers::{ContainerSpec, EngineError, Found};
use crate::data_dir::write_durably;

/// The labels of containers that were idle at a clean stop, one a line.
const IDLE: &str = "idle-at-last-stop";

/// A container of an earlier life.
#[derive(Debug, Clone)]
pub(super) struct Left {
    pub(super) label: String,
    pub(super) docker_id: String,
    pub(super) paused: bool,
    /// A clean stop has recorded that nothing runs in it.
    pub(super) idle: bool,
    namespace: String,
    action: String,
    revision: String,
}

impl Left {
    pub(super) fn found(&self) -> Found {
        Found {
            id: self.label.clone(),
            namespace: self.namespace.clone(),
            action: self.action.clone(),
            revision: self.revision.clone(),
            paused: self.paused,
        }
    }
}

impl Shared {
    /// Those that could serve on; what has ended, or can't be read, is removed.
    pub(super) async fn look_for_left(&self) -> Result<Vec<Left>, EngineError> {
        let record = fs::read_to_string(self.config.root.join(IDLE)).unwrap_or_default();
        let idle: BTreeSet<String> = record.lines().map(str::to_owned).collect();
        let (mut left, mut useless) = (Vec::new(), Vec::new());
        for listed in self.api.list(&self.owner.filter()).await? {
            let Some(label) = self.owner.own_id(&listed) else { continue };
            match self.read_left(&listed, label, &idle) {
                Some(found) => left.push(found),
                None => useless.extend(listed.id),
            }
        }
        if !useless.is_empty() {
            tracing::info!(containers = useless.len(), "removing what earlier lives of this agent left ended");
        }
        if let Err(error) = super::engine::remove_all(&self.api, useless.into_iter()).await {
            // The next listing removes what nobody knows.
            tracing::warn!(%error, "what earlier lives left ended could not be removed yet");
        }
        Ok(left)
    }

    fn read_left(&self, listed: &ContainerSummary, label: String, idle: &BTreeSet<String>) -> Option<Left> {
        let paused = match listed.state? {
            State::RUNNING => false,
            State::PAUSED => true,
            _ => return None,
        };
        let (action, revision) = self.owner.serves(listed)?;
        let (namespace, action) = action.split_once('/')?;
        Some(Left {
            docker_id: listed.id.clone()?,
            paused,
            idle: idle.contains(&label),
            namespace: namespace.to_owned(),
            action: action.to_owned(),
            revision,
            label,
        })
    }

    pub(super) async fn adopt(self: &Arc<Self>, found: &Found, spec: &ContainerSpec) -> Result<u32, EngineError> {
        // From here on it is in the table: should anything fail, its removal is asked for as any other's.
        let (container, left) = self.enlist_left(spec, &found.id)?;
        container.adopt(self, left.idle).await
    }

    pub(super) async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        let left = self.take_left(&found.id).ok_or_else(|| EngineError::Unknown(found.id.clone()))?;
        let _permit = self.removals.acquire().await;
        self.api.remove(&left.docker_id).await?;
        let folder = self.folder(&left.label)?;
        let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
        removed
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| EngineError::Indeterminate("its folder can't be removed".into()))
    }

    /// Leaves all containers, and a record of those in which nothing runs.
    pub(super) fn hand_over(&self, idle: &[String]) {
        let all = self.all();
        for container in &all {
            container.let_go();
        }
        let idle: Vec<&str> =
            all.iter().filter(|c| idle.iter().any(|id| **id == *c.id)).map(|c| c.label.as_ref()).collect();
        let record = self.config.root.join(IDLE);
        if let Err(error) = write_durably(&record, idle.join("\n").as_bytes()) {
            let path = record.display();
            tracing::warn!(%path, %error, "which containers are idle can't be recorded: images that actions name start anew");
        }
    }

    /// The record is true only for as long as nobody runs anything in them. One that can't be taken back is not believed.
    pub(super) fn forget_idle_record(&self) {
        let record = self.config.root.join(IDLE);
        if fs::remove_file(&record).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            self.disbelieve_idle();
        }
    }
}
