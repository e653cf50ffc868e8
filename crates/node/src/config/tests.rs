#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::*;

fn from_file(text: &str) -> Result<NodeConfig, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    NodeConfig::load(Some(file.path()), std::iter::empty())
}

fn from_env(variables: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
    NodeConfig::load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn valid() -> NodeConfig {
    let mut config = NodeConfig::default();
    config.node.id = "n1".to_owned();
    config.node.data_dir = "/var/lib/embermesh".into();
    config
}

fn problems_of(change: impl FnOnce(&mut NodeConfig)) -> String {
    let mut config = valid();
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

#[test]
fn without_file_and_environment_the_defaults_hold() {
    let config = from_env(&[("PATH", "/bin"), ("HOME", "/root")]).unwrap();
    assert_eq!(config, NodeConfig::default());
    assert_eq!(config.protocol.ttl, Duration::from_secs(5));
    valid().validate().unwrap();
}

#[test]
fn what_is_written_as_toml_is_read_back() {
    let mut config = valid();
    config.join = vec!["h1:7411".to_owned()];
    config.listen.advertise = Some("10.0.0.1:7411".parse().unwrap());
    config.engine.memory = Some(ByteSize::mib(2048));
    assert_eq!(from_file(&toml::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn a_file_overrides_defaults() {
    let config = from_file(
        "join = [\"127.0.0.1:7412\"]\n[node]\nid = \"n7\"\n[protocol]\nttl = \"2s\"\nclock_rate_bound = 0.02\nqueue_bytes = \"5MB\"\n[engine]\nkind = \"process\"\nmemory = \"4GiB\"\n",
    )
    .unwrap();
    assert_eq!(config.join, ["127.0.0.1:7412"]);
    assert_eq!(config.node.id, "n7");
    assert_eq!(config.protocol.ttl, Duration::from_secs(2));
    assert_eq!(config.protocol.queue_bytes, ByteSize(5_000_000));
    assert_eq!(config.engine.memory, Some(ByteSize(4 << 30)));
    assert_eq!(config.protocol.grace, Duration::from_millis(200));
}

#[test]
fn the_environment_overrides_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[protocol]\nttl = \"2s\"\nmargin = \"50ms\"\n").unwrap();
    let env = [("EMBERMESH_PROTOCOL_TTL", "3s")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let config = NodeConfig::load(Some(file.path()), env.into_iter()).unwrap();
    assert_eq!(config.protocol.ttl, Duration::from_secs(3));
    assert_eq!(config.protocol.margin, Duration::from_millis(50));
}

#[test]
fn variables_of_every_type_are_read() {
    let config = from_env(&[
        ("EMBERMESH_NODE_ID", "7"),
        ("EMBERMESH_NODE_DATA_DIR", "/d"),
        ("EMBERMESH_JOIN", "h1:1, h2:2"),
        ("EMBERMESH_LISTEN_MESH", "127.0.0.1:9000"),
        ("EMBERMESH_LISTEN_ADVERTISE", "10.0.0.1:9000"),
        ("EMBERMESH_LISTEN_INSECURE", "true"),
        ("EMBERMESH_PROTOCOL_CLOCK_RATE_BOUND", "0.05"),
        ("EMBERMESH_PROTOCOL_QUEUE_PER_ACTION", "12"),
        ("EMBERMESH_ENGINE_MEMORY", "512MiB"),
    ])
    .unwrap();
    assert_eq!(config.node.id, "7");
    assert_eq!(config.join, ["h1:1", "h2:2"]);
    assert_eq!(config.listen.mesh.port(), 9000);
    assert!(config.listen.advertise.is_some() && config.listen.insecure);
    assert_eq!((config.protocol.clock_rate_bound, config.protocol.queue_per_action), (0.05, 12));
    assert_eq!(config.engine.memory, Some(ByteSize::mib(512)));
}

#[test]
fn the_docker_section_is_read_from_file_and_environment_and_checked() {
    let config =
        from_file("[engine]\nkind = \"docker\"\n[docker]\npull = \"never\"\n[docker.images]\npython = \"mine:1\"\n")
            .unwrap();
    assert_eq!((config.engine.kind, config.docker.pull), (EngineKind::Docker, PullPolicy::Never));
    assert_eq!((config.docker.images.python.as_str(), config.docker.images.native), ("mine:1", None));
    let config = from_env(&[
        ("EMBERMESH_DOCKER_SOCKET", "/tmp/d.sock"),
        ("EMBERMESH_DOCKER_START_TIMEOUT", "2s"),
        ("EMBERMESH_DOCKER_IMAGES", "{native = \"n:1\"}"),
    ])
    .unwrap();
    assert_eq!(config.docker.socket, PathBuf::from("/tmp/d.sock"));
    assert_eq!(config.docker.images.native.as_deref(), Some("n:1"));
    let text = from_file("[docker.images]\nruby = \"r\"\n").unwrap_err().to_string();
    assert!(text.contains(":2:") && text.contains("ruby") && text.contains("python"), "{text}");
    let text = from_file("[docker]\npul = \"never\"\n").unwrap_err().to_string();
    assert!(text.contains("did you mean `docker.pull`"), "{text}");
    for (key, change) in [
        ("docker.pull_timeout", (|c| c.docker.pull_timeout = Duration::ZERO) as fn(&mut NodeConfig)),
        ("docker.start_timeout", |c| c.docker.start_timeout = Duration::ZERO),
        ("docker.network", |c| c.docker.network = "a b".to_owned()),
        ("docker.images.native", |c| c.docker.images.native = Some(String::new())),
        ("docker.pids", |c| c.docker.pids = 0),
    ] {
        assert!(problems_of(change).contains(key), "{key}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_near_one() {
    let error = from_file("[node]\nid = \"n1\"\n\n[protocol]\nttl = \"5s\"\nmax_lease_agee = \"1s\"\n").unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(":6: unknown key `protocol.max_lease_agee`: did you mean `protocol.max_lease_age`?"),
        "{text}"
    );
}

#[test]
fn an_unknown_section_and_a_key_in_the_wrong_section_are_named() {
    let text = from_file("[protocl]\nttl = \"5s\"\n").unwrap_err().to_string();
    assert!(text.contains(":1: unknown key `protocl`: did you mean `protocol`?"), "{text}");
    let text = from_file("ttl = \"5s\"\n").unwrap_err().to_string();
    assert!(text.contains("did you mean `protocol.ttl`?"), "{text}");
    let text = from_file("[gossip]\nqqqqqq = 1\n").unwrap_err().to_string();
    assert!(text.contains(":2: unknown key `gossip.qqqqqq`: use one of interval"), "{text}");
}

#[test]
fn a_bad_value_is_named_with_its_line() {
    for (line, expected) in [
        ("ttl = 5", "expected a duration such as \"5s\""),
        ("ttl = \"5 parsecs\"", "`5 parsecs` is not a duration"),
        ("queue_bytes = \"many\"", "`many` is not a size"),
        ("queue_per_action = -1", "-1"),
        ("ttl = ", ""),
    ] {
        let error = from_file(&format!("[protocol]\n{line}\n")).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { line: 2, .. }), "{line}: {error}");
        assert!(error.to_string().contains(expected), "{line}: {error}");
    }
    let text = from_file("[listen]\nmesh = \"here\"\n").unwrap_err().to_string();
    assert!(text.contains(":2:") && text.contains("`here` is not an address"), "{text}");
    let text = from_file("[engine]\nkind = \"podman\"\n").unwrap_err().to_string();
    assert!(text.contains("podman") && text.contains("process"), "{text}");
    let error = from_file("protocol = 3\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { line: 1, .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = NodeConfig::load(Some("/nonexistent/e.toml".as_ref()), std::iter::empty()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/e.toml"), "{error}");
}

#[test]
fn an_unknown_variable_is_named_with_the_near_one() {
    let text = from_env(&[("EMBERMESH_PROTOCOL_TTTL", "5s")]).unwrap_err().to_string();
    assert!(text.contains("EMBERMESH_PROTOCOL_TTTL") && text.contains("`EMBERMESH_PROTOCOL_TTL`"), "{text}");
}

#[test]
fn a_bad_variable_is_named_with_its_text() {
    let text = from_env(&[("EMBERMESH_PROTOCOL_TTL", "soon")]).unwrap_err().to_string();
    assert!(text.contains("EMBERMESH_PROTOCOL_TTL") && text.contains("`soon`"), "{text}");
    let text = from_env(&[("EMBERMESH_PROTOCOL_QUEUE_PER_ACTION", "many")]).unwrap_err().to_string();
    assert!(text.contains("\"many\""), "{text}");
}

#[test]
fn variables_of_the_command_line_and_of_kubernetes_are_left_alone() {
    let config = from_env(&[
        ("EMBERMESH_API", "http://127.0.0.1:3233"),
        ("EMBERMESH_SERVICE_HOST", "10.0.0.1"),
        ("EMBERMESH_SERVICE_PORT_MESH", "7411"),
        ("EMBERMESH_PORT", "tcp://10.0.0.1:7411"),
        ("EMBERMESH_PORT_7411_TCP_ADDR", "10.0.0.1"),
        ("EMBERMESHY", "1"),
    ])
    .unwrap();
    assert_eq!(config, NodeConfig::default());
}

#[test]
fn a_config_without_id_and_folder_tells_both_at_once() {
    let text = NodeConfig::default().validate().unwrap_err().to_string();
    assert!(text.contains("--node-id") && text.contains("--data-dir"), "{text}");
}

#[test]
fn node_ids_that_fit_no_name_are_refused() {
    for id in ["N1", "-a", "a-", "a_b", "a.b", "é", "a b", &"a".repeat(33)] {
        let text = problems_of(|c| c.node.id = id.to_owned());
        assert!(text.contains("node.id"), "{id}: {text}");
    }
    for id in ["a", "7", "n-1", &"a".repeat(32)] {
        let mut config = valid();
        config.node.id = id.to_owned();
        config.validate().unwrap();
    }
}

#[test]
fn margin_and_grace_must_cover_what_clocks_can_differ() {
    let text = problems_of(|c| c.protocol.ttl = Duration::from_secs(60));
    assert!(text.contains("2.1") && text.contains("1.260s"), "{text}");
    let text = problems_of(|c| c.protocol.clock_rate_bound = f64::NAN);
    assert!(text.contains("clock_rate_bound NaN"), "{text}");
}

#[test]
fn the_window_must_give_gossip_three_rounds() {
    let text = problems_of(|c| c.gossip.interval = Duration::from_millis(400));
    assert!(text.contains("protocol.window 1s") && text.contains("1.2s"), "{text}");
}

#[test]
fn an_open_port_needs_insecure_and_is_told_what_that_means() {
    let open = "10.0.0.1:7411".parse().unwrap();
    let text = problems_of(|c| c.listen.mesh = open);
    assert!(
        text.contains("listen.mesh 10.0.0.1:7411")
            && text.contains("run code on this host")
            && text.contains("--insecure")
    );
    assert!(problems_of(|c| c.listen.api = open).contains("listen.api"));
    let mut config = valid();
    (config.listen.mesh, config.listen.insecure) = (open, true);
    config.validate().unwrap();
}

#[test]
fn peers_need_an_address_that_they_can_call() {
    let any = "0.0.0.0:7411".parse().unwrap();
    let text = problems_of(|c| (c.listen.mesh, c.listen.insecure) = (any, true));
    assert!(text.contains("--advertise"), "{text}");
    let text = problems_of(|c| c.listen.advertise = Some(any));
    assert!(text.contains("listen.advertise"), "{text}");
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (key, change) in [
        ("protocol.max_lease_age", (|c| c.protocol.max_lease_age = Duration::from_secs(1)) as fn(&mut NodeConfig)),
        ("protocol.urgent_window", |c| c.protocol.urgent_window = Duration::from_secs(2)),
        ("protocol.ttl", |c| c.protocol.ttl = Duration::ZERO),
        ("protocol.queue_per_action", |c| c.protocol.queue_per_action = 0),
        ("gossip.interval", |c| c.gossip.interval = Duration::ZERO),
        ("limits.memory_min_mb", |c| c.limits.memory_min_mb = 1024),
        ("limits.timeout_max", |c| c.limits.timeout_max = Duration::from_millis(1)),
        ("limits.concurrency_max", |c| c.limits.concurrency_max = 0),
        ("engine.memory", |c| c.engine.memory = Some(ByteSize::mib(64))),
        ("engine.parallel_starts", |c| c.engine.parallel_starts = 0),
        ("listen.mesh and listen.api", |c| c.listen.api = c.listen.mesh),
    ] {
        let text = problems_of(change);
        assert!(text.contains(key), "{key}: {text}");
    }
}

#[test]
fn join_addresses_need_host_and_port() {
    for bad in ["", "h1", "h1:", ":1", "h1:0", "h1:99999", "http://h1:1", "::1:7411", "a b:1"] {
        let text = problems_of(|c| c.join = vec![bad.to_owned()]);
        assert!(text.contains(&format!("`{bad}`")), "{bad}: {text}");
    }
    let mut config = valid();
    config.join = ["h1:7411", "127.0.0.1:1", "[::1]:7411", "node-1.mesh.svc:7411"].map(str::to_owned).to_vec();
    config.validate().unwrap();
}

#[test]
fn without_a_figure_an_agent_takes_half_of_the_cores_but_never_none() {
    let mut config = valid();
    assert_eq!(config.node.threads_or_share(), (host::cores() / 2).max(1));
    config.node.threads = Some(3);
    assert_eq!(config.node.threads_or_share(), 3);
    config.node.threads = Some(0);
    assert!(config.validate().unwrap_err().to_string().contains("node.threads is 0: it must be from 1 to 1024"));
}

#[test]
fn without_a_figure_containers_get_three_quarters_of_the_host() {
    let share = NodeConfig::default().engine.memory_or_share();
    assert_eq!(share.bytes(), host::memory_bytes() / 4 * 3);
    let engine = EngineSection { memory: Some(ByteSize::mib(1)), ..EngineSection::default() };
    assert_eq!(engine.memory_or_share(), ByteSize::mib(1));
}
