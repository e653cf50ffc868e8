//! One run, from the mesh's start to its end: faults and calls side by side, then the wait until all is well again, and
//! a last look at everything. What was seen is written down, not judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use embermesh_node::clock::wall_ms;
use embermesh_node::config::DockerSection;
use embermesh_node::views::{Containers as ContainersView, Leases, Members, Status};
use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::evidence::{self, Evidence, Run};
use super::host;
use super::nemesis::Nemesis;
use super::progress::Progress;
use super::relay::Relay;
use super::scenario::{Containers, Kind, Scenario};
use super::traffic::{self, Caller, LONGEST, Traffic};
use crate::local_mesh::{LocalMesh, LocalNode, Setup};

/// How long it may take to heal before that is given up; what is allowed is the scenario's to say.
const HEALS_WITHIN: Duration = Duration::from_secs(60);
const AT_REST_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For an agent to say what it has.
const ASKED: Duration = Duration::from_secs(2);
/// Lines of logs that are quoted.
const MOST_PANICS: usize = 20;

/// Fills the folder with what is seen. An error means that nothing can be judged, and nothing is left running.
pub(super) async fn run(scenario: Scenario, left_out: BTreeMap<Kind, String>, folder: &Path) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let small_disks: Vec<String> =
        scenario.faults.iter().filter(|f| f.kind == Kind::Disk).flat_map(|f| f.nodes.clone()).collect();
    if !small_disks.is_empty() {
        host::keep_mounts_private()?;
    }
    for below in [evidence::HISTORIES, evidence::LOGS] {
        std::fs::create_dir(folder.join(below)).context("the report can't be written")?;
    }
    std::fs::write(folder.join(evidence::NOTES), "").context("the report can't be written")?;
    let settings = folder.join("agents.toml");
    std::fs::write(&settings, toml::to_string(&scenario.agent_settings())?).context("the report can't be written")?;
    let mut mesh = LocalMesh::new(Setup {
        name: "chaos",
        nodes: scenario.mesh.nodes,
        docker: scenario.mesh.engine == Containers::Docker,
        memory: scenario.mesh.memory.clone(),
        args: vec![
            "--enable-fault-injection".into(),
            "--fault-seed".into(),
            scenario.seed.to_string().into(),
            "--config".into(),
            settings.into(),
        ],
        histories: Some(folder.join(evidence::HISTORIES)),
        kept: false,
        bare: true,
    })
    .await?;
    let mut mounted = Vec::new();
    let done = {
        let work = async {
            for node in mesh.nodes.iter().filter(|node| small_disks.contains(&node.id)) {
                host::mount_small_disk(&node.data_dir, mesh.docker)?;
                mounted.push(node.data_dir.clone());
            }
            let relays = if mesh.docker { stand_before_docker(&mut mesh)? } else { Vec::new() };
            Box::pin(observe(&mut mesh, scenario, left_out, relays, folder)).await
        };
        tokio::select! {
            done = work => done,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted: nothing was judged, and nothing is left")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated: nothing was judged, and nothing is left")),
        }
    };
    if done.is_err() {
        mesh.abort().await;
        host::end_leftovers(mesh.folder()).await;
    }
    for disk in mounted {
        host::unmount(&disk)?;
    }
    done
}

/// Gives each agent a socket of its own to Docker.
fn stand_before_docker(mesh: &mut LocalMesh) -> anyhow::Result<Vec<Relay>> {
    let (folder, engine) = (mesh.folder().to_owned(), DockerSection::default().socket);
    let relays = mesh.nodes.iter_mut().map(|node| {
        let relay = Relay::start(folder.join(format!("docker-{}.sock", node.id)), &engine)?;
        node.engine_socket = Some(relay.path.clone());
        Ok(relay)
    });
    relays.collect()
}

async fn observe(
    mesh: &mut LocalMesh,
    scenario: Scenario,
    left_out: BTreeMap<Kind, String>,
    relays: Vec<Relay>,
    folder: &Path,
) -> anyhow::Result<()> {
    let forming = Progress::new(Instant::now());
    forming.doing("the mesh forms");
    mesh.start().await?;
    traffic::prepare(mesh, &scenario.workload.actions).await?;
    drop(forming);
    let began = Instant::now();
    let progress = Progress::new(began);
    progress.say("the mesh has formed; calls begin");
    let mut run = Run { began_unix_ms: wall_ms(), nodes: scenario.node_ids(), left_out, ..Run::default() };
    let mut traffic = Traffic::new(mesh, &scenario, folder.join(evidence::NOTES), began);
    let caller = traffic.handle();
    // Ends with this value, whatever happens.
    let mut beside = JoinSet::new();
    beside.spawn(progress.clone().follow(caller.clone(), scenario.duration.0));
    let mut flowing = JoinSet::new();
    flowing.spawn(async move {
        traffic.flow().await;
        traffic.settle().await;
    });

    let nodes = mesh.nodes.iter().map(|node| (node.id.clone(), node.mesh.to_string())).collect();
    let mut nemesis = Nemesis::new(began, scenario.faults.clone(), nodes, relays, scenario.seed);
    nemesis.rage(mesh, &|line: &str| progress.say(line)).await;
    run.faults_ended_ms = since(began);
    let unserved = Mutex::new(BTreeSet::new());
    match timeout(HEALS_WITHIN, heal(mesh, &mut nemesis, &caller, &unserved)).await {
        Ok(()) => {
            run.healed_ms = Some(since(began));
            progress.say(&format!("healed {} ms after the last fault", since(began) - run.faults_ended_ms));
        }
        Err(_) => {
            run.not_healed = not_whole(mesh).await;
            let unserved = unserved.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter();
            let node = |at: usize| mesh.nodes[at].id.as_str();
            run.not_healed.extend(unserved.map(|(at, action)| {
                format!("no call of {} succeeds at {}", scenario.workload.actions[action].name, node(at))
            }));
        }
    }
    sleep(scenario.duration.0.saturating_sub(began.elapsed())).await;
    caller.stop();
    progress.say("no more calls; waiting for those under way");
    timeout(LONGEST * 2, flowing.join_next()).await.ok();
    run.calls_ended_ms = since(began);
    let rested = Instant::now();
    loop {
        run.not_at_rest = busy(mesh).await;
        if run.not_at_rest.is_empty() {
            run.at_rest_ms = Some(since(began));
            break;
        }
        if rested.elapsed() > AT_REST_WITHIN {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let records = traffic::records(mesh).await?;
    progress.say("the mesh ends");
    let stopped = mesh.stop().await;
    // Not before: its agents may need what it has between them and Docker.
    let (faults, astray) = nemesis.into_made();
    run.agents_astray = astray;
    match stopped {
        Ok(0) => {}
        Ok(left) => run.left_behind.push(format!("{left} containers of the Docker engine")),
        Err(error) => run.agents_astray.push(format!("{error:#}")),
    }
    run.left_behind.extend(host::end_leftovers(mesh.folder()).await);
    run.held_back = caller.held_back();
    run.panics = keep_logs(mesh, folder)?;
    let requests = caller.take_done();
    let mut seen = Evidence { run, scenario, faults, requests, records, notes: Vec::new() };
    seen.write(folder)?;
    Ok(())
}

/// Waits until every agent is ready and knows every other, and every action is served at every node; those that are not
/// served yet are in `unserved` meanwhile.
async fn heal(
    mesh: &mut LocalMesh,
    nemesis: &mut Nemesis,
    caller: &Caller,
    unserved: &Mutex<BTreeSet<(usize, usize)>>,
) {
    let unserved = || unserved.lock().unwrap_or_else(PoisonError::into_inner);
    while !nemesis.is_over(mesh).await || !not_whole(mesh).await.is_empty() {
        sleep(LOOK_EVERY).await;
    }
    unserved().extend((0..mesh.nodes.len()).flat_map(|at| (0..caller.actions()).map(move |action| (at, action))));
    let probes: Vec<(usize, usize)> = unserved().iter().copied().collect();
    let served = probes.into_iter().map(async |(at, action)| {
        while !caller.probe(at, action).await {
            sleep(LOOK_EVERY).await;
        }
        unserved().remove(&(at, action));
    });
    join_all(served).await;
}

/// Nodes that are not ready, or don't know all others.
async fn not_whole(mesh: &LocalMesh) -> Vec<String> {
    let expected = mesh.nodes.len();
    let asked = mesh.nodes.iter().map(|node| async move {
        let Ok(status) = ask::<Status>(node, "/mesh/v1/status").await else {
            return Some(format!("{} does not answer", node.id));
        };
        let members = ask::<Members>(node, "/mesh/v1/members").await.map(|m| m.members).unwrap_or_default();
        let live = members.iter().filter(|m| m.state == "live").count();
        if !status.ready {
            return Some(format!("{} is not ready: {}", node.id, status.not_ready.join(", ")));
        }
        (live != expected).then(|| format!("{} counts {live} of {expected} nodes as live", node.id))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Leases, runs and waiting calls.
async fn busy(mesh: &LocalMesh) -> Vec<String> {
    let asked = mesh.nodes.iter().map(|node| async move {
        let looked = async {
            let status: Status = ask(node, "/mesh/v1/status").await?;
            let leases: Leases = ask(node, "/mesh/v1/leases").await?;
            let containers: ContainersView = ask(node, "/mesh/v1/containers").await?;
            let mut found = Vec::new();
            for (what, count) in [("waiting", status.queued), ("running", status.running), ("owed", status.owed)] {
                if count > 0 {
                    found.push(format!("{count} {what} at {}", node.id));
                }
            }
            let leases = leases.granted.iter().chain(&leases.held);
            found.extend(leases.map(|lease| format!("lease {} at {}", lease.lease_id, node.id)));
            let taken = containers.containers.iter().filter(|c| c.busy + c.leased > 0);
            found.extend(taken.map(|c| format!("{} with {} busy and {} leased", c.container_id, c.busy, c.leased)));
            anyhow::Ok(found)
        };
        looked.await.unwrap_or_else(|error| vec![format!("{} does not tell: {error:#}", node.id)])
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn ask<T: serde::de::DeserializeOwned>(node: &LocalNode, path: &str) -> anyhow::Result<T> {
    let answer = node.client.send(hyper::Method::GET, path, None::<&()>, ASKED).await?.ok()?;
    Ok(answer.parse()?)
}

/// Copies the logs; the lines in which an agent panicked.
fn keep_logs(mesh: &LocalMesh, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut panics = Vec::new();
    for (at, node) in mesh.nodes.iter().enumerate() {
        let text = std::fs::read(mesh.log_file(at)).context("an agent's log can't be read")?;
        let kept = folder.join(evidence::LOGS).join(format!("{}.log", node.id));
        std::fs::write(kept, &text).context("the report can't be written")?;
        let text = String::from_utf8_lossy(&text);
        let panicked = text.lines().filter(|line| line.contains("panicked at"));
        panics.extend(panicked.map(|line| format!("{}: {line}", node.id)).take(MOST_PANICS));
    }
    Ok(panics)
}

fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
