//! The host's Docker engine as these tests use it: a mesh on it, and a look from outside.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) use crate::support::skip::docker_is_here as is_here;
use crate::support::{Agent, Mesh, Place, Plan, Ran, Settings};

/// A mesh whose containers are Docker's. When dropped, it fails if one of them is left.
#[derive(Debug)]
pub(crate) struct DockerMesh {
    mesh: Option<Mesh>,
    pub(crate) docker: Docker,
}

/// What Docker has of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Docker {
    pub(crate) cluster: String,
}

/// `docker ARGS`, of which something is expected.
#[track_caller]
pub(crate) fn docker(args: &[&str]) -> String {
    try_docker(args).unwrap_or_else(|said| panic!("docker {args:?}: {said}"))
}

/// The same, where it may as well fail: then what it complains of.
pub(crate) fn try_docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).output().unwrap();
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    let said = String::from_utf8_lossy(said).trim().to_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// What a test with Docker needs to be set at each node.
pub(crate) fn settings(settings: Settings) -> Settings {
    // No test has a registry, and none waits for one.
    let network = settings.cluster.clone();
    settings
        .arg("--engine")
        .arg("docker")
        .set("EMBERMESH_DOCKER_PULL", "never")
        .set("EMBERMESH_DOCKER_NETWORK", &network)
        // Longer than a test, where it doesn't say otherwise.
        .set("EMBERMESH_PROTOCOL_PAUSE_GRACE", "60s")
}

impl DockerMesh {
    #[track_caller]
    pub(crate) fn of(count: usize) -> Self {
        Self::with(count, |settings| settings)
    }

    /// Only the first node can start containers of more than 128 MB: the others use its.
    #[track_caller]
    pub(crate) fn where_one_has_room(count: usize) -> Self {
        Self::with(count, |mut node| {
            if node.id != "n1" {
                "128MiB".clone_into(&mut node.memory);
            }
            node
        })
    }

    #[track_caller]
    pub(crate) fn with(count: usize, set: impl Fn(Settings) -> Settings) -> Self {
        let plan = Plan::nodes(count).each(|node| set(settings(node)));
        let docker = Docker { cluster: plan.cluster().to_owned() };
        Self { mesh: Some(plan.start()), docker }
    }
}

/// Which process answered: its container's id may have changed.
pub(crate) fn born(ran: &Ran) -> u64 {
    ran.number("started_at_us")
}

impl Deref for DockerMesh {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        self.mesh.as_ref().unwrap()
    }
}

impl DerefMut for DockerMesh {
    fn deref_mut(&mut self) -> &mut Mesh {
        self.mesh.as_mut().unwrap()
    }
}

impl Drop for DockerMesh {
    fn drop(&mut self) {
        let killed = self.agents.iter().filter(|agent| agent.was_killed());
        let killed: Vec<String> = killed.map(|agent| self.docker.name(&format!("{}-", agent.id()))).collect();
        if !std::thread::panicking() {
            // A mere stop would leave containers for the next start.
            let agents = &mut self.mesh.as_mut().unwrap().agents;
            let running: Vec<&mut Agent> = agents.iter_mut().filter_map(|a| a.runs().then_some(a)).collect();
            running.iter().for_each(|agent| _ = agent.post("/mesh/v1/leave", &serde_json::json!({})).expect(202));
            running.into_iter().for_each(Agent::expect_clean_end);
        }
        drop(self.mesh.take());
        let mut left = self.docker.sweep();
        // An agent that was killed has no say in what it leaves, nor have others while that is on the bridge.
        let bridge = format!("network {}", self.docker.cluster);
        let excused = |name: &str| killed.iter().any(|killed| name.starts_with(killed));
        let on_it = left.iter().any(|name| excused(name));
        left.retain(|name| !(excused(name) || on_it && *name == bridge));
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new(), "left behind");
        }
    }
}

impl Docker {
    pub(crate) fn of(place: &Place) -> Self {
        Self { cluster: place.cluster.clone() }
    }

    /// Each container's name and state, as Docker shows it.
    pub(crate) fn containers(&self) -> Vec<(String, String)> {
        let filter = format!("label=embermesh.cluster={}", self.cluster);
        let listed = docker(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", "{{.Names}} {{.State}}"]);
        let pair = |line: &str| line.split_once(' ').map(|(name, state)| (name.to_owned(), state.to_owned()));
        listed.lines().filter_map(pair).collect()
    }

    /// Docker's name of a container.
    pub(crate) fn name(&self, container: &str) -> String {
        format!("embermesh-{}-{container}", self.cluster)
    }

    pub(crate) fn state(&self, container: &str) -> Option<String> {
        let name = self.name(container);
        self.containers().into_iter().find(|(known, _)| *known == name).map(|(_, state)| state)
    }

    /// Removes what is left of the cluster, and names it.
    pub(crate) fn sweep(&self) -> Vec<String> {
        let mut left: Vec<String> = self.containers().into_iter().map(|(name, _)| name).collect();
        for name in &left {
            docker(&["rm", "-f", name]);
        }
        let filter = format!("name=^{}$", self.cluster);
        let networks = docker(&["network", "ls", "--filter", &filter, "--format", "{{.Name}}"]);
        for network in networks.lines() {
            docker(&["network", "rm", network]);
            left.push(format!("network {network}"));
        }
        left
    }
}

/// An image made of a tar archive; removed when dropped.
#[derive(Debug)]
pub(crate) struct Image(pub(crate) String);

impl Image {
    pub(crate) fn import(name: &str, archive: &[u8], changes: &[&str]) -> Self {
        let mut command = Command::new("docker");
        command.arg("import");
        for change in changes {
            command.args(["--change", change]);
        }
        let mut child = command.args(["-", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), archive).unwrap();
        assert!(child.wait().unwrap().success());
        Self(name.to_owned())
    }

    /// By one of the project's own scripts.
    pub(crate) fn build(script: &str, name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/images").join(script);
        let output = Command::new(path).args([env!("CARGO_BIN_EXE_embermesh"), name]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        println!("{}", String::from_utf8_lossy(&output.stdout).trim());
        Self(name.to_owned())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let mut command = Command::new("docker");
        let _ = command.args(["rmi", "-f", &self.0]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
