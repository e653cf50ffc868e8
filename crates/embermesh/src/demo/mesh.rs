//! The demo's mesh: agents as processes of their own, on loopback, with everything in one temporary folder.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use embermesh_node::config::DockerSection;
use embermesh_node::containers::docker::remove_cluster;
use embermesh_node::data_dir::clear_host_lock;
use embermesh_node::views::{Container, Containers, IntentOutcome, Leases, Members};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::{BaseUrl, Client};

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A mesh that ends with this value.
pub(super) struct Mesh {
    pub(super) nodes: Vec<DemoNode>,
    /// Whether containers are Docker's.
    pub(super) docker: bool,
    pub(super) cluster: String,
    folder: Option<TempDir>,
}

pub(super) struct DemoNode {
    pub(super) id: String,
    pub(super) api: SocketAddr,
    pub(super) client: Client,
    child: Child,
}

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

impl Mesh {
    pub(super) async fn start(nodes: u32, docker: bool) -> anyhow::Result<Self> {
        let cluster = format!("demo-{}", std::process::id());
        // Named after the mesh, so that what runs in a container can be told to be its.
        let prefix = format!("embermesh-{cluster}-");
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("no temporary folder")?;
        if docker {
            // Told here, where somebody reads it, rather than in an agent's log.
            clear_docker(&cluster).await?;
        }
        let mut mesh = Self { nodes: Vec::new(), docker, cluster: cluster.clone(), folder: None };
        let mut first = None;
        for n in 1..=nodes {
            let id = format!("n{n}");
            let (gossip, api) = free_addresses()?;
            let node = mesh.start_agent(&id, &folder.path().join(&id), gossip, api, first)?;
            first.get_or_insert(gossip);
            mesh.nodes.push(node);
        }
        mesh.folder = Some(folder);
        mesh.formed().await?;
        Ok(mesh)
    }

    fn start_agent(
        &self,
        id: &str,
        data_dir: &Path,
        mesh: SocketAddr,
        api: SocketAddr,
        join: Option<SocketAddr>,
    ) -> anyhow::Result<DemoNode> {
        let log = std::fs::File::create(data_dir.with_extension("log")).context("no log file")?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("agent")
            .args(["--node-id", id, "--cluster", &self.cluster, "--memory", "4GiB", "--until-stdin-closes"])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--mesh", &mesh.to_string(), "--api", &api.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if self.docker {
            command.args(["--engine", "docker"]);
        }
        if let Some(join) = join {
            command.args(["--join", &join.to_string()]);
        }
        let child = command.spawn().context("an agent could not be started")?;
        let base: BaseUrl = format!("http://{api}").parse().map_err(anyhow::Error::msg)?;
        Ok(DemoNode { id: id.to_owned(), api, client: Client::new(base, DEADLINE), child })
    }

    /// Waits until every node knows every other.
    async fn formed(&mut self) -> anyhow::Result<()> {
        let expected = self.nodes.len();
        let began = Instant::now();
        for at in 0..expected {
            loop {
                let members = match self.nodes[at].client.get("/mesh/v1/members").await {
                    Ok(answer) => answer.parse::<Members>()?.members,
                    Err(_) => Vec::new(),
                };
                if members.iter().filter(|m| m.state == "live").count() == expected {
                    break;
                }
                if let Some(status) = self.nodes[at].child.try_wait()? {
                    let log = self.log_of(at);
                    bail!("agent {} ended at its start: {status}; see {log}", self.nodes[at].id);
                }
                if began.elapsed() > DEADLINE {
                    let log = self.log_of(at);
                    bail!("the mesh did not form within {DEADLINE:?}; see {log}");
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    fn log_of(&mut self, at: usize) -> String {
        // Kept, so that what is pointed at is still there.
        let folder = self.folder.take().map(TempDir::keep).unwrap_or_default();
        folder.join(&self.nodes[at].id).with_extension("log").display().to_string()
    }

    /// Ends a node without a word.
    pub(super) async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        self.nodes[at].child.kill().await.context("the agent could not be killed")
    }

    /// Lets the mesh run on without us: how to talk to it, and how to end it.
    pub(super) fn keep(mut self) -> String {
        let folder = self.folder.take().map(TempDir::keep).unwrap_or_default();
        let mut text = String::from("The mesh stays up. Talk to it:\n");
        for node in &self.nodes {
            text.push_str(&format!("  embermesh --api http://{} status      # {}\n", node.api, node.id));
        }
        let pids: Vec<String> = self.nodes.iter().filter_map(|n| n.child.id()).map(|p| p.to_string()).collect();
        text.push_str(&format!("End it:\n  kill {} && rm -r {}\n", pids.join(" "), folder.display()));
        if self.docker {
            let filter = format!("label=embermesh.cluster={}", self.cluster);
            text.push_str(&format!(
                "  docker ps -aq --filter {filter} | xargs -r docker rm -f   # what a killed node left\n"
            ));
        }
        for node in self.nodes {
            std::mem::forget(node);
        }
        text
    }

    /// Ends all agents and waits until they are gone.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let ended = self.stop_agents().await;
        if self.docker {
            // Those of a node that was killed; its next start would have done this.
            clear_docker(&self.cluster).await?;
        }
        ended
    }

    async fn stop_agents(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // Errors when it has ended already.
            node.client.send(Method::POST, "/mesh/v1/leave", None::<&()>, Duration::from_secs(2)).await.ok();
        }
        for node in &mut self.nodes {
            if tokio::time::timeout(Duration::from_secs(10), node.child.wait()).await.is_err() {
                node.child.kill().await.ok();
                bail!("agent {} did not end by itself", node.id);
            }
            // One that was killed could not tidy up.
            clear_host_lock(&node.id, &self.cluster);
        }
        Ok(())
    }
}

impl DemoNode {
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

/// Removes what is left of a cluster from the Docker engine, if it can be reached at all.
async fn clear_docker(cluster: &str) -> anyhow::Result<()> {
    let docker = DockerSection::default();
    let removed = remove_cluster(&docker.socket, cluster, &docker.network).await;
    removed.map(drop).context("the Docker engine can't be used")
}

/// An address that is free for TCP and UDP, and another for the API.
fn free_addresses() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    const TRIES: usize = 50;
    for _ in 0..TRIES {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let mesh = tcp.local_addr()?;
        if UdpSocket::bind(mesh).is_ok() {
            let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            return Ok((mesh, api));
        }
    }
    bail!("no free port on loopback after {TRIES} tries")
}

/// Different containers among the answers.
pub(super) fn containers(ran: &[Ran]) -> u64 {
    ran.iter().map(|r| r.proof.container.as_str()).collect::<HashSet<_>>().len() as u64
}
