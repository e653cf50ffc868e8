//! Executables made with the SDK: they serve the contract themselves, on a socket beside the proxy's.
//!
//! `/init` goes through the proxy, which answers with that socket; from then on the engine talks to it directly.
//! A `/run` that comes to the proxy all the same is passed on.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::child::Child;
use super::{Host, code, init_patience};
use crate::contract::{
    CONCURRENCY_VARIABLE, EPOCH_HEADER, InitRequest, LOG_LINES_HEADER, MAX_RESULT_BYTES, SOCKET_VARIABLE,
    WATCH_STDIN_VARIABLE,
};
use crate::gate;
use crate::sdk::too_large;
use crate::server::{Answer, Call, Initialised, Target, Task};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Native {
    host: Host,
    process: OnceLock<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    socket: PathBuf,
}

impl Native {
    pub(super) fn new(host: Host) -> Self {
        Self { host, process: OnceLock::new() }
    }

    async fn start(&self, init: &InitRequest<'_>) -> Result<Initialised, String> {
        let path = self.host.options.workdir.join("exec");
        code::write_executable(init, &path)?;
        let env = init.env();
        let patience = init_patience(&env);
        let process = self.spawn(&path).await?;
        // The code is not sent on: it is running.
        let main = init.main.as_str();
        let body =
            json!({"value": {"name": init.name.as_str(), "main": main, "binary": false, "code": "", "env": env}});
        let started = async {
            process.accepts().await?;
            let answer =
                post(&process.socket, "/init", None, Bytes::from(body.to_string())).await.map_err(|e| e.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(reason(&answer)) }
        };
        let outcome = tokio::select! {
            biased;
            outcome = tokio::time::timeout(patience, started) => outcome.unwrap_or_else(|_| Err(format!(
                "it did not serve on the socket that {SOCKET_VARIABLE} names within {patience:?}: is it made with the SDK?"
            ))),
            how = process.child.ended() => Err(format!("the executable ended at its start: {how}; its log may say why")),
        };
        if let Err(reason) = outcome {
            process.child.kill();
            return Err(reason);
        }
        let (host, child) = (self.host.clone(), process.child.clone());
        tokio::spawn(async move {
            let how = child.ended().await;
            host.ended(&how);
        });
        let socket = process.socket.to_str().map(str::to_owned);
        self.process.get_or_init(|| process);
        Ok(Initialised { socket })
    }

    async fn spawn(&self, path: &Path) -> Result<Process, String> {
        let options = &self.host.options;
        let mut socket = options.socket.clone();
        socket.as_mut_os_string().push(".n");
        let mut command = Command::new(path);
        command
            .env(SOCKET_VARIABLE, &socket)
            .env(CONCURRENCY_VARIABLE, options.concurrency.to_string())
            .env(WATCH_STDIN_VARIABLE, "1")
            // The agent's pipe: it tells this process too that the agent is gone.
            .stdin(Stdio::inherit());
        let child = self.host.children.spawn(command).await?;
        Ok(Process { child, socket })
    }

    async fn answer(&self, call: &Call<'_>) -> Answer {
        let Some(process) = self.process.get() else {
            return Answer::error(502, "the action is not initialised: send /init first");
        };
        let answer = tokio::select! {
            biased;
            // With the caller's epoch: the executable may have been adopted since this proxy looked.
            answer = post(&process.socket, "/run", call.epoch, Bytes::copy_from_slice(call.body)) => answer,
            how = process.child.ended() => Err(io::Error::other(how)),
        };
        match answer {
            Ok(answer) => answer,
            Err(broken) => {
                let end = tokio::time::timeout(LAST_PAUSE, process.child.ended()).await;
                let reason = end.unwrap_or_else(|_| format!("its connection broke: {broken}"));
                call.log.close_uncounted();
                Answer::error(502, gate::ended(&reason))
            }
        }
    }
}

impl Target for Native {
    fn init<'a>(&'a self, init: &'a InitRequest<'a>) -> Task<'a, Result<Initialised, String>> {
        Box::pin(self.start(init))
    }

    fn run<'a>(&'a self, call: Call<'a>) -> Task<'a, Answer> {
        Box::pin(async move { self.answer(&call).await })
    }

    /// The runs are in the executable, which knows nothing of this proxy: it is asked, and its socket told again.
    fn adopt(&self, epoch: u64) -> Task<'_, Option<Answer>> {
        Box::pin(async move {
            let process = self.process.get()?;
            let answer = match post(&process.socket, "/adopt", Some(epoch), Bytes::new()).await {
                Ok(answer) => answer,
                Err(broken) => Answer::error(502, format!("the executable does not answer: {broken}")),
            };
            Some(Answer { socket: process.socket.to_str().map(str::to_owned), ..answer })
        })
    }
}

impl Process {
    /// Waits until its socket is there, which is when it accepts. The caller bounds the wait.
    async fn accepts(&self) -> Result<(), String> {
        let mut pause = FIRST_PAUSE;
        while !self.socket.exists() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        Ok(())
    }
}

async fn post(socket: &Path, path: &str, epoch: Option<u64>, body: Bytes) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(Method::POST).uri(path).header(HOST, "action");
    let request = match epoch {
        Some(epoch) => request.header(EPOCH_HEADER, epoch),
        None => request,
    };
    let request = request.body(Full::new(body)).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let lines = response.headers().get(LOG_LINES_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_RESULT_BYTES).collect().await;
    connection.abort();
    match body {
        Ok(body) => Ok(Answer { log_lines: lines, ..Answer::new(status, body.to_bytes()) }),
        Err(error) if error.is::<LengthLimitError>() => {
            Ok(Answer { log_lines: lines, ..too_large(MAX_RESULT_BYTES + 1) })
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

fn reason(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    body.get("error").and_then(Value::as_str).unwrap_or("the executable gave no reason").to_owned()
}
