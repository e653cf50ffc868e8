#![allow(clippy::unwrap_used)]

use embermesh_node::views::Members;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::test_server::{Reply, TestServer};
use super::*;
use crate::commands::Exit;

const LONG: Duration = Duration::from_secs(20);

/// A server that reads a request's beginning, writes raw bytes and closes.
async fn raw_server(answer: &'static [u8]) -> (Client, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = listener.local_addr().unwrap().to_string().parse().unwrap();
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        socket.write_all(answer).await.unwrap();
    });
    (Client::new(base, LONG), task)
}

#[tokio::test]
async fn a_connection_that_was_idle_for_too_long_is_not_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = listener.local_addr().unwrap().to_string().parse().unwrap();
    let client = Client::keeping(base, LONG, Duration::from_nanos(1));
    let calls = tokio::spawn(async move {
        for _ in 0..2 {
            client.get("/").await.unwrap();
        }
    });
    let mut kept = Vec::new();
    // Each call comes on a connection of its own, although the one before would be kept.
    for _ in 0..2 {
        let (mut socket, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
        kept.push(socket);
    }
    calls.await.unwrap();
}

#[tokio::test]
async fn a_refused_connection_asks_whether_an_agent_runs_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(address.to_string().parse().unwrap(), LONG);
    let error = client.get("/mesh/v1/members").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { refused: true, .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Unavailable);
    assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains("refused"), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("embermesh agent") && hint.contains("EMBERMESH_API"), "{hint}");
}

#[tokio::test]
async fn each_refusal_has_its_exit_code_and_keeps_the_nodes_words() {
    let codes = [
        (400, Exit::Failure),
        (401, Exit::NotAuthorised),
        (403, Exit::NotAuthorised),
        (404, Exit::NotFound),
        (409, Exit::Conflict),
        (413, Exit::Failure),
        (429, Exit::Unavailable),
        (500, Exit::Failure),
        (502, Exit::Failure),
        (503, Exit::Unavailable),
    ];
    for (status, exit) in codes {
        let server = TestServer::saying(status, r#"{"error": "no action `x`", "code": "tid42"}"#).await;
        let error = server.client(LONG).get("/x").await.unwrap_err();
        assert_eq!(error.exit(), exit, "{status}");
        assert_eq!(error.code(), Some("tid42"));
        assert_eq!(error.to_string(), format!("no action `x` ({status})"));
    }
}

#[tokio::test]
async fn a_refusal_that_is_no_json_shows_its_beginning() {
    let server = TestServer::saying(502, &format!("<html>\n{}", "x".repeat(1_000))).await;
    let error = server.client(LONG).get("/x").await.unwrap_err().to_string();
    assert!(error.starts_with("<html>xxx") && error.ends_with("x… (502)") && error.len() < 250, "{error}");

    let server = TestServer::saying(503, "").await;
    assert!(server.client(LONG).get("/x").await.unwrap_err().to_string().contains("Service Unavailable"));
}

#[tokio::test]
async fn a_refusal_says_when_to_come_again() {
    let server = TestServer::start(|_, _| Reply::Later(503, r#"{"error":"full"}"#.to_owned(), 7)).await;
    let error = server.client(LONG).get("/x").await.unwrap_err();
    assert_eq!(error.hint().unwrap(), "try again in 7s");
}

#[tokio::test]
async fn malformed_json_is_a_failure_that_says_so() {
    let server = TestServer::saying(200, r#"{"members": 3"#).await;
    let answer = server.client(LONG).get("/mesh/v1/members").await.unwrap();
    let error = answer.parse::<Members>().unwrap_err();
    assert_eq!(error.exit(), Exit::Failure);
    assert!(error.to_string().contains("JSON"), "{error}");
}

#[tokio::test]
async fn a_node_that_never_answers_meets_the_deadline() {
    let server = TestServer::start(|_, _| Reply::Hang).await;
    let client = server.client(Duration::from_millis(50));
    for error in [client.get("/x").await.unwrap_err(), client.events("/x").await.unwrap_err()] {
        assert!(matches!(error, ClientError::Deadline { .. }), "{error:?}");
        assert_eq!(error.exit(), Exit::Unavailable);
        assert!(error.to_string().contains("within 50ms"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_or_breaks_off_is_told_apart() {
    let (client, task) = raw_server(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    let error = client.get("/x").await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("mesh port"));
    task.await.unwrap();

    let (client, task) = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    let error = client.get("/x").await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Unavailable);
    task.await.unwrap();
}

#[tokio::test]
async fn a_request_carries_its_body_and_its_path_below_the_base() {
    let server = TestServer::saying(200, "{}").await;
    let base = format!("{}/prefix/", server.url).parse().unwrap();
    let client = Client::new(base, LONG);
    client.post("/mesh/v1/drain", &json!({"force": true})).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].line, "POST /prefix/mesh/v1/drain");
    assert_eq!(asked[0].body, json!({"force": true}));
}

#[tokio::test]
async fn events_are_read_until_the_node_ends_them() {
    let server = TestServer::start(|_, _| Reply::Events(vec![": hi\n\nda", "ta: 1\n\ndata: 2\n", "\n"])).await;
    let mut events = server.client(LONG).events("/mesh/v1/events").await.unwrap();
    assert_eq!(events.next().await.unwrap().as_deref(), Some("1"));
    assert_eq!(events.next().await.unwrap().as_deref(), Some("2"));
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn what_is_no_event_stream_is_refused() {
    let server = TestServer::saying(200, "{}").await;
    assert!(matches!(server.client(LONG).events("/x").await.unwrap_err(), ClientError::Malformed { .. }));
    let server = TestServer::saying(404, r#"{"error":"no such path"}"#).await;
    assert_eq!(server.client(LONG).events("/x").await.unwrap_err().exit(), Exit::NotFound);
}

#[test]
fn an_api_address_needs_no_scheme_but_a_host() {
    let base = |text: &str| text.parse::<BaseUrl>().map(|b| b.to_string());
    assert_eq!(base("127.0.0.1:3233").unwrap(), "http://127.0.0.1:3233");
    assert_eq!(base("http://n1:3233/").unwrap(), "http://n1:3233");
    assert_eq!(base("http://gate/n1/").unwrap(), "http://gate/n1");
    for wrong in ["", "https://n1:3233", "ftp://n1", "http://", "http://n1:x", "http://n1/?a=b"] {
        assert!(base(wrong).unwrap_err().contains("127.0.0.1:3233"), "{wrong}");
    }
}

#[test]
fn names_are_written_so_that_they_stay_one_segment() {
    assert_eq!(encoded("a-b_c.d~1"), "a-b_c.d~1");
    assert_eq!(encoded("a b/ü?&%"), "a%20b%2F%C3%BC%3F%26%25");
}
