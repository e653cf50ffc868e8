//! Ends containers that use more than they may, of memory or of processes.
//!
//! The kernel's limit is for each process and counts what is reserved; this counts what all processes of
//! a container use. One pass over /proc serves all containers, and passes are spaced by what they cost.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::container::Container;
use super::engine::Shared;
use super::members::{members_of, used_bytes};

const INTERVAL: Duration = Duration::from_millis(250);
/// A pass may take one part in this many of a core: on a host with very many processes passes are rarer.
const MAX_SHARE: u32 = 200;

/// Watches until the engine has no container.
pub(super) async fn watch(engine: Weak<Shared>) {
    let mut interval = INTERVAL;
    loop {
        tokio::time::sleep(interval).await;
        let Some(containers) = engine.upgrade().and_then(|engine| engine.containers_to_watch()) else { return };
        let Ok(cost) = tokio::task::spawn_blocking(move || check(&containers)).await else { return };
        interval = INTERVAL.max(cost * MAX_SHARE);
    }
}

fn check(containers: &[Arc<Container>]) -> Duration {
    let begun = Instant::now();
    let watched: Vec<_> =
        containers.iter().filter_map(|container| Some((container, container.watched_scope()?))).collect();
    if watched.is_empty() {
        return Duration::ZERO;
    }
    let scopes: Vec<_> = watched.iter().map(|(_, scope)| scope).collect();
    match members_of(&scopes) {
        Ok(members) => {
            for ((container, _), pids) in watched.iter().zip(members) {
                if let Some(reason) = excess(container, used_bytes(&pids), pids.len() as u64) {
                    container.condemn(reason);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot watch the memory of containers"),
    }
    begun.elapsed()
}

fn excess(container: &Container, used_bytes: u64, processes: u64) -> Option<String> {
    let used_mb = used_bytes.div_ceil(1 << 20);
    if used_mb > container.memory_mb {
        return Some(format!("out of memory: {used_mb} MB over the limit of {} MB", container.memory_mb));
    }
    if processes > container.max_processes {
        return Some(format!("too many processes: {processes} over the limit of {}", container.max_processes));
    }
    None
}
