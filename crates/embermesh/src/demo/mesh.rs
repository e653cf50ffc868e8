//! What the demo asks of its mesh.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use embermesh_node::views::{Container, Containers, IntentOutcome, Leases};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::local_mesh::{DEADLINE, LocalMesh, LocalNode, POLL, Setup};

/// What the built-in actions tell of where they ran.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Proof {
    pub(super) container: String,
    pub(super) pid: u64,
    pub(super) peak: u64,
}

/// One activation as its caller saw it.
#[derive(Debug, Clone)]
pub(super) struct Ran {
    pub(super) proof: Proof,
    /// How it came to its slot, as its record says.
    pub(super) served: String,
    pub(super) took: Duration,
}

/// Agents of the demo, each knowing every other; kept ones may outlive it.
pub(super) async fn start(nodes: u32, docker: bool, kept: bool) -> anyhow::Result<LocalMesh> {
    let memory = "4GiB".to_owned();
    let mut mesh = LocalMesh::new(Setup { name: "demo", nodes, docker, memory, kept, ..Setup::default() }).await?;
    mesh.start().await?;
    Ok(mesh)
}

impl LocalNode {
    pub(super) async fn create(&self, name: &str, main: &str, concurrency: u32) -> anyhow::Result<()> {
        let body = json!({
            "exec": {"kind": "builtin:1", "main": main},
            "limits": {"concurrency": concurrency, "memory": 128},
        });
        let path = format!("/api/v1/namespaces/_/actions/{name}?overwrite=true");
        self.client.send(Method::PUT, &path, Some(&body), DEADLINE).await?.ok()?;
        Ok(())
    }

    pub(super) async fn delete(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/_/actions/{name}");
        self.client.send(Method::DELETE, &path, None::<&()>, DEADLINE).await?.ok()?;
        Ok(())
    }

    /// Invokes and waits; anything but a success is an error.
    pub(super) async fn invoke(&self, name: &str, params: &Value) -> anyhow::Result<Ran> {
        let path = format!("/api/v1/namespaces/_/actions/{name}?blocking=true");
        let began = Instant::now();
        let answer = self.client.send(Method::POST, &path, Some(params), DEADLINE).await?;
        let took = began.elapsed();
        let record: Value = answer.ok()?.parse()?;
        let result = record["response"]["result"].clone();
        let proof = serde_json::from_value(result).with_context(|| format!("{name} answered no proof: {record}"))?;
        let annotations = record["annotations"].as_array().cloned().unwrap_or_default();
        let served = annotations.iter().find(|a| a["key"] == "served").and_then(|a| a["value"].as_str());
        Ok(Ran { proof, served: served.unwrap_or_default().to_owned(), took })
    }

    pub(super) async fn leases(&self) -> anyhow::Result<Leases> {
        Ok(self.client.get("/mesh/v1/leases").await?.parse()?)
    }

    /// Gives back what this node holds of an action.
    pub(super) async fn release(&self, action: &str) -> anyhow::Result<()> {
        for lease in self.leases().await?.held.iter().filter(|l| l.action == action) {
            let path = format!("/mesh/v1/leases/{}/release", lease.lease_id);
            self.client.send(Method::POST, &path, None::<&()>, DEADLINE).await?.ok()?;
        }
        Ok(())
    }

    /// Pauses a container and waits until it is.
    pub(super) async fn pause(&self, container: &str) -> anyhow::Result<()> {
        self.client.post(&format!("/mesh/v1/containers/{container}/pause"), &json!({})).await?;
        let paused = |c: &Container| c.container_id == container && c.state == "paused";
        self.until(|all| all.iter().any(paused)).await.with_context(|| format!("{container} was not paused"))
    }

    /// Waits until the containers of a deleted action are gone.
    pub(super) async fn rid_of(&self, action: &str) -> anyhow::Result<()> {
        let gone = self.until(|all| all.iter().all(|c| c.action != action)).await;
        gone.with_context(|| format!("containers of {action} were not removed"))
    }

    async fn until(&self, holds: impl Fn(&[Container]) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while !holds(&self.client.get("/mesh/v1/containers").await?.parse::<Containers>()?.containers) {
            ensure!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}");
            sleep(POLL).await;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, container: &str) -> anyhow::Result<IntentOutcome> {
        let path = format!("/mesh/v1/containers/{container}/remove");
        // 409 when it was not removed: that is an outcome too.
        Ok(self.client.send(Method::POST, &path, Some(&json!({})), DEADLINE).await?.parse()?)
    }

    /// Waits until this node knows the action.
    pub(super) async fn knows(&self, name: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let path = format!("/api/v1/namespaces/_/actions/{name}?code=false");
        while self.client.get(&path).await.is_err() {
            if began.elapsed() > DEADLINE {
                bail!("node {} never heard of action {name}", self.id);
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// Different containers among the answers.
pub(super) fn containers(ran: &[Ran]) -> u64 {
    ran.iter().map(|r| r.proof.container.as_str()).collect::<HashSet<_>>().len() as u64
}
