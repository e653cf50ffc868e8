//! What the built-in action `note` writes down of its runs: into its container's folder, which the host sees as well. So
//! what ran, where, and how much of it at once is said by the action, whatever became of the answers.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::support::{Agent, Mesh, until};

/// As the container sees it.
const FILE: &str = "/run/embermesh/notes";

/// Each begin and end of a run.
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Value>);

/// Registers the action under that name, and waits until all nodes know it.
pub(crate) fn create(mesh: &Mesh, name: &str, slots: u64) {
    let limits = json!({"memory": 128, "concurrency": slots});
    mesh[1].create(name, &json!({"exec": {"kind": "builtin:1", "main": "note"}, "limits": limits}));
    for agent in &mesh.agents {
        until("the action is known", || agent.get(&crate::support::api::action_path(name)).status == 200);
    }
}

/// For a run that takes so long.
pub(crate) fn params(ms: u64) -> Value {
    json!({"file": FILE, "ms": ms})
}

impl Notes {
    /// Of all containers that these agents have, or have left.
    pub(crate) fn of(agents: &[Agent]) -> Self {
        let folders = agents.iter().filter_map(|agent| fs::read_dir(agent.data_dir().join("containers")).ok());
        let files = folders.flatten().map(|folder| folder.unwrap().path().join("notes"));
        let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
        Self(texts.iter().flat_map(|text| text.lines()).map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// How often each activation began.
    pub(crate) fn begun(&self) -> BTreeMap<&str, usize> {
        let mut begun = BTreeMap::new();
        for line in self.0.iter().filter(|line| line["event"] == "begin") {
            *begun.entry(line["activation_id"].as_str().unwrap()).or_default() += 1;
        }
        begun
    }

    pub(crate) fn ended(&self) -> usize {
        self.0.iter().filter(|line| line["event"] == "end").count()
    }

    /// A1 and L0: nothing ran twice, and no container had more runs at once than slots, by its own count and by the times
    /// that its runs noted.
    #[track_caller]
    pub(crate) fn expect_each_once_within(&self, slots: u64) {
        for (id, times) in self.begun() {
            assert_eq!(times, 1, "A1_started_at_most_once: {id} ran {times} times");
        }
        let mut lines: Vec<&Value> = self.0.iter().collect();
        // An end makes room for a begin of the same moment.
        lines.sort_by_key(|line| (line["at_us"].as_u64(), line["event"] == "begin"));
        let mut running = BTreeMap::<&str, u64>::new();
        for line in lines {
            let running = running.entry(line["container"].as_str().unwrap()).or_default();
            if line["event"] == "end" {
                *running -= 1;
                continue;
            }
            *running += 1;
            assert!(*running <= slots && line["running"].as_u64() <= Some(slots), "L0_runs_within_slots: {line}");
        }
    }
}
