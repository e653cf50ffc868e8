//! A socket before Docker's, so that the engine of one agent can be gone, or stand still, while that of all others is
//! not.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const REAL: &str = "/var/run/docker.sock";

pub(crate) struct Relay {
    path: PathBuf,
    /// None once it has stopped.
    open: Arc<Mutex<Option<Open>>>,
    gate: Arc<Gate>,
}

/// Both ends of each connection.
type Open = BTreeMap<u64, [UnixStream; 2]>;

/// Where bytes wait while the engine stands still.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    delay: Mutex<Duration>,
    /// Bytes that came while it was closed.
    held: AtomicU64,
}

impl Relay {
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let open = Arc::new(Mutex::new(Some(Open::new())));
        let relay = Self { path: path.to_owned(), open: open.clone(), gate: Arc::default() };
        let gate = relay.gate.clone();
        thread::spawn(move || {
            for (n, near) in (0..).zip(listener.incoming()) {
                let Some(open_now) = &mut *open.lock().unwrap() else { return };
                let ends = [near.unwrap(), UnixStream::connect(REAL).unwrap()];
                open_now.insert(n, twins(&ends));
                let (gate, open) = (gate.clone(), open.clone());
                thread::spawn(move || {
                    both_ways(ends, &gate);
                    open.lock().unwrap().as_mut().map(|open| open.remove(&n));
                });
            }
        });
        relay
    }

    /// As when the engine hangs: connections come about and stay, and nothing goes either way.
    pub(crate) fn stall(&self) {
        self.gate.held.store(0, Ordering::Relaxed);
        *self.gate.closed.lock().unwrap() = true;
    }

    /// The engine goes on: how many bytes had to wait.
    pub(crate) fn go_on(&self) -> u64 {
        *self.gate.closed.lock().unwrap() = false;
        self.gate.opened.notify_all();
        self.gate.held.load(Ordering::Relaxed)
    }

    /// Each piece is that late from now on.
    pub(crate) fn slow_down(&self, by: Duration) {
        *self.gate.delay.lock().unwrap() = by;
    }

    /// As when the engine ends: nobody listens, all connections break.
    pub(crate) fn stop(&self) {
        self.go_on();
        let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        for stream in open.into_values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Whoever listens sees that it is over.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Gate {
    fn pass(&self, bytes: usize) {
        let delay = *self.delay.lock().unwrap();
        thread::sleep(delay);
        let mut closed = self.closed.lock().unwrap();
        if *closed {
            self.held.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
    }
}

fn twins(ends: &[UnixStream; 2]) -> [UnixStream; 2] {
    [ends[0].try_clone().unwrap(), ends[1].try_clone().unwrap()]
}

/// Until both ends have said all.
fn both_ways(ends: [UnixStream; 2], gate: &Gate) {
    let [back_to, back_from] = twins(&ends);
    let [near, far] = ends;
    thread::scope(|scope| {
        scope.spawn(|| copy(back_from, back_to, gate));
        copy(near, far, gate);
    });
}

fn copy(mut from: UnixStream, mut to: UnixStream, gate: &Gate) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        gate.pass(count);
        if to.write_all(&bytes[..count]).is_err() {
            // Nobody reads on: whoever writes is to know.
            let _ = from.shutdown(Shutdown::Both);
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
