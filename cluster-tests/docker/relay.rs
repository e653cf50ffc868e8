//! A socket before Docker's, so that the engine of one agent can be gone while that of all others is not.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

const REAL: &str = "/var/run/docker.sock";

pub(crate) struct Relay {
    path: PathBuf,
    /// None once it has stopped.
    open: Arc<Mutex<Option<Vec<UnixStream>>>>,
}

impl Relay {
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let relay = Self { path: path.to_owned(), open: open.clone() };
        // Ends with its process at the latest.
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), UnixStream::connect(REAL).unwrap());
                match &mut *open.lock().unwrap() {
                    Some(open) => open.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]),
                    None => return,
                }
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || copy(near, far));
                thread::spawn(move || copy(back.0, back.1));
            }
        });
        relay
    }

    /// As when the engine ends: nobody listens, all connections break.
    pub(crate) fn stop(&self) {
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.open.lock().unwrap().take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
