#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: usize = 1000;

/// What the other side does with each request it read.
#[derive(Clone, Copy)]
enum Does {
    Answers(&'static str),
    ClosesUnread,
    ClosesAfterReading,
    Nothing,
}

struct Server {
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

fn serve(does: Does) -> Server {
    serve_in(does, tempfile::tempdir().unwrap())
}

fn serve_in(does: Does, folder: tempfile::TempDir) -> Server {
    let server = Server { folder, connections: Arc::default(), requests: Arc::default() };
    let listener = UnixListener::bind(server.path()).unwrap();
    let (connections, requests) = (server.connections.clone(), server.requests.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(connection(stream, does, requests.clone()));
        }
    });
    server
}

async fn connection(mut stream: UnixStream, does: Does, requests: Arc<AtomicUsize>) {
    if matches!(does, Does::ClosesUnread) {
        return;
    }
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        // Each test's request is sent, and so arrives, in one piece.
        assert!(buffer[..read].starts_with(b"POST /run HTTP/1.1\r\n"));
        requests.fetch_add(1, Ordering::SeqCst);
        match does {
            Does::Answers(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Does::Nothing => {}
            Does::ClosesUnread | Does::ClosesAfterReading => return,
        }
    }
}

fn client(path: &Path) -> Client {
    Client::new(Address::Unix(path.to_owned()), 2, LIMIT)
}

async fn run(client: &Client) -> Result<Answer, CallError> {
    client.post("/run", Bytes::from_static(b"{}"), SECOND, Connecting::Once).await
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-embermesh-log-lines: 7\r\n\r\n{}";

#[tokio::test]
async fn a_connection_is_used_again_and_headers_are_read() {
    let server = serve(Does::Answers(OK));
    let client = client(&server.path());
    client.warm_up().await.unwrap();
    for _ in 0..20 {
        let answer = run(&client).await.unwrap();
        assert_eq!((answer.reply.status, answer.reply.log_lines, &answer.reply.body[..]), (200, Some(7), &b"{}"[..]));
        assert_eq!(answer.socket, None);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn idle_connections_are_bounded() {
    let server = serve(Does::Answers(OK));
    let client = client(&server.path());
    let calls = (0..10).map(|_| run(&client));
    for outcome in futures::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(client.lock().idle.len(), 2);
}

#[tokio::test]
async fn nobody_listening_is_not_sent_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(&folder.path().join("socket"));
    assert!(matches!(run(&client).await, Err(CallError::NotSent(_))));
}

#[tokio::test]
async fn connecting_is_retried_until_somebody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(&folder.path().join("socket"));
    let call = client.post("/run", Bytes::from_static(b"{}"), 5 * SECOND, Connecting::UntilTimeout);
    let mut call = pin!(call);
    assert!(tokio::time::timeout(4 * CONNECT_RETRY, call.as_mut()).await.is_err());
    let _server = serve_in(Does::Answers(OK), folder);
    assert_eq!(call.await.unwrap().reply.status, 200);
}

#[tokio::test]
async fn connecting_ends_with_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let client = client(&folder.path().join("socket"));
    let short = Duration::from_millis(50);
    let outcome = client.post("/run", Bytes::new(), short, Connecting::UntilTimeout).await;
    assert!(matches!(outcome, Err(CallError::Timeout(t)) if t == short));
}

#[tokio::test]
async fn a_request_that_was_read_and_not_answered_is_lost_and_not_sent_again() {
    let server = serve(Does::ClosesAfterReading);
    let client = client(&server.path());
    assert!(matches!(run(&client).await, Err(CallError::Lost(_))));
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn connections_that_closed_while_idle_are_not_used() {
    let server = serve(Does::ClosesUnread);
    let client = client(&server.path());
    let _ = client.warm_up().await;
    let deadline = std::time::Instant::now() + 5 * SECOND;
    while client.check_out().1.is_some() {
        assert!(std::time::Instant::now() < deadline, "a closed connection still counts as usable");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_run_without_answer_times_out_and_its_connection_is_not_kept() {
    let server = serve(Does::Nothing);
    let client = client(&server.path());
    let short = Duration::from_millis(50);
    let outcome = client.post("/run", Bytes::from_static(b"{}"), short, Connecting::Once).await;
    assert!(matches!(outcome, Err(CallError::Timeout(_))));
    assert!(client.lock().idle.is_empty());
}

#[tokio::test]
async fn an_abandoned_run_leaves_the_pool_clean() {
    let server = serve(Does::Nothing);
    let client = client(&server.path());
    client.warm_up().await.unwrap();
    {
        let mut call = pin!(run(&client));
        let deadline = std::time::Instant::now() + 5 * SECOND;
        while server.requests.load(Ordering::SeqCst) == 0 {
            assert!(std::time::Instant::now() < deadline, "the request never arrived");
            assert!(tokio::time::timeout(Duration::from_millis(1), call.as_mut()).await.is_err());
        }
    }
    assert!(client.lock().idle.is_empty());
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused_whether_its_length_is_told_or_not() {
    let told = "HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n";
    let chunk =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    for text in [told, Box::leak(chunk.into_boxed_str())] {
        let server = serve(Does::Answers(text));
        let client = client(&server.path());
        assert!(matches!(run(&client).await, Err(CallError::TooLarge { limit: LIMIT })));
        assert!(client.lock().idle.is_empty());
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_lost() {
    let server = serve(Does::Answers("rubbish\r\n\r\n"));
    assert!(matches!(run(&client(&server.path())).await, Err(CallError::Lost(_))));
}

#[tokio::test]
async fn a_redirected_client_calls_the_other_socket() {
    let first = serve(Does::Answers(OK));
    let second = serve(Does::Answers("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"));
    let client = client(&first.path());
    assert_eq!(run(&client).await.unwrap().reply.status, 200);
    client.redirect(Address::Unix(second.path().to_owned()));
    assert_eq!(run(&client).await.unwrap().reply.status, 502);
    assert_eq!(first.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_address_is_reached_through_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let short = std::env::temp_dir().join(format!("embermesh-http-{}", std::process::id()));
    std::os::unix::fs::symlink(&deep, &short).unwrap();
    let listener = UnixListener::bind(short.join("socket"));
    std::fs::remove_file(&short).unwrap();
    let listener = listener.unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        connection(stream, Does::Answers(OK), Arc::default()).await;
    });
    assert_eq!(run(&client(&deep.join("socket"))).await.unwrap().reply.status, 200);
}
