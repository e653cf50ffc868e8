//! Where peers are, kept in the data folder: a node that starts again finds its mesh even if none of the addresses it was
//! told to join by answers. A node that left has no mesh to find.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use embermesh_core::NodeId;

use crate::data_dir::write_durably;
use crate::node::Node;

const FILE: &str = "peers";
const MOST_KEPT: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Node {
    /// Keeps the file up to date until the node stops. What is being written then is waited for.
    pub(crate) async fn keep_peers(self) {
        let mut kept = kept_peers(&self.data_dir());
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.stopped() => return,
            }
            let chosen = choose(self.id(), &self.peers().live_addresses(), &kept);
            if BTreeSet::from_iter(&chosen) == BTreeSet::from_iter(&kept) {
                continue;
            }
            let (file, content) = (file(&self.data_dir()), chosen.clone());
            match self.blocking_work().run(move || write(&file, &content)).await {
                Ok(Ok(())) => kept = chosen,
                Ok(Err(error)) => tracing::debug!(%error, "where peers are could not be kept"),
                Err(_) => return,
            }
        }
    }

    pub(crate) fn forget_kept_peers(&self) {
        // Mostly that there is none.
        let _ = fs::remove_file(file(&self.data_dir()));
    }
}

/// Peers of an earlier life; none if there was none, or it can't be read.
pub(crate) fn kept_peers(data_dir: &Path) -> Vec<SocketAddr> {
    let text = match fs::read_to_string(file(data_dir)) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "where peers were can't be read; joining by the configured addresses only");
            }
            return Vec::new();
        }
    };
    text.lines().filter_map(|line| line.parse().ok()).take(MOST_KEPT).collect()
}

/// Those that live come first; in a large mesh others at each node, so that not all look for the same. Then those of
/// before: a node that loses one peer after another still knows where they were.
fn choose(own: &NodeId, live: &[SocketAddr], before: &[SocketAddr]) -> Vec<SocketAddr> {
    let weight = |peer: &SocketAddr| {
        let mut hasher = DefaultHasher::new();
        (own.as_str(), peer).hash(&mut hasher);
        hasher.finish()
    };
    let mut chosen = live.to_vec();
    chosen.sort_by_cached_key(weight);
    chosen.extend(before.iter().filter(|peer| !live.contains(peer)));
    chosen.truncate(MOST_KEPT);
    chosen
}

fn write(file: &Path, peers: &[SocketAddr]) -> io::Result<()> {
    let lines: String = peers.iter().map(|peer| format!("{peer}\n")).collect();
    write_durably(file, lines.as_bytes())
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn addresses(ports: std::ops::Range<u16>) -> Vec<SocketAddr> {
        ports.map(|port| ([10, 0, 0, 1], port).into()).collect()
    }

    #[test]
    fn those_that_live_are_kept_before_those_that_did_and_not_the_same_at_each_node() {
        let n1 = NodeId::new("n1");
        let (few, others) = (addresses(1..3), addresses(5..9));
        let chosen = choose(&n1, &few, &others);
        assert_eq!(BTreeSet::from_iter(&chosen[..2]), BTreeSet::from_iter(&few));
        assert_eq!(chosen[2..], others);
        assert_eq!(choose(&n1, &[], &chosen), chosen, "alone, it forgets nobody");

        let many = addresses(1..200);
        let kept = |node: &str| BTreeSet::from_iter(choose(&NodeId::new(node), &many, &others));
        assert_eq!(kept("n1").len(), MOST_KEPT);
        assert_ne!(kept("n1"), kept("n2"));
    }

    #[test]
    fn what_is_kept_is_read_again_and_rubbish_in_it_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kept_peers(folder.path()), []);
        let peers = ["10.0.0.1:7411", "[fd00::1]:7411"].map(|p| p.parse().unwrap());
        write(&file(folder.path()), &peers).unwrap();
        assert_eq!(kept_peers(folder.path()), peers);
        let torn = format!("{}10.0.0", fs::read_to_string(file(folder.path())).unwrap());
        fs::write(file(folder.path()), torn).unwrap();
        assert_eq!(kept_peers(folder.path()), peers);
        fs::write(file(folder.path()), [0xff, 0xfe]).unwrap();
        assert_eq!(kept_peers(folder.path()), []);
    }
}
