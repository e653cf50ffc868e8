//! A socket between one agent and Docker's, at which the engine can be made to stand still for that agent alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const PIECE: usize = 1 << 14;

/// Ends with this value, and its connections with it.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) path: PathBuf,
    stalled: watch::Sender<bool>,
    /// Bytes that came while it stood still.
    held: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

/// The way of bytes through it.
#[derive(Debug, Clone)]
struct Gate {
    stalled: watch::Receiver<bool>,
    held: Arc<AtomicU64>,
}

impl Relay {
    pub(super) fn start(path: PathBuf, engine: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(&path).with_context(|| format!("{} can't be made", path.display()))?;
        let (stalled, watched) = watch::channel(false);
        let held: Arc<AtomicU64> = Arc::default();
        let gate = Gate { stalled: watched, held: held.clone() };
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, engine.to_owned(), gate));
        Ok(Self { path, stalled, held, _serving: serving })
    }

    /// While it stands still connections come about and stay, and nothing goes either way. How many bytes had to wait so
    /// far.
    pub(super) fn stand_still(&self, still: bool) -> u64 {
        if !self.stalled.send_replace(still) && still {
            self.held.store(0, Ordering::Relaxed);
        }
        self.held.load(Ordering::Relaxed)
    }
}

async fn serve(listener: UnixListener, engine: PathBuf, gate: Gate) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                // One that the engine does not take breaks.
                let Ok(far) = UnixStream::connect(&engine).await else { continue };
                connections.spawn(both_ways(near, far, gate.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn both_ways(near: UnixStream, far: UnixStream, gate: Gate) {
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::join!(copy(near_read, far_write, gate.clone()), copy(far_read, near_write, gate));
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut gate: Gate) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if *gate.stalled.borrow() {
            gate.held.fetch_add(count as u64, Ordering::Relaxed);
        }
        // An error means that the relay is gone, and this task with it.
        let passes = gate.stalled.wait_for(|stalled| !stalled).await.is_ok();
        if !passes || to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
    to.shutdown().await.ok();
}
