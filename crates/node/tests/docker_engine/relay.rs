//! A socket between an engine under test and the real one, which can hang or be gone like a real one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const REAL: &str = "/var/run/docker.sock";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Passes,
    /// Takes connections and answers nothing.
    Hangs,
}

#[derive(Debug)]
pub(crate) struct Relay {
    path: PathBuf,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (mode, seen) = watch::channel(Mode::Passes);
        let task = tokio::spawn(async move {
            // Its connections end with this task.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                connections.spawn(pass(near, seen.clone()));
            }
        });
        Self { path: path.to_owned(), mode, task }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// As when the engine ends: nobody listens, all connections break.
    pub(crate) async fn stop(self) -> PathBuf {
        self.task.abort();
        self.task.await.ok();
        std::fs::remove_file(&self.path).unwrap();
        self.path
    }
}

/// Nothing passes while it hangs, on connections that are open as well.
async fn pass(mut near: UnixStream, mut mode: watch::Receiver<Mode>) {
    let mut far = None;
    loop {
        if mode.wait_for(|mode| *mode == Mode::Passes).await.is_err() {
            return;
        }
        if far.is_none() {
            far = UnixStream::connect(REAL).await.ok();
        }
        let Some(far) = &mut far else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut near, far) => return,
            _ = mode.wait_for(|mode| *mode == Mode::Hangs) => {}
        }
        // Lets what was being copied settle.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
