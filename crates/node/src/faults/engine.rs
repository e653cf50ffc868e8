//! A container engine that stalls: what it is told to do waits until it goes on. Runs are none of its business.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::sleep;

use super::{Faults, LOOK_AGAIN};
use crate::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Found, Reply, Runtime};

pub(super) struct FaultyEngine {
    inner: Arc<dyn Engine>,
    faults: Arc<Faults>,
}

impl FaultyEngine {
    pub(super) fn new(inner: Arc<dyn Engine>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn goes_on(&self) {
        while self.faults.engine_stalled() {
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[async_trait]
impl Engine for FaultyEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn supports(&self, runtime: Runtime, concurrency: u32) -> Result<(), EngineError> {
        self.inner.supports(runtime, concurrency)
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        self.goes_on().await;
        self.inner.start(spec).await
    }

    async fn init(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.inner.init(id, body, timeout).await
    }

    async fn run(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.inner.run(id, body, timeout).await
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.goes_on().await;
        self.inner.pause(id).await
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        self.goes_on().await;
        self.inner.resume(id).await
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        self.goes_on().await;
        self.inner.remove(id).await
    }

    fn bars(&self, from: IpAddr) -> bool {
        self.inner.bars(from)
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    fn events(&self) -> Option<tokio::sync::mpsc::Receiver<EngineEvent>> {
        self.inner.events()
    }

    fn hands_over(&self) -> bool {
        self.inner.hands_over()
    }

    async fn hand_over(&self, idle: &[String]) {
        self.inner.hand_over(idle).await;
    }

    async fn found(&self) -> Result<Vec<Found>, EngineError> {
        self.inner.found().await
    }

    async fn adopt(&self, found: &Found, spec: ContainerSpec) -> Result<u32, EngineError> {
        self.inner.adopt(found, spec).await
    }

    async fn runs_left(&self, id: &str) -> Result<u32, EngineError> {
        self.inner.runs_left(id).await
    }

    async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        self.inner.discard(found).await
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}
