//! Names, sizes and message shapes of the action contract. Sits below the SDK and the proxy; holds no state.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Largest body of `/init`: 48 MB of code in base64 are 64 MB, plus what stands around it.
pub const MAX_INIT_BODY_BYTES: usize = 65 * 1024 * 1024;
/// Largest body of `/run`: 1 MB of parameters, plus what stands around them.
pub const MAX_RUN_BODY_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// Largest result that is passed on. The agent cuts at 1 MB; beyond this the run is answered [`RESULT_TOO_LARGE`].
pub const MAX_RESULT_BYTES: usize = 4 * 1024 * 1024;
/// The status of a run whose result is not passed on: to the agent the same as a result over its own limit.
pub const RESULT_TOO_LARGE: u16 = 507;
/// Longest log line, in bytes; the rest of a longer one is dropped.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Header of `/run` answers: lines attributed to that activation, end marks not counted.
pub const LOG_LINES_HEADER: &str = "x-embermesh-log-lines";
/// Header of the `/init` answer of a native action: the Unix socket to use from then on.
pub const SOCKET_HEADER: &str = "x-embermesh-socket";
/// Header of requests of an agent whose containers outlive it: its epoch. A container answers no older one once it was
/// adopted by a newer.
pub const EPOCH_HEADER: &str = "x-embermesh-epoch";
/// The line on stdout and stderr after which an activation writes nothing more.
pub const END_MARK: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// The Unix socket that an SDK action serves on; TCP when unset.
pub const SOCKET_VARIABLE: &str = "EMBERMESH_ACTION_SOCKET";
/// The TCP port that an SDK action serves on; 8080 when unset.
pub const PORT_VARIABLE: &str = "EMBERMESH_ACTION_PORT";
/// The most runs at once of an SDK action whose environment allows concurrency; no limit when unset.
pub const CONCURRENCY_VARIABLE: &str = "EMBERMESH_ACTION_CONCURRENCY";
/// `1` makes an SDK action end when its stdin does: how an agent's death reaches it.
pub const WATCH_STDIN_VARIABLE: &str = "EMBERMESH_ACTION_WATCH_STDIN";
/// The container's id. Set by agents; makes log lines carry the activation id.
pub const CONTAINER_VARIABLE: &str = "__EMBERMESH_CONTAINER";
/// The id of the node that owns the container.
pub const NODE_VARIABLE: &str = "__EMBERMESH_NODE";
/// `true` allows more than one run at a time.
pub const ALLOW_CONCURRENT_VARIABLE: &str = "__OW_ALLOW_CONCURRENT";

/// Whether `id` can stand in a log line's prefix: 32 lower-case hex digits.
pub fn is_activation_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `value` of an `/init` request. Borrows from the body: the code may be tens of megabytes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InitRequest<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
    #[serde(borrow)]
    pub(crate) main: Text<'a>,
    #[serde(borrow)]
    pub(crate) code: Text<'a>,
    pub(crate) binary: Option<bool>,
    env: Option<BTreeMap<String, Value>>,
}

impl<'a> InitRequest<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow, default)]
            value: Option<InitRequest<'a>>,
        }
        Ok(serde_json::from_slice::<Envelope<'a>>(body)?.value.unwrap_or_default())
    }

    pub(crate) fn binary(&self) -> bool {
        self.binary.unwrap_or(false)
    }

    /// The init parameters and `__OW_…` values. What is not a string is given as its JSON text.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.env.iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
    }
}

/// A `/run` request. `value` is left unparsed: most runtimes only pass it on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RunRequest<'a> {
    #[serde(borrow)]
    pub(crate) value: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) namespace: Text<'a>,
    #[serde(borrow)]
    pub(crate) action_name: Text<'a>,
    #[serde(borrow)]
    pub(crate) action_version: Text<'a>,
    #[serde(borrow)]
    pub(crate) activation_id: Text<'a>,
    #[serde(borrow)]
    pub(crate) transaction_id: Text<'a>,
    #[serde(borrow)]
    pub(crate) deadline: Text<'a>,
}

impl<'a> RunRequest<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

/// A string field of an envelope: borrowed where JSON allows it, empty when absent or null. Numbers are
/// taken too, since some callers send the deadline as one.
#[derive(Debug, Default, Clone)]
pub(crate) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn or<'b>(&'b self, default: &'b str) -> &'b str {
        if self.0.is_empty() { default } else { &self.0 }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn code_without_escapes_is_borrowed_from_the_body() {
        let body = br#"{"value":{"name":"a","code":"QUJD","binary":true,"env":{"k":"v","n":7}}}"#;
        let init = InitRequest::parse(body).unwrap();
        assert!(matches!(init.code.0, Cow::Borrowed("QUJD")));
        assert!(init.binary());
        assert_eq!(init.env().get("n").map(String::as_str), Some("7"));
        assert_eq!(init.main.or("main"), "main");
    }

    #[test]
    fn nulls_and_numbers_in_an_envelope_are_taken() {
        let run = RunRequest::parse(br#"{"value":null,"namespace":null,"deadline":1234,"extra":[1]}"#).unwrap();
        assert_eq!(run.namespace.as_str(), "");
        assert_eq!(run.deadline.as_str(), "1234");
        assert!(InitRequest::parse(br#"{"value":null}"#).unwrap().env().is_empty());
    }

    #[test]
    fn only_32_lower_case_hex_digits_are_an_activation_id() {
        assert!(is_activation_id("0123456789abcdef0123456789abcdef"));
        assert!(!is_activation_id("0123456789ABCDEF0123456789abcdef"));
        assert!(!is_activation_id("0123"));
    }
}
