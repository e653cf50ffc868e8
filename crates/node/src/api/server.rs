//! Connections: taken in, bounded, and ended with the server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockFilter, SockRef};
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
/// When the server ends, for calls that are on their way to it: they are answered, if only with a refusal.
const LAST_CALLS: Duration = Duration::from_millis(250);
/// For calls that run then.
const CLOSING: Duration = Duration::from_secs(5);
/// The listener can't accept, for want of files most likely: pauses, and how many before it is given up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MAX_ACCEPT_FAILURES: u32 = 300;
/// A program for the kernel: drops of a listener's packets those that would open a connection. The byte with a TCP
/// header's flags is loaded, and looked at for SYN.
const NO_NEW_CONNECTIONS: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x45, 0, 1, 0b10),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Answers calls of those who are not `barred` until `shutdown`; then cancels `closing`, takes no more, and waits a
/// moment for what runs.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    barred: impl Fn(IpAddr) -> bool + Send + Sync,
    closing: CancellationToken,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut connections = Connections { router, barred, closing, last_calls: Arc::default(), all: JoinSet::new() };
    let accepted = tokio::select! {
        () = shutdown => Ok(()),
        failed = connections.accept(&listener) => failed.map(|never| match never {}),
    };
    connections.last_calls.store(true, Ordering::Relaxed);
    connections.take_in_the_rest(listener);
    let Connections { closing, all: mut connections, .. } = connections;
    closing.cancel();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSING, all_ended).await.is_err() {
        tracing::warn!(connections = connections.len(), "calls still run and are cut off");
        connections.shutdown().await;
    }
    accepted
}

struct Connections<B> {
    router: Router,
    /// Whose calls are not answered.
    barred: B,
    closing: CancellationToken,
    /// From now on each answer is the last one on its connection.
    last_calls: Arc<AtomicBool>,
    all: JoinSet<()>,
}

impl<B: Fn(IpAddr) -> bool> Connections<B> {
    async fn accept(&mut self, listener: &TcpListener) -> io::Result<Infallible> {
        let mut failures = 0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if self.all.len() < MAX_CONNECTIONS => accepted,
                Some(_) = self.all.join_next() => continue,
            };
            match accepted {
                Ok((stream, from)) => {
                    failures = 0;
                    self.take(stream, from);
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

    /// Whoever is connected in the backlog: closing the listener would cut them off without a word. Who comes later is
    /// not connected any more.
    fn take_in_the_rest(&mut self, listener: TcpListener) {
        SockRef::from(&listener).attach_filter(&NO_NEW_CONNECTIONS).ok();
        let Ok(listener) = listener.into_std() else { return };
        while self.all.len() < MAX_CONNECTIONS {
            let (stream, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if concerns_one_connection(&error) => continue,
                Err(_) => return,
            };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            stream.into_iter().for_each(|stream| self.take(stream, from));
        }
    }

    fn take(&mut self, stream: TcpStream, from: SocketAddr) {
        let Self { router, barred, closing, last_calls, .. } = self;
        if barred(from.ip()) {
            tracing::debug!(%from, "a container called the API: it gets no answer");
            return;
        }
        self.all.spawn(connection(stream, router.clone(), closing.clone(), last_calls.clone()));
    }
}

async fn connection(stream: TcpStream, router: Router, closing: CancellationToken, last_calls: Arc<AtomicBool>) {
    if stream.set_nodelay(true).is_err() {
        // It is gone already.
        return;
    }
    let last_calls = &*last_calls;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let answer = router.clone().call(request);
        async move {
            let mut answer = answer.await?;
            if last_calls.load(Ordering::Relaxed) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    // How a connection ends concerns nobody: a call that a client gave up is dropped, and knows.
    let closed = async {
        closing.cancelled().await;
        sleep(LAST_CALLS).await;
    };
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = closed => {
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
        start_barring(router, |_| false).await
    }

    async fn start_barring(router: Router, barred: fn(IpAddr) -> bool) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let closing = CancellationToken::new();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let task = tokio::spawn(run(listener, router, barred, closing.clone(), shutdown));
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

    /// On one thread: the server has not taken in whoever connects here.
    #[tokio::test]
    async fn calls_that_are_on_their_way_as_the_server_ends_are_answered() {
        let server = start(Router::new().route("/", get(async || "ok"))).await;
        let mut kept = say(server.address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut answer = [0; 1024];
        assert!(timeout(DEADLINE, kept.read(&mut answer)).await.unwrap().unwrap() > 0);
        let waiting = std::net::TcpStream::connect(server.address).unwrap();
        waiting.set_nonblocking(true).unwrap();
        let mut waiting = TcpStream::from_std(waiting).unwrap();
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.closing.cancelled()).await.unwrap();
        for stream in [&mut kept, &mut waiting] {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        }
        for stream in [kept, waiting] {
            let answer = all_of(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
        }
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_is_barred_is_hung_up_on_and_others_are_served() {
        const BARRED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
        let server = start_barring(Router::new().route("/", get(async || "ok")), |from| from == BARRED).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(BARRED, 0)).unwrap();
        // It says nothing: an end that leaves bytes unread would be a reset.
        assert_eq!(all_of(socket.connect(server.address).await.unwrap()).await, "");
        let call = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(all_of(say(server.address, call).await).await.ends_with("ok"));
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.task).await.unwrap().unwrap().unwrap();
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
