//! What a node counts and measures, for `/metrics` and `status`. One recorder a node, no globals.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use embermesh_core::output::{Event, IntentEnd, Served};

use crate::views;

const META: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

pub(crate) struct Metrics {
    handle: PrometheusHandle,
    served: [Both; 5],
    refused: Both,
    indeterminate: Both,
    cold_starts: Both,
    leases_granted: Both,
    leases_denied: Both,
    leases_expired: Both,
    intents_committed: Both,
    intents_vetoed: Both,
    intents_cancelled: Both,
    vetoes_sent: Both,
    vetoes_counted: Both,
    vetoes_ignored: Both,
    pub(crate) served_for_peers: Both,
    pub(crate) malformed_calls: Both,
    /// Gossiped values that arrived whole and make no sense; shown with the datagrams that were dropped.
    pub(crate) malformed_facts: AtomicU64,
    pub(crate) invoke_seconds: Histogram,
    pub(crate) wait_seconds: Histogram,
    cold_start_seconds: Histogram,
    pub(crate) gauges: Gauges,
}

/// Set when somebody looks.
pub(crate) struct Gauges {
    pub(crate) queued: Gauge,
    pub(crate) running: Gauge,
    pub(crate) owed: Gauge,
    pub(crate) containers: Gauge,
    pub(crate) memory_bytes: Gauge,
    pub(crate) peers: Gauge,
    pub(crate) gossip_sent: Counter,
    pub(crate) gossip_received: Counter,
    pub(crate) gossip_dropped: Counter,
    pub(crate) records_dropped: Counter,
    pub(crate) journal_commits: Counter,
    pub(crate) journal_steps: Counter,
    pub(crate) core_entered: Counter,
}

/// A counter for Prometheus and for `status`.
pub(crate) struct Both {
    shown: Counter,
    value: AtomicU64,
}

impl Both {
    pub(crate) fn add(&self) {
        self.shown.increment(1);
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// From a local warm call to a cold start of a large image, in seconds.
const BUCKETS: [f64; 16] =
    [1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

impl Metrics {
    pub(crate) fn new() -> Self {
        let builder = PrometheusBuilder::new();
        let recorder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        let r = &recorder;
        describe(r);
        let served = |how| counter(r, "embermesh_activations_total", "served", how);
        Self {
            served: [served("local"), served("leased"), served("leased_new"), served("resumed"), served("cold")],
            refused: served("refused"),
            indeterminate: served("indeterminate"),
            cold_starts: counter(r, "embermesh_cold_starts_total", "", ""),
            leases_granted: counter(r, "embermesh_leases_total", "outcome", "granted"),
            leases_denied: counter(r, "embermesh_leases_total", "outcome", "denied"),
            leases_expired: counter(r, "embermesh_leases_total", "outcome", "expired"),
            intents_committed: counter(r, "embermesh_intents_total", "outcome", "committed"),
            intents_vetoed: counter(r, "embermesh_intents_total", "outcome", "vetoed"),
            intents_cancelled: counter(r, "embermesh_intents_total", "outcome", "cancelled"),
            vetoes_sent: counter(r, "embermesh_vetoes_total", "outcome", "sent"),
            vetoes_counted: counter(r, "embermesh_vetoes_total", "outcome", "counted"),
            vetoes_ignored: counter(r, "embermesh_vetoes_total", "outcome", "ignored"),
            malformed_calls: counter(r, "embermesh_grpc_malformed_total", "", ""),
            malformed_facts: AtomicU64::new(0),
            served_for_peers: counter(r, "embermesh_runs_for_peers_total", "", ""),
            invoke_seconds: r.register_histogram(&key("embermesh_invoke_seconds", "", ""), &META),
            wait_seconds: r.register_histogram(&key("embermesh_queue_wait_seconds", "", ""), &META),
            cold_start_seconds: r.register_histogram(&key("embermesh_cold_start_seconds", "", ""), &META),
            gauges: Gauges {
                queued: r.register_gauge(&key("embermesh_queued_activations", "", ""), &META),
                owed: r.register_gauge(&key("embermesh_owed_activations", "", ""), &META),
                running: r.register_gauge(&key("embermesh_running_activations", "", ""), &META),
                containers: r.register_gauge(&key("embermesh_containers", "", ""), &META),
                memory_bytes: r.register_gauge(&key("embermesh_container_memory_bytes", "", ""), &META),
                peers: r.register_gauge(&key("embermesh_peers", "", ""), &META),
                gossip_sent: r.register_counter(&key("embermesh_gossip_bytes_total", "direction", "sent"), &META),
                gossip_received: r
                    .register_counter(&key("embermesh_gossip_bytes_total", "direction", "received"), &META),
                gossip_dropped: r.register_counter(&key("embermesh_gossip_dropped_total", "", ""), &META),
                journal_commits: r.register_counter(&key("embermesh_journal_commits_total", "", ""), &META),
                journal_steps: r.register_counter(&key("embermesh_journal_steps_total", "", ""), &META),
                core_entered: r.register_counter(&key("embermesh_core_entered_total", "", ""), &META),
                records_dropped: r.register_counter(&key("embermesh_records_dropped_total", "", ""), &META),
            },
            handle: recorder.handle(),
        }
    }

    pub(crate) fn served(&self, how: Served) {
        let index = match how {
            Served::Local => 0,
            Served::HeldLease => 1,
            Served::NewLease => 2,
            Served::Resumed => 3,
            Served::Cold => 4,
        };
        self.served[index].add();
    }

    pub(crate) fn refused(&self) {
        self.refused.add();
    }

    pub(crate) fn indeterminate(&self) {
        self.indeterminate.add();
    }

    /// Counts what an event of the core says.
    pub(crate) fn event(&self, event: &Event) {
        match event {
            Event::ContainerWarm { cold_us, .. } => {
                self.cold_starts.add();
                self.cold_start_seconds.record(*cold_us as f64 / 1e6);
            }
            Event::LeaseGranted { .. } => self.leases_granted.add(),
            Event::LeaseDenied { .. } => self.leases_denied.add(),
            Event::LeaseExpired { .. } => self.leases_expired.add(),
            Event::IntentClosed { end, .. } => match end {
                IntentEnd::Committed => self.intents_committed.add(),
                IntentEnd::Vetoed { .. } => self.intents_vetoed.add(),
                _ => self.intents_cancelled.add(),
            },
            Event::VetoSent { .. } => self.vetoes_sent.add(),
            Event::VetoCounted { .. } => self.vetoes_counted.add(),
            Event::VetoIgnored { .. } => self.vetoes_ignored.add(),
            _ => {}
        }
    }

    /// For `status`.
    pub(crate) fn shown(&self) -> views::Served {
        views::Served {
            local: self.served[0].value(),
            leased: self.served[1].value() + self.served[2].value(),
            resumed: self.served[3].value(),
            cold: self.served[4].value(),
            refused: self.refused.value(),
            cold_starts: self.cold_starts.value(),
            leases_granted: self.leases_granted.value(),
            leases_denied: self.leases_denied.value(),
            leases_expired: self.leases_expired.value(),
            intents_committed: self.intents_committed.value(),
            intents_vetoed: self.intents_vetoed.value(),
            intents_cancelled: self.intents_cancelled.value(),
        }
    }

    /// Prometheus text.
    pub(crate) fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}

fn key(name: &'static str, label: &'static str, value: &'static str) -> Key {
    if label.is_empty() { Key::from_name(name) } else { Key::from_parts(name, vec![Label::new(label, value)]) }
}

fn counter(recorder: &PrometheusRecorder, name: &'static str, label: &'static str, value: &'static str) -> Both {
    Both { shown: recorder.register_counter(&key(name, label, value), &META), value: AtomicU64::new(0) }
}

const COUNTERS: [(&str, &str); 13] = [
    ("embermesh_activations_total", "Activations accepted here, by how each was served."),
    ("embermesh_cold_starts_total", "Containers started that became warm."),
    ("embermesh_leases_total", "Leases asked of this node, by outcome."),
    ("embermesh_intents_total", "Rounds of this node's intents, by outcome."),
    ("embermesh_vetoes_total", "Vetoes sent, counted and ignored."),
    ("embermesh_runs_for_peers_total", "Runs started in own containers for other nodes."),
    (
        "embermesh_grpc_malformed_total",
        "Calls of peers that could not be read, or were meant for another cluster, and actions that they told of.",
    ),
    ("embermesh_gossip_bytes_total", "Gossip, in bytes."),
    (
        "embermesh_gossip_dropped_total",
        "Gossip datagrams dropped as malformed, foreign or harmful, and values that make no sense.",
    ),
    ("embermesh_journal_commits_total", "Transactions of the journal."),
    ("embermesh_journal_steps_total", "What the journal noted in them: promises, starts, ends."),
    ("embermesh_core_entered_total", "Times that the protocol's core was entered: twice by a warm call."),
    ("embermesh_records_dropped_total", "Activation records that the store could not keep up with."),
];

const HISTOGRAMS: [(&str, &str); 3] = [
    ("embermesh_invoke_seconds", "From an activation's arrival to its end."),
    ("embermesh_queue_wait_seconds", "From an activation's arrival to its hand-over to a container."),
    ("embermesh_cold_start_seconds", "From the decision to start a container to its being warm."),
];

fn describe(recorder: &PrometheusRecorder) {
    for (name, text) in COUNTERS {
        recorder.describe_counter(name.into(), None, text.into());
    }
    for (name, text) in HISTOGRAMS {
        recorder.describe_histogram(name.into(), None, text.into());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_metric_is_in_the_readme_and_in_the_operations_guide() {
        let metrics = Metrics::new();
        metrics.gauges.peers.set(1.0);
        let shown = metrics.render();
        let shown =
            shown.lines().filter(|line| line.starts_with("# TYPE ")).map(|line| line.split(' ').nth(2).unwrap());
        let described = COUNTERS.iter().chain(&HISTOGRAMS).map(|(name, _)| *name);
        let names: std::collections::BTreeSet<&str> = shown.chain(described).collect();
        assert!(names.contains("embermesh_peers") && names.contains("embermesh_owed_activations"), "{names:?}");
        let readme = include_str!("../../../README.md");
        let guide = include_str!("../../../docs/operations.md");
        let missing = |text: &'static str| names.iter().filter(|name| !text.contains(**name)).collect::<Vec<_>>();
        assert_eq!((missing(readme), missing(guide)), (vec![], vec![]));
    }
}
