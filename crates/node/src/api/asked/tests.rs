#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http_body_util::BodyExt;
use serde_json::{Value, json as object};
use tower::ServiceExt;

use super::*;
use crate::invocation::InvokeError;

impl HasDesk for Arc<Desk> {
    fn desk(&self) -> &Desk {
        self
    }
}

/// The API's frame around two paths, without a node.
pub(in crate::api) fn router(desk: Desk) -> Router {
    async fn named(_: Arc<Desk>, asked: Asked) -> Answer {
        let named = object!({"namespace": asked.namespace()?, "name": asked.path("name")?, "id": asked.transaction()});
        json(StatusCode::OK, &named)
    }
    async fn busy(_: Arc<Desk>, _: Asked) -> Answer {
        let retry_after = Duration::from_millis(1_200);
        Err(InvokeError::QueueFull { name: "hello".to_owned(), retry_after }.into())
    }
    async fn echo(_: Arc<Desk>, mut asked: Asked) -> Answer {
        let body = asked.read(&Intake::new("the parameters", 7, "send less")).await?;
        body::check_object("the parameters", &body)?;
        Ok(with_body(StatusCode::OK, JSON, body))
    }
    Router::new()
        .route("/{namespace}/{name}", on(MethodFilter::GET, named).merge(on(MethodFilter::POST, echo)))
        .route("/busy", on(MethodFilter::POST, busy))
        .fallback(no_such_path::<Arc<Desk>>)
        .method_not_allowed_fallback(no_such_method::<Arc<Desk>>)
        .with_state(Arc::new(desk))
}

async fn call(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> (StatusCode, HeaderMap, String) {
    let mut request = axum::http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router(Desk::new(true)).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn every_refusal_has_an_error_and_the_transaction_id_as_its_code() {
    for (method, path, body, status, words) in [
        ("GET", "/nowhere/at/all", "", 404, "`/nowhere/at/all`"),
        ("DELETE", "/_/hello", "", 405, "DELETE"),
        ("POST", "/_/hello", "[1]", 400, "line 1 column"),
        ("POST", "/_/hello", "{\"a\":12}", 413, "8 bytes, and 7 are allowed"),
        ("GET", "/_/%ff", "", 400, "path"),
        ("POST", "/busy", "", 429, "hello"),
    ] {
        let (answered, headers, text) = call(method, path, &[("x-request-id", "tid-1")], body).await;
        assert_eq!(answered.as_u16(), status, "{method} {path}: {text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(json["error"].as_str().unwrap().contains(words), "{method} {path}: {text}");
        assert_eq!(json["code"], "tid-1");
        assert_eq!((&headers["x-request-id"], &headers["content-type"]), (&"tid-1".parse().unwrap(), &JSON));
        assert_eq!(headers["access-control-allow-origin"], "*");
    }
}

#[tokio::test]
async fn a_retry_is_asked_for_in_whole_seconds_and_not_too_early() {
    let (_, headers, _) = call("POST", "/busy", &[], "").await;
    assert_eq!(headers["retry-after"], "2");
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let (_, headers, _) = call("DELETE", "/_/hello", &[], "").await;
    let allowed = headers["allow"].to_str().unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
}

#[tokio::test]
async fn options_are_answered_everywhere_as_browsers_want_them() {
    for path in ["/_/hello", "/busy", "/nowhere/at/all"] {
        let (status, headers, body) = call("OPTIONS", path, &[("origin", "https://example.org")], "").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""), "{path}");
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("PUT"));
        assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("Authorization"));
    }
}

#[tokio::test]
async fn an_underscore_is_the_callers_namespace_and_names_are_decoded() {
    let (_, _, text) = call("GET", "/_/a%20b%2Fc", &[("authorization", "Basic whatever")], "").await;
    let named: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&named["namespace"], &named["name"]), (&"guest".into(), &"a b/c".into()));
    let (_, _, text) = call("GET", "/other/x", &[], "").await;
    assert!(text.contains("\"other\""), "{text}");
}

#[tokio::test]
async fn a_callers_transaction_id_is_kept_if_it_is_one_and_replaced_if_not() {
    let (_, headers, text) = call("GET", "/_/x", &[("x-request-id", "a-b_c.1:2")], "").await;
    assert_eq!(headers["x-request-id"], "a-b_c.1:2");
    assert!(text.contains("a-b_c.1:2"), "{text}");
    let long = "x".repeat(129);
    for bad in ["", "a b", "\"x\"", &long] {
        let (_, headers, _) = call("GET", "/_/x", &[("x-request-id", bad)], "").await;
        let id = headers["x-request-id"].to_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{bad}: {id}");
    }
    let desk = Desk::new(false);
    assert_ne!(desk.transaction(&HeaderMap::new()), desk.transaction(&HeaderMap::new()));
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_and_one_of_this_host_is_not() {
    for (origin, status) in [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:8080", 200),
        ("http://[::1]:8080", 200),
        ("https://example.org", 403),
        ("http://localhost.example.org", 403),
        ("http://127.0.0.1.example.org", 403),
        ("null", 403),
    ] {
        let (answered, _, text) = call("POST", "/_/x", &[("origin", origin)], "{}").await;
        assert_eq!(answered.as_u16(), status, "{origin}: {text}");
    }
    let request = axum::http::Request::get("/_/x").header("origin", "https://example.org").body(Body::empty()).unwrap();
    let response = router(Desk::new(false)).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
