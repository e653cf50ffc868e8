//! Where peers are, kept in the data folder: a node that starts again finds its mesh even if none of the addresses it was
//! told to join by answers. A node that left has no mesh to find.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::data_dir::write_durably;
use crate::node::Node;

const FILE: &str = "peers";
/// Any of them will do.
const MOST_KEPT: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Node {
    /// Keeps the file up to date for as long as the node runs.
    pub(crate) async fn keep_peers(self) {
        let mut kept = BTreeSet::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let live: BTreeSet<_> = self.peers().live_addresses().into_iter().take(MOST_KEPT).collect();
            // Alone, it looks for those that it knew.
            if live.is_empty() || live == kept {
                continue;
            }
            let (file, content) = (file(&self.data_dir()), live.clone());
            let written = self.blocking_work().run(move || write(&file, &content)).await;
            match written {
                Ok(Ok(())) => kept = live,
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

fn write(file: &Path, peers: &BTreeSet<SocketAddr>) -> io::Result<()> {
    let lines: String = peers.iter().map(|peer| format!("{peer}\n")).collect();
    write_durably(file, lines.as_bytes())
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_rubbish_in_it_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kept_peers(folder.path()), []);
        let peers: BTreeSet<SocketAddr> = ["10.0.0.1:7411", "[fd00::1]:7411"].map(|p| p.parse().unwrap()).into();
        write(&file(folder.path()), &peers).unwrap();
        assert_eq!(kept_peers(folder.path()), Vec::from_iter(peers.clone()));
        let torn = format!("{}10.0.0", fs::read_to_string(file(folder.path())).unwrap());
        fs::write(file(folder.path()), torn).unwrap();
        assert_eq!(kept_peers(folder.path()), Vec::from_iter(peers));
        fs::write(file(folder.path()), [0xff, 0xfe]).unwrap();
        assert_eq!(kept_peers(folder.path()), []);
    }
}
