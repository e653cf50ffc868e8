//! What is to be done to a mesh: its nodes, the calls, the faults over time, and what is expected of it. Written as
//! TOML, or made of a seed (`seeded`); checked as a whole (`possible`) before anything is started.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use embermesh_node::config::{NodeConfig, nearest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cli::Engine;
use crate::cli::values;

/// Everything about one run.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// How long calls are made and faults come and go.
    pub(crate) duration: Span,
    /// Decides which calls are made where and when.
    #[serde(default)]
    pub(crate) seed: u64,
    #[serde(default)]
    pub(crate) mesh: MeshPlan,
    #[serde(default)]
    pub(crate) workload: Workload,
    #[serde(default)]
    pub(crate) expect: Expect,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MeshPlan {
    /// They are called n1, n2 …
    pub(crate) nodes: u32,
    pub(crate) engine: Containers,
    /// For the containers of each node.
    pub(crate) memory: String,
    /// Any key of the agents' configuration, over the short times that are used here.
    pub(crate) settings: toml::Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Containers {
    Process,
    Docker,
}

/// Open-loop: calls come when they come, however long others take.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workload {
    /// Calls a second, at all nodes together.
    pub(crate) rate: f64,
    /// Share of calls that wait for their answer; the others are answered 202 and looked for later.
    pub(crate) blocking: f64,
    pub(crate) actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Action {
    pub(crate) name: String,
    #[serde(default = "one")]
    pub(crate) concurrency: u32,
    /// How long a run takes: from, to.
    pub(crate) ms: [u64; 2],
    /// How often it is called, compared with the others.
    #[serde(default = "one")]
    pub(crate) weight: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Expect {
    /// From the end of the last fault until every node serves every action and knows every other.
    pub(crate) healed_within: Span,
    /// Calls that have to succeed at least.
    pub(crate) successes: u64,
    /// Share of calls that may fail, be refused or end unknown.
    pub(crate) failed_share: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) at: Span,
    #[serde(rename = "for")]
    pub(crate) lasts: Span,
    pub(crate) nodes: Vec<String>,
    /// The other ends of links; without, all nodes that are not in `nodes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) from: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) way: Option<Way>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) duplicate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ppm: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) how: Option<How>,
}

/// What can be made to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// SIGKILL, and a new start on the same data folder
    Kill,
    /// SIGSTOP for longer than a lease lasts
    Stop,
    /// Links that are cut, one way or both
    Partition,
    /// Links that are slow
    Delay,
    /// Gossip that is lost or comes twice
    Loss,
    /// A container engine that stands still; with Docker also containers killed or paused behind the agent's back
    Engine,
    /// A clock that runs fast or slow
    Clock,
    /// A data folder without room; needs root
    Disk,
}

/// As seen from the `nodes` of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    Both,
    Send,
    Receive,
}

/// What becomes of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    Stall,
    Kill,
    Pause,
}

/// A duration, written as `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    pub(crate) const fn ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub(crate) fn as_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_ms();
        if ms.is_multiple_of(1000) { write!(f, "{}s", ms / 1000) } else { write!(f, "{ms}ms") }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        values::duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

fn one() -> u32 {
    1
}

impl Default for MeshPlan {
    fn default() -> Self {
        Self { nodes: 5, engine: Containers::Process, memory: "1GiB".to_owned(), settings: toml::Table::new() }
    }
}

impl Default for Workload {
    fn default() -> Self {
        let action = |name: &str, concurrency, ms, weight| Action { name: name.to_owned(), concurrency, ms, weight };
        Self {
            rate: 30.0,
            blocking: 0.7,
            actions: vec![
                action("quick", 1, [2, 20], 3),
                action("shared", 4, [20, 100], 3),
                action("slow", 2, [200, 800], 1),
            ],
        }
    }
}

impl Default for Expect {
    fn default() -> Self {
        Self { healed_within: Span::ms(10_000), successes: 1, failed_share: 1.0 }
    }
}

impl From<Engine> for Containers {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Process => Self::Process,
            Engine::Docker => Self::Docker,
        }
    }
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it is about links between nodes.
    pub(crate) fn is_of_links(self) -> bool {
        matches!(self, Self::Partition | Self::Delay | Self::Loss)
    }
}

impl Scenario {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let near = suggestion(error.message()).map(|near| format!("did you mean `{near}`?\n")).unwrap_or_default();
            format!("{error}{near}").trim_end().to_owned()
        })
    }

    pub(crate) fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    pub(crate) fn node_ids(&self) -> Vec<String> {
        (1..=self.mesh.nodes).map(|n| format!("n{n}")).collect()
    }

    /// The agents' configuration: short times, so that much happens, under the scenario's own settings.
    pub(crate) fn agent_settings(&self) -> toml::Table {
        let text = |value: &str| toml::Value::String(value.to_owned());
        let protocol = [
            ("ttl", "1s"),
            ("max_lease_age", "5s"),
            ("window", "300ms"),
            ("max_hold", "3s"),
            ("pause_grace", "1s"),
            ("concurrent_grace", "2s"),
            ("idle_timeout", "4s"),
            ("drain_deadline", "5s"),
        ];
        let mut settings = toml::Table::new();
        settings.insert(
            "protocol".into(),
            protocol.map(|(k, v)| (k.to_owned(), text(v))).into_iter().collect::<toml::Table>().into(),
        );
        settings.insert("gossip".into(), toml::Table::from_iter([("interval".to_owned(), text("100ms"))]).into());
        for (section, own) in &self.mesh.settings {
            match (settings.get_mut(section), own) {
                (Some(toml::Value::Table(section)), toml::Value::Table(own)) => section.extend(own.clone()),
                _ => {
                    settings.insert(section.clone(), own.clone());
                }
            }
        }
        settings
    }

    /// The configuration that its agents will have.
    pub(crate) fn agent_config(&self) -> Result<NodeConfig, String> {
        let wrong = |said: String| format!("`mesh.settings`: {said}");
        let mut config: NodeConfig =
            toml::Value::Table(self.agent_settings()).try_into().map_err(|e: toml::de::Error| {
                let near = suggestion(e.message()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                wrong(format!("{}{near}", e.message()))
            })?;
        if let Some(own) = ["node", "listen", "engine"].iter().find(|own| self.mesh.settings.contains_key(**own)) {
            return Err(wrong(format!("`{own}` is decided by the run itself: leave it out")));
        }
        config.node.id = "n1".to_owned();
        config.node.data_dir = std::env::temp_dir();
        config.validate().map_err(|e| wrong(e.to_string()))?;
        Ok(config)
    }
}

/// The name that was probably meant, if serde complains of one that it doesn't know.
fn suggestion(message: &str) -> Option<String> {
    let unknown = ["unknown field", "unknown variant"].iter().any(|what| message.contains(what));
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next().filter(|_| unknown)?;
    nearest(wrong, names).map(str::to_owned)
}
