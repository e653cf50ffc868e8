//! One agent: the real binary, as a process of its own.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Api;
use super::{LOOK_EVERY, Place, SOON, skipped, within};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_embermesh");
/// A port that was free may be taken by the time it is used.
const PORT_TRIES: u32 = 8;
/// The protocol's times for tests, where a test doesn't say otherwise.
const TIMES: [(&str, &str); 4] = [
    ("EMBERMESH_GOSSIP_INTERVAL", "100ms"),
    ("EMBERMESH_PROTOCOL_WINDOW", "300ms"),
    ("EMBERMESH_PROTOCOL_TTL", "1s"),
    ("EMBERMESH_PROTOCOL_DRAIN_DEADLINE", "3s"),
];

/// How an agent is started.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) id: String,
    pub(crate) cluster: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) mesh: SocketAddr,
    pub(crate) api: SocketAddr,
    pub(crate) join: Vec<SocketAddr>,
    pub(crate) memory: String,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) args: Vec<String>,
    /// Where it tells what it does, in all its lives.
    pub(crate) history: PathBuf,
    /// As if on another host: it sees none of this one's locks. Needs root.
    pub(crate) elsewhere: bool,
    /// In the network namespace of that process. Needs root.
    pub(crate) namespace: Option<u32>,
}

/// A running agent. Killed when dropped, if it still runs.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) settings: Settings,
    api: Api,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Settings {
    pub(crate) fn new(place: &Place, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            cluster: place.cluster.clone(),
            data_dir: place.file(id),
            mesh: free_address(),
            api: free_address(),
            join: Vec::new(),
            memory: "2GiB".to_owned(),
            env: TIMES.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            args: Vec::new(),
            history: place.file(&format!("{id}.history")),
            elsewhere: false,
            namespace: None,
        }
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The agent's command line, with nothing of this process's own settings.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.namespace {
            Some(pid) => in_namespace_of(pid),
            None if self.elsewhere => on_another_host(),
            None => Command::new(BINARY),
        };
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EMBERMESH_")) {
            command.env_remove(name);
        }
        command
            .arg("agent")
            .args(["--node-id", &self.id, "--cluster", &self.cluster, "--memory", &self.memory])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--history")
            .arg(&self.history)
            .args(["--mesh", &self.mesh.to_string(), "--api", &self.api.to_string()])
            .args(self.join.iter().flat_map(|seed| ["--join".to_owned(), seed.to_string()]))
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts the process and returns at once. It ends with this process, should that be killed.
    pub(crate) fn spawn(&self) -> Agent {
        let log = self.data_dir.with_extension("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command();
        let child = command.arg("--until-stdin-closes").stdin(Stdio::piped()).stderr(file).spawn().unwrap();
        Agent { settings: self.clone(), api: Api(self.api), child, ended: None, log }
    }

    /// Starts it and waits until it serves; on other ports when somebody else was quicker.
    #[track_caller]
    pub(crate) fn start(mut self) -> Agent {
        for _ in 0..PORT_TRIES {
            let mut agent = self.spawn();
            if agent.serves() {
                return agent;
            }
            let log = agent.log();
            assert!(log.contains("can't listen") || log.contains("can't open"), "{} did not start:\n{log}", self.id);
            (self.mesh, self.api) = (free_address(), free_address());
        }
        panic!("no free ports for {}", self.id);
    }

    /// Starts it and waits for its end: its exit code and what it said.
    #[track_caller]
    pub(crate) fn refused(&self) -> (i32, String) {
        let mut agent = self.spawn();
        let status = agent.wait(SOON);
        (status.code().unwrap_or(-1), agent.log())
    }
}

impl Agent {
    pub(crate) fn id(&self) -> &str {
        &self.settings.id
    }

    pub(crate) fn mesh_addr(&self) -> SocketAddr {
        self.settings.mesh
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.settings.data_dir
    }

    /// One folder for each container that it has.
    pub(crate) fn container_folders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data_dir().join("containers")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "{} has ended already", self.id());
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait(SOON).signal(), Some(Signal::SIGKILL as i32));
    }

    /// SIGTERM, and expects a clean end.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.expect_clean_end();
    }

    /// SIGTERM, and expects a clean end that leaves containers for the next start.
    #[track_caller]
    pub(crate) fn halt(&mut self) {
        self.signal(Signal::SIGTERM);
        self.expect_end();
    }

    #[track_caller]
    fn expect_end(&mut self) {
        let status = self.wait(SOON);
        assert_eq!(status.code(), Some(0), "{} ended with {status}:\n{}", self.id(), self.log());
    }

    #[track_caller]
    pub(crate) fn expect_clean_end(&mut self) {
        self.expect_end();
        assert_eq!(self.container_folders(), Vec::<String>::new(), "{} left containers behind", self.id());
    }

    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let (id, log) = (self.settings.id.clone(), self.log.clone());
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{id} has not ended after {limit:?}:\n{}", fs::read_to_string(log).unwrap_or_default());
    }

    pub(crate) fn runs(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_none()
    }

    /// Whether it was ended by SIGKILL.
    pub(crate) fn was_killed(&self) -> bool {
        self.ended.is_some_and(|status| status.signal() == Some(Signal::SIGKILL as i32))
    }

    /// Starts it again on the same folder, with new ports.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        assert!(!self.runs(), "{} still runs", self.id());
        let settings = Settings { mesh: free_address(), api: free_address(), ..self.settings.clone() };
        *self = settings.start();
    }

    /// Waits until it answers as who it is; `false` when it ends instead.
    #[track_caller]
    fn serves(&mut self) -> bool {
        let deadline = Instant::now() + SOON;
        loop {
            if !self.runs() {
                return false;
            }
            let said = self.api.try_call("GET", "/mesh/v1/status", b"").map(|answer| answer.json());
            let is_it = said.as_ref().is_ok_and(|status| {
                let Settings { id, cluster, .. } = &self.settings;
                status["node_id"] == id.as_str() && status["cluster"] == cluster.as_str() && status["ready"] == true
            });
            if is_it {
                return true;
            }
            assert!(Instant::now() < deadline, "it neither serves nor ends, but says {said:?}:\n{}", self.log());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The operator's command line against this node.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        Command::new(BINARY)
            .args(["--api", &format!("http://{}", self.settings.api)])
            .args(args)
            .env_remove("EMBERMESH_API")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// What is asked of an agent is asked of its API.
impl Deref for Agent {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// An address of loopback that is free for TCP and UDP, and was not given to another test of this process.
pub(crate) fn free_address() -> SocketAddr {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    for _ in 0..1000 {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if TcpListener::bind(address).is_ok() && given.get_or_insert_default().insert(address.port()) {
            return address;
        }
    }
    panic!("this host has no free ports");
}

/// The agent in a mount namespace where the host's locks are not.
fn on_another_host() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", r#"mount -t tmpfs none /run && exec "$0" "$@""#, BINARY]);
    command
}

fn in_namespace_of(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--", BINARY]);
    command
}

/// Whether agents can be started as if on another host.
pub(crate) fn can_be_elsewhere() -> bool {
    let tried = Command::new("unshare").args(["--mount", "--", "mount", "-t", "tmpfs", "none", "/run"]).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        skipped("mount namespaces need root");
    }
    can
}
