#![allow(clippy::unwrap_used)]

use std::net::TcpListener as StdTcpListener;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;

async fn echo(_: Context, params: Value) -> Result<Value, ActionError> {
    Ok(json!({ "echo": params }))
}

/// Sends both requests of the contract on one connection; the answers as they came.
async fn init_and_run<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S) -> String {
    let mut requests = String::new();
    for (path, body, connection) in [("/init", "{}", "keep-alive"), ("/run", r#"{"value":{"a":1}}"#, "close")] {
        let length = body.len();
        requests.push_str(&format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
    }
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    answers
}

#[tokio::test]
async fn an_action_serves_over_tcp_and_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    // Taken and given back: the port that a moment ago was free.
    let address = StdTcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [Endpoint::Tcp(address), Endpoint::Unix(path)] {
        let serving = tokio::spawn(serve_in(ServeOptions::new(endpoint.clone()), echo));
        let answers = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                match &endpoint {
                    Endpoint::Tcp(address) => match TcpStream::connect(address).await {
                        Ok(stream) => break init_and_run(stream).await,
                        Err(_) => tokio::task::yield_now().await,
                    },
                    Endpoint::Unix(path) => match UnixStream::connect(path).await {
                        Ok(stream) => break init_and_run(stream).await,
                        Err(_) => tokio::task::yield_now().await,
                    },
                }
            }
        })
        .await
        .unwrap();
        assert!(answers.ends_with(r#"{"echo":{"a":1}}"#), "{endpoint}: {answers}");
        assert_eq!(answers.matches("200 OK").count(), 2);
        serving.abort();
    }
}

#[tokio::test]
async fn a_port_or_socket_in_use_is_named() {
    let taken = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = serve_in(ServeOptions::new(Endpoint::Tcp(address)), echo).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains(PORT_VARIABLE), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _taken = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = serve_in(ServeOptions::new(Endpoint::Unix(path.clone())), echo).await.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains(SOCKET_VARIABLE), "{error}");
}

#[test]
fn an_error_of_any_kind_becomes_a_failure_with_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);
    let inner = "x".parse::<u8>().unwrap_err();
    let error = ActionError::from(Outer(inner));
    assert_eq!(error, ActionError::Failed("outer: invalid digit found in string".to_owned()));
}
