//! The engine: the table of its containers, and what the trait asks for.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::adoption::Left;
use super::api::{Api, Failure};
use super::container::{self, Container};
use super::images::ImageStore;
use super::labels::{self, Owner};
use super::subnet::Subnet;
use super::{DockerEngineConfig, monitor, network};
use crate::containers::folder::{self, Folder};
use crate::containers::http::Connecting;
use crate::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Found, Reply, Runtime};

/// When these wait to be read, a container that ended waits with its report: none is lost.
const MAX_EVENTS: usize = 64;
/// More at once only queue inside the engine, and hold up starts.
const PARALLEL_REMOVALS: usize = 4;
/// For all that is left, when the agent ends.
const SHUTDOWN: Duration = Duration::from_secs(60);

/// Runs containers on this host's Docker engine.
#[derive(Debug)]
pub struct DockerEngine {
    shared: Arc<Shared>,
    reports: Mutex<Option<mpsc::Receiver<EngineEvent>>>,
}

/// What the engine, the monitor and the lives of containers have in common.
pub(super) struct Shared {
    pub(super) config: DockerEngineConfig,
    pub(super) api: Api,
    pub(super) owner: Owner,
    pub(super) images: ImageStore,
    pub(super) events: mpsc::Sender<EngineEvent>,
    pub(super) removals: Semaphore,
    /// Why the engine can't be asked for anything.
    pub(super) trouble: Mutex<Option<String>>,
    pub(super) stop: CancellationToken,
    /// Whose calls no agent of this host answers that uses this engine.
    barred: RwLock<Vec<Subnet>>,
    listing_networks: AsyncMutex<()>,
    /// They could not be listed the last time, which has been told.
    networks_unlisted: AtomicBool,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    containers: HashMap<Arc<str>, Arc<Container>>,
    /// Of earlier lives, until each is adopted or discarded.
    left: Vec<Left>,
    closed: bool,
}

impl DockerEngine {
    /// Connects, and looks for what earlier lives of this agent left.
    pub async fn connect(mut config: DockerEngineConfig) -> Result<Self, EngineError> {
        let unusable = |root: &Path, error: io::Error| {
            EngineError::Refused(format!("cannot prepare the folder for containers {}: {error}", root.display()))
        };
        config.root = folder::make_root(&config.root).map_err(|error| unusable(&config.root, error))?;
        // A bind's source ends at the first colon.
        let root = config.root.to_str().filter(|root| !root.contains(':'));
        if root.is_none() {
            let root = config.root.display();
            return Err(EngineError::Refused(format!(
                "cannot use the folder {root}: Docker takes no path with `:` or without UTF-8; choose another data folder"
            )));
        }
        let api = Api::connect(&config.socket).await?;
        let (events, reports) = mpsc::channel(MAX_EVENTS);
        let shared = Arc::new(Shared {
            owner: Owner::new(&config),
            images: ImageStore::new(api.clone(), config.clone()),
            api,
            config,
            events,
            removals: Semaphore::new(PARALLEL_REMOVALS),
            trouble: Mutex::default(),
            stop: CancellationToken::new(),
            barred: RwLock::default(),
            listing_networks: AsyncMutex::default(),
            networks_unlisted: AtomicBool::default(),
            table: RwLock::default(),
        });
        shared.bar_containers_if_possible().await;
        let left = shared.look_for_left().await?;
        folder::clear_root(&shared.config.root, |name| left.iter().any(|left| left.label == name))
            .map_err(|error| unusable(&shared.config.root, error))?;
        shared.write().left = left;
        tokio::spawn(monitor::watch(shared.clone()));
        Ok(Self { shared, reports: Mutex::new(Some(reports)) })
    }
}

impl Drop for DockerEngine {
    /// Containers outlive an engine that was not shut down; the next one on this data folder finds them.
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

#[async_trait]
impl Engine for DockerEngine {
    fn name(&self) -> &'static str {
        "docker"
    }

    /// Whether the image is there is seen at the first start only.
    fn supports(&self, runtime: Runtime, concurrency: u32) -> Result<(), EngineError> {
        if runtime == Runtime::ActionLoop && concurrency > 1 {
            return Err(EngineError::Refused(format!(
                "concurrency {concurrency}: an ActionLoop executable takes one activation at a time; use 1"
            )));
        }
        Ok(())
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        // Rather at once than after its deadline.
        if let Some(why) = self.trouble() {
            return Err(EngineError::Refused(why));
        }
        let (tell, told) = oneshot::channel();
        let container = self.shared.enlist(&spec)?;
        tokio::spawn(container::begin(self.shared.clone(), container, spec, tell));
        told.await.unwrap_or_else(|_| Err(EngineError::Refused("the start was given up: the agent is ending".into())))
    }

    async fn init(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.shared.find(id)?.post("/init", body, timeout, Connecting::UntilTimeout).await
    }

    async fn run(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Reply, EngineError> {
        self.shared.find(id)?.post("/run", body, timeout, Connecting::Once).await
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.shared.find(id)?.pause(&self.shared).await
    }

    async fn resume(&self, id: &str) -> Result<(), EngineError> {
        let container = self.shared.find(id)?;
        container.resume(&self.shared).await?;
        container.ask_if_unasked(&self.shared).await
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        match self.shared.find(id) {
            Ok(container) => container.remove(&self.shared).await,
            Err(_) => Ok(()),
        }
    }

    fn hands_over(&self) -> bool {
        true
    }

    async fn hand_over(&self, idle: &[String]) {
        self.shared.write().closed = true;
        self.shared.hand_over(idle);
        self.shared.stop.cancel();
    }

    async fn found(&self) -> Result<Vec<Found>, EngineError> {
        // The agent starts for good: its ports and its id are its own.
        self.shared.forget_idle_record();
        Ok(self.shared.left().iter().map(Left::found).collect())
    }

    async fn adopt(&self, found: &Found, spec: ContainerSpec) -> Result<u32, EngineError> {
        self.shared.adopt(found, &spec).await
    }

    async fn runs_left(&self, id: &str) -> Result<u32, EngineError> {
        self.shared.find(id)?.runs_left().await
    }

    async fn discard(&self, found: &Found) -> Result<(), EngineError> {
        self.shared.discard(found).await
    }

    fn bars(&self, from: IpAddr) -> bool {
        let barred = self.shared.barred.read().unwrap_or_else(PoisonError::into_inner);
        barred.iter().any(|subnet| subnet.contains(from))
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn events(&self) -> Option<mpsc::Receiver<EngineEvent>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn shutdown(&self) {
        let containers = {
            let mut table = self.shared.write();
            table.closed = true;
            table.containers.values().cloned().collect::<Vec<_>>()
        };
        let end = async {
            let ends = containers.iter().map(|container| container.remove(&self.shared));
            for outcome in futures::future::join_all(ends).await {
                if let Err(error) = outcome {
                    tracing::error!(%error, "a container outlives the agent: its next start finds it");
                }
            }
            if let Err(error) = self.shared.remove_left().await {
                tracing::warn!(%error, "what is left could not be looked for");
            }
            network::remove_if_unused(&self.shared.api, &self.shared.config.network).await;
        };
        if tokio::time::timeout(SHUTDOWN, end).await.is_err() {
            tracing::error!("containers outlive the agent: its next start finds them");
        }
        self.shared.stop.cancel();
    }
}

impl Shared {
    /// Learns where containers call from. To be done again before one may be there that was not.
    pub(super) async fn bar_containers(&self) -> Result<(), Failure> {
        // One after the other: an older listing must not take the place of a newer one.
        let _alone = self.listing_networks.lock().await;
        let subnets = network::subnets(&self.api, &self.config.network).await?;
        let mut barred = self.barred.write().unwrap_or_else(PoisonError::into_inner);
        if *barred != subnets {
            tracing::info!(?subnets, "whoever calls from the bridges of containers gets no answer from this agent");
            *barred = subnets;
        }
        Ok(())
    }

    /// The same where no container depends on it: what was known before goes on to hold.
    pub(super) async fn bar_containers_if_possible(&self) {
        let listed = self.bar_containers().await;
        let told = self.networks_unlisted.swap(listed.is_err(), Ordering::Relaxed);
        if let Err(error) = listed
            && !told
        {
            tracing::warn!(%error, "the engine's networks can't be listed: containers of images are not started meanwhile");
        }
    }

    /// Removes all containers of this agent, whichever life made them.
    async fn remove_left(&self) -> Result<(), EngineError> {
        let left = self.own_containers().await?;
        remove_all(&self.api, left.into_iter().map(|(docker_id, _)| docker_id)).await?;
        Ok(())
    }

    /// Containers on the engine that are this agent's: the engine's id and ours.
    pub(super) async fn own_containers(&self) -> Result<Vec<(String, String)>, Failure> {
        let listed = self.api.list(&self.owner.filter()).await?;
        let own = |container: &bollard::models::ContainerSummary| {
            Some((container.id.clone()?, self.owner.own_id(container)?))
        };
        Ok(listed.iter().filter_map(own).collect())
    }

    /// Takes a new container into the table.
    fn enlist(&self, spec: &ContainerSpec) -> Result<Arc<Container>, EngineError> {
        let container = Container::new(spec, self.folder(&spec.id)?);
        Self::insert(&mut self.write(), spec, container)
    }

    pub(super) fn folder(&self, label: &str) -> Result<Folder, EngineError> {
        Folder::new(&self.config.root, label).map_err(EngineError::Refused)
    }

    /// Moves one of an earlier life into the table, in one step: at no moment is it in neither.
    pub(super) fn enlist_left(&self, spec: &ContainerSpec, label: &str) -> Result<(Arc<Container>, Left), EngineError> {
        let folder = self.folder(label)?;
        let mut table = self.write();
        let unknown = || EngineError::Unknown(label.to_owned());
        let left = table.left.iter().find(|left| left.label == label).cloned().ok_or_else(unknown)?;
        let container = Self::insert(&mut table, spec, Container::left(spec, &left, folder))?;
        table.left.retain(|left| left.label != label);
        Ok((container, left))
    }

    fn insert(table: &mut Table, spec: &ContainerSpec, container: Container) -> Result<Arc<Container>, EngineError> {
        if table.closed {
            return Err(EngineError::Refused("the engine is shutting down".into()));
        }
        if table.containers.contains_key(&spec.id) {
            return Err(EngineError::Refused(format!("container {} exists already", spec.id)));
        }
        let container = Arc::new(container);
        table.containers.insert(spec.id.clone(), container.clone());
        Ok(container)
    }

    pub(super) fn is_in_trouble(&self) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn forget(&self, id: &str) {
        self.write().containers.remove(id);
    }

    pub(super) fn find(&self, id: &str) -> Result<Arc<Container>, EngineError> {
        self.read().containers.get(id).cloned().ok_or_else(|| EngineError::Unknown(id.to_owned()))
    }

    /// By the id that it has in its labels.
    pub(super) fn find_labelled(&self, label: &str) -> Option<Arc<Container>> {
        self.read().containers.values().find(|container| *container.label == *label).cloned()
    }

    /// Whether that label's container is in the table, or waits to be adopted or discarded.
    pub(super) fn knows(&self, label: &str) -> bool {
        let table = self.read();
        table.containers.values().any(|container| *container.label == *label)
            || table.left.iter().any(|left| left.label == label)
    }

    pub(super) fn left(&self) -> Vec<Left> {
        self.read().left.clone()
    }

    pub(super) fn disbelieve_idle(&self) {
        self.write().left.iter_mut().for_each(|left| left.idle = false);
    }

    pub(super) fn take_left(&self, label: &str) -> Option<Left> {
        let left = &mut self.write().left;
        let at = left.iter().position(|left| left.label == label)?;
        Some(left.swap_remove(at))
    }

    pub(super) fn all(&self) -> Vec<Arc<Container>> {
        self.read().containers.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes every container of a cluster from an engine, whichever node owned it, and the bridge if nobody else
/// uses it: for whoever made the whole cluster, such as the demo. Returns how many there were.
pub async fn remove_cluster(socket: &Path, cluster: &str, network: &str) -> Result<usize, EngineError> {
    let api = Api::connect(socket).await?;
    let listed = api.list(&labels::cluster_filter(cluster)).await?;
    let count = remove_all(&api, listed.into_iter().filter_map(|container| container.id)).await?;
    network::remove_if_unused(&api, network).await;
    Ok(count)
}

pub(super) async fn remove_all(api: &Api, ids: impl Iterator<Item = String>) -> Result<usize, Failure> {
    let removals = futures::stream::iter(ids.map(|id| async move { api.remove(&id).await }));
    let outcomes: Vec<_> = removals.buffer_unordered(PARALLEL_REMOVALS).collect().await;
    let count = outcomes.len();
    outcomes.into_iter().collect::<Result<(), Failure>>().map(|()| count)
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.read().containers.keys().cloned().collect();
        f.debug_struct("Shared").field("config", &self.config).field("containers", &ids).finish_non_exhaustive()
    }
}
