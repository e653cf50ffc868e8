//! What the mesh stands on, and the nemesis shakes: a network of namespaces, a small disk for each node, and for each a
//! socket of its own before Docker's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::NODES;
use crate::engine::{self, Docker};
use crate::relay::Relay;
use crate::support::{Mesh, Network, Place};

/// As `embermesh chaos run` has them: short, so that much happens.
const TIMES: [(&str, &str); 6] = [
    ("EMBERMESH_PROTOCOL_MAX_LEASE_AGE", "5s"),
    ("EMBERMESH_PROTOCOL_MAX_HOLD", "3s"),
    ("EMBERMESH_PROTOCOL_PAUSE_GRACE", "1s"),
    ("EMBERMESH_PROTOCOL_CONCURRENT_GRACE", "2s"),
    ("EMBERMESH_PROTOCOL_IDLE_TIMEOUT", "4s"),
    ("EMBERMESH_PROTOCOL_DRAIN_DEADLINE", "5s"),
];
/// For the containers of each node.
pub(crate) const MEMORY: &str = "1GiB";
/// Room for an agent's data, and not much more.
const SMALL_DISK: &str = "size=32m,mode=0700";
/// An agent drains before it ends.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
const GONE_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Containers {
    Process,
    Docker,
}

pub(crate) struct Ground {
    /// With Docker one for each node; they go before the folder that their sockets are in.
    pub(crate) relays: Vec<Relay>,
    pub(crate) mesh: Mesh,
    pub(crate) network: Network,
    docker: Option<Docker>,
    disks: Vec<PathBuf>,
}

/// What was wrong with the mesh's end.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) astray: Vec<String>,
    pub(crate) left_behind: Vec<String>,
}

/// From now on mounts of this thread are its own: they are gone with it and its children.
pub(crate) fn keep_mounts_private() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    run("mount", &["--make-rprivate", "/"]);
}

impl Ground {
    /// The mesh has formed when it returns. To be called where [`keep_mounts_private`] was.
    pub(crate) fn new(network: Network, containers: Containers, histories: &Path) -> Self {
        let place = Place::new();
        let docker = (containers == Containers::Docker).then(|| Docker::of(&place));
        let mesh = Mesh { agents: Vec::new(), place };
        let mut ground = Self { relays: Vec::new(), mesh, network, docker, disks: Vec::new() };
        for n in 1..=NODES {
            ground.start(n, histories);
        }
        ground.mesh.await_all_live();
        ground
    }

    fn start(&mut self, n: usize, histories: &Path) {
        let place = &self.mesh.place;
        let mut settings = self.network.settings(place, n).arg("--enable-fault-injection");
        settings.history = histories.join(format!("n{n}.history"));
        MEMORY.clone_into(&mut settings.memory);
        if self.docker.is_some() {
            let socket = place.file(&format!("docker-{n}.sock"));
            self.relays.push(Relay::start(&socket));
            settings = engine::settings(settings).set("EMBERMESH_DOCKER_SOCKET", &socket.display().to_string());
        }
        for (name, value) in TIMES {
            settings = settings.set(name, value);
        }
        let shared = self.docker.is_some();
        mount_small_disk(&settings.data_dir, &place.file(&format!("disk-{n}")), shared);
        self.disks.push(settings.data_dir.clone());
        self.mesh.agents.push(settings.start());
    }

    /// Ends the mesh as an operator would, and looks at what is left.
    pub(crate) fn end(&mut self) -> End {
        let mut end = End::default();
        for agent in &mut self.mesh.agents {
            if let Err(error) = agent.try_call("POST", "/mesh/v1/leave", json!({}).to_string().as_bytes()) {
                end.astray.push(format!("{} can't be told to leave: {error}", agent.id()));
            }
        }
        let told = Instant::now();
        for agent in &mut self.mesh.agents {
            while agent.runs() && told.elapsed() < LEAVES_WITHIN {
                thread::sleep(Duration::from_millis(20));
            }
            if agent.runs() {
                end.astray.push(format!("{} did not end within {LEAVES_WITHIN:?}", agent.id()));
                agent.kill();
                continue;
            }
            let left = agent.container_folders().into_iter().map(|c| format!("the folder of container {c}"));
            end.left_behind.extend(left);
        }
        if let Some(docker) = &self.docker {
            end.left_behind.extend(docker.sweep());
        }
        end.left_behind.extend(self.left_running());
        for n in 1..=NODES {
            end.left_behind.extend(self.network.rules(n).into_iter().map(|rule| format!("rule at n{n}: {rule}")));
        }
        self.unmount();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let own = self.mesh.place.path().display().to_string();
        end.left_behind.extend(mounts.lines().filter(|line| line.contains(&own)).map(|line| format!("mount {line}")));
        end
    }

    /// Processes of the mesh, and whatever else is in its namespaces, after a while.
    fn left_running(&self) -> Vec<String> {
        let began = Instant::now();
        loop {
            let own = self.mesh.place.processes().into_iter().map(|process| (process.pid, process.args));
            let left: Vec<(i32, String)> = own.chain(self.inside()).collect();
            if left.is_empty() || began.elapsed() > GONE_WITHIN {
                return left.into_iter().map(|(pid, args)| format!("process {pid}: {args}")).collect();
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is in the nodes' namespaces, beside those who keep them.
    fn inside(&self) -> Vec<(i32, String)> {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let holders: Vec<String> = (1..=NODES).map(|n| self.network.holder(n).to_string()).collect();
        let namespaces: Vec<_> = holders.iter().map(|pid| of(pid)).collect();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let inside =
            pids.filter(|pid| !holders.contains(pid) && of(pid).is_some_and(|ns| namespaces.contains(&Some(ns))));
        inside.filter_map(|pid| Some((pid.parse().ok()?, "in a namespace of the mesh".to_owned()))).collect()
    }

    fn unmount(&mut self) {
        for disk in self.disks.drain(..) {
            // With what is mounted in it.
            run("umount", &["--recursive", &disk.display().to_string()]);
        }
    }
}

impl Drop for Ground {
    /// After a failure: nothing is left then either.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for agent in &mut self.mesh.agents {
            if agent.runs() {
                agent.kill();
            }
        }
        if let Some(docker) = &self.docker {
            docker.sweep();
        }
        self.unmount();
    }
}

/// Puts a small disk there. `shared`: Docker has to see the folder of containers, and looks from outside, so that one stays
/// where it is.
fn mount_small_disk(at: &Path, aside: &Path, shared: bool) {
    let containers = at.join("containers");
    let [disk, inside, outside] = [at, &containers, aside].map(|path| path.display().to_string());
    fs::create_dir_all(at).unwrap();
    if shared {
        fs::create_dir(&containers).unwrap();
        fs::create_dir(aside).unwrap();
        run("mount", &["--bind", &inside, &outside]);
    }
    run("mount", &["-t", "tmpfs", "-o", SMALL_DISK, "none", &disk]);
    if shared {
        fs::create_dir(&containers).unwrap();
        run("mount", &["--move", &outside, &inside]);
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
