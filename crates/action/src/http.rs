//! HTTP/1.1 over a Unix socket or TCP: as little as the contract needs, since it stands on every activation's path.
//!
//! The only caller is an agent on the same host or network, so idle connections are kept without a time-out.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::contract::{EPOCH_HEADER, LOG_LINES_HEADER, MAX_INIT_BODY_BYTES, MAX_RUN_BODY_BYTES, SOCKET_HEADER};
use crate::server::{Answer, Server};

/// Connections served at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The most room that is set aside on a caller's word about its body's length.
const MAX_TRUSTED_LENGTH: u64 = MAX_INIT_BODY_BYTES as u64;

#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on `path`. It appears there only when it accepts: it is bound beside it and renamed.
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push("~");
        let beside = PathBuf::from(beside);
        match std::fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&beside)?;
        std::fs::rename(&beside, path)?;
        Ok(Self::Unix(listener))
    }

    pub(crate) async fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind(address).await?))
    }
}

/// Serves until dropped.
pub(crate) async fn serve(listener: Listener, server: Arc<Server>) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| spawn(stream, server.clone(), place)),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Without it small answers may wait for the peer's delayed acknowledgement.
                let _ = stream.set_nodelay(true);
                spawn(stream, server.clone(), place);
            }),
        };
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn spawn<S>(stream: S, server: Arc<Server>, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(respond(server, request).await) }
        });
        // A connection's failure concerns its caller only.
        let _ = http1::Builder::new().auto_date_header(false).serve_connection(TokioIo::new(stream), service).await;
        drop(place);
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Run,
    Init,
    Adopt,
}

async fn respond(server: Arc<Server>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let call = match request.uri().path() {
        "/run" => Call::Run,
        "/init" => Call::Init,
        "/adopt" => Call::Adopt,
        path => return response(Answer::error(404, format!("there is nothing at {path}: POST to /init or /run"))),
    };
    if request.method() != Method::POST {
        return response(Answer::error(405, format!("{} is not served here: use POST", request.method())));
    }
    let limit = if call == Call::Init { MAX_INIT_BODY_BYTES } else { MAX_RUN_BODY_BYTES };
    let epoch = request.headers().get(EPOCH_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = match read(request.into_body(), limit).await {
        Ok(body) => body,
        Err(answer) => return response(answer),
    };
    // In a task of its own: a caller that hangs up must not end the run.
    let work = tokio::spawn(async move {
        match call {
            Call::Run => server.run_by(epoch, body).await,
            Call::Init => server.init_by(epoch, body).await,
            Call::Adopt => server.adopt(epoch).await,
        }
    });
    response(match work.await {
        Ok(answer) => answer,
        Err(e) => Answer::error(502, format!("the runtime failed: {e}")),
    })
}

/// The whole body. One that is too large is read to its end all the same (and dropped), so that its
/// sender gets to see the answer instead of a broken connection.
async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, Answer> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Answer::error(400, format!("the body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > MAX_INIT_BODY_BYTES {
            break;
        }
        if length > limit {
            continue;
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                let expected = body.size_hint().upper().unwrap_or(0).min(MAX_TRUSTED_LENGTH) as usize;
                rest.reserve(length + expected.min(limit));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    match length {
        _ if length > limit => Err(Answer::error(413, format!("the body is larger than {limit} bytes: send less"))),
        _ if rest.is_empty() => Ok(first),
        _ => Ok(rest.freeze()),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(lines) = answer.log_lines {
        headers.insert(LOG_LINES_HEADER, HeaderValue::from(lines));
    }
    if let Some(socket) = answer.socket.as_deref().and_then(|socket| HeaderValue::from_str(socket).ok()) {
        headers.insert(SOCKET_HEADER, socket);
    }
    response
}
