//! A socket between an engine under test and the real one, which can hang or be gone like a real one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const REAL: &str = "/var/run/docker.sock";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Passes,
    /// Takes connections and answers nothing.
    Hangs,
    /// As with a full disk: no image can be made or pulled. For connections from then on.
    TakesNoImage,
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
        match mode.wait_for(|mode| *mode != Mode::Hangs).await.map(|mode| *mode) {
            Ok(Mode::TakesNoImage) => return pass_unless_image(near).await,
            Ok(_) => {}
            Err(_) => return,
        }
        if far.is_none() {
            far = UnixStream::connect(REAL).await.ok();
        }
        let Some(far) = &mut far else { return };
        tokio::select! {
            biased;
            _ = mode.wait_for(|mode| *mode == Mode::Hangs) => {}
            _ = copy_bidirectional(&mut near, far) => return,
        }
        // Lets what was being copied settle.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One request, then the connection ends.
async fn pass_unless_image(mut near: UnixStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match near.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8(head).unwrap();
    if text.starts_with("POST") && text.contains("/images/create") {
        let said = r#"{"message":"write /var/lib/docker/tmp/x: no space left on device"}"#;
        let answer = format!(
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{said}",
            said.len()
        );
        near.write_all(answer.as_bytes()).await.ok();
        // The rest of the archive, which nobody reads.
        tokio::io::copy(&mut near, &mut tokio::io::sink()).await.ok();
        return;
    }
    let Ok(mut far) = UnixStream::connect(REAL).await else { return };
    let closing = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    far.write_all(closing.as_bytes()).await.unwrap();
    copy_bidirectional(&mut near, &mut far).await.ok();
}
