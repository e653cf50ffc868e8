//! What the demo measures, and how it is shown.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Durations of one sort.
#[derive(Debug, Clone)]
pub(super) struct Samples(Histogram<u64>);

impl Default for Samples {
    fn default() -> Self {
        // Three digits, growing as needed: it can't fail for these bounds.
        Self(Histogram::new(3).unwrap_or_else(|_| unreachable!("three significant digits are allowed")))
    }
}

impl Samples {
    pub(super) fn add(&mut self, took: Duration) {
        // The histogram grows as needed; only a duration of centuries would not fit.
        self.0.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)).ok();
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    pub(super) fn in_us(&self) -> Quantiles {
        self.scaled(1e3)
    }

    pub(super) fn in_ms(&self) -> Quantiles {
        self.scaled(1e6)
    }

    fn scaled(&self, nanos: f64) -> Quantiles {
        let at = |quantile| (self.0.value_at_quantile(quantile) as f64 / nanos * 10.0).round() / 10.0;
        Quantiles { p50: at(0.5), p99: at(0.99) }
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// What `--json` prints. Every count comes from what the actions answered.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Figures {
    pub(super) nodes: u32,
    /// `process` or `docker`.
    pub(super) engine: &'static str,
    pub(super) cold_start_ms: Quantiles,
    /// The Docker engine's own create and start of the same image, measured between the cold starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bare_start_ms: Option<Quantiles>,
    /// From a call to its answer by a container that was paused; on the Docker engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resumed_ms: Option<Quantiles>,
    pub(super) local_warm_us: Quantiles,
    pub(super) remote_new_lease_us: Quantiles,
    pub(super) remote_held_lease_us: Quantiles,
    pub(super) grpc_echo_us: Quantiles,
    /// Samples behind each of the warm figures.
    pub(super) samples: u64,
    pub(super) cold_samples: u64,
    /// Invocations at other nodes that the first node's container answered.
    pub(super) reused_remotely: u64,
    /// Containers that those invocations and the first one took.
    pub(super) cold_starts: u64,
    /// 200 activations at once on an action that allows it, and on one that doesn't.
    pub(super) concurrent: Burst,
    pub(super) sequential: Burst,
    /// Containers that simultaneous first calls at all nodes took.
    pub(super) herd_cold_starts: u64,
    pub(super) vetoed: u64,
    pub(super) committed: u64,
    /// Slots of a killed holder, used again at once.
    pub(super) slots_recovered: u64,
    pub(super) recovered_after_ms: u64,
}

/// One load of many activations at once.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Burst {
    pub(super) activations: u64,
    pub(super) containers: u64,
    /// Most runs at once in one container, as the container counted them.
    pub(super) peak: u64,
    pub(super) took_ms: f64,
}
