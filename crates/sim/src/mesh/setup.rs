//! What every world is made of: the numbers, the actions, a policy.

use std::sync::Arc;

use embermesh_core::policy::{VetoPolicy, VetoView};
use embermesh_core::time::{MS, SECOND};
use embermesh_core::{ActionId, ActionSpec, Config, NodeId, Revision};

use super::plan::Setting;

/// A policy that objects to everything for as long as it may.
#[derive(Debug)]
pub(crate) struct Stubborn;

impl VetoPolicy for Stubborn {
    fn hold(&self, view: &VetoView) -> Option<u64> {
        Some(view.max_hold_us)
    }
}

/// Everything shrunk, margins as tight as they may be.
pub(crate) fn config(setting: &Setting) -> Config {
    Config {
        ttl_us: 500 * MS,
        margin_us: 5 * MS,
        grace_us: 6 * MS,
        max_lease_age_us: 2 * SECOND,
        window_us: 150 * MS,
        urgent_window_us: 30 * MS,
        max_hold_us: 400 * MS,
        pause_grace_us: 300 * MS,
        concurrent_grace_us: 500 * MS,
        idle_timeout_us: SECOND,
        gossip_interval_us: 50 * MS,
        queue_per_action: 6,
        queue_bytes: 10_000,
        max_wait_us: setting.wait_ms * MS,
        max_memory_wait_us: 800 * MS,
        max_queue_wait_us: 2 * SECOND,
        memory_mb: 1024,
        parallel_starts: 2,
        small_body_bytes: 1_000,
        answers_per_holder: 8,
        // One less than ask, so that some are closed.
        holders: setting.nodes - 1,
        waiting_per_action: setting.nodes,
        advert_interval_us: 100 * MS,
        decide_interval_us: 50 * MS,
        ..Config::default()
    }
}

/// How many actions there are.
pub(crate) const ACTIONS: usize = 5;

/// With one slot and run at most once; with two and idempotent; with three; and the same in another size.
pub(crate) fn spec(n: usize, revision: u64) -> Arc<ActionSpec> {
    Arc::new(ActionSpec {
        action: ActionId::new(["red", "green", "red"][n % 3], &format!("a{n}")),
        revision: Revision { counter: revision, node: NodeId::new("n0") },
        concurrency: [1, 2, 3][n % 3],
        memory_mb: [256, 256, 384, 512, 256][n],
        timeout_us: 400 * MS,
        idempotent: n % 3 == 1,
        image: "image".into(),
    })
}
