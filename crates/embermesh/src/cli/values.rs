//! How values on the command line are written: durations, sizes, addresses, names and parameters.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

/// `/NAMESPACE/NAME`, or a name in the user's own namespace, which is written `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActionName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for ActionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.strip_prefix('/') {
            Some(rest) => rest
                .split_once('/')
                .ok_or_else(|| format!("`{text}` names no action: write NAME or /NAMESPACE/NAME"))?,
            None => ("_", text),
        };
        if namespace.is_empty() || name.is_empty() {
            return Err(format!("`{text}` names no action: write NAME or /NAMESPACE/NAME"));
        }
        if name.contains('/') {
            return Err(format!("`{text}`: packages do not exist here, write NAME or /NAMESPACE/NAME"));
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ActionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == "_" { f.write_str(&self.name) } else { write!(f, "/{}/{}", self.namespace, self.name) }
    }
}

/// Durations as `500ms`, `30s`, `1m30s`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write e.g. 500ms, 30s, 1m30s or 2h");
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (count, after) = leading_number(rest).ok_or_else(wrong)?;
        let (unit_ms, after) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
            .iter()
            .find_map(|(unit, ms)| after.strip_prefix(unit).map(|after| (*ms, after)))
            .ok_or_else(wrong)?;
        total_ms = count.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(total_ms)) }
}

/// Memory as `4GiB` or `512MiB`, in megabytes (of 2^20 bytes, as OpenWhisk counts them).
pub(crate) fn memory_mb(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory: write e.g. 512MiB or 4GiB");
    let (count, unit) = leading_number(text).ok_or_else(wrong)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1_024,
        "t" | "tb" | "tib" => 1_024 * 1_024,
        _ => return Err(wrong()),
    };
    count.checked_mul(factor).filter(|mb| *mb > 0).ok_or_else(wrong)
}

/// An address to listen on; kept as text, see [`super::AgentArgs::api`].
pub(crate) fn listen_address(text: &str) -> Result<String, String> {
    match text.parse::<SocketAddr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("`{text}` is no address to listen on: write ADDR:PORT, e.g. 127.0.0.1:3233")),
    }
}

/// `HOST:PORT`, where the host may be a name.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not HOST:PORT, e.g. 127.0.0.1:7411")),
    }
}

pub(crate) fn activation_id(text: &str) -> Result<String, String> {
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{text}` is no activation id (32 hexadecimal digits): `embermesh activation list` shows them"))
    }
}

/// The pairs that `--param KEY VALUE --param KEY VALUE` come as; a value that is not JSON is text.
pub(crate) fn pairs(flat: &[String]) -> Vec<(String, Value)> {
    flat.chunks_exact(2).map(|pair| (pair[0].clone(), json_or_text(&pair[1]))).collect()
}

pub(crate) fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The whole number that `text` begins with, and what follows it.
fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn durations_need_a_unit_and_may_have_several_parts() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "30", "s", "-1s", "1.5s", "3 s", "5d", "99999999999999999999s", "18446744073709551615h"] {
            let error = duration(wrong).unwrap_err();
            assert!(error.contains(wrong) && error.contains("1m30s"), "{wrong}: {error}");
        }
    }

    #[test]
    fn memory_is_counted_in_megabytes() {
        assert_eq!(memory_mb("4GiB"), Ok(4_096));
        assert_eq!(memory_mb("512MiB"), Ok(512));
        assert_eq!(memory_mb("2g"), Ok(2_048));
        for wrong in ["", "4", "GiB", "4KiB", "0GiB", "4 GiB", "18446744073709551615GiB"] {
            assert!(memory_mb(wrong).unwrap_err().contains("4GiB"), "{wrong}");
        }
    }

    #[test]
    fn an_action_may_be_named_with_its_namespace() {
        let name: ActionName = "hello".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("_", "hello"));
        assert_eq!(name.to_string(), "hello");
        let name: ActionName = "/guest/hello".parse().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("guest", "hello"));
        assert_eq!(name.to_string(), "/guest/hello");
        for wrong in ["", "/", "/guest", "/guest/", "//x", "pkg/hello", "/guest/pkg/hello"] {
            assert!(wrong.parse::<ActionName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_parameter_is_json_if_it_can_be_and_text_if_not() {
        let flat: Vec<String> =
            ["n", "3", "s", "hello", "z", "007", "b", "true", "o", r#"{"a":[1]}"#, "q", r#""3""#, "n", "null"]
                .iter()
                .map(ToString::to_string)
                .collect();
        let values: Vec<Value> = pairs(&flat).into_iter().map(|(_, value)| value).collect();
        assert_eq!(Value::Array(values), json!([3, "hello", "007", true, {"a": [1]}, "3", null]));
    }

    #[test]
    fn addresses_and_activation_ids_are_checked_before_anything_is_sent() {
        assert!(listen_address("127.0.0.1:3233").is_ok() && listen_address("[::1]:3233").is_ok());
        assert!(listen_address("localhost:3233").is_err() && listen_address("http://127.0.0.1:3233").is_err());
        assert!(host_port("node-2.example:7411").is_ok() && host_port("[::1]:7411").is_ok());
        for wrong in ["node-2", ":7411", "node-2:", "node-2:0", "node-2:70000", "http://node-2:7411"] {
            assert!(host_port(wrong).is_err(), "{wrong}");
        }
        assert_eq!(activation_id("00112233445566778899AABBCCDDEEFF").unwrap(), "00112233445566778899aabbccddeeff");
        assert!(activation_id("00112233").is_err() && activation_id("zz112233445566778899aabbccddeeff").is_err());
    }
}
