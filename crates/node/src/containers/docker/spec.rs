//! What the engine is asked for when a container is made.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits};

use super::DockerEngineConfig;
use super::labels::Owner;
use crate::containers::folder::Folder;
use crate::containers::{ContainerSpec, Runtime};

/// The runtime, in images of ours.
pub(super) const PROGRAM: &str = "/embermesh";
/// Where the container's folder is, inside.
const MEETING_POINT: &str = "/run/embermesh";
/// Whom own runtimes run as: nobody on any host.
const USER: (u32, u32) = (65532, 65532);
const PYTHON: &str = "/usr/bin/python3";
const NODEJS: &str = "/usr/bin/node";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's own default stands for OpenWhisk's default memory; the others in proportion.
const CPU_SHARES_PER_MB: u64 = 1024 / 256;
const LEAST_CPU_SHARES: u64 = 2;

/// User and group of own runtimes. An agent that isn't root can't give folders away: then its own.
pub(super) fn user() -> (u32, u32) {
    if nix::unistd::geteuid().is_root() {
        USER
    } else {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }
}

/// The whole request. `network` is that of images which serve TCP.
pub(super) fn body(
    config: &DockerEngineConfig,
    owner: &Owner,
    spec: &ContainerSpec,
    image: String,
    folder: &Folder,
    network: Option<String>,
) -> ContainerCreateBody {
    let common = ContainerCreateBody {
        image: Some(image),
        labels: Some(owner.labels(spec)),
        attach_stdin: Some(false),
        // The runtime ends with its stdin: it has one, which nobody writes to.
        open_stdin: Some(true),
        stdin_once: Some(false),
        ..ContainerCreateBody::default()
    };
    let limits = limits(config, spec);
    if spec.runtime == Runtime::Image {
        // As its maker meant it: its own user, command, environment and files. It can't get more rights.
        return ContainerCreateBody {
            env: Some(contract_env(config, spec)),
            host_config: Some(HostConfig { network_mode: network, ..limits }),
            ..common
        };
    }
    let (user, group) = user();
    let size = spec.memory_mb;
    let mut env = contract_env(config, spec);
    env.extend([PATH, "LANG=C.UTF-8", "HOME=/tmp", "TMPDIR=/tmp"].map(str::to_owned));
    env.push(format!("__EMBERMESH_CONTAINER={}", spec.id));
    env.push(format!("__EMBERMESH_NODE={}", config.node_id));
    ContainerCreateBody {
        user: Some(format!("{user}:{group}")),
        entrypoint: Some(vec![PROGRAM.to_owned()]),
        cmd: Some(command(spec)),
        working_dir: Some("/tmp".to_owned()),
        env: Some(env),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            binds: Some(vec![format!("{}:{MEETING_POINT}:rw", folder.path().display())]),
            // What is in it counts as the container's memory. Native actions are executed there.
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), format!("rw,exec,nosuid,nodev,size={size}m,mode=1777"))])),
            ..limits
        }),
        ..common
    }
}

/// Where a path that the container told is on this host: only within the folder that both see.
pub(super) fn outside(folder: &Folder, inside: &std::path::Path) -> Option<std::path::PathBuf> {
    let path = folder.path().join(inside.strip_prefix(MEETING_POINT).ok()?);
    folder.owns_socket(&path).then_some(path)
}

fn limits(config: &DockerEngineConfig, spec: &ContainerSpec) -> HostConfig {
    let memory = i64::try_from(spec.memory_mb << 20).unwrap_or(i64::MAX);
    let files = i64::try_from(config.max_files).unwrap_or(i64::MAX);
    let log = [("max-size", "1m"), ("max-file", "1"), ("compress", "false")];
    HostConfig {
        memory: Some(memory),
        // The same: no swap.
        memory_swap: Some(memory),
        cpu_shares: i64::try_from((spec.memory_mb * CPU_SHARES_PER_MB).max(LEAST_CPU_SHARES)).ok(),
        pids_limit: i64::try_from(config.max_processes).ok(),
        ulimits: Some(vec![ResourcesUlimits { name: Some("nofile".to_owned()), soft: Some(files), hard: Some(files) }]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        // For people who ask Docker; the agent reads the streams themselves.
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        ..HostConfig::default()
    }
}

fn contract_env(config: &DockerEngineConfig, spec: &ContainerSpec) -> Vec<String> {
    let mut env = vec![format!("__OW_API_HOST={}", config.api_url)];
    if spec.concurrency > 1 {
        env.push("__OW_ALLOW_CONCURRENT=true".to_owned());
    }
    env
}

fn command(spec: &ContainerSpec) -> Vec<String> {
    let socket = format!("{MEETING_POINT}/socket");
    let concurrency = spec.concurrency.to_string();
    let mut command = vec!["__container", "--socket", &socket, "--runtime", spec.runtime.argument()];
    command.extend(["--concurrency", &concurrency, "--workdir", "/tmp"]);
    match spec.runtime {
        Runtime::Python => command.extend(["--interpreter", PYTHON]),
        Runtime::NodeJs => command.extend(["--interpreter", NODEJS]),
        _ => {}
    }
    command.into_iter().map(str::to_owned).collect()
}
