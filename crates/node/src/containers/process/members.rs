//! Which processes are in a container, read from /proc.
//!
//! A container is named by its PID namespace where it has one, else by its supervisor: its descendants
//! and its session. One pass over /proc answers for any number of containers.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// What makes a process a member.
#[derive(Debug, Clone)]
pub(super) enum Scope {
    /// The target of its `ns/pid` link, `pid:[4026532000]`. The kernel gives that number to the next
    /// namespace as soon as this one is gone; the open file keeps it from going.
    Namespace { link: OsString, _held: Arc<File> },
    /// A descendant of this process, or of its session. Not that process itself. Good until a while after
    /// it is reaped: its number may then be another's.
    Supervisor(i32),
}

impl Scope {
    /// The narrowest scope for what `supervisor` has started.
    pub(super) fn of(supervisor: i32) -> Scope {
        Self::namespace_below(supervisor).unwrap_or(Scope::Supervisor(supervisor))
    }

    /// `None` if its children are in its own namespace.
    fn namespace_below(supervisor: i32) -> Option<Scope> {
        let own = fs::read_link(format!("/proc/{supervisor}/ns/pid")).ok()?;
        let children = format!("/proc/{supervisor}/ns/pid_for_children");
        let held = Arc::new(File::open(&children).ok()?);
        let link = fs::read_link(&children).ok()?;
        (link != own).then(|| Scope::Namespace { link: link.into_os_string(), _held: held })
    }
}

/// The members of `scope` at this moment, zombies included.
pub(super) fn members(scope: &Scope) -> io::Result<Vec<i32>> {
    Ok(members_of(&[scope])?.pop().unwrap_or_default())
}

/// The members of each scope, in their order.
pub(super) fn members_of(scopes: &[&Scope]) -> io::Result<Vec<Vec<i32>>> {
    let mut found = vec![Vec::new(); scopes.len()];
    let namespaces: HashMap<&OsString, usize> = scopes
        .iter()
        .enumerate()
        .filter_map(|(index, scope)| match scope {
            Scope::Namespace { link, .. } => Some((link, index)),
            Scope::Supervisor(_) => None,
        })
        .collect();
    let by_tree = namespaces.len() < scopes.len();
    let mut tree = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if !namespaces.is_empty()
            && let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/pid"))
            && let Some(index) = namespaces.get(&link.into_os_string())
        {
            found[*index].push(pid);
        }
        if by_tree && let Some(stat) = Stat::read(pid) {
            tree.push((pid, stat));
        }
    }
    for (index, scope) in scopes.iter().enumerate() {
        if let Scope::Supervisor(supervisor) = scope {
            found[index] = descendants(*supervisor, &tree);
        }
    }
    Ok(found)
}

/// What the kernel says about one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) state: u8,
    parent: i32,
    session: i32,
}

impl Stat {
    /// `None` when it is gone.
    pub(super) fn read(pid: i32) -> Option<Stat> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Stat> {
        // The name comes in brackets, and may hold brackets and spaces itself.
        let after_name = line.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&line[after_name..]).ok()?.split_ascii_whitespace();
        Some(Stat {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
        })
    }
}

/// Memory of all these processes together, in bytes. What they may share (programs, libraries, shared
/// memory) can't be told apart cheaply: the largest of it counts, once.
pub(super) fn used_bytes(pids: &[i32]) -> u64 {
    let sizes = pids.iter().filter_map(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let mut pages = line.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        Some((pages.next()?.ok()?, pages.next()?.ok()?))
    });
    let (own, shared) = sizes.fold((0, 0), |(own, largest), (resident, shared)| {
        (own + resident.saturating_sub(shared), shared.max(largest))
    });
    (own + shared) * page_bytes()
}

fn descendants(supervisor: i32, tree: &[(i32, Stat)]) -> Vec<i32> {
    let mut members: HashSet<i32> = HashSet::from([supervisor]);
    members.extend(tree.iter().filter(|(_, stat)| stat.session == supervisor).map(|(pid, _)| *pid));
    // Children usually have larger numbers than their parents and come later; where not, once more.
    loop {
        let before = members.len();
        for (pid, stat) in tree {
            if members.contains(&stat.parent) {
                members.insert(*pid);
            }
        }
        if members.len() == before {
            break;
        }
    }
    members.remove(&supervisor);
    members.into_iter().collect()
}

/// From the auxiliary vector; the usual size where it can't be read.
fn page_bytes() -> u64 {
    const AT_PAGESZ: usize = 6;
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let words = fs::read(Path::new("/proc/self/auxv")).unwrap_or_default();
        let word = |bytes: &[u8]| bytes.try_into().map(usize::from_ne_bytes).unwrap_or(0);
        let mut pairs = words.chunks_exact(2 * size_of::<usize>()).map(|pair| pair.split_at(size_of::<usize>()));
        pairs.find(|(key, _)| word(key) == AT_PAGESZ).map_or(4096, |(_, value)| word(value) as u64)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = Stat::parse(b"12 (a) b) c) S 7 12 9 0 -1").unwrap();
        assert_eq!((stat.state, stat.parent, stat.session), (b'S', 7, 9));
    }

    #[test]
    fn rubbish_is_no_stat() {
        for line in [&b""[..], b"12", b"12 (a", b"12 (a) S", b"12 (a) S x 1 2"] {
            assert_eq!(Stat::parse(line), None);
        }
    }

    #[test]
    fn descendants_are_found_in_any_order_and_by_session() {
        let stat = |parent, session| Stat { state: b'S', parent, session };
        let tree = [(3, stat(9, 3)), (9, stat(20, 9)), (20, stat(1, 20)), (21, stat(1, 20)), (30, stat(1, 30))];
        let mut found = descendants(20, &tree);
        found.sort_unstable();
        assert_eq!(found, [3, 9, 21]);
    }

    #[test]
    fn this_process_is_a_member_of_its_own_namespace_and_has_memory() {
        let own = fs::read_link("/proc/self/ns/pid").unwrap().into_os_string();
        let pid = std::process::id().cast_signed();
        let held = Arc::new(File::open("/proc/self/ns/pid").unwrap());
        assert!(members(&Scope::Namespace { link: own, _held: held }).unwrap().contains(&pid));
        let used = used_bytes(&[pid]);
        assert!(used > 1 << 20);
        assert!(used_bytes(&[pid, pid]) < 2 * used, "what is shared counts once");
        assert_eq!(used_bytes(&[]), 0);
        assert!(page_bytes().is_power_of_two());
    }
}
