//! A bare gRPC echo in a process of its own: the yardstick for what a call between two processes costs.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use embermesh_proto::v1::EchoMessage;
use embermesh_proto::v1::echo_client::EchoClient;
use embermesh_proto::v1::echo_server::{Echo, EchoServer};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::figures::Samples;

const BODY_BYTES: usize = 1024;
const WARM_UP: usize = 100;

struct Service;

#[tonic::async_trait]
impl Echo for Service {
    async fn echo(&self, request: Request<EchoMessage>) -> Result<Response<EchoMessage>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

/// `embermesh __echo`: prints its address and serves until standard input closes.
pub(crate) fn serve() -> ExitCode {
    let serve = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let incoming = TcpListenerStream::new(listener).map(|stream| {
            let stream = stream?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(stream)
        });
        let (closed, when) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
            closed.send(()).ok();
        });
        let server = tonic::transport::Server::builder().add_service(EchoServer::new(Service));
        server.serve_with_incoming_shutdown(incoming, async { drop(when.await) }).await?;
        anyhow::Ok(())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the echo can't be served: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The other process, and a client of it.
pub(super) struct Yardstick {
    child: Child,
    client: EchoClient<Channel>,
}

impl Yardstick {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("__echo")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the echo process can't be started")?;
        let stdout = child.stdout.take().context("the echo process has no output")?;
        let mut address = String::new();
        let read = tokio::io::BufReader::new(stdout).read_line(&mut address).await;
        read.context("the echo process did not tell its address")?;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", address.trim()))?;
        let channel = endpoint.tcp_nodelay(true).timeout(Duration::from_secs(5)).connect().await?;
        let mut echo = Self { child, client: EchoClient::new(channel) };
        echo.measure(WARM_UP, &mut Samples::default()).await?;
        Ok(echo)
    }

    /// Measures round trips of one unary call of 1 KB at a time.
    pub(super) async fn measure(&mut self, samples: usize, figures: &mut Samples) -> anyhow::Result<()> {
        for _ in 0..samples {
            let message = EchoMessage { body: Bytes::from(vec![b'x'; BODY_BYTES]) };
            let began = Instant::now();
            self.client.echo(message).await?;
            figures.add(began.elapsed());
        }
        Ok(())
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        self.child.wait().await?;
        Ok(())
    }
}
