//! An engine whose containers outlive the agent, and which removes none of its own agent's in time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Found, Reply, Runtime};
use tokio::sync::mpsc;

use crate::engine::EchoEngine;

#[derive(Clone, Default)]
pub(crate) struct Outliving {
    inner: EchoEngine,
    containers: Arc<Mutex<BTreeMap<String, Found>>>,
    agent_is_gone: Arc<AtomicBool>,
}

impl Outliving {
    /// What the agent's next life finds: the same containers.
    pub(crate) fn next_life(&self) -> Self {
        Self { containers: self.containers.clone(), ..Self::default() }
    }

    /// Whoever still waits for this life's engine may end; nothing comes of it.
    pub(crate) fn agent_is_gone(&self) {
        self.agent_is_gone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn left(&self) -> usize {
        self.containers.lock().unwrap().len()
    }
}

#[async_trait]
impl Engine for Outliving {
    fn name(&self) -> &'static str {
        "outliving"
    }

    fn supports(&self, runtime: Runtime, concurrency: u32) -> Result<(), EngineError> {
        self.inner.supports(runtime, concurrency)
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        let found = Found {
            id: spec.id.to_string(),
            namespace: spec.namespace.clone(),
            action: spec.action.clone(),
            revision: spec.revision.clone(),
            paused: false,
        };
        self.containers.lock().unwrap().insert(found.id.clone(), found);
        self.inner.start(spec).await
    }

    async fn init(&self, id: &str, body: Bytes, longest: Duration) -> Result<Reply, EngineError> {
        self.inner.init(id, body, longest).await
    }

    async fn run(&self, id: &str, body: Bytes, longest: Duration) -> Result<Reply, EngineError> {
        self.inner.run(id, body, longest).await
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.inner.pause(id).await
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        self.inner.resume(id).await
    }

    async fn remove(&self, _: &str) -> Result<(), EngineError> {
        if self.agent_is_gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(EngineError::Indeterminate("the engine does not answer".to_owned()))
    }

    fn events(&self) -> Option<mpsc::Receiver<EngineEvent>> {
        None
    }

    async fn shutdown(&self) {}

    fn hands_over(&self) -> bool {
        true
    }

    async fn hand_over(&self, _: &[String]) {}

    async fn found(&self) -> Result<Vec<Found>, EngineError> {
        Ok(self.containers.lock().unwrap().values().cloned().collect())
    }

    async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        self.containers.lock().unwrap().remove(&found.id);
        Ok(())
    }
}
