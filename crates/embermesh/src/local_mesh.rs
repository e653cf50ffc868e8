//! A mesh on this machine for whoever wants one for a while: agents as processes of their own, on loopback, with
//! everything in one temporary folder. The demo and the chaos tool start theirs here.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use embermesh_node::config::DockerSection;
use embermesh_node::containers::docker::remove_cluster;
use embermesh_node::data_dir::clear_host_lock;
use embermesh_node::views::Members;
use hyper::Method;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::{BaseUrl, Client};

/// For whatever an agent is asked, and for the mesh to form.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// An agent drains before it ends.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);
/// Below those that Linux gives to connections: a node that is started again finds its own free.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// What agents are started with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// Begins the folder's name and the mesh's.
    pub(crate) name: &'static str,
    pub(crate) nodes: u32,
    /// Whether containers are Docker's.
    pub(crate) docker: bool,
    /// For the containers of each node, as `--memory` takes it.
    pub(crate) memory: String,
    /// More of each agent's command line.
    pub(crate) args: Vec<OsString>,
    /// Where each agent writes its history, as `ID.history`.
    pub(crate) histories: Option<PathBuf>,
    /// Whether the agents are to run on without us in the end: then they don't end with us either.
    pub(crate) kept: bool,
    /// Whether agents see nothing of this process's own settings.
    pub(crate) bare: bool,
}

/// A mesh that ends with this value.
pub(crate) struct LocalMesh {
    pub(crate) nodes: Vec<LocalNode>,
    pub(crate) docker: bool,
    pub(crate) cluster: String,
    setup: Setup,
    path: PathBuf,
    /// Removed with this value, unless it was given away.
    folder: Option<TempDir>,
}

pub(crate) struct LocalNode {
    pub(crate) id: String,
    pub(crate) api: SocketAddr,
    pub(crate) client: Client,
    pub(crate) data_dir: PathBuf,
    pub(crate) mesh: SocketAddr,
    /// The Docker engine's socket, if it is to use another one than usual.
    pub(crate) engine_socket: Option<PathBuf>,
    child: Option<Child>,
}

impl LocalMesh {
    /// One whose agents are still to be started.
    pub(crate) async fn new(setup: Setup) -> anyhow::Result<Self> {
        let cluster = format!("{}-{}", setup.name, std::process::id());
        // Named after the mesh, so that what runs in a container can be told to be its.
        let folder = tempfile::Builder::new().prefix(&format!("embermesh-{cluster}-")).tempdir();
        let folder = folder.context("no temporary folder")?;
        if setup.docker {
            // Told here, where somebody reads it, rather than in an agent's log.
            clear_docker(&cluster).await?;
        }
        let mut nodes = Vec::new();
        for n in 1..=setup.nodes {
            let id = format!("n{n}");
            let (mesh, api) = free_addresses()?;
            let base: BaseUrl = format!("http://{api}").parse().map_err(anyhow::Error::msg)?;
            let client = Client::new(base, DEADLINE);
            let (data_dir, engine_socket) = (folder.path().join(&id), None);
            nodes.push(LocalNode { data_dir, id, api, client, mesh, engine_socket, child: None });
        }
        let path = folder.path().to_owned();
        Ok(Self { nodes, docker: setup.docker, cluster, setup, path, folder: Some(folder) })
    }

    /// Starts all agents and waits until every one knows every other.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        for at in 0..self.nodes.len() {
            self.start_agent(at)?;
        }
        self.formed().await
    }

    /// Where all of its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.path
    }

    /// Starts one agent, for the first time or again.
    pub(crate) fn start_agent(&mut self, at: usize) -> anyhow::Result<()> {
        let node = &self.nodes[at];
        let log = std::fs::File::options().create(true).append(true).open(self.log_file(at)).context("no log file")?;
        let mut command = Command::new("/proc/self/exe");
        if self.setup.bare {
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EMBERMESH_")) {
                command.env_remove(name);
            }
        }
        command
            .arg("agent")
            .args(["--node-id", &node.id, "--cluster", &self.cluster, "--memory", &self.setup.memory])
            .arg("--data-dir")
            .arg(&node.data_dir)
            .args(["--mesh", &node.mesh.to_string(), "--api", &node.api.to_string()])
            .args(&self.setup.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for us, who end the agents then.
            .process_group(0)
            .kill_on_drop(true);
        if !self.setup.kept {
            command.arg("--until-stdin-closes").stdin(Stdio::piped());
        }
        if self.docker {
            command.args(["--engine", "docker"]);
        }
        if let Some(socket) = &node.engine_socket {
            command.env("EMBERMESH_DOCKER_SOCKET", socket);
        }
        if let Some(histories) = &self.setup.histories {
            command.arg("--history").arg(histories.join(format!("{}.history", node.id)));
        }
        // All but the first join it; one that is started again joins whoever there is.
        let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, other)| other.mesh);
        let seeds = match &node.child {
            None => usize::from(at > 0),
            Some(_) => 2,
        };
        command.args(others.take(seeds).flat_map(|seed| ["--join".to_owned(), seed.to_string()]));
        let child = command.spawn().context("an agent could not be started")?;
        self.nodes[at].child = Some(child);
        Ok(())
    }

    async fn formed(&mut self) -> anyhow::Result<()> {
        let expected = self.nodes.len();
        let began = Instant::now();
        for at in 0..expected {
            while self.nodes[at].live_members().await != expected {
                if let Some(status) = self.nodes[at].ended()? {
                    let log = self.kept_log(at);
                    bail!("agent {} ended at its start: {status}; see {log}", self.nodes[at].id);
                }
                if began.elapsed() > DEADLINE {
                    let log = self.kept_log(at);
                    bail!("the mesh did not form within {DEADLINE:?}; see {log}");
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    pub(crate) fn log_file(&self, at: usize) -> PathBuf {
        self.nodes[at].data_dir.with_extension("log")
    }

    fn kept_log(&mut self, at: usize) -> String {
        let log = self.log_file(at).display().to_string();
        // Kept, so that what is pointed at is still there.
        self.folder.take().map(TempDir::keep);
        log
    }

    /// Ends a node without a word.
    pub(crate) async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        match &mut self.nodes[at].child {
            Some(child) => child.kill().await.context("the agent could not be killed"),
            None => Ok(()),
        }
    }

    /// Starts again what was killed on the way.
    pub(crate) async fn revive(&mut self) -> anyhow::Result<()> {
        for at in 0..self.nodes.len() {
            if self.nodes[at].pid().is_none() {
                self.start_agent(at)?;
            }
        }
        self.formed().await
    }

    /// Lets the mesh run on without us: how to talk to it, and how to end it.
    pub(crate) fn keep(mut self) -> String {
        self.folder.take().map(TempDir::keep);
        let mut text = String::from("The mesh stays up. Talk to it:\n");
        for node in &self.nodes {
            text.push_str(&format!("  embermesh --api http://{} status      # {}\n", node.api, node.id));
        }
        let pids: Vec<String> = self.nodes.iter().filter_map(LocalNode::pid).map(|p| p.to_string()).collect();
        text.push_str(&format!("End it:\n  kill {}\n", pids.join(" ")));
        text.push_str(&format!("  rm -r {}   # when they have gone\n", self.path.display()));
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

    /// Ends all agents and waits until they are gone; how many of the Docker engine's containers they left behind.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<usize> {
        let ended = self.stop_agents().await;
        // Those of a node that was killed; its next start would have done this.
        let left = if self.docker { clear_docker(&self.cluster).await? } else { 0 };
        ended.map(|()| left)
    }

    async fn stop_agents(&mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // Errors when it has ended already.
            node.client.send(Method::POST, "/mesh/v1/leave", None::<&()>, Duration::from_secs(2)).await.ok();
        }
        let mut stayed = Vec::new();
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if tokio::time::timeout(LEAVES_WITHIN, child.wait()).await.is_err() {
                child.kill().await.ok();
                stayed.push(node.id.clone());
            }
            // One that was killed could not tidy up.
            clear_host_lock(&node.id, &self.cluster);
        }
        if !stayed.is_empty() {
            bail!("agent {} did not end by itself within {LEAVES_WITHIN:?}", stayed.join(", "));
        }
        Ok(())
    }

    /// Ends all agents at once.
    pub(crate) async fn abort(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                child.kill().await.ok();
            }
            clear_host_lock(&node.id, &self.cluster);
        }
        if self.docker {
            clear_docker(&self.cluster).await.ok();
        }
    }
}

impl LocalNode {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// How its agent ended, if it has.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.as_mut().map(Child::try_wait).transpose()?.flatten())
    }

    /// How many nodes it counts as live, itself among them; none while it does not answer.
    pub(crate) async fn live_members(&self) -> usize {
        let members = match self.client.get("/mesh/v1/members").await {
            Ok(answer) => answer.parse::<Members>().map(|m| m.members).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        members.iter().filter(|m| m.state == "live").count()
    }
}

/// Removes what is left of a cluster from the Docker engine, if it can be reached at all.
async fn clear_docker(cluster: &str) -> anyhow::Result<usize> {
    let docker = DockerSection::default();
    remove_cluster(&docker.socket, cluster, &docker.network).await.context("the Docker engine can't be used")
}

/// An address that is free for TCP and UDP, and another for the API.
fn free_addresses() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let mesh = free_address(|at| UdpSocket::bind(at).is_ok())?;
    Ok((mesh, free_address(|_| true)?))
}

fn free_address(fits: impl Fn(SocketAddr) -> bool) -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    // Each process begins somewhere else.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..count {
        let port = PORTS.start + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let at = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?));
        if TcpListener::bind(at).is_ok() && fits(at) {
            return Ok(at);
        }
    }
    bail!("no free port on loopback from {} to {}", PORTS.start, PORTS.end)
}
