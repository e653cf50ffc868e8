//! An action as its user registered it: the unit that nodes exchange and store.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Orders all states an action ever had across the mesh: (counter, node that wrote it). Never reused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision {
    pub counter: u64,
    pub node_id: String,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.node_id)
    }
}

/// One revision of an action. A deleted action keeps its entry, so that an older one can't come back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionEntry {
    pub namespace: String,
    pub name: String,
    pub revision: Revision,
    #[serde(default)]
    pub deleted: bool,
    /// The version users see, `0.0.1` at first; an update raises its last part.
    pub version: String,
    pub kind: Kind,
    /// The function or built-in action to call; the kind's default when empty.
    #[serde(default)]
    pub main: String,
    /// The container image that serves it, of kind `blackbox`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// blake3 of the code, hex; none for built-in actions.
    #[serde(default)]
    pub code_hash: Option<String>,
    #[serde(default)]
    pub code_bytes: u64,
    pub limits: Limits,
    #[serde(default)]
    pub parameters: Vec<KeyValue>,
    #[serde(default)]
    pub annotations: Vec<KeyValue>,
    /// Unix time, milliseconds.
    pub updated_ms: u64,
    /// What a newer version's nodes have written beside that: passed on as it came, since a revision is the same
    /// everywhere.
    #[serde(flatten)]
    pub further: Further,
}

/// Fields that this version does not know.
pub type Further = BTreeMap<String, serde_json::Value>;

impl ActionEntry {
    /// Whether its user allows a run of unknown outcome to be made again.
    pub fn idempotent(&self) -> bool {
        self.annotations.iter().any(|a| a.key == "idempotent" && a.value == serde_json::Value::Bool(true))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: String,
    pub value: serde_json::Value,
}

/// Per-action limits, in OpenWhisk's units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Megabytes, 128 to 512 unless configured otherwise.
    pub memory: u64,
    /// Milliseconds, 100 to 300,000.
    pub timeout: u64,
    /// Activations at once in one container.
    pub concurrency: u32,
    /// Megabytes of log lines kept for one activation.
    pub logs: u64,
    /// As in the entry.
    #[serde(flatten)]
    pub further: Further,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 256, timeout: 60_000, concurrency: 1, logs: 10, further: Further::new() }
    }
}

/// What runs the code. Written with OpenWhisk's names where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "builtin:1")]
    Builtin,
    #[serde(rename = "native:1")]
    Native,
    #[serde(rename = "actionloop:1")]
    ActionLoop,
    #[serde(rename = "python:3")]
    Python,
    #[serde(rename = "nodejs:20")]
    NodeJs,
    /// Whatever the action's image does with what it gets on port 8080.
    #[serde(rename = "blackbox")]
    Blackbox,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Builtin, Kind::Native, Kind::ActionLoop, Kind::Python, Kind::NodeJs, Kind::Blackbox];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Builtin => "builtin:1",
            Kind::Native => "native:1",
            Kind::ActionLoop => "actionloop:1",
            Kind::Python => "python:3",
            Kind::NodeJs => "nodejs:20",
            Kind::Blackbox => "blackbox",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind is none that this node knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown kind `{0}`: use builtin:1, native:1, actionloop:1, python:3, nodejs:20 (`NAME:default` means the newest), or blackbox with an image"
)]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let (family, version) = text.split_once(':').unwrap_or((text, "default"));
        let kind = match family {
            "builtin" => Kind::Builtin,
            "native" => Kind::Native,
            "actionloop" => Kind::ActionLoop,
            "python" => Kind::Python,
            "nodejs" => Kind::NodeJs,
            "blackbox" => Kind::Blackbox,
            _ => return Err(UnknownKind(text.to_owned())),
        };
        let known = version == "default" || kind.as_str().split_once(':').is_some_and(|(_, v)| v == version);
        // Any Node.js that this host has runs code written for an older one.
        if known || (kind == Kind::NodeJs && matches!(version, "14" | "16" | "18")) {
            Ok(kind)
        } else {
            Err(UnknownKind(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_newer_version_has_written_into_an_entry_is_passed_on_by_one_that_does_not_know_it() {
        let newer = json!({
            "namespace": "guest", "name": "hello", "revision": {"counter": 3, "node_id": "n1"}, "deleted": false,
            "version": "0.0.3", "kind": "builtin:1", "main": "echo", "code_hash": null, "code_bytes": 0,
            "limits": {"memory": 256, "timeout": 60_000, "concurrency": 1, "logs": 10, "cpu": {"millis": 500}},
            "parameters": [], "annotations": [], "updated_ms": 5, "retries": 2
        });
        let read: ActionEntry = serde_json::from_value(newer.clone()).unwrap();
        assert_eq!(read.limits.memory, 256);
        assert_eq!(serde_json::to_value(&read).unwrap(), newer);
        let bytes = serde_json::to_vec(&read).unwrap();
        assert_eq!(serde_json::from_slice::<ActionEntry>(&bytes).unwrap(), read);
    }
}
