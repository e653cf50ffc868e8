//! An action as OpenWhisk's clients write and read it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body;
use super::error::ApiError;
use crate::registry::action::{ActionEntry, KeyValue, Kind, Limits, UnknownKind};
use crate::registry::{ActionChange, LimitsChange};

/// The annotation that names the kind: ours to say, whatever a client sends back.
const EXEC: &str = "exec";
const PROVIDE_API_KEY: &str = "provide-api-key";
/// Longest part of an unknown kind to show.
const MAX_KIND_CHARS: usize = 100;

/// What the body of a PUT asks for. Blocks for as long as large code takes to decode.
pub(super) fn parse(body: &[u8]) -> Result<(ActionChange, Option<Bytes>), ApiError> {
    let asked: Asked = if body.is_empty() { Asked::default() } else { body::parse("the action", body)? };
    if asked.del_annotations.is_some_and(|keys| !keys.is_empty()) {
        return Err(ApiError::DelAnnotations);
    }
    let exec = asked.exec.unwrap_or_default();
    let limits = asked.limits.unwrap_or_default();
    let mut annotations = asked.annotations;
    if let Some(annotations) = &mut annotations {
        annotations.retain(|annotation| annotation.key != EXEC);
    }
    let kind = exec.kind.as_deref().map(kind).transpose()?;
    let change = ActionChange {
        kind,
        image: exec.image,
        main: exec.main,
        // Named by its hash once it is stored.
        code: None,
        limits: LimitsChange {
            memory: limits.memory,
            timeout: limits.timeout,
            concurrency: limits.concurrency,
            logs: limits.logs,
        },
        parameters: asked.parameters,
        annotations,
    };
    // Built-in actions ship with the node.
    let code = exec.code.filter(|_| kind != Some(Kind::Builtin));
    let code = code.map(|code| decoded(code, exec.binary)).transpose()?;
    Ok((change, code))
}

/// The action, with its code if there is some to show.
pub(super) fn whole<'a>(entry: &'a ActionEntry, code: Option<&'a [u8]>) -> Action<'a> {
    let (code, binary) = match code {
        Some(code) => match std::str::from_utf8(code) {
            Ok(text) if !text.contains('\0') => (Some(text.into()), false),
            _ => (Some(BASE64_STANDARD.encode(code).into()), true),
        },
        // Not worth reading it: source travels as text, executables don't.
        None => (None, matches!(entry.kind, Kind::Native | Kind::ActionLoop)),
    };
    let exec = Exec { kind: entry.kind, image: entry.image.as_deref(), code, binary, main: &entry.main };
    Action { exec: Some(exec), parameters: Some(&entry.parameters), ..summary(entry) }
}

/// The action as lists have it.
pub(super) fn summary(entry: &ActionEntry) -> Action<'_> {
    Action {
        namespace: &entry.namespace,
        name: &entry.name,
        version: &entry.version,
        publish: false,
        exec: None,
        limits: &entry.limits,
        parameters: None,
        annotations: annotations(entry),
        updated: entry.updated_ms,
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Action<'a> {
    namespace: &'a str,
    name: &'a str,
    version: &'a str,
    publish: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<Exec<'a>>,
    limits: &'a Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a [KeyValue]>,
    annotations: Vec<Annotation<'a>>,
    /// Unix time, milliseconds.
    updated: u64,
}

#[derive(Debug, Serialize)]
struct Exec<'a> {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<std::borrow::Cow<'a, str>>,
    /// Whether the code is base64.
    binary: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    main: &'a str,
}

#[derive(Debug, Serialize)]
struct Annotation<'a> {
    key: &'a str,
    value: std::borrow::Cow<'a, Value>,
}

/// What a client sends. Clients send back what they got, and newer ones more: what isn't named here, such as
/// `version` and `publish`, is not theirs to set.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    exec: Option<AskedExec>,
    limits: Option<AskedLimits>,
    parameters: Option<Vec<KeyValue>>,
    annotations: Option<Vec<KeyValue>>,
    #[serde(rename = "delAnnotations")]
    del_annotations: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AskedExec {
    kind: Option<String>,
    image: Option<String>,
    code: Option<String>,
    binary: Option<bool>,
    main: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AskedLimits {
    memory: Option<u64>,
    timeout: Option<u64>,
    concurrency: Option<u32>,
    logs: Option<u64>,
}

fn kind(text: &str) -> Result<Kind, UnknownKind> {
    text.parse().map_err(|_| UnknownKind(text.chars().take(MAX_KIND_CHARS).collect()))
}

/// The code's bytes. Clients that don't say whether it is base64 mean, as in OpenWhisk, that it is if it can be.
fn decoded(code: String, binary: Option<bool>) -> Result<Bytes, ApiError> {
    match binary {
        Some(true) => {
            BASE64_STANDARD.decode(code.trim()).map(Bytes::from).map_err(|source| ApiError::NotBase64 { source })
        }
        Some(false) => Ok(code.into()),
        None => Ok(BASE64_STANDARD.decode(code.trim()).map_or_else(|_| Bytes::from(code), Bytes::from)),
    }
}

fn annotations(entry: &ActionEntry) -> Vec<Annotation<'_>> {
    use std::borrow::Cow::{Borrowed, Owned};
    let set = entry.annotations.iter().filter(|annotation| annotation.key != EXEC);
    let mut all: Vec<_> = set.map(|a| Annotation { key: &a.key, value: Borrowed(&a.value) }).collect();
    if !all.iter().any(|annotation| annotation.key == PROVIDE_API_KEY) {
        all.push(Annotation { key: PROVIDE_API_KEY, value: Owned(false.into()) });
    }
    all.push(Annotation { key: EXEC, value: Owned(entry.kind.as_str().into()) });
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::registry::action::Revision;

    fn entry(kind: Kind) -> ActionEntry {
        ActionEntry {
            namespace: "guest".to_owned(),
            name: "hello".to_owned(),
            revision: Revision { counter: 3, node_id: "n1".to_owned() },
            deleted: false,
            version: "0.0.2".to_owned(),
            kind,
            main: String::new(),
            code_hash: Some("a".repeat(64)),
            code_bytes: 3,
            image: None,
            limits: Limits { concurrency: 4, ..Limits::default() },
            parameters: vec![KeyValue { key: "greeting".to_owned(), value: "hi".into() }],
            annotations: vec![KeyValue { key: "idempotent".to_owned(), value: true.into() }],
            updated_ms: 1_735_689_600_000,
            further: crate::registry::action::Further::new(),
        }
    }

    fn parsed(body: &Value) -> (ActionChange, Option<Bytes>) {
        parse(&serde_json::to_vec(body).unwrap()).unwrap()
    }

    #[test]
    fn an_action_has_openwhisks_fields_and_a_summary_neither_code_nor_parameters() {
        let entry = entry(Kind::Python);
        let shown = serde_json::to_value(whole(&entry, Some(b"def main(a): return a"))).unwrap();
        let annotations = json!([
            {"key": "idempotent", "value": true}, {"key": "provide-api-key", "value": false},
            {"key": "exec", "value": "python:3"},
        ]);
        let limits = json!({"memory": 256, "timeout": 60_000, "concurrency": 4, "logs": 10});
        assert_eq!(
            shown,
            json!({
                "namespace": "guest", "name": "hello", "version": "0.0.2", "publish": false,
                "exec": {"kind": "python:3", "code": "def main(a): return a", "binary": false},
                "limits": limits, "parameters": [{"key": "greeting", "value": "hi"}],
                "annotations": annotations, "updated": 1_735_689_600_000_u64,
            })
        );
        assert_eq!(
            serde_json::to_value(summary(&entry)).unwrap(),
            json!({
                "namespace": "guest", "name": "hello", "version": "0.0.2", "publish": false,
                "limits": limits, "annotations": annotations, "updated": 1_735_689_600_000_u64,
            })
        );
        assert_eq!(
            serde_json::to_value(whole(&entry, None)).unwrap()["exec"],
            json!({"kind": "python:3", "binary": false})
        );
    }

    #[test]
    fn what_the_action_shows_can_be_sent_back() {
        for code in [b"def main(a): return a".as_slice(), b"main", b"\x7fELF\x00\xff", b"a\0b", "ü".as_bytes()] {
            let mut entry = entry(Kind::Native);
            entry.main = "other".to_owned();
            let sent = serde_json::to_vec(&whole(&entry, Some(code))).unwrap();
            let (change, back) = parse(&sent).unwrap();
            assert_eq!(back.unwrap(), code);
            assert_eq!(change.kind, Some(Kind::Native));
            assert_eq!(change.main.as_deref(), Some("other"));
            assert_eq!(change.limits.concurrency, Some(4));
            assert_eq!(change.parameters, Some(entry.parameters));
            let keys: Vec<_> = change.annotations.unwrap().into_iter().map(|a| a.key).collect();
            assert_eq!(keys, ["idempotent", "provide-api-key"]);
        }
    }

    #[test]
    fn what_a_body_leaves_out_stays_as_it_was() {
        assert_eq!(parse(b"").unwrap(), (ActionChange::default(), None));
        assert_eq!(parsed(&json!({})), (ActionChange::default(), None));
        let (change, code) =
            parsed(&json!({"limits": {"memory": 512, "timeout": null}, "exec": null, "version": "9.9.9"}));
        let limits = LimitsChange { memory: Some(512), ..LimitsChange::default() };
        assert_eq!((change, code), (ActionChange { limits, ..ActionChange::default() }, None));
        let (change, code) = parsed(&json!({"exec": {"kind": "python:3", "binary": false, "main": "other"}}));
        assert_eq!((change.kind, change.main.as_deref(), code), (Some(Kind::Python), Some("other"), None));
    }

    #[test]
    fn code_of_a_client_that_does_not_say_so_is_base64_if_it_can_be() {
        let code = |exec: Value| parsed(&json!({ "exec": exec })).1.unwrap();
        assert_eq!(code(json!({"kind": "nodejs:default", "code": "UEsDBA=="})), b"PK\x03\x04".as_slice());
        assert_eq!(code(json!({"kind": "nodejs:default", "code": "function main() {}"})), "function main() {}");
        assert_eq!(code(json!({"kind": "nodejs:default", "code": "UEsDBA==", "binary": false})), "UEsDBA==");
        assert_eq!(parsed(&json!({"exec": {"kind": "builtin:1", "main": "echo", "code": "x"}})).1, None);
    }

    #[test]
    fn a_body_that_makes_no_action_is_an_error_that_says_where() {
        for (body, words) in [
            ("{\"exec\": {\"kind\": \"cobol:1\"}}", "`cobol:1`"),
            ("{\"exec\": {\"kind\": \"sequence\", \"components\": [\"/_/a\"]}}", "`sequence`"),
            ("{\"exec\": {\"kind\": \"python:3\", \"code\": \"a b\", \"binary\": true}}", "base64"),
            ("{\"limits\": {\"memory\": \"much\"}}", "line 1 column 28"),
            ("{\"limits\": {\"concurrency\": -1}}", "u32"),
            ("{\"annotations\": {\"a\": 1}}", "line 1 column"),
            ("{\"delAnnotations\": [\"a\"]}", "delAnnotations"),
            ("{", "line 1 column 1"),
            ("[]x", "line 1 column"),
            ("[]", "a JSON object"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{body}: {error}");
            assert!(error.to_string().contains(words), "{body}: {error}");
        }
    }

    #[test]
    fn a_client_can_not_name_another_kind_in_the_annotations() {
        let mut entry = entry(Kind::NodeJs);
        entry.annotations.push(KeyValue { key: "exec".to_owned(), value: "python:3".into() });
        entry.annotations.push(KeyValue { key: "provide-api-key".to_owned(), value: true.into() });
        let shown = serde_json::to_value(summary(&entry)).unwrap();
        assert_eq!(
            shown["annotations"],
            json!([
                {"key": "idempotent", "value": true}, {"key": "provide-api-key", "value": true},
                {"key": "exec", "value": "nodejs:20"},
            ])
        );
    }
}
