//! Takes in a call's body: within a size, and within a time even if it never comes.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use tokio::time::{Instant, timeout};

use super::error::ApiError;

/// No byte for so long, and it counts as lost.
const IDLE: Duration = Duration::from_secs(10);
/// For all of it, however slow.
const TOTAL: Duration = Duration::from_secs(120);
/// What is too large is still read for so long and so far: a client that is not done sending would see a
/// broken connection and not the answer.
const DISCARD_TIME: Duration = Duration::from_secs(5);
const DISCARD_BYTES: u64 = 128 << 20;
/// Memory taken for a body on its announcement alone.
const MAX_RESERVED_BYTES: u64 = 1 << 20;

/// What is taken in, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intake {
    /// For errors, e.g. `the parameters`.
    pub(super) what: &'static str,
    pub(super) max_bytes: u64,
    /// For whoever sends more.
    pub(super) advice: &'static str,
    pub(super) idle: Duration,
    pub(super) total: Duration,
}

impl Intake {
    pub(super) fn new(what: &'static str, max_bytes: u64, advice: &'static str) -> Self {
        Self { what, max_bytes, advice, idle: IDLE, total: TOTAL }
    }

    fn too_large(&self, bytes: u64, more: bool) -> ApiError {
        ApiError::TooLarge { what: self.what, bytes, more, limit: self.max_bytes, advice: self.advice }
    }
}

/// The whole body. `asks_first`: the client waits for our word before it sends.
pub(super) async fn read(body: Body, asks_first: bool, intake: &Intake) -> Result<Bytes, ApiError> {
    let announced = body.size_hint().lower();
    let mut incoming = Incoming { body, intake, received: 0, until: Instant::now() + intake.total };
    if announced > intake.max_bytes {
        if !asks_first {
            incoming.discard().await;
        }
        return Err(intake.too_large(announced, false));
    }
    let Some(first) = incoming.next().await? else {
        return Ok(Bytes::new());
    };
    // Nearly always all of it.
    if incoming.body.is_end_stream() && incoming.received <= intake.max_bytes {
        return Ok(first);
    }
    let expected = announced.min(MAX_RESERVED_BYTES).max(incoming.received);
    let mut all = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
    all.extend_from_slice(&first);
    while incoming.received <= intake.max_bytes {
        match incoming.next().await? {
            Some(data) => all.extend_from_slice(&data),
            None => return Ok(all.freeze()),
        }
    }
    drop(all);
    let whole = incoming.discard().await;
    Err(intake.too_large(incoming.received, !whole))
}

/// A JSON object of that type.
pub(super) fn parse<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, ApiError> {
    // Else an array would do, as the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        check_object(what, body)?;
    }
    serde_json::from_slice(body).map_err(|source| ApiError::BadJson { what, source })
}

/// Whether it is one JSON object, without making anything of it.
pub(super) fn check_object(what: &'static str, body: &[u8]) -> Result<(), ApiError> {
    let text = std::str::from_utf8(body).map_err(|e| ApiError::NotUtf8 { what, at: e.valid_up_to() })?;
    serde_json::from_str::<AnyObject>(text).map(|_| ()).map_err(|source| ApiError::BadJson { what, source })
}

struct Incoming<'a> {
    body: Body,
    intake: &'a Intake,
    received: u64,
    until: Instant,
}

impl Incoming<'_> {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let (what, idle) = (self.intake.what, self.intake.idle);
        loop {
            let wait = idle.min(self.until.saturating_duration_since(Instant::now()));
            let frame = match timeout(wait, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(ApiError::BodyBroken { what, received: self.received, cause: error.to_string() });
                }
                Ok(None) => return Ok(None),
                Err(_) => return Err(ApiError::BodyLate { what, received: self.received, after: wait }),
            };
            // Trailers say nothing here.
            if let Ok(data) = frame.into_data() {
                self.received += data.len() as u64;
                return Ok(Some(data));
            }
        }
    }

    /// Reads on without keeping anything; whether the end was reached.
    async fn discard(&mut self) -> bool {
        self.until = Instant::now() + DISCARD_TIME.min(self.intake.total);
        let most = self.received + DISCARD_BYTES;
        while self.received < most {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }
}

/// Any JSON object.
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for AnyObject {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::convert::Infallible;

    use axum::http::StatusCode;
    use futures::{StreamExt, stream};

    use super::*;

    fn intake(max_bytes: u64) -> Intake {
        let late = Duration::from_millis(20);
        Intake { idle: late, total: late * 50, ..Intake::new("the thing", max_bytes, "send less") }
    }

    fn pieces(pieces: Vec<&'static str>) -> Body {
        Body::from_stream(stream::iter(pieces).map(Ok::<_, Infallible>))
    }

    #[tokio::test]
    async fn a_body_is_the_same_in_one_piece_and_in_several() {
        assert_eq!(read(Body::from("{\"a\":1}"), false, &intake(7)).await.unwrap(), "{\"a\":1}");
        assert_eq!(read(pieces(vec!["{\"a", "\":", "1}"]), false, &intake(7)).await.unwrap(), "{\"a\":1}");
        assert_eq!(read(Body::empty(), false, &intake(7)).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_an_error_with_its_size_and_the_limit() {
        for body in [Body::from("12345678"), pieces(vec!["1234", "56", "78"]), pieces(vec!["12345678"])] {
            let error = read(body, false, &intake(7)).await.unwrap_err();
            assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(error.to_string(), "the thing has 8 bytes, and 7 are allowed: send less");
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_too_large_without_being_read_for_ever() {
        let endless = stream::iter(0..).then(async |_| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, Infallible>("12345678")
        });
        let error = read(Body::from_stream(endless), false, &intake(7)).await.unwrap_err();
        assert!(matches!(error, ApiError::TooLarge { more: true, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_body_that_never_arrives_is_late() {
        let stuck = stream::iter(vec![Ok::<_, Infallible>("123")]).chain(stream::pending());
        let error = read(Body::from_stream(stuck), false, &intake(7)).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(error.to_string().contains("3 bytes"), "{error}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told_as_that() {
        let broken = stream::iter(vec![Ok("123"), Err(std::io::Error::other("reset"))]);
        let error = read(Body::from_stream(broken), false, &intake(7)).await.unwrap_err();
        assert!(matches!(error, ApiError::BodyBroken { received: 3, .. }), "{error}");
    }

    #[test]
    fn parameters_are_one_json_object_whatever_is_in_it() {
        for good in ["{}", " {\"a\": {\"b\": [1, 2.5e3, \"\\u00fc\", null, true]}}\n", "{\"ü\":\"ü\"}"] {
            check_object("x", good.as_bytes()).unwrap();
        }
        for bad in ["", "[]", "1", "null", "\"a\"", "{", "{\"a\":}", "{\"a\":1}x", "{\"a\":1}{}", "{a:1}", "{\"a\":01}"]
        {
            let error = check_object("the parameters", bad.as_bytes()).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{bad}");
            assert!(error.to_string().contains("line 1 column"), "{bad}: {error}");
        }
        let error = check_object("the parameters", b"{\"a\":\"\xff\"}").unwrap_err().to_string();
        assert!(error.contains("UTF-8") && error.contains("byte 6"), "{error}");
    }

    #[test]
    fn parameters_nested_without_end_neither_overflow_nor_pass_unclosed() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        check_object("x", deep.as_bytes()).unwrap();
        check_object("x", &deep.as_bytes()[..deep.len() - 2]).unwrap_err();
    }
}
