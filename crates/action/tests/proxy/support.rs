//! A container to test with: the proxy's process, its log lines, and calls to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing that is waited for here takes that long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const END_MARK: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

pub(crate) struct Container {
    process: Child,
    pub(crate) folder: TempDir,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) log_lines: Option<usize>,
    pub(crate) socket: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The text under `error`.
    pub(crate) fn error(&self) -> String {
        self.json()["error"]
            .as_str()
            .unwrap_or_else(|| panic!("no error in {:?}", String::from_utf8_lossy(&self.bytes)))
            .to_owned()
    }
}

/// The lines of one stream, as they come.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                kept.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        lines
    }

    /// What `activation` wrote up to its end mark, which is waited for.
    pub(crate) fn of(&self, activation: &str) -> Vec<String> {
        let prefix = format!("\x1e{activation}\x1f");
        let find = || -> Option<Vec<String>> {
            let all = self.0.lock().unwrap();
            let own = all.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned);
            let mut own: Vec<_> = own.collect();
            let end = own.iter().position(|line| line == END_MARK)?;
            assert_eq!(end, own.len() - 1, "nothing is attributed behind the end mark: {own:?}");
            own.pop();
            Some(own)
        };
        eventually("the activation's end mark", || find().is_some());
        find().unwrap()
    }

    /// Whether nothing was written in the name of `activation`, not even an end mark.
    pub(crate) fn has_none_of(&self, activation: &str) -> bool {
        let prefix = format!("\x1e{activation}\x1f");
        !self.0.lock().unwrap().iter().any(|line| line.starts_with(&prefix))
    }

    /// Waits for the first line of `activation`.
    pub(crate) fn await_started(&self, activation: &str) {
        let prefix = format!("\x1e{activation}\x1f");
        eventually("the activation's first line", || {
            self.0.lock().unwrap().iter().any(|line| line.starts_with(&prefix))
        });
    }

    /// Waits for a line of nobody that contains `text`.
    pub(crate) fn await_unattributed(&self, text: &str) {
        eventually(&format!("an unattributed line with {text:?}"), || {
            self.0.lock().unwrap().iter().any(|line| !line.starts_with('\x1e') && line.contains(text))
        });
    }
}

impl Container {
    pub(crate) fn start(runtime: &str, concurrency: u32) -> Self {
        Self::start_with(runtime, concurrency, None)
    }

    pub(crate) fn start_with(runtime: &str, concurrency: u32, interpreter: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(example("container"));
        command
            .arg("--socket")
            .arg(folder.path().join("s"))
            .args(["--runtime", runtime, "--concurrency", &concurrency.to_string(), "--workdir"])
            .arg(folder.path())
            .env("__EMBERMESH_CONTAINER", "n1-1-1")
            .env("__EMBERMESH_NODE", "n1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if concurrency > 1 {
            command.env("__OW_ALLOW_CONCURRENT", "true");
        }
        if let Some(path) = interpreter {
            command.arg("--interpreter").arg(path);
        }
        let mut process = command.spawn().unwrap();
        let stdout = Lines::follow(process.stdout.take().unwrap());
        let stderr = Lines::follow(process.stderr.take().unwrap());
        let socket = folder.path().join("s");
        eventually("the socket", || socket.exists());
        Self { process, folder, stdout, stderr }
    }

    /// As `start`, already initialised.
    pub(crate) fn ready(runtime: &str, concurrency: u32, interpreter: Option<&Path>, code: &str) -> Self {
        let container = Self::start_with(runtime, concurrency, interpreter);
        let reply = container.init(json!({ "code": code }));
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.bytes));
        container
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn init(&self, value: Value) -> Reply {
        post(&self.socket(), "/init", &json!({ "value": value }).to_string()).unwrap()
    }

    pub(crate) fn run(&self, activation: &str, params: Value) -> Reply {
        self.try_run(activation, params).unwrap()
    }

    pub(crate) fn try_run(&self, activation: &str, params: Value) -> std::io::Result<Reply> {
        post(&self.socket(), "/run", &request(activation, params).to_string())
    }

    /// So many runs at once; their replies in order.
    pub(crate) fn run_all(&self, runs: usize, params: impl Fn(usize) -> Value) -> Vec<Reply> {
        let socket = self.socket();
        let run = |n: usize| {
            let (socket, body) = (socket.clone(), request(&id(n), params(n)).to_string());
            std::thread::spawn(move || post(&socket, "/run", &body).unwrap())
        };
        let threads: Vec<_> = (0..runs).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends the agent's side of stdin.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.process.stdin.take());
    }

    pub(crate) fn await_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the proxy's exit", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.close_stdin();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.process.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The n-th activation id.
pub(crate) fn id(n: usize) -> String {
    format!("{n:032x}")
}

pub(crate) fn request(activation: &str, params: Value) -> Value {
    json!({"value": params, "activation_id": activation, "namespace": "guest", "action_name": "/guest/test",
        "action_version": "0.0.1", "transaction_id": "t", "deadline": "4102444800000"})
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One request on a connection of its own.
pub(crate) fn post(socket: &Path, path: &str, body: &str) -> std::io::Result<Reply> {
    post_with(socket, path, "", body)
}

/// The same, by an agent of that epoch.
pub(crate) fn post_by(epoch: u64, socket: &Path, path: &str, body: &str) -> Reply {
    post_with(socket, path, &format!("x-embermesh-epoch: {epoch}\r\n"), body).unwrap()
}

fn post_with(socket: &Path, path: &str, header: &str, body: &str) -> std::io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\n{header}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    Ok(Reply {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        log_lines: header("x-embermesh-log-lines").map(|lines| lines.parse().unwrap()),
        socket: header("x-embermesh-socket"),
        bytes: answer[end + 4..].to_vec(),
    })
}

/// An example of this package, which stands beside the folder of this test.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build -p embermesh-action --examples`", path.display());
    path
}

/// The interpreter itself, not a shim that chooses one; says why there is none.
pub(crate) fn interpreter(name: &str, args: &[&str]) -> Option<PathBuf> {
    let skipped = |why: String| {
        crate::skip::skipped(&format!("{name} is not usable on this host ({why})"));
        None
    };
    match Command::new(name).args(args).output() {
        Ok(output) if output.status.success() => {
            let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            path.canonicalize().map_or_else(|e| skipped(e.to_string()), Some)
        }
        Ok(output) => skipped(output.status.to_string()),
        Err(e) => skipped(e.to_string()),
    }
}

/// Whether a process is there that is not merely waiting to be reaped.
pub(crate) fn is_alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}
