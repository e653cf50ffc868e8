//! What the host sees of a container, found without the engine's help: by its id in the environment.

use std::fs;
use std::time::{Duration, Instant};

/// A process whose environment names the container.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) state: char,
    pub(crate) args: String,
}

/// All that belong to the container, its supervisor included; zombies have no environment.
pub(crate) fn of(container: &str) -> Vec<Process> {
    let mark = format!("__EMBERMESH_CONTAINER={container}\0");
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environment.windows(mark.len()).find(|window| *window == mark.as_bytes())?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit(") ").next()?.chars().next()?;
        let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
        Some(Process { pid, state, args })
    })
    .collect()
}

/// The same without the supervisor.
pub(crate) fn inside(container: &str) -> Vec<Process> {
    of(container).into_iter().filter(|process| !process.args.contains("__supervise")).collect()
}

/// Waits until `condition` holds; fails with `what` after ten seconds.
pub(crate) async fn until(what: &str, condition: impl FnMut() -> bool) -> Duration {
    within(Duration::from_secs(10), what, condition).await
}

pub(crate) async fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}
