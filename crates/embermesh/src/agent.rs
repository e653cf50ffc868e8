//! `embermesh agent`: one node, from its configuration to its clean end.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use embermesh_node::blocking::Blocking;
use embermesh_node::clock::{Clock, wall_us};
use embermesh_node::config::{ByteSize, DockerSection, EngineKind, NodeConfig, PullPolicy};
use embermesh_node::containers::Engine;
use embermesh_node::containers::docker::{DockerEngine, DockerEngineConfig, Images, Pull};
use embermesh_node::containers::process::{ProcessEngine, ProcessEngineConfig};
use embermesh_node::data_dir::DataDir;
use embermesh_node::faults::Faults;
use embermesh_node::gossip::UdpDatagrams;
use embermesh_node::net::HostNet;
use embermesh_node::store::RedbStore;
use embermesh_node::{Leaving, Node, Parts, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::{self, AgentArgs, LogFormat};
use crate::service;

/// Exit code for a command line or a configuration that can't be.
const USAGE: u8 = 2;
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Exit code of an agent whose id is another's: one that answers for it already, or a newer one.
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
    let threads = config.node.threads_or_share();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime could be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(config, &args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let taken = matches!(error.downcast_ref(), Some(StartError::Taken(_)));
            if taken { ExitCode::from(REPLACED) } else { ExitCode::FAILURE }
        }
    }
}

async fn serve(config: NodeConfig, args: &AgentArgs) -> anyhow::Result<ExitCode> {
    // Before anything is started: a signal that comes during the start must not be lost.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be watched")?;
    let node = tokio::select! {
        node = start(config, args) => node?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    tracing::info!(
        node = %node.id(), epoch = node.epoch().0, mesh = %node.mesh_addr(), api = %node.api_addr(),
        "the node is up"
    );
    service::ready(&node);
    let why = tokio::select! {
        () = service::watchdog(node.clone()) => None,
        why = node.left() => Some(why),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = stdin_closes(args.until_stdin_closes) => None,
    };
    tracing::info!(?why, "the node goes down; a second signal ends it at once");
    service::stopping();
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

async fn start(config: NodeConfig, args: &AgentArgs) -> anyhow::Result<Node> {
    let data_dir = DataDir::open(&config.node.data_dir, &config.node.id, &config.node.cluster)?;
    let store = RedbStore::open(data_dir.store_file())?;
    let engine: Arc<dyn Engine> = match config.engine.kind {
        EngineKind::Process => Arc::new(process_engine(&config, &data_dir)?),
        EngineKind::Docker => Arc::new(docker_engine(&config, &data_dir).await?),
    };
    let (clock, faults) = clock_and_faults(args, &config.node.id);
    let parts = Parts {
        engine,
        store: Arc::new(store),
        net: Arc::new(HostNet),
        datagrams: Arc::new(UdpDatagrams),
        clock,
        data_dir,
        faults,
        blocking: Blocking::Threads,
        history: None,
    };
    Ok(Node::start(config, parts).await?)
}

fn clock_and_faults(args: &AgentArgs, id: &str) -> (Clock, Option<Arc<Faults>>) {
    if !args.enable_fault_injection {
        return (Clock::default(), None);
    }
    let seed = args.fault_seed.unwrap_or_else(wall_us);
    tracing::warn!(
        seed,
        "FAULT INJECTION IS ENABLED: whoever reaches the API can cut this node off, bend its clock and stall its engine"
    );
    let clock = Clock::adjustable();
    // All agents of a run are given one seed: each throws dice of its own.
    let own = id.bytes().fold(seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    (clock.clone(), Some(Faults::new(clock, own)))
}

fn process_engine(config: &NodeConfig, data_dir: &DataDir) -> anyhow::Result<ProcessEngine> {
    let engine = ProcessEngine::new(ProcessEngineConfig::new(
        OWN_PROGRAM,
        data_dir.containers_dir(),
        config.node.id.clone(),
        format!("http://{}", config.listen.api),
    ))
    .context("the process engine can't run here")?;
    tracing::info!(isolation = %engine.isolation(), "containers are processes of this host");
    Ok(engine)
}

async fn docker_engine(config: &NodeConfig, data_dir: &DataDir) -> anyhow::Result<DockerEngine> {
    let DockerSection { socket, pull, pull_timeout, start_timeout, network, pids, images } = config.docker.clone();
    let mut docker = DockerEngineConfig::new(
        OWN_PROGRAM,
        data_dir.containers_dir(),
        data_dir.instance().to_string(),
        config.node.cluster.clone(),
        config.node.id.clone(),
        format!("http://{}", config.listen.api),
    );
    docker.socket = socket;
    docker.images = Images { native: images.native, python: images.python, nodejs: images.nodejs };
    docker.pull = match pull {
        PullPolicy::Missing => Pull::Missing,
        PullPolicy::Never => Pull::Never,
        PullPolicy::Always => Pull::Always,
    };
    (docker.pull_timeout, docker.start_timeout) = (pull_timeout, start_timeout);
    docker.parallel_starts = config.engine.parallel_starts as usize;
    (docker.network, docker.max_processes) = (network, pids.into());
    let engine = DockerEngine::connect(docker).await.context("the Docker engine can't be used")?;
    tracing::info!(socket = %config.docker.socket.display(), "containers are the Docker engine's");
    Ok(engine)
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
    if args.threads.is_some() {
        config.node.threads = args.threads;
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
    if let Some(engine) = args.engine {
        config.engine.kind = match engine {
            cli::Engine::Process => EngineKind::Process,
            cli::Engine::Docker => EngineKind::Docker,
        };
    }
    config.join.extend(args.join.iter().cloned());
    config.listen.insecure |= args.insecure;
    config.validate()?;
    Ok(config)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EMBERMESH_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,chitchat=warn,h2=warn,hyper=warn,tonic=warn"));
    // A line that can't be written is lost: to tell of that on stderr as well would panic in whoever had it to say.
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => logs.json().init(),
    }
}
