//! What the host has.

use std::fs;
use std::num::NonZero;
use std::thread;

/// When neither the kernel nor a cgroup tells.
const FALLBACK_BYTES: u64 = 4 << 30;

/// Cores that this process may use: the host's, or what its cgroup and its affinity leave it.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Memory that this process may use: the host's, or its cgroup's limit where that is less.
pub(super) fn memory_bytes() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    host.into_iter().chain(group).min().unwrap_or(FALLBACK_BYTES)
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_from_meminfo() {
        assert_eq!(total_of("MemTotal:        8048576 kB\nMemFree: 12 kB\n"), Some(8_048_576 * 1024));
        assert_eq!(total_of("MemFree: 12 kB\n"), None);
        assert_eq!(total_of("MemTotal: much\n"), None);
    }

    #[test]
    fn this_host_has_memory() {
        assert!(memory_bytes() > 64 << 20);
    }
}
