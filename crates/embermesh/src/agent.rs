//! `embermesh agent`: one node, from its configuration to its clean end.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use embermesh_node::clock::Clock;
use embermesh_node::config::{ByteSize, NodeConfig};
use embermesh_node::containers::process::{ProcessEngine, ProcessEngineConfig};
use embermesh_node::data_dir::DataDir;
use embermesh_node::gossip::UdpDatagrams;
use embermesh_node::net::HostNet;
use embermesh_node::store::RedbStore;
use embermesh_node::{Leaving, Node, Parts};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::{AgentArgs, LogFormat};

/// Exit code for a command line or a configuration that can't be.
const USAGE: u8 = 2;
/// Exit code of an agent that found a newer one with its id.
const REPLACED: u8 = 4;

pub(crate) fn run(args: AgentArgs) -> ExitCode {
    log_to_stderr(args.log_format.unwrap_or(LogFormat::Text));
    let config = match configuration(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime could be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(config, args.until_stdin_closes));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: NodeConfig, until_stdin_closes: bool) -> anyhow::Result<ExitCode> {
    // Before anything is started: a signal that comes during the start must not be lost.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be watched")?;
    let node = tokio::select! {
        node = start(config) => node?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    tracing::info!(
        node = %node.id(), epoch = node.epoch().0, mesh = %node.mesh_addr(), api = %node.api_addr(),
        "the node is up"
    );
    let why = tokio::select! {
        why = node.left() => Some(why),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = stdin_closes(until_stdin_closes) => None,
    };
    tracing::info!(?why, "the node goes down; a second signal ends it at once");
    tokio::select! {
        () = node.shutdown() => {}
        _ = terminate.recv() => tracing::warn!("ended at once"),
        _ = interrupt.recv() => tracing::warn!("ended at once"),
    }
    match why {
        Some(Leaving::Replaced { by_epoch, at }) => {
            eprintln!(
                "error: another agent at {at} answers for this node's id under the newer epoch {by_epoch}; \
                 this one has stopped. Give each agent an id of its own with --node-id."
            );
            Ok(ExitCode::from(REPLACED))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A thread of its own: reading standard input can't be cancelled.
async fn stdin_closes(watched: bool) {
    let (closed, when) = tokio::sync::oneshot::channel();
    if watched {
        std::thread::spawn(move || {
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
            closed.send(()).ok();
        });
        when.await.ok();
    } else {
        std::future::pending::<()>().await;
    }
}

async fn start(config: NodeConfig) -> anyhow::Result<Node> {
    let data_dir = DataDir::open(&config.node.data_dir, &config.node.id, &config.node.cluster)?;
    let store = RedbStore::open(data_dir.store_file())?;
    let engine = ProcessEngine::new(ProcessEngineConfig::new(
        "/proc/self/exe",
        data_dir.containers_dir(),
        config.node.id.clone(),
        format!("http://{}", config.listen.api),
    ))
    .context("the process engine can't run here")?;
    tracing::info!(isolation = %engine.isolation(), "containers are processes of this host");
    let parts = Parts {
        engine: Arc::new(engine),
        store: Arc::new(store),
        net: Arc::new(HostNet),
        datagrams: Arc::new(UdpDatagrams),
        clock: Clock::default(),
        data_dir,
    };
    Ok(Node::start(config, parts).await?)
}

/// Flag over environment over file over default.
fn configuration(args: &AgentArgs) -> anyhow::Result<NodeConfig> {
    let mut config = NodeConfig::load(args.config.as_deref(), std::env::vars())?;
    if let Some(id) = &args.node_id {
        config.node.id.clone_from(id);
    }
    if let Some(data_dir) = &args.data_dir {
        config.node.data_dir.clone_from(data_dir);
    }
    if let Some(cluster) = &args.cluster {
        config.node.cluster.clone_from(cluster);
    }
    if let Some(history) = &args.history {
        config.node.history = Some(history.clone());
    }
    if let Some(mesh) = args.mesh {
        config.listen.mesh = mesh;
    }
    if let Some(api) = &args.api {
        config.listen.api = api.parse().with_context(|| format!("--api `{api}` is no address"))?;
    }
    if let Some(advertise) = args.advertise {
        config.listen.advertise = Some(advertise);
    }
    if let Some(memory_mb) = args.memory_mb {
        config.engine.memory = Some(ByteSize(memory_mb << 20));
    }
    config.join.extend(args.join.iter().cloned());
    config.listen.insecure |= args.insecure;
    config.validate()?;
    Ok(config)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EMBERMESH_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,chitchat=warn,h2=warn,hyper=warn,tonic=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => logs.json().init(),
    }
}
