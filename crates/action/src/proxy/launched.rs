//! Source code in Python and JavaScript: an interpreter with a launcher of ours, talked to over a socket on its fd 3.
//!
//! The launcher attributes lines itself and writes them, framed, on its stdout (the proxy's own) and stderr (a pipe
//! that the proxy carries on, so that it can say what the interpreter's last words were).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::actionloop::explained;
use super::channel::{Channel, Reply};
use super::child::Child;
use super::pump::Pump;
use super::{Host, code, init_patience};
use crate::contract::{InitRequest, MAX_RESULT_BYTES};
use crate::gate;
use crate::lines::Stream;
use crate::server::{Answer, Call, Initialised, Target, Task};

const CHANNEL_FD: i32 = 3;
const DEFAULT_MAIN: &str = "main";
/// How long an interpreter that closed its channel may take to end by itself.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// How long answers of an interpreter that ended are still read.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) enum Language {
    Python,
    NodeJs,
}

impl Language {
    fn launcher(self) -> (&'static str, &'static str) {
        match self {
            Self::Python => (".embermesh-launcher.py", include_str!("../launchers/launcher.py")),
            Self::NodeJs => (".embermesh-launcher.cjs", include_str!("../launchers/launcher.js")),
        }
    }

    /// `main__` is what OpenWhisk's Python runtime calls the module.
    fn source(self) -> &'static str {
        match self {
            Self::Python => "main__.py",
            Self::NodeJs => "main__.js",
        }
    }
}

#[derive(Debug)]
pub(super) struct Launched {
    host: Host,
    language: Language,
    process: OnceLock<Process>,
}

#[derive(Debug, Clone)]
struct Process {
    child: Child,
    channel: Channel,
    stderr: Arc<Pump>,
    /// Whether `/init` succeeded; from then on its end is the container's.
    serving: Arc<AtomicBool>,
    ended: Arc<OnceLock<String>>,
}

impl Launched {
    pub(super) fn new(host: Host, language: Language) -> Self {
        Self { host, language, process: OnceLock::new() }
    }

    async fn start(&self, init: &InitRequest<'_>) -> Result<Initialised, String> {
        let workdir = &self.host.options.workdir;
        let (launcher_name, launcher) = self.language.launcher();
        let (launcher_path, source) = (workdir.join(launcher_name), workdir.join(self.language.source()));
        code::write_file(&launcher_path, launcher)?;
        code::write_source(init, &source)?;
        let process = self.spawn(&launcher_path).await?;
        let env = init.env();
        let patience = init_patience(&env);
        let message = json!({
            "file": source,
            "main": init.main.or(DEFAULT_MAIN),
            "env": env,
            "concurrency": self.host.options.concurrency,
            "framed": self.host.lines.framed(),
            "max_result_bytes": MAX_RESULT_BYTES,
        });
        let message = message.to_string();
        let asked = process.channel.call("init", message.as_bytes());
        let outcome = match tokio::time::timeout(patience, asked).await {
            Ok(Some(reply)) if reply.status == 200 => {
                process.serving.store(true, Ordering::Release);
                self.process.get_or_init(|| process.clone());
                return Ok(Initialised::default());
            }
            Ok(Some(reply)) => reason(&reply),
            Ok(None) => process.ended(),
            Err(_) => format!(
                "the code did not load within {patience:?}: move slow work into the function, or raise the time-out"
            ),
        };
        process.child.kill();
        Err(outcome)
    }

    async fn spawn(&self, launcher: &Path) -> Result<Process, String> {
        let setup =
            |e: io::Error| format!("cannot connect to the interpreter: {e}; check the container's limit on files");
        let interpreter = self.host.options.interpreter.clone().unwrap_or_else(|| PathBuf::from("no interpreter"));
        let (ours, theirs) = UnixStream::pair().map_err(setup)?;
        let (stderr, stderr_fd) = io::pipe().map_err(setup)?;
        let mut command = Command::new(interpreter);
        command.arg(launcher).stdin(Stdio::null()).stderr(Stdio::from(stderr_fd));
        // An arena for each thread would count against a small container's memory.
        command.env("MALLOC_ARENA_MAX", "2");
        let mapping = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: CHANNEL_FD };
        command.fd_mappings(vec![mapping]).map_err(|e| format!("cannot give the interpreter fd {CHANNEL_FD}: {e}"))?;
        let child = self.host.children.spawn(command).await?;
        let (channel, listening) = Channel::open(ours).map_err(setup)?;
        let process = Process {
            child,
            channel,
            stderr: Pump::start(stderr, Stream::Stderr, self.host.lines.clone()).map_err(setup)?,
            serving: Arc::default(),
            ended: Arc::default(),
        };
        tokio::spawn(process.clone().follow(self.host.clone(), listening));
        Ok(process)
    }

    async fn answer(&self, call: &Call<'_>) -> Answer {
        let Some(process) = self.process.get() else {
            return Answer::error(502, "the action is not initialised: send /init first");
        };
        match process.channel.call("run", call.body).await {
            // Not even the activation's id could be read: the log is ended here.
            Some(reply) if reply.status == 400 => Answer::new(400, reply.body).with_lines(call.log.close()),
            Some(reply) => {
                // Its lines are in the pipe already; they go out before the answer.
                process.stderr.drain();
                Answer::new(reply.status, reply.body).with_lines(reply.lines)
            }
            None => {
                process.stderr.drain();
                call.log.close_uncounted();
                Answer::error(502, gate::ended(&process.ended()))
            }
        }
    }
}

impl Target for Launched {
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>> {
        Box::pin(self.start(init))
    }

    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer> {
        Box::pin(async move { self.answer(&call).await })
    }
}

impl Process {
    /// Waits for the interpreter's end, whichever way it shows first, and tells everyone.
    async fn follow(self, host: Host, mut listening: JoinHandle<String>) {
        let how = tokio::select! {
            how = self.child.ended() => {
                // Its last answers may still be on their way.
                let _ = tokio::time::timeout(LAST_ANSWERS, &mut listening).await;
                how
            }
            closed = &mut listening => match tokio::time::timeout(END_PATIENCE, self.child.ended()).await {
                Ok(how) => how,
                Err(_) => {
                    self.child.kill();
                    closed.unwrap_or_default()
                }
            },
        };
        let reason = self.ended.get_or_init(|| explained(how, &self.stderr));
        if self.serving.load(Ordering::Acquire) {
            host.ended(reason);
        }
        self.channel.close();
        listening.abort();
    }

    fn ended(&self) -> String {
        self.ended.get().cloned().unwrap_or_else(|| "nobody saw how".to_owned())
    }
}

fn reason(reply: &Reply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    body.get("error").and_then(Value::as_str).unwrap_or("the launcher gave no reason").to_owned()
}
