//! A network of namespaces, one a node, on a bridge: links of its own that can be broken, without a trace on the host's.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::{Place, Settings, until};

/// All nodes, and not the bridge, from where a test makes its calls.
pub(crate) const PEERS: &str = "10.9.0.0/28";
const MESH_PORT: u16 = 7411;
const API_PORT: u16 = 3233;

/// The thread that made it has moved into a namespace of its own, where the bridge is. All of it is gone with the last
/// process in it.
#[derive(Debug)]
pub(crate) struct Network {
    /// Each keeps its namespace there.
    holders: Vec<Child>,
}

impl Network {
    /// `None` where namespaces can't be made. To be called in a thread of its own, which it moves for good.
    pub(crate) fn new(nodes: usize) -> Option<Self> {
        unshare(CloneFlags::CLONE_NEWNET).ok()?;
        ip("link set lo up");
        ip("link add hub type bridge");
        ip("addr add 10.9.0.254/24 dev hub");
        ip("link set hub up");
        let network = Self { holders: (0..nodes).map(|_| holder()).collect() };
        for n in 1..=nodes {
            ip(&format!("link add v{n} type veth peer name eth0 netns {}", network.holder(n)));
            ip(&format!("link set v{n} master hub up"));
            network.at(n, "ip link set lo up");
            network.at(n, &format!("ip addr add {}/24 dev eth0", host(n)));
            network.at(n, "ip link set eth0 up");
        }
        Some(network)
    }

    /// An agent there; all but the first join it.
    pub(crate) fn settings(&self, place: &Place, n: usize) -> Settings {
        let own = Settings::new(place, &format!("n{n}")).arg("--insecure");
        let join = if n > 1 { vec![mesh_addr(1)] } else { Vec::new() };
        let api = SocketAddr::new(mesh_addr(n).ip(), API_PORT);
        Settings { mesh: mesh_addr(n), api, join, namespace: Some(self.holder(n)), ..own }
    }

    /// The process that keeps a node's namespace.
    pub(crate) fn holder(&self, n: usize) -> u32 {
        self.holders[n - 1].id()
    }

    /// Does something in a node's namespace.
    #[track_caller]
    pub(crate) fn at(&self, n: usize, line: &str) {
        assert!(self.try_at(n, line), "{line} at n{n}");
    }

    pub(crate) fn try_at(&self, n: usize, line: &str) -> bool {
        let command = self.command(n, line).stderr(Stdio::null()).status();
        command.is_ok_and(|status| status.success())
    }

    /// The same, to be started by whoever asks.
    pub(crate) fn command(&self, n: usize, line: &str) -> Command {
        let pid = self.holder(n).to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--net", "--"]).args(line.split(' '));
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

pub(crate) fn host(n: usize) -> String {
    format!("10.9.0.{n}")
}

pub(crate) fn mesh_addr(n: usize) -> SocketAddr {
    format!("{}:{MESH_PORT}", host(n)).parse().unwrap()
}

/// A process that does nothing, in a network namespace of its own; it ends with this one.
fn holder() -> Child {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut command = Command::new("unshare");
    let child = command.args(["--net", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let namespace = format!("/proc/{}/ns/net", child.id());
    until("the namespace is there", || std::fs::read_link(&namespace).is_ok_and(|there| there != own));
    child
}

#[track_caller]
fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(status.success(), "ip {line}");
}
