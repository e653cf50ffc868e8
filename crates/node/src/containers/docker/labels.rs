//! Names and labels: which containers are this agent's.

use std::collections::HashMap;

use bollard::models::ContainerSummary;

use super::DockerEngineConfig;
use crate::containers::ContainerSpec;

const CLUSTER: &str = "embermesh.cluster";
const NODE: &str = "embermesh.node";
const INSTANCE: &str = "embermesh.instance";
const ACTION: &str = "embermesh.action";
const REVISION: &str = "embermesh.revision";
pub(super) const CONTAINER: &str = "embermesh.container";
/// On the image that is made of the running executable.
pub(super) const RUNTIME: &str = "embermesh.runtime";
/// On the bridge.
pub(super) const NETWORK: &str = "embermesh.network";

/// Who owns a container.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    cluster: String,
    node_id: String,
    instance: String,
}

impl Owner {
    pub(super) fn new(config: &DockerEngineConfig) -> Self {
        Self { cluster: config.cluster.clone(), node_id: config.node_id.clone(), instance: config.instance.clone() }
    }

    /// What the engine calls the container.
    pub(super) fn name(&self, id: &str) -> String {
        format!("embermesh-{}-{id}", self.cluster)
    }

    pub(super) fn labels(&self, spec: &ContainerSpec) -> HashMap<String, String> {
        // `node-epoch-n`.
        let epoch = spec.id.rsplit('-').nth(1).unwrap_or_default();
        let action = format!("{}/{}", spec.namespace, spec.action);
        let all = [
            (CLUSTER, self.cluster.as_str()),
            (NODE, &self.node_id),
            (INSTANCE, &self.instance),
            ("embermesh.epoch", epoch),
            (ACTION, &action),
            (REVISION, &spec.revision),
            (CONTAINER, &spec.id),
        ];
        all.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// For the engine's lists and events.
    pub(super) fn filter(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{INSTANCE}={}", self.instance)])])
    }

    /// The container's id if it is this agent's: all of its labels and its name say so. Somebody may have copied
    /// some of them.
    pub(super) fn own_id(&self, listed: &ContainerSummary) -> Option<String> {
        let labels = listed.labels.as_ref()?;
        let label = |key: &str| labels.get(key).map(String::as_str);
        let id = label(CONTAINER)?;
        let name = format!("/{}", self.name(id));
        let own = label(INSTANCE) == Some(&self.instance)
            && label(CLUSTER) == Some(&self.cluster)
            && label(NODE) == Some(&self.node_id)
            && listed.names.as_ref().is_some_and(|names| names.contains(&name));
        own.then(|| id.to_owned())
    }

    /// `namespace/name` and revision of the action that it serves.
    pub(super) fn serves(&self, listed: &ContainerSummary) -> Option<(String, String)> {
        let labels = listed.labels.as_ref()?;
        Some((labels.get(ACTION)?.clone(), labels.get(REVISION)?.clone()))
    }
}

/// Of a container that is the cluster's and no agent's.
pub(super) fn cluster_labels(cluster: &str) -> HashMap<String, String> {
    HashMap::from([(CLUSTER.to_owned(), cluster.to_owned())])
}

/// For all containers of a cluster on this engine, whoever owns them.
pub(super) fn cluster_filter(cluster: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{CLUSTER}={cluster}")])])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { cluster: "c".to_owned(), node_id: "n1".to_owned(), instance: "uuid".to_owned() }
    }

    fn listed(name: &str, labels: &[(&str, &str)]) -> ContainerSummary {
        ContainerSummary {
            names: Some(vec![name.to_owned()]),
            labels: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            ..ContainerSummary::default()
        }
    }

    #[test]
    fn a_container_is_own_only_if_its_name_and_all_labels_say_so() {
        let all = [(CLUSTER, "c"), (NODE, "n1"), (INSTANCE, "uuid"), (CONTAINER, "n1-7-1")];
        assert_eq!(owner().own_id(&listed("/embermesh-c-n1-7-1", &all)), Some("n1-7-1".to_owned()));
        assert_eq!(owner().own_id(&listed("/mine", &all)), None);
        assert_eq!(owner().own_id(&listed("/embermesh-c-n1-7-1", &[])), None);
        for changed in 0..all.len() {
            let mut labels = all;
            labels[changed].1 = "other";
            assert_eq!(owner().own_id(&listed("/embermesh-c-n1-7-1", &labels)), None, "{changed}");
        }
    }
}
