//! Connections: taken in, bounded, and ended with the server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// At a time; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// From one answer to the next call's last header line.
const IDLE: Duration = Duration::from_secs(75);
/// For a call's head, and for a read of its body.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// When the server ends, for calls that run.
const CLOSING: Duration = Duration::from_secs(5);
/// The listener can't accept, for want of files most likely: pauses, and how many before it is given up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_ACCEPT_FAILURES: u32 = 300;

/// Answers calls until `shutdown`; then cancels `closing`, takes no more, and waits a moment for what runs.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    closing: CancellationToken,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let accepted = tokio::select! {
        () = shutdown => Ok(()),
        failed = accept(&listener, &router, &closing, &mut connections) => failed.map(|never| match never {}),
    };
    drop(listener);
    closing.cancel();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSING, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "calls still run and are cut off");
        connections.shutdown().await;
    }
    accepted
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    closing: &CancellationToken,
    connections: &mut JoinSet<()>,
) -> io::Result<Infallible> {
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                failures = 0;
                connections.spawn(connection(stream, router.clone(), closing.clone()));
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) if failures >= MAX_ACCEPT_FAILURES => return Err(error),
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "no connection can be accepted; trying on");
                }
                failures += 1;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, closing: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        // It is gone already.
        return;
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| router.clone().call(request));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    // How a connection ends concerns nobody: a call that a client gave up is dropped, and knows.
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Server {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        closing: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    async fn start(router: Router) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let closing = CancellationToken::new();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let task = tokio::spawn(run(listener, router, closing.clone(), shutdown));
        Server { address, stop, closing, task }
    }

    async fn say(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn all_of(mut stream: TcpStream) -> String {
        let mut text = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn a_call_that_runs_is_answered_though_the_server_ends() {
        let (go, wait) = (CancellationToken::new(), CancellationToken::new());
        let (goes, waits) = (go.clone(), wait.clone());
        let slow = async move || {
            waits.cancel();
            goes.cancelled().await;
            "done"
        };
        let server = start(Router::new().route("/", get(slow))).await;
        let idle = TcpStream::connect(server.address).await.unwrap();
        let busy = say(server.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        timeout(DEADLINE, wait.cancelled()).await.unwrap();
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.closing.cancelled()).await.unwrap();
        assert_eq!(all_of(idle).await, "");
        go.cancel();
        let answer = all_of(busy).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_drops_its_call() {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let (sender, dropped) = oneshot::channel();
        let (began, begins) = (CancellationToken::new(), CancellationToken::new());
        let guard = std::sync::Arc::new(std::sync::Mutex::new(Some(Dropped(Some(sender)))));
        let began_too = began.clone();
        let stuck = async move || {
            let _guard = guard.lock().unwrap().take();
            began_too.cancel();
            begins.cancelled().await;
        };
        let server = start(Router::new().route("/", get(stuck))).await;
        let client = say(server.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        timeout(DEADLINE, began.cancelled()).await.unwrap();
        drop(client);
        timeout(DEADLINE, dropped).await.unwrap().unwrap();
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_sends_too_much_still_reads_why_that_is_refused() {
        use crate::api::asked::{Desk, tests::router};
        let server = start(router(Desk::new(true))).await;
        let head = "POST /_/x HTTP/1.1\r\nHost: x\r\nContent-Length: 8388608\r\n";
        let whole = say(server.address, &format!("{head}\r\n{}", "x".repeat(8 << 20))).await;
        let asking = say(server.address, &format!("{head}Expect: 100-continue\r\n\r\n")).await;
        for stream in [whole, asking] {
            let answer = all_of(stream).await;
            assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("8388608 bytes, and 7"), "{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
        }
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn connections_are_kept_and_answers_leave_at_once() {
        let server = start(Router::new().route("/", get(async || "ok"))).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"ok") {
                let mut chunk = [0; 1024];
                let read = timeout(DEADLINE, stream.read(&mut chunk)).await.unwrap().unwrap();
                assert!(read > 0, "the server hung up");
                answer.extend_from_slice(&chunk[..read]);
            }
        }
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
    }
}
