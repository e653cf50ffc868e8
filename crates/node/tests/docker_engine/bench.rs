//! One engine with a cluster, an instance and a folder of its own, and what the host's Docker says of it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use bytes::Bytes;
use embermesh_node::containers::docker::{DockerEngine, DockerEngineConfig};
use embermesh_node::containers::logs::{LogSink, Stream};
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Reply, Runtime};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::images::TestImages;

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Bench {
    pub(crate) docker: Docker,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: DockerEngineConfig,
    pub(crate) engine: DockerEngine,
    pub(crate) lines: Arc<Lines>,
    pub(crate) id: String,
    images: Vec<(&'static str, String)>,
}

#[derive(Debug, Default)]
pub(crate) struct Lines(pub(crate) Mutex<Vec<String>>);

impl LogSink for Lines {
    fn line(&self, stream: Stream, activation: Option<&str>, text: &str) {
        self.0.lock().unwrap().push(format!("{stream:?} {} {text}", activation.unwrap_or("-")));
    }

    fn end(&self, stream: Stream, activation: &str) {
        self.0.lock().unwrap().push(format!("{stream:?} {activation} ends"));
    }
}

impl Bench {
    pub(crate) async fn new(images: &TestImages) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().unwrap();
        let unique = format!("test-{}-{number}", std::process::id());
        let mut config = DockerEngineConfig::new(
            "/proc/self/exe",
            folder.path().join("containers"),
            format!("instance-{unique}"),
            unique.clone(),
            "n1",
            "http://127.0.0.1:3233",
        );
        config.network = unique;
        config.images.python = images.name("own");
        let engine = DockerEngine::connect(config.clone()).await.unwrap();
        let named = ["own", "serves", "exits", "deaf", "empty"].map(|what| (what, images.name(what)));
        Self {
            docker: images.docker.clone(),
            folder,
            config,
            engine,
            lines: Arc::default(),
            id: format!("n1-{number}-1"),
            images: named.into(),
        }
    }

    /// Ends the engine; what is left of it on the host.
    pub(crate) async fn end(self) -> Vec<String> {
        self.engine.shutdown().await;
        let mut left: Vec<String> = self.listed().await.into_iter().filter_map(|container| container.id).collect();
        let filter = HashMap::from([("name", vec![self.config.network.clone()])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filter).build();
        let networks = self.docker.list_networks(Some(options)).await.unwrap();
        left.extend(networks.into_iter().filter_map(|network| network.name));
        if let Ok(folders) = std::fs::read_dir(&self.config.root) {
            left.extend(folders.map(|folder| folder.unwrap().path().display().to_string()));
        }
        left
    }

    pub(crate) fn image(&self, what: &str) -> String {
        self.images.iter().find(|(known, _)| *known == what).unwrap().1.clone()
    }

    pub(crate) async fn other(
        &self,
        change: impl FnOnce(&mut DockerEngineConfig),
    ) -> Result<DockerEngine, EngineError> {
        let mut config = self.config.clone();
        config.root = self.folder.path().join("other");
        // Of two with one instance each would take the other's containers for left over.
        config.instance.push_str("-other");
        change(&mut config);
        DockerEngine::connect(config).await
    }

    pub(crate) fn spec(&self) -> ContainerSpec {
        ContainerSpec {
            id: self.id.as_str().into(),
            namespace: "guest".to_owned(),
            action: "test".to_owned(),
            revision: "1@n1".to_owned(),
            runtime: Runtime::Builtin,
            image: None,
            memory_mb: 128,
            concurrency: 4,
            logs: self.lines.clone(),
        }
    }

    pub(crate) fn stock(&self, what: &str) -> ContainerSpec {
        ContainerSpec { runtime: Runtime::Image, image: Some(self.image(what)), ..self.spec() }
    }

    pub(crate) async fn start(&self) {
        until("the engine is well", LONG, || async { self.engine.trouble().is_none() }).await;
        self.engine.start(self.spec()).await.unwrap();
    }

    pub(crate) async fn refusal(&self, spec: ContainerSpec) -> String {
        match self.engine.start(spec).await {
            Err(EngineError::Refused(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) async fn ask(&self, body: Value, timeout: Duration) -> Result<Reply, EngineError> {
        self.engine.run(&self.id, Bytes::from(body.to_string()), timeout).await
    }

    pub(crate) async fn run(&self, body: Value) -> Value {
        let reply = self.ask(body, LONG).await.unwrap();
        assert_eq!(reply.status, 200);
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub(crate) async fn echo(&self) -> Value {
        self.run(json!({"do": "echo"})).await
    }

    /// Its containers, as Docker knows them.
    pub(crate) async fn listed(&self) -> Vec<ContainerSummary> {
        let filter = HashMap::from([("label", vec![format!("embermesh.cluster={}", self.config.cluster)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filter).build();
        self.docker.list_containers(Some(options)).await.unwrap()
    }

    pub(crate) fn docker_name(&self) -> String {
        format!("embermesh-{}-{}", self.config.cluster, self.id)
    }

    pub(crate) async fn inspect(&self) -> ContainerInspectResponse {
        self.docker.inspect_container(&self.docker_name(), None::<InspectContainerOptions>).await.unwrap()
    }

    /// A container's address on a network.
    pub(crate) async fn address(&self, container: &str, network: &str) -> Ipv4Addr {
        let inspected = self.docker.inspect_container(container, None::<InspectContainerOptions>).await.unwrap();
        let networks = inspected.network_settings.unwrap().networks.unwrap();
        networks[network].ip_address.as_ref().unwrap().parse().unwrap()
    }

    pub(crate) async fn is_paused(&self) -> bool {
        self.inspect().await.state.unwrap().paused.unwrap()
    }

    pub(crate) fn container_folder(&self) -> PathBuf {
        self.config.root.join(&self.id)
    }
}

/// Waits for the report of a death.
pub(crate) async fn death(events: &mut mpsc::Receiver<EngineEvent>, limit: Duration) -> String {
    let event = tokio::time::timeout(limit, events.recv()).await.expect("no report").unwrap();
    let EngineEvent::Died { reason, .. } = event;
    reason
}

/// Waits until something async holds.
pub(crate) async fn until<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> F,
) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}
