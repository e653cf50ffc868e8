//! The demo's steps. Each proves its point by what the actions answered, and fails if it did not happen.

use std::time::Duration;

use anyhow::{bail, ensure};
use embermesh_node::config::DockerSection;
use embermesh_node::containers::docker::Yardstick;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::figures::{Burst, Figures, Samples};
use super::mesh::{Ran, containers};
use crate::local_mesh::{LocalMesh, LocalNode};

const SAMPLES: usize = 300;
/// Calls of one sort in a row.
const TURN: usize = 30;
const COLD_SAMPLES: usize = 20;
const BURST: usize = 200;
const HELD_SLOTS: usize = 8;
/// Tries of what a busy machine can get in the way of.
const TRIES: usize = 3;
/// Times that a container is paused, each after its window of a second.
pub(super) const PAUSES: usize = 10;
/// How long gossip may take to bring an advert.
const ADVERT: Duration = Duration::from_secs(5);

/// One container, and every node's calls served by it.
pub(super) async fn reuse(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let all = tried(mesh, "hello", || call_everywhere(mesh)).await?;
    figures.reused_remotely = all.len() as u64 - 1;
    figures.cold_starts = containers(&all);
    Ok(format!(
        "{} calls at {} nodes, all answered by {} (pid {})",
        all.len(),
        mesh.nodes.len(),
        all[0].proof.container,
        all[0].proof.pid
    ))
}

/// The first call is a cold start, and its container answers the others.
async fn call_everywhere(mesh: &LocalMesh) -> anyhow::Result<Vec<Ran>> {
    let (first, others) = split(mesh)?;
    first.create("hello", "echo", 16).await?;
    let cold = first.invoke("hello", &json!({"from": first.id})).await?;
    ensure!(cold.served == "cold", "the first call was served as {}, not by a cold start", cold.served);
    let mut all = vec![cold.clone()];
    for node in others {
        node.knows("hello").await?;
        let ran = until_remote(node, "hello", &json!({})).await?;
        ensure!(
            ran.proof.container == cold.proof.container && ran.proof.pid == cold.proof.pid,
            "{} was served by {} (pid {}), not by {}'s container {}",
            node.id,
            ran.proof.container,
            ran.proof.pid,
            first.id,
            cold.proof.container
        );
        all.push(ran);
    }
    Ok(all)
}

/// Local warm, remote on a new lease, remote on a held lease, cold: side by side.
pub(super) async fn latencies(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let (first, others) = split(mesh)?;
    let Some(second) = others.first() else { bail!("there is no second node") };
    let params = json!({});
    let mut local = Samples::default();
    let mut held = Samples::default();
    let mut fresh = Samples::default();
    let mut echo = Samples::default();
    let mut bare_echo = super::echo::Yardstick::start().await?;
    // In turns, so that whatever else the machine does falls on all of them alike.
    for _ in 0..SAMPLES / TURN {
        for _ in 0..TURN {
            take(&mut local, first.invoke("hello", &params).await?, "local")?;
        }
        for _ in 0..TURN {
            // A lease grows old and is made anew now and then: such a call is no sample of a held one.
            let ran = second.invoke("hello", &params).await?;
            if ran.served != "leased_new" {
                take(&mut held, ran, "leased")?;
            }
        }
        for _ in 0..TURN {
            second.release("hello").await?;
            // The release is on its way to the owner meanwhile: it is not what is measured.
            for _ in 0..2 {
                first.invoke("hello", &params).await?;
            }
            take(&mut fresh, until_remote(second, "hello", &params).await?, "leased_new")?;
        }
        bare_echo.measure(TURN, &mut echo).await?;
    }
    bare_echo.stop().await?;
    let mut cold = Samples::default();
    let mut bare = Samples::default();
    let mut yardstick = match mesh.docker {
        true => Some(Yardstick::new(&DockerSection::default().socket, "/proc/self/exe", &mesh.cluster).await?),
        false => None,
    };
    for n in 0..COLD_SAMPLES {
        if let Some(yardstick) = &mut yardstick {
            bare.add(yardstick.create_and_start().await?);
        }
        let name = format!("cold-{n}");
        first.create(&name, "echo", 1).await?;
        take(&mut cold, first.invoke(&name, &params).await?, "cold")?;
        first.delete(&name).await?;
    }
    figures.samples = local.len().min(held.len()).min(fresh.len());
    figures.cold_samples = cold.len();
    ensure!(figures.samples >= 200, "only {} samples could be taken", figures.samples);
    figures.local_warm_us = local.in_us();
    figures.remote_held_lease_us = held.in_us();
    figures.remote_new_lease_us = fresh.in_us();
    figures.cold_start_ms = cold.in_ms();
    figures.grpc_echo_us = echo.in_us();
    figures.bare_start_ms = yardstick.map(|_| bare.in_ms());
    Ok(format!(
        "p50: local {:.0} µs, held lease {:.0} µs, new lease {:.0} µs, cold start {:.1} ms",
        figures.local_warm_us.p50,
        figures.remote_held_lease_us.p50,
        figures.remote_new_lease_us.p50,
        figures.cold_start_ms.p50
    ))
}

/// Paused containers, called.
pub(super) async fn resumed(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let (first, _) = split(mesh)?;
    first.create("paused", "echo", 1).await?;
    let warm = first.invoke("paused", &json!({})).await?.proof.container;
    let mut samples = Samples::default();
    for _ in 0..PAUSES {
        first.pause(&warm).await?;
        let ran = first.invoke("paused", &json!({})).await?;
        ensure!(ran.proof.container == warm, "{} answered instead of the paused {warm}", ran.proof.container);
        take(&mut samples, ran, "resumed")?;
    }
    figures.resumed_ms = Some(samples.in_ms());
    Ok(format!("p50 {:.1} ms from the call to the answer of a paused container", samples.in_ms().p50))
}

/// Many at once, on an action that allows it and on one that doesn't.
pub(super) async fn concurrency(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let (first, _) = split(mesh)?;
    let params = json!({"ms": 50});
    first.create("together", "sleep", BURST as u32).await?;
    first.create("alone", "sleep", 1).await?;
    first.invoke("together", &params).await?;
    first.invoke("alone", &params).await?;
    for _ in 0..TRIES {
        figures.concurrent = burst(first, "together", &params).await?;
        if figures.concurrent.peak > BURST as u64 / 2 {
            break;
        }
    }
    ensure!(
        figures.concurrent.containers == 1 && figures.concurrent.peak > BURST as u64 / 2,
        "{BURST} activations took {} containers with at most {} at once",
        figures.concurrent.containers,
        figures.concurrent.peak
    );
    figures.sequential = burst(first, "alone", &params).await?;
    ensure!(figures.sequential.peak == 1, "{} at once in a container that allows one", figures.sequential.peak);
    first.delete("alone").await?;
    // An engine that is busy with them would start the next step's container late.
    first.rid_of("alone").await?;
    Ok(format!(
        "{BURST} at once: {:.0} ms in 1 container ({} together); one at a time: {:.0} ms in {} containers",
        figures.concurrent.took_ms, figures.concurrent.peak, figures.sequential.took_ms, figures.sequential.containers
    ))
}

/// First calls at all nodes in the same moment.
pub(super) async fn herd(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let (first, _) = split(mesh)?;
    first.create("herd", "echo", 1).await?;
    for node in &mesh.nodes {
        node.knows("herd").await?;
    }
    let params = json!({});
    let ran = try_join_all(mesh.nodes.iter().map(|node| node.invoke("herd", &params))).await?;
    figures.herd_cold_starts = containers(&ran);
    ensure!(
        figures.herd_cold_starts < mesh.nodes.len() as u64,
        "each of the {} nodes started a container of its own",
        mesh.nodes.len()
    );
    Ok(format!("{} first calls at once took {} container(s)", ran.len(), figures.herd_cold_starts))
}

/// A removal that a peer in need vetoes, and one that nobody minds.
pub(super) async fn intents(mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let (first, _) = split(mesh)?;
    let params = json!({});
    first.create("unwanted", "echo", 1).await?;
    let unwanted = first.invoke("unwanted", &params).await?.proof.container;
    // A forecast ages, on a busy machine by the time that it is asked for.
    let reason = tried(mesh, "wanted", || remove_wanted(mesh)).await?;
    figures.vetoed += 1;
    let committed = first.remove(&unwanted).await?;
    ensure!(
        committed.outcome == "committed",
        "the removal of an unwanted container ended as {}: {}",
        committed.outcome,
        committed.reason
    );
    let again = first.invoke("unwanted", &params).await?;
    ensure!(again.proof.container != unwanted, "the removed container still answers");
    figures.committed += 1;
    Ok(format!("{reason}; the other removal committed"))
}

/// The removal of a container that a peer calls again and again: why it was vetoed.
async fn remove_wanted(mesh: &LocalMesh) -> anyhow::Result<String> {
    let (first, others) = split(mesh)?;
    let Some(second) = others.first() else { bail!("there is no second node") };
    let params = json!({});
    first.create("wanted", "echo", 1).await?;
    let wanted = first.invoke("wanted", &params).await?.proof.container;
    second.knows("wanted").await?;
    until_remote(second, "wanted", &params).await?;
    // The second node's steady calls are the demand that its forecast rests on.
    for _ in 0..6 {
        sleep(Duration::from_millis(100)).await;
        second.invoke("wanted", &params).await?;
    }
    second.release("wanted").await?;
    let removal = first.remove(&wanted).await?;
    ensure!(
        removal.outcome == "vetoed",
        "the removal of a wanted container ended as {}: {}",
        removal.outcome,
        removal.reason
    );
    let after = second.invoke("wanted", &params).await?;
    ensure!(after.proof.container == wanted, "the vetoed container was gone: {} answered", after.proof.container);
    Ok(removal.reason)
}

/// A holder dies with all slots of a container leased; they are usable again.
pub(super) async fn recovery(mesh: &mut LocalMesh, figures: &mut Figures) -> anyhow::Result<String> {
    let last = mesh.nodes.len() - 1;
    let params = json!({"ms": 150});
    let lost = tried(mesh, "slots", || hold_slots(mesh, &params)).await?;
    mesh.kill(last).await?;
    let killed = Instant::now();
    let (first, _) = split(mesh)?;
    loop {
        let left = leased(first, "slots").await?;
        if left == 0 {
            break;
        }
        ensure!(killed.elapsed() < Duration::from_secs(15), "{left} slots are still leased to a dead node");
        sleep(Duration::from_millis(20)).await;
    }
    figures.recovered_after_ms = u64::try_from(killed.elapsed().as_millis()).unwrap_or(u64::MAX);
    let ran = try_join_all((0..HELD_SLOTS).map(|_| first.invoke("slots", &params))).await?;
    let peak = ran.iter().map(|r| r.proof.peak).max().unwrap_or(0);
    ensure!(
        containers(&ran) == 1 && peak == HELD_SLOTS as u64,
        "{HELD_SLOTS} at once took {} containers, at most {peak} together",
        containers(&ran)
    );
    figures.slots_recovered = peak.min(lost.into());
    Ok(format!(
        "{} slots of a killed holder usable again after {} ms",
        figures.slots_recovered, figures.recovered_after_ms
    ))
}

/// The last node comes to have slots of a container of the first on lease: how many.
async fn hold_slots(mesh: &LocalMesh, params: &Value) -> anyhow::Result<u32> {
    let (first, others) = split(mesh)?;
    let Some(holder) = others.last() else { bail!("there is no second node") };
    first.create("slots", "sleep", HELD_SLOTS as u32).await?;
    let warm = first.invoke("slots", params).await?;
    holder.knows("slots").await?;
    until_remote(holder, "slots", params).await?;
    // On a busy machine the first calls may have ended before the last came: half of the slots will do.
    let given_up = Instant::now() + Duration::from_secs(5);
    loop {
        let ran = try_join_all((0..HELD_SLOTS).map(|_| holder.invoke("slots", params))).await?;
        let there = ran.iter().filter(|r| r.proof.container == warm.proof.container).count();
        let leased = leased(first, "slots").await?;
        if there >= HELD_SLOTS / 2 && leased as usize >= HELD_SLOTS / 2 {
            return Ok(leased);
        }
        ensure!(
            Instant::now() < given_up,
            "the holder has only {leased} slots on lease; {there} of its calls were served by {}",
            warm.proof.container
        );
    }
}

/// Slots of an action that a node has granted to peers.
async fn leased(node: &LocalNode, name: &str) -> anyhow::Result<u32> {
    let granted = node.leases().await?.granted;
    Ok(granted.iter().filter(|lease| lease.action == name).map(|lease| lease.slots).sum())
}

/// Does a step, up to three times in all, each on a new container of its action, where a busy machine gets in its way: a
/// node that hears late of a container starts one of its own, and uses that.
async fn tried<T>(mesh: &LocalMesh, action: &str, step: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (first, _) = split(mesh)?;
    for _ in 1..TRIES {
        let failed = match step().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        tracing::info!(action, error = %failed, "a step of the demo is done again");
        if first.delete(action).await.is_err() {
            return Err(failed);
        }
        for node in &mesh.nodes {
            node.rid_of(action).await?;
        }
    }
    step().await
}

/// The first node, and the others.
fn split(mesh: &LocalMesh) -> anyhow::Result<(&LocalNode, &[LocalNode])> {
    match mesh.nodes.split_first() {
        Some(split) => Ok(split),
        None => bail!("the mesh has no node"),
    }
}

/// Invokes until the node has heard that another has a free slot: adverts take their time.
async fn until_remote(node: &LocalNode, name: &str, params: &Value) -> anyhow::Result<Ran> {
    let began = Instant::now();
    loop {
        let ran = node.invoke(name, params).await?;
        if ran.served.starts_with("leased") {
            return Ok(ran);
        }
        ensure!(began.elapsed() < ADVERT, "{} never served {name} by a lease, but as {}", node.id, ran.served);
        sleep(Duration::from_millis(50)).await;
    }
}

fn take(samples: &mut Samples, ran: Ran, served: &str) -> anyhow::Result<()> {
    ensure!(ran.served == served, "a call was served as `{}` instead of `{served}`", ran.served);
    samples.add(ran.took);
    Ok(())
}

async fn burst(node: &LocalNode, name: &str, params: &Value) -> anyhow::Result<Burst> {
    let began = Instant::now();
    let ran = try_join_all((0..BURST).map(|_| node.invoke(name, params))).await?;
    Ok(Burst {
        activations: ran.len() as u64,
        containers: containers(&ran),
        peak: ran.iter().map(|r| r.proof.peak).max().unwrap_or(0),
        took_ms: (began.elapsed().as_secs_f64() * 1e4).round() / 10.0,
    })
}
