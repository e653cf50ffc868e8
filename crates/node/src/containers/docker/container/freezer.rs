//! The kernel's own word on whether a container is frozen, from its control group. Where that can't be read (another
//! host's engine, an agent in a container), the engine's answer is waited for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use crate::containers::docker::api::Api;

const GROUPS: &str = "/sys/fs/cgroup";
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Freezer {
    file: PathBuf,
    frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    /// That of the container's first process, if it is one of this host.
    pub(super) async fn of(api: &Api, docker_id: &str) -> Option<Self> {
        let pid = api.inspect(docker_id).await.ok()?.state?.pid?;
        Self::in_groups(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, docker_id)
    }

    fn in_groups(groups: &str, docker_id: &str) -> Option<Self> {
        let mut groups = groups.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            Some((parts.next()?, parts.next()?, parts.next().filter(|path| path.contains(docker_id))?))
        });
        let file = |root: &str, path: &str, file| Path::new(root).join(path.trim_start_matches('/')).join(file);
        // A host with both versions freezes by the first.
        let mut second = None;
        let first = groups.find_map(|(number, controllers, path)| {
            if number == "0" {
                second = Some(path);
            }
            controllers.split(',').any(|c| c == "freezer").then_some(path)
        });
        match (first, second) {
            (Some(path), _) => Some(Self {
                file: file(&format!("{GROUPS}/freezer"), path, "freezer.state"),
                frozen: "FROZEN",
                thawed: "THAWED",
            }),
            (None, Some(path)) => {
                Some(Self { file: file(GROUPS, path, "cgroup.events"), frozen: "frozen 1", thawed: "frozen 0" })
            }
            (None, None) => None,
        }
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.says(self.frozen)
    }

    pub(super) fn is_thawed(&self) -> bool {
        self.says(self.thawed)
    }

    /// Returns once it is not frozen; never, if that can't be read any more.
    pub(super) async fn thawed(&self) {
        while !self.is_thawed() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// A read of some microseconds: the kernel answers from memory.
    fn says(&self, state: &str) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|text| text.lines().any(|line| line == state))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found_in_both_versions_of_control_groups() {
        let file = |groups: &str| Freezer::in_groups(groups, "abc").map(|f| f.file.display().to_string());
        let both = "7:pids:/docker/abc\n3:freezer:/docker/abc\n0::/docker/abc\n";
        assert_eq!(file(both).as_deref(), Some("/sys/fs/cgroup/freezer/docker/abc/freezer.state"));
        let second = "0::/system.slice/docker-abc.scope\n";
        assert_eq!(file(second).as_deref(), Some("/sys/fs/cgroup/system.slice/docker-abc.scope/cgroup.events"));
        assert_eq!(file("3:freezer:/user\n0::/\n"), None, "some other process");
        assert_eq!(file("rubbish"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thaw_is_told_when_the_file_says_so_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("freezer.state");
        let freezer = Freezer { file: file.clone(), frozen: "FROZEN", thawed: "THAWED" };
        assert!(!freezer.is_frozen() && !freezer.is_thawed(), "nothing is known of what can't be read");
        fs::write(&file, "FROZEN\n").unwrap();
        assert!(freezer.is_frozen() && !freezer.is_thawed());
        assert!(tokio::time::timeout(Duration::from_secs(1), freezer.thawed()).await.is_err());
        fs::write(&file, "THAWED\n").unwrap();
        freezer.thawed().await;
    }
}
