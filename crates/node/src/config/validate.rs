//! What must hold between the values, whoever set them. All problems are told at once.

use std::net::SocketAddr;
use std::time::Duration;

use super::{
    ByteSize, ConfigError, DockerSection, LimitsSection, ListenSection, NodeConfig, NodeSection, ProtocolSection,
};

const NAME_MAX: usize = 32;
/// More than any host has cores for.
const THREADS_MAX: usize = 1024;
/// OpenWhisk's least time-out of an action.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Clocks that are off by more than this can't hold leases.
const CLOCK_RATE_BOUND_MAX: f64 = 0.2;

impl NodeConfig {
    /// Checks what a node needs to start. Call it after flags have been applied.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Problems(Vec::new());
        problems.of_node(&self.node);
        problems.of_listen(&self.listen);
        for address in &self.join {
            problems.unless(is_host_port(address), || {
                format!("join: `{address}` is not HOST:PORT: give the mesh address of a node, such as 127.0.0.1:7411")
            });
        }
        problems.of_protocol(&self.protocol, self.gossip.interval);
        problems.of_limits(&self.limits);
        let memory = self.engine.memory_or_share();
        let least = ByteSize::mib(self.limits.memory_min_mb);
        problems.unless(memory >= least, || {
            format!("engine.memory {memory} is less than one container needs ({least}): give at least that")
        });
        problems.at_least("engine.parallel_starts", u64::from(self.engine.parallel_starts), 1);
        problems.of_docker(&self.docker);
        problems.at_least("store.retention_bytes (in bytes)", self.store.retention_bytes.bytes(), 1);
        match problems.0 {
            none if none.is_empty() => Ok(()),
            problems => Err(ConfigError::Invalid(problems)),
        }
    }
}

struct Problems(Vec<String>);

impl Problems {
    fn unless(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }

    fn at_least(&mut self, key: &str, value: u64, least: u64) {
        self.unless(value >= least, || format!("{key} is {value}: it must be at least {least}"));
    }

    fn positive(&mut self, key: &str, value: Duration) {
        self.unless(!value.is_zero(), || format!("{key} is 0: give a time such as \"1s\""));
    }

    fn of_node(&mut self, node: &NodeSection) {
        if node.id.is_empty() {
            self.0.push("node.id is missing: give the node a short, stable name with --node-id".to_owned());
        } else {
            self.name("node.id", &node.id);
        }
        self.name("node.cluster", &node.cluster);
        let threads = node.threads_or_share();
        self.unless((1..=THREADS_MAX).contains(&threads), || {
            format!("node.threads is {threads}: it must be from 1 to {THREADS_MAX}")
        });
        if !node.zone.is_empty() {
            self.name("node.zone", &node.zone);
        }
        self.unless(!node.data_dir.as_os_str().is_empty(), || {
            "node.data_dir is missing: give a folder with --data-dir (it is created)".to_owned()
        });
    }

    fn name(&mut self, key: &str, value: &str) {
        self.unless(is_name(value), || {
            format!(
                "{key} `{}` is not a name: use 1 to {NAME_MAX} of a-z, 0-9 and -, neither first nor last a -",
                value.escape_debug()
            )
        });
    }

    fn of_listen(&mut self, listen: &ListenSection) {
        let mut bind = |key: &str, address: SocketAddr| {
            self.unless(listen.insecure || address.ip().is_loopback(), || {
                format!(
                    "listen.{key} {address} is reachable from other hosts, and neither peers nor users are authenticated: \
                     everyone who reaches it can run code on this host. Bind to loopback, or accept that with --insecure \
                     on a network where you trust every host"
                )
            });
        };
        bind("mesh", listen.mesh);
        bind("api", listen.api);
        self.unless(listen.mesh != listen.api || listen.mesh.port() == 0, || {
            format!("listen.mesh and listen.api are both {}: give them different ports", listen.mesh)
        });
        match listen.advertise {
            Some(address) => self.unless(!address.ip().is_unspecified(), || {
                format!(
                    "listen.advertise {address} is no address that peers can call: give one of this host's addresses"
                )
            }),
            None => self.unless(!listen.mesh.ip().is_unspecified(), || {
                format!("listen.mesh {} is no address that peers can call: tell them one with --advertise", listen.mesh)
            }),
        }
    }

    fn of_protocol(&mut self, p: &ProtocolSection, gossip_interval: Duration) {
        for (key, value) in [
            ("protocol.ttl", p.ttl),
            ("protocol.margin", p.margin),
            ("protocol.urgent_window", p.urgent_window),
            ("protocol.max_hold", p.max_hold),
            ("protocol.max_memory_wait", p.max_memory_wait),
            ("protocol.drain_deadline", p.drain_deadline),
            ("gossip.interval", gossip_interval),
        ] {
            self.positive(key, value);
        }
        self.unless(p.ttl > p.margin, || {
            format!("protocol.ttl {:?} leaves nothing after protocol.margin {:?}: raise ttl", p.ttl, p.margin)
        });
        self.of_clock(p);
        self.unless(p.max_lease_age >= p.ttl, || {
            format!("protocol.max_lease_age {:?} is less than protocol.ttl {:?}: raise it", p.max_lease_age, p.ttl)
        });
        self.unless(p.window >= gossip_interval.saturating_mul(3), || {
            format!(
                "protocol.window {:?} is less than three times gossip.interval {gossip_interval:?}: peers would hear of an \
                 intent too late to veto it; raise window to {:?} or lower the interval",
                p.window,
                gossip_interval.saturating_mul(3)
            )
        });
        self.unless(p.urgent_window <= p.window, || {
            format!(
                "protocol.urgent_window {:?} is more than protocol.window {:?}: lower it",
                p.urgent_window, p.window
            )
        });
        self.at_least("protocol.queue_per_action", u64::from(p.queue_per_action), 1);
    }

    fn of_clock(&mut self, p: &ProtocolSection) {
        let rho = p.clock_rate_bound;
        if !(0.0..=CLOCK_RATE_BOUND_MAX).contains(&rho) {
            self.0.push(format!(
                "protocol.clock_rate_bound {rho} is not between 0 and {CLOCK_RATE_BOUND_MAX}: 0.01 means that clocks run at most 1 % too fast or slow"
            ));
            return;
        }
        let needed = 2.1 * rho * p.ttl.as_secs_f64();
        let slack = p.margin.saturating_add(p.grace);
        self.unless(slack.as_secs_f64() >= needed, || {
            format!(
                "protocol.margin {:?} + protocol.grace {:?} is less than 2.1 · clock_rate_bound {rho} · ttl {:?} = {needed:.3}s: \
                 an owner could free a slot that its holder still uses; raise grace, or lower ttl",
                p.margin, p.grace, p.ttl
            )
        });
    }

    fn of_docker(&mut self, docker: &DockerSection) {
        self.positive("docker.pull_timeout", docker.pull_timeout);
        self.positive("docker.start_timeout", docker.start_timeout);
        self.at_least("docker.pids", u64::from(docker.pids), 1);
        self.unless(!docker.socket.as_os_str().is_empty(), || {
            "docker.socket is empty: give the Docker engine's Unix socket, mostly /var/run/docker.sock".to_owned()
        });
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let named =
            docker.network.starts_with(|c: char| c.is_ascii_alphanumeric()) && docker.network.chars().all(plain);
        self.unless(named, || {
            format!(
                "docker.network `{}` is no network's name: use letters, digits, -, _ and .",
                docker.network.escape_debug()
            )
        });
        let images = &docker.images;
        let native = images.native.as_deref();
        let all = [("native", native), ("python", Some(&*images.python)), ("nodejs", Some(&*images.nodejs))];
        for (key, image) in all {
            self.unless(image.is_none_or(|image| !image.is_empty() && !image.contains(char::is_whitespace)), || {
                format!("docker.images.{key} `{}` is no image's name", image.unwrap_or_default().escape_debug())
            });
        }
    }

    fn of_limits(&mut self, limits: &LimitsSection) {
        self.at_least("limits.memory_min_mb", limits.memory_min_mb, 1);
        self.unless(limits.memory_min_mb <= limits.memory_max_mb, || {
            format!(
                "limits.memory_min_mb {} is more than limits.memory_max_mb {}: no action could be created",
                limits.memory_min_mb, limits.memory_max_mb
            )
        });
        self.unless(limits.timeout_max >= TIMEOUT_MIN, || {
            format!(
                "limits.timeout_max {:?} is less than the least time-out, {TIMEOUT_MIN:?}: raise it",
                limits.timeout_max
            )
        });
        self.at_least("limits.concurrency_max", u64::from(limits.concurrency_max), 1);
        self.at_least("limits.actions_max", u64::from(limits.actions_max), 1);
        self.at_least("limits.code_max (in bytes)", limits.code_max.bytes(), 1);
        self.at_least("limits.payload_max (in bytes)", limits.payload_max.bytes(), 1);
    }
}

/// `[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?`: fits in container names, host names and file names.
fn is_name(text: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= NAME_MAX
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host_fits = !host.is_empty() && !host.contains(char::is_whitespace) && !host.contains('/');
        // An IPv6 address has colons of its own, and needs brackets.
        let bracketed = host.starts_with('[') && host.ends_with(']');
        host_fits && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}
