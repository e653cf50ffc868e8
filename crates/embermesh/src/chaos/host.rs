//! What the host has to offer, and what is left on it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::time::{Instant, sleep};

use super::scenario::Kind;

/// Room for an agent's data, and not much more.
const SMALL_DISK: &str = "32m";
/// Of a data folder.
const CONTAINERS: &str = "containers";
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// Why a kind of fault can't be made here.
pub(super) fn lacks(kind: Kind) -> Option<String> {
    match kind {
        Kind::Disk if !geteuid().is_root() => Some("it needs root, to mount a small disk".to_owned()),
        _ => None,
    }
}

/// Another one each time, short enough to be typed.
pub(super) fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos() ^ std::process::id()) % 1_000_000
}

/// From now on mounts of this process are its own: they are gone with it and its children.
pub(super) fn keep_mounts_private() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace can be made for the small disks")?;
    run_mount("mount", &["--make-rprivate", "/"])
}

/// Puts a small disk there. `shared`: the Docker engine has to see the folder of containers, and looks from outside, so
/// that one stays where it is.
pub(super) fn mount_small_disk(at: &Path, shared: bool) -> anyhow::Result<()> {
    let (containers, aside) = (at.join(CONTAINERS), at.with_extension("aside"));
    let make =
        |folder: &Path| std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()));
    let [disk, inside, outside] = [at, &containers, &aside].map(|path| path.display().to_string());
    make(at)?;
    if shared {
        make(&containers)?;
        make(&aside)?;
        run_mount("mount", &["--bind", &inside, &outside])?;
    }
    let size = format!("size={SMALL_DISK},mode=0700");
    run_mount("mount", &["-t", "tmpfs", "-o", &size, "none", &disk])?;
    if shared {
        make(&containers)?;
        run_mount("mount", &["--move", &outside, &inside])?;
    }
    Ok(())
}

pub(super) fn unmount(at: &Path) -> anyhow::Result<()> {
    run_mount("umount", &["--lazy", &at.display().to_string()])
}

fn run_mount(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("`{program}` can't be run"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Processes that belong to a folder and are still there after a while, by their command lines; they are ended.
pub(super) async fn end_leftovers(folder: &Path) -> Vec<String> {
    let began = Instant::now();
    loop {
        let left = processes_of(folder);
        if left.is_empty() {
            return Vec::new();
        }
        if began.elapsed() > GONE_WITHIN {
            for (pid, _) in &left {
                kill(*pid, Signal::SIGKILL).ok();
            }
            return left.into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Those that have the folder in their arguments or environment. Zombies have neither.
fn processes_of(folder: &Path) -> Vec<(Pid, String)> {
    let mark = folder.display().to_string();
    let names = |pid: i32, file: &str| {
        let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own && (names(*pid, "environ") || names(*pid, "cmdline")))
        .map(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (Pid::from_raw(pid), line.replace('\0', " ").trim().to_owned())
        })
        .collect()
}
