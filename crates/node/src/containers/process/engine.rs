//! The engine: the table of its containers, and what the trait asks for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::container::{self, Container};
use super::interpreters::Interpreters;
use super::launch::Binary;
use super::{Isolation, ProcessEngineConfig, memory};
use crate::containers::folder::{self, Folder};
use crate::containers::http::Connecting;
use crate::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Reply, Runtime};

/// When these wait to be read, a container that ended waits with its report: none is lost.
const MAX_EVENTS: usize = 64;

/// Runs containers as processes of this host.
#[derive(Debug)]
pub struct ProcessEngine {
    shared: Arc<Shared>,
    reports: Mutex<Option<mpsc::Receiver<EngineEvent>>>,
}

/// What the engine and the lives of its containers have in common.
pub(super) struct Shared {
    pub(super) config: ProcessEngineConfig,
    pub(super) binary: Binary,
    pub(super) isolation: Isolation,
    pub(super) interpreters: Interpreters,
    pub(super) events: mpsc::Sender<EngineEvent>,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    containers: HashMap<Arc<str>, Arc<Container>>,
    /// Whether the memory watcher runs.
    watching: bool,
    closed: bool,
}

impl ProcessEngine {
    /// Blocks for some milliseconds: removes what earlier lives left and finds out what the host allows.
    pub fn new(mut config: ProcessEngineConfig) -> Result<Self, EngineError> {
        let refused = |what: &str, path: &std::path::Path, error: &dyn fmt::Display| {
            EngineError::Refused(format!("cannot {what} {}: {error}", path.display()))
        };
        let binary =
            Binary::open(&config.binary).map_err(|error| refused("open the executable", &config.binary, &error))?;
        config.root = folder::make_root(&config.root)
            .and_then(|root| folder::clear_root(&root, |_| false).map(|()| root))
            .map_err(|error| refused("prepare the folder for containers", &config.root, &error))?;
        if config.root.to_str().is_none() {
            return Err(refused("use the folder", &config.root, &"its path is not UTF-8; choose another data folder"));
        }
        let isolation = binary.strongest_isolation(config.isolation);
        let (events, reports) = mpsc::channel(MAX_EVENTS);
        let shared =
            Shared { config, binary, isolation, interpreters: Interpreters::new(), events, table: RwLock::default() };
        Ok(Self { shared: Arc::new(shared), reports: Mutex::new(Some(reports)) })
    }

    /// What keeps the processes of a container together on this host.
    pub fn isolation(&self) -> Isolation {
        self.shared.isolation
    }
}

impl Drop for ProcessEngine {
    /// Containers don't outlive their engine; who wants to wait for their end calls `shutdown`.
    fn drop(&mut self) {
        let mut table = self.shared.write();
        table.closed = true;
        table.containers.values().for_each(|container| container.abandon());
    }
}

#[async_trait]
impl Engine for ProcessEngine {
    fn name(&self) -> &'static str {
        "process"
    }

    /// The first question about Python or Node.js takes as long as that takes to start.
    fn supports(&self, runtime: Runtime, concurrency: u32) -> Result<(), EngineError> {
        if runtime == Runtime::ActionLoop && concurrency > 1 {
            return Err(EngineError::Refused(format!(
                "concurrency {concurrency}: an ActionLoop executable takes one activation at a time; use 1"
            )));
        }
        self.shared.interpreters.find(runtime).map(|_| ()).map_err(EngineError::Refused)
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        let (tell, told) = oneshot::channel();
        let container = self.shared.enlist(&spec)?;
        tokio::spawn(container::live(self.shared.clone(), container, spec, tell));
        told.await.unwrap_or_else(|_| Err(EngineError::Refused("the start was given up: the agent is ending".into())))
    }

    async fn init(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.shared.find(id)?.post("/init", body, timeout, Connecting::UntilTimeout).await
    }

    async fn run(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.shared.find(id)?.post("/run", body, timeout, Connecting::Once).await
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.shared.find(id)?.set_paused(true).await
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        self.shared.find(id)?.set_paused(false).await
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        match self.shared.find(id) {
            Ok(container) => container.remove().await,
            Err(_) => Ok(()),
        }
    }

    fn events(&self) -> Option<mpsc::Receiver<EngineEvent>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn shutdown(&self) {
        let containers: Vec<_> = {
            let mut table = self.shared.write();
            table.closed = true;
            table.containers.values().cloned().collect()
        };
        let ends = containers.iter().map(|container| container.remove());
        for outcome in futures::future::join_all(ends).await {
            if let Err(error) = outcome {
                tracing::error!(%error, "a container outlives the engine");
            }
        }
    }
}

impl Shared {
    /// Takes a new container into the table.
    fn enlist(self: &Arc<Self>, spec: &ContainerSpec) -> Result<Arc<Container>, EngineError> {
        let folder = Folder::new(&self.config.root, &spec.id).map_err(EngineError::Refused)?;
        let mut table = self.write();
        if table.closed {
            return Err(EngineError::Refused("the engine is shutting down".into()));
        }
        if table.containers.contains_key(&spec.id) {
            return Err(EngineError::Refused(format!("container {} exists already", spec.id)));
        }
        let container = Arc::new(Container::new(spec, folder, self.config.max_processes));
        table.containers.insert(spec.id.clone(), container.clone());
        if !table.watching {
            table.watching = true;
            tokio::spawn(memory::watch(Arc::downgrade(self)));
        }
        Ok(container)
    }

    pub(super) fn forget(&self, id: &str) {
        self.write().containers.remove(id);
    }

    /// All containers; `None` ends the watch when there is none.
    pub(super) fn containers_to_watch(&self) -> Option<Vec<Arc<Container>>> {
        let mut table = self.write();
        if table.containers.is_empty() {
            table.watching = false;
            return None;
        }
        Some(table.containers.values().cloned().collect())
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, EngineError> {
        self.read().containers.get(id).cloned().ok_or_else(|| EngineError::Unknown(id.to_owned()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.read().containers.keys().cloned().collect();
        f.debug_struct("Shared")
            .field("config", &self.config)
            .field("isolation", &self.isolation)
            .field("containers", &ids)
            .finish()
    }
}
