//! Real chaos: five real agents in network namespaces of their own, with containers of the process engine or of Docker,
//! calls in an open loop, and a nemesis that breaks what is around them: packets, processes, containers, the engine's
//! socket, disks, clocks. Then everything heals, and `embermesh chaos check` judges what was seen.
//!
//! `EMBERMESH_NEMESIS_SEED` makes the same faults again, `EMBERMESH_NEMESIS_SECONDS` says how long,
//! `EMBERMESH_NEMESIS_REPORT` which new folder gets the report.
//!
//! Without root, or where the kernel lacks something, each test says SKIPPED, unless EMBERMESH_REQUIRE_DOCKER is 1.
#![allow(clippy::unwrap_used)]

mod containers;
#[allow(dead_code, reason = "it has more than is needed here")]
#[path = "../../crates/embermesh/src/chaos/dice.rs"]
mod dice;
#[allow(dead_code, reason = "each target uses its own part of it")]
#[path = "../docker/engine.rs"]
mod engine;
mod ground;
mod nemesis;
mod packets;
mod plan;
#[allow(dead_code, reason = "each target uses its own part of it")]
#[path = "../docker/relay.rs"]
mod relay;
mod report;
mod run;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::sync::{Mutex, PoisonError};
use std::thread;

use ground::Containers;

pub(crate) const NODES: usize = 5;

/// Each run has the machine for itself: what it demands is measured in seconds.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn five_agents_with_containers_of_the_process_engine_bear_a_nemesis_and_keep_every_promise() {
    alone_in_a_thread(Containers::Process);
}

#[test]
fn five_agents_with_containers_of_docker_bear_a_nemesis_and_keep_every_promise() {
    if engine::is_here() {
        alone_in_a_thread(Containers::Docker);
    }
}

fn alone_in_a_thread(containers: Containers) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // What is unshared is unshared for good.
    let told = thread::spawn(move || {
        if let Err(lacking) = run::run(containers) {
            support::skipped(&lacking);
        }
    });
    if let Err(panic) = told.join() {
        std::panic::resume_unwind(panic);
    }
    let of = |task: std::path::PathBuf| std::fs::read_link(task.join("ns/net")).ok();
    let own = of("/proc/self".into());
    let tasks = || std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    support::until("no thread is left in a namespace of its own", || {
        tasks().filter_map(of).all(|namespace| Some(&namespace) == own.as_ref())
    });
}
