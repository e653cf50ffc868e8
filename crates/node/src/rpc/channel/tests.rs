#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::Instant;

use super::drive::{PING_EVERY, PING_PATIENCE};
use super::*;
use crate::net::{Listener, Stream};
use crate::peers::never_sent;

const PIPE_BYTES: usize = 64 << 10;

#[tokio::test]
async fn a_call_that_finds_nobody_was_never_sent() {
    let (net, _) = FakeNet::new(0);
    let error = ask(&channel(&net), b"hello".to_vec()).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { .. }), "{error}");
    assert!(error.to_string().contains("nobody listens"), "{error}");
    assert!(never_sent(&tonic::Status::from_error(Box::new(error))));
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_one_connection_share_its_failure() {
    let (net, _) = FakeNet::new(0);
    net.hang();
    let channel = channel(&net);
    let began = Instant::now();
    let all = futures::future::join_all((0..10).map(|_| ask(&channel, b"hello".to_vec()))).await;
    assert!(all.iter().all(|answer| matches!(answer, Err(CallError::NotSent { .. }))), "{all:?}");
    assert_eq!(began.elapsed(), CONNECT);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_leaves_the_connection_under_way_to_the_others() {
    let (net, mut ends) = FakeNet::new(1);
    tokio::spawn(echo(ends.remove(0)));
    net.hang();
    let channel = channel(&net);
    let hasty = timeout(Duration::from_millis(10), ask(&channel, b"1".to_vec()));
    let patient = ask(&channel, b"2".to_vec());
    let go_on = async {
        tokio::time::sleep(CONNECT / 2).await;
        net.hanging.send_replace(false);
    };
    let (hasty, patient, ()) = tokio::join!(hasty, patient, go_on);
    assert!(hasty.is_err());
    assert_eq!(patient.unwrap(), b"2");
}

#[tokio::test]
async fn head_and_message_leave_in_one_write() {
    let (net, mut ends) = FakeNet::new(1);
    tokio::spawn(echo(ends.remove(0)));
    let channel = channel(&net);
    assert_eq!(ask(&channel, b"first".to_vec()).await.unwrap(), b"first");
    let before = net.writes();
    assert_eq!(ask(&channel, b"second".to_vec()).await.unwrap(), b"second");
    let written = net.writes().split_off(before.len());
    assert_eq!(written.len(), 1, "{written:?}");
}

#[tokio::test]
async fn messages_larger_than_a_window_pass_both_ways_side_by_side() {
    let (net, mut ends) = FakeNet::new(1);
    tokio::spawn(echo(ends.remove(0)));
    let channel = channel(&net);
    let large = vec![7; STREAM_WINDOW as usize + 1];
    let all = futures::future::join_all((0..3).map(|_| ask(&channel, large.clone()))).await;
    assert!(all.into_iter().all(|answer| answer.unwrap() == large));
    assert_eq!(net.made(), 1, "all on one connection");
}

#[tokio::test]
async fn a_connection_that_broke_is_made_again_by_the_next_call() {
    let (net, mut ends) = FakeNet::new(2);
    let second = ends.remove(1);
    let server = tokio::spawn(echo(ends.remove(0)));
    let channel = channel(&net);
    ask(&channel, b"1".to_vec()).await.unwrap();
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    tokio::spawn(echo(second));
    let mut answer = ask(&channel, b"2".to_vec()).await;
    if matches!(answer, Err(CallError::Lost(_))) {
        // It had left before the break was seen.
        answer = ask(&channel, b"2".to_vec()).await;
    }
    assert_eq!(answer.unwrap(), b"2");
    assert_eq!(net.made(), 2);
}

#[tokio::test]
async fn a_request_that_a_peer_going_down_has_not_taken_is_made_again_on_a_new_connection() {
    let (net, mut ends) = FakeNet::new(2);
    tokio::spawn(echo(ends.remove(1)));
    let mut peer = RawPeer::new(ends.remove(0));
    let channel = channel(&net);
    let going_down = async {
        peer.read_until(HEADERS).await;
        peer.write(HEADERS, END_STREAM | END_HEADERS, 1, &[STATUS_200]).await;
        peer.read_until(HEADERS).await;
        let last_stream = [0, 0, 0, 1];
        let no_error = [0; 4];
        peer.write(GO_AWAY, 0, 0, &[last_stream, no_error].concat()).await;
        peer.read_until_closed().await;
    };
    let calls = async {
        assert_eq!(ask(&channel, b"1".to_vec()).await.unwrap(), b"");
        ask(&channel, b"2".to_vec()).await
    };
    let (answer, ()) = tokio::join!(calls, going_down);
    assert_eq!(answer.unwrap(), b"2");
    assert_eq!(net.made(), 2);
}

#[tokio::test]
async fn a_call_that_is_given_up_is_called_off_at_the_peer() {
    let (net, mut ends) = FakeNet::new(1);
    let mut peer = RawPeer::new(ends.remove(0));
    let channel = channel(&net);
    let mut call = Box::pin(ask(&channel, vec![1; 1000]));
    tokio::select! {
        answer = &mut call => panic!("{answer:?}"),
        () = peer.read_until(DATA) => {}
    }
    drop(call);
    peer.read_until(RST_STREAM).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_ends_its_calls_and_the_connection() {
    let (net, ends) = FakeNet::new(1);
    let began = Instant::now();
    let error = ask(&channel(&net), b"hello".to_vec()).await.unwrap_err();
    assert!(matches!(error, CallError::Lost(_)), "{error}");
    assert!(!never_sent(&tonic::Status::from_error(Box::new(error))), "it may have arrived");
    assert_eq!(began.elapsed().as_secs(), (PING_EVERY + PING_PATIENCE).as_secs());
    drop(ends);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_much_may_answer_a_ping_late() {
    let (net, mut ends) = FakeNet::new(1);
    let mut peer = RawPeer::new(ends.remove(0));
    let channel = channel(&net);
    let slow = async {
        for _ in 0..20 {
            tokio::time::sleep(PING_PATIENCE / 2).await;
            peer.write(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).await;
        }
        peer.write(HEADERS, END_STREAM | END_HEADERS, 1, &[STATUS_200]).await;
    };
    let (answer, ()) = tokio::join!(ask(&channel, b"1".to_vec()), slow);
    assert_eq!(answer.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_connection_lives_while_somebody_may_call_on_it_and_no_longer() {
    let (net, mut ends) = FakeNet::new(1);
    let server = tokio::spawn(echo(ends.remove(0)));
    let channel = channel(&net);
    ask(&channel, b"1".to_vec()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(ask(&channel, b"2".to_vec()).await.unwrap(), b"2");
    assert_eq!(net.made(), 1);
    drop(channel);
    timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
}

fn channel(net: &Arc<FakeNet>) -> Channel {
    Channel::new(net.clone(), "127.0.0.1:1".parse().unwrap(), HeaderValue::from_static("ours"))
}

async fn ask(channel: &Channel, message: Vec<u8>) -> Result<Vec<u8>, CallError> {
    let body = http_body_util::Full::new(Bytes::from(message)).map_err(|never| match never {});
    let request = http::Request::post("http://127.0.0.1:1/echo").body(tonic::body::Body::new(body)).unwrap();
    let answer = channel.clone().call(request).await?;
    Ok(answer.into_body().collect().await.map_err(CallError::Lost)?.to_bytes().to_vec())
}

/// Answers each call with what it was sent, until the connection ends.
async fn echo(stream: DuplexStream) {
    let mut server = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = server.accept().await {
        assert_eq!(request.headers().get("embermesh-cluster").map(HeaderValue::as_bytes), Some(&b"ours"[..]));
        tokio::spawn(async move {
            let message = Answer(request.into_body()).collect().await.unwrap().to_bytes();
            let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
            answer.send_data(message, false).unwrap();
            answer.send_trailers(http::HeaderMap::new()).unwrap();
        });
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const STATUS_200: u8 = 0x88;

/// The other side of a connection, frame by frame.
struct RawPeer {
    stream: DuplexStream,
    began: bool,
}

impl RawPeer {
    fn new(stream: DuplexStream) -> Self {
        Self { stream, began: false }
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        if !std::mem::replace(&mut self.began, true) {
            self.stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.unwrap();
        }
        let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        self.stream.write_all(&[&head, payload].concat()).await.unwrap();
    }

    /// Takes frames until one of this kind has come.
    async fn read_until(&mut self, kind: u8) {
        while self.read().await.unwrap() != kind {}
    }

    async fn read_until_closed(&mut self) {
        while self.read().await.is_ok() {}
    }

    async fn read(&mut self) -> io::Result<u8> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        if PREFACE.starts_with(&head) {
            self.stream.read_exact(&mut [0; PREFACE.len() - 9]).await?;
            self.stream.read_exact(&mut head).await?;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        self.stream.read_exact(&mut vec![0; length]).await?;
        Ok(head[3])
    }
}

/// Connections that the test holds the other ends of.
#[derive(Debug)]
struct FakeNet {
    ends: Mutex<VecDeque<DuplexStream>>,
    made: Mutex<usize>,
    hanging: watch::Sender<bool>,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl FakeNet {
    fn new(connections: usize) -> (Arc<Self>, Vec<DuplexStream>) {
        let (ours, theirs): (VecDeque<_>, Vec<_>) = (0..connections).map(|_| duplex(PIPE_BYTES)).unzip();
        (
            Arc::new(Self {
                ends: Mutex::new(ours),
                made: Mutex::default(),
                hanging: watch::Sender::new(false),
                writes: Arc::default(),
            }),
            theirs,
        )
    }

    /// Nobody is connected until further notice.
    fn hang(&self) {
        self.hanging.send_replace(true);
    }

    fn made(&self) -> usize {
        *self.made.lock().unwrap()
    }

    /// The size of each write but those that are a ping or the answer to one.
    fn writes(&self) -> Vec<usize> {
        const PING: usize = 17;
        self.writes.lock().unwrap().iter().copied().filter(|size| *size != PING).collect()
    }
}

#[async_trait]
impl Net for FakeNet {
    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(&self, _: SocketAddr) -> io::Result<Box<dyn Stream>> {
        self.hanging.subscribe().wait_for(|hanging| !hanging).await.unwrap();
        let end = self.ends.lock().unwrap().pop_front().ok_or_else(|| io::Error::other("nobody listens"))?;
        *self.made.lock().unwrap() += 1;
        Ok(Box::new(Counted { end, writes: self.writes.clone() }))
    }
}

struct Counted {
    end: DuplexStream,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.end).poll_write(cx, bytes));
        if let Ok(size) = written {
            self.writes.lock().unwrap().push(size);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}
