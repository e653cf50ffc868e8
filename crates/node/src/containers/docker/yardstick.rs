//! What a start costs on this engine without any of our work: what cold starts are measured beside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig};

use super::api::Api;
use super::bundle::executable_digest;
use super::images::own_image;
use super::labels::cluster_labels;
use super::spec::PROGRAM;
use crate::containers::EngineError;

/// Makes bare containers of the image that agents of this program use. They are labelled as the cluster's.
#[derive(Debug)]
pub struct Yardstick {
    api: Api,
    cluster: String,
    image: String,
    made: u32,
}

impl Yardstick {
    /// `binary` as the agents have it.
    pub async fn new(socket: &Path, binary: impl Into<PathBuf>, cluster: &str) -> Result<Self, EngineError> {
        let api = Api::connect(socket).await?;
        let binary = binary.into();
        let digest = tokio::task::spawn_blocking(move || executable_digest(&binary)).await;
        let failed = |why: String| EngineError::Refused(format!("this program can't be read: {why}"));
        let digest = digest.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        Ok(Self { api, cluster: cluster.to_owned(), image: own_image(&digest), made: 0 })
    }

    /// How long the engine takes to create and start one, network none; it is removed again.
    pub async fn create_and_start(&mut self) -> Result<Duration, EngineError> {
        self.made += 1;
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            entrypoint: Some(vec![PROGRAM.to_owned()]),
            cmd: Some(vec!["--version".to_owned()]),
            labels: Some(cluster_labels(&self.cluster)),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let began = Instant::now();
        let id = self.api.create(&format!("embermesh-{}-bare-{}", self.cluster, self.made), body).await?;
        let started = self.api.start(&id).await;
        let took = began.elapsed();
        self.api.remove(&id).await?;
        started?;
        Ok(took)
    }
}
