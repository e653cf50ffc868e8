//! Containers of earlier lives of the agent, taken into service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::ContainerId;
use serde::Deserialize;
use tokio::sync::Mutex as AsyncMutex;

use super::freezer::Freezer;
use super::lines::read_lines;
use super::start::{PORT, own_address};
use super::{Container, Pausing};
use crate::containers::call::MAX_ANSWER_BYTES;
use crate::containers::docker::adoption::Left;
use crate::containers::docker::engine::Shared;
use crate::containers::folder::Folder;
use crate::containers::http::{Address, Client, Connecting};
use crate::containers::{ContainerSpec, EngineError};

/// For a runtime to say what is in it.
const ADOPT: Duration = Duration::from_secs(2);

impl Container {
    /// One that the engine has already.
    pub(in crate::containers::docker) fn left(spec: &ContainerSpec, left: &Left, folder: Folder) -> Self {
        Self {
            label: left.label.as_str().into(),
            docker_id: OnceLock::from(left.docker_id.clone()),
            pausing: Arc::new(AsyncMutex::new(Pausing::new(left.paused))),
            wants_pause: AtomicBool::new(left.paused),
            unasked: AtomicBool::new(left.paused),
            ..Self::new(spec, folder)
        }
    }

    /// From here on it is called. Returns how many runs of earlier lives are still in it. One that is paused has none,
    /// and is asked when it is resumed.
    pub(in crate::containers::docker) async fn adopt(
        self: &Arc<Self>,
        engine: &Arc<Shared>,
        was_idle: bool,
    ) -> Result<u32, EngineError> {
        let id = self.docker_id().ok_or_else(|| EngineError::Unknown(self.id.to_string()))?;
        self.connect(engine, id).await?;
        let paused = self.unasked.load(Ordering::Acquire);
        if paused && Freezer::of(&engine.api, id).await.is_some_and(|freezer| freezer.is_thawed()) {
            // A run may have begun in it.
            return Err(EngineError::Refused("it is being resumed since before this agent's start".into()));
        }
        if self.stock && !paused && !was_idle {
            return Err(EngineError::Refused("what runs in an image like this one can't be told".into()));
        }
        let runs = match if paused { Ok(0) } else { self.ask(engine).await } {
            // A handler that computes may keep its runtime from answering: it is asked again.
            Err(EngineError::Timeout(_)) => 1,
            told => told?,
        };
        self.serving.store(true, Ordering::Release);
        // Nobody was told of an end before this moment.
        match &*self.ended.borrow() {
            Some(reason) => Err(EngineError::Died(reason.clone())),
            None => Ok(runs),
        }
    }

    /// What could not be asked while it was paused.
    pub(in crate::containers::docker) async fn ask_if_unasked(
        self: &Arc<Self>,
        engine: &Arc<Shared>,
    ) -> Result<(), EngineError> {
        if self.unasked.swap(false, Ordering::AcqRel) && self.ask(engine).await? > 0 {
            return Err(EngineError::Refused("runs of an earlier life of this agent are in it".into()));
        }
        Ok(())
    }

    /// Reads its lines from now on, and has it take orders of this epoch only.
    async fn ask(self: &Arc<Self>, engine: &Arc<Shared>) -> Result<u32, EngineError> {
        let id = self.docker_id().ok_or_else(|| EngineError::Unknown(self.id.to_string()))?;
        let output = engine.api.attach(id).await?.output;
        tokio::spawn(read_lines(engine.api.clone(), self.clone(), output));
        self.runs_left().await
    }

    /// How many runs of earlier epochs are in it.
    pub(in crate::containers::docker) async fn runs_left(&self) -> Result<u32, EngineError> {
        #[derive(Deserialize)]
        struct Adopted {
            running: u32,
        }
        if self.stock {
            return Ok(0);
        }
        let reply = self.post("/adopt", Bytes::new(), ADOPT, Connecting::Once).await?;
        let adopted = serde_json::from_slice::<Adopted>(&reply.body).ok().filter(|_| reply.status == 200);
        adopted.map(|adopted| adopted.running).ok_or_else(|| {
            let said = String::from_utf8_lossy(&reply.body).into_owned();
            EngineError::Refused(format!("it can't be adopted: it answers {} {said}", reply.status))
        })
    }

    /// Finds out where it serves.
    pub(super) async fn connect(&self, engine: &Shared, id: &str) -> Result<(), EngineError> {
        let address = match self.stock {
            false => Address::Unix(self.folder.socket()),
            true => Address::Tcp(SocketAddr::new(own_address(engine, self, id).await?, PORT)),
        };
        // A foreign server may close an idle connection at any moment, and so break a run: each gets a fresh one.
        let idle = if self.stock { 0 } else { self.concurrency + 1 };
        let client = Client::new(address, idle, MAX_ANSWER_BYTES);
        let epoch = self.id.parse::<ContainerId>().ok().filter(|_| !self.stock).map(|id| id.epoch.0);
        self.client.get_or_init(|| match epoch {
            Some(epoch) => client.of_epoch(epoch),
            None => client,
        });
        Ok(())
    }

    /// Closes its connections and leaves it alone.
    pub(in crate::containers::docker) fn let_go(&self) {
        if let Some(client) = self.client.get() {
            client.close();
        }
    }
}
