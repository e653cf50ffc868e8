//! `embermesh demo`: a mesh of real agents on this machine, and each of its promises at work.

pub(crate) mod echo;
mod figures;
mod mesh;
mod steps;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::DemoArgs;
use crate::local_mesh::LocalMesh;
use crate::output::table;

use figures::{Figures, Quantiles};

pub(crate) fn run(args: DemoArgs) -> ExitCode {
    // One thread: a client that waits for a thread of its own would measure that.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("no runtime could be made").and_then(|r| r.block_on(show(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn show(args: &DemoArgs) -> anyhow::Result<()> {
    // Before anything is started, so that nothing is left whenever it is interrupted.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let progress = Progress { quiet: args.json };
    let step = progress.begin("start", &format!("{} agents on loopback, joined by gossip", args.nodes));
    let mut mesh = tokio::select! {
        started = mesh::start(args.nodes, args.docker, args.keep) => started?,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    };
    step.end("the mesh has formed");
    let engine = if args.docker { "docker" } else { "process" };
    let mut figures = Figures { nodes: args.nodes, engine, ..Figures::default() };
    let shown = tokio::select! {
        shown = all_steps(&mut mesh, &mut figures, &progress) => shown,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if shown.is_ok() && args.keep {
        mesh.revive().await?;
        let how = mesh.keep();
        print_figures(args, &figures)?;
        // Not among the figures that a program reads.
        eprintln!("\n{how}");
        return Ok(());
    }
    let step = progress.begin("stop", "the agents leave");
    let stopped = mesh.stop().await;
    step.end("nothing is left running");
    shown?;
    stopped?;
    print_figures(args, &figures)
}

async fn all_steps(mesh: &mut LocalMesh, figures: &mut Figures, progress: &Progress) -> anyhow::Result<()> {
    let step = progress.begin("reuse", "one cold start, then calls at every node");
    step.end(&steps::reuse(mesh, figures).await.context("step `reuse`")?);
    let step = progress.begin("latency", "local, on leases, cold, and a bare gRPC echo");
    step.end(&steps::latencies(mesh, figures).await.context("step `latency`")?);
    if mesh.docker {
        let step = progress.begin("pause", "first answers of paused containers");
        step.end(&steps::resumed(mesh, figures).await.context("step `pause`")?);
    }
    let step = progress.begin("concurrency", "200 activations at once");
    step.end(&steps::concurrency(mesh, figures).await.context("step `concurrency`")?);
    let step = progress.begin("herd", "first calls at all nodes in the same moment");
    step.end(&steps::herd(mesh, figures).await.context("step `herd`")?);
    let step = progress.begin("intents", "a removal with a veto, and one without");
    step.end(&steps::intents(mesh, figures).await.context("step `intents`")?);
    let step = progress.begin("recovery", "SIGKILL for a node that holds slots");
    step.end(&steps::recovery(mesh, figures).await.context("step `recovery`")?);
    Ok(())
}

fn print_figures(args: &DemoArgs, figures: &Figures) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(figures)?);
        return Ok(());
    }
    let quantiles = |name: &str, q: Quantiles, unit: &str, note: String| {
        vec![name.to_owned(), format!("{:.1} {unit}", q.p50), format!("{:.1} {unit}", q.p99), note]
    };
    let samples = format!("{} samples", figures.samples);
    let mut times = vec![
        quantiles("bare gRPC echo, 1 KB", figures.grpc_echo_us, "µs", "the yardstick".to_owned()),
        quantiles("local warm, over HTTP", figures.local_warm_us, "µs", samples.clone()),
        quantiles("remote, held lease", figures.remote_held_lease_us, "µs", samples.clone()),
        quantiles("remote, new lease", figures.remote_new_lease_us, "µs", samples),
        quantiles("cold start", figures.cold_start_ms, "ms", format!("{} samples", figures.cold_samples)),
    ];
    if let Some(bare) = figures.bare_start_ms {
        times.push(quantiles("  of it Docker's create and start", bare, "ms", "beside them, bare".to_owned()));
    }
    if let Some(resumed) = figures.resumed_ms {
        times.push(quantiles("paused, to its first answer", resumed, "ms", format!("{} samples", steps::PAUSES)));
    }
    let times = table(&["TIME", "P50", "P99", ""], times);
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let (together, alone) = (&figures.concurrent, &figures.sequential);
    let facts = table(
        &["PROMISE", "SEEN"],
        [
            row("calls at other nodes, served by the first node's container", figures.reused_remotely.to_string()),
            row("cold starts for all of them", figures.cold_starts.to_string()),
            row(
                "200 at once, concurrency 200",
                format!("{} ms, {} container, {} together", together.took_ms, together.containers, together.peak),
            ),
            row(
                "200 at once, concurrency 1",
                format!("{} ms, {} containers, {} together", alone.took_ms, alone.containers, alone.peak),
            ),
            row("cold starts for first calls at all nodes at once", figures.herd_cold_starts.to_string()),
            row("removals vetoed by a peer in need", figures.vetoed.to_string()),
            row("removals that nobody opposed, committed", figures.committed.to_string()),
            row(
                "slots of a killed holder usable again",
                format!("{} after {} ms", figures.slots_recovered, figures.recovered_after_ms),
            ),
        ],
    );
    println!("\n{times}\n{facts}");
    Ok(())
}

/// Live progress on standard error; a plain line a step where that is no terminal.
struct Progress {
    quiet: bool,
}

struct Step {
    bar: ProgressBar,
    name: String,
    quiet: bool,
}

impl Progress {
    fn begin(&self, name: &str, what: &str) -> Step {
        let bar = ProgressBar::with_draw_target(
            None,
            if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
        );
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:<12} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Step { bar, name: name.to_owned(), quiet: self.quiet }
    }
}

impl Step {
    fn end(self, seen: &str) {
        self.bar.finish_and_clear();
        if !self.quiet {
            eprintln!("✔ {:<12} {seen}", self.name);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
