//! What is kept of an activation, in OpenWhisk's shape.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::registry::action::KeyValue;

/// An activation that has ended. Times are Unix time in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationRecord {
    /// 32 hex digits.
    pub activation_id: String,
    pub namespace: String,
    /// The action's.
    pub name: String,
    /// The action's version, as users see it.
    pub version: String,
    /// Who invoked it.
    pub subject: String,
    #[serde(rename = "start")]
    pub start_ms: u64,
    #[serde(rename = "end")]
    pub end_ms: u64,
    #[serde(rename = "duration")]
    pub duration_ms: u64,
    pub publish: bool,
    /// The activation that caused this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(default)]
    pub logs: Vec<String>,
    #[serde(default)]
    pub annotations: Vec<KeyValue>,
    pub response: ActivationResponse,
}

/// How it ended. The result stays as the bytes that the container answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActivationResponse {
    pub status: ActivationStatus,
    pub success: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Of the result, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ActivationStatus {
    #[serde(rename = "success")]
    Success,
    /// The action answered an error.
    #[serde(rename = "application error")]
    ApplicationError,
    /// The action failed to answer.
    #[serde(rename = "action developer error")]
    DeveloperError,
    /// It could not be run, or its outcome is not known.
    #[serde(rename = "whisk internal error")]
    InternalError,
}

/// One line of a list: the record without logs and result, with a status code instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationSummary {
    pub activation_id: String,
    pub namespace: String,
    pub name: String,
    pub version: String,
    pub subject: String,
    #[serde(rename = "start")]
    pub start_ms: u64,
    #[serde(rename = "end")]
    pub end_ms: u64,
    #[serde(rename = "duration")]
    pub duration_ms: u64,
    pub publish: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    pub annotations: Vec<KeyValue>,
    pub status_code: u8,
}

impl ActivationRecord {
    pub fn summary(&self) -> ActivationSummary {
        ActivationSummary {
            activation_id: self.activation_id.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            version: self.version.clone(),
            subject: self.subject.clone(),
            start_ms: self.start_ms,
            end_ms: self.end_ms,
            duration_ms: self.duration_ms,
            publish: self.publish,
            cause: self.cause.clone(),
            annotations: self.annotations.clone(),
            status_code: self.response.status.code(),
        }
    }

    /// About what it takes in memory, in bytes.
    pub fn approximate_bytes(&self) -> usize {
        const FIXED: usize = 512;
        const LINE: usize = 32;
        let result = self.response.result.as_ref().map_or(0, |result| result.get().len());
        FIXED + result + self.logs.iter().map(|line| line.len() + LINE).sum::<usize>()
    }
}

impl ActivationResponse {
    pub fn new(status: ActivationStatus, result: Option<Box<RawValue>>) -> Self {
        let size = result.as_ref().map(|result| result.get().len() as u64);
        Self { status, success: status == ActivationStatus::Success, result, size }
    }
}

impl ActivationStatus {
    /// OpenWhisk's number, 0 to 3.
    pub fn code(self) -> u8 {
        match self {
            ActivationStatus::Success => 0,
            ActivationStatus::ApplicationError => 1,
            ActivationStatus::DeveloperError => 2,
            ActivationStatus::InternalError => 3,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn record(namespace: &str, name: &str, id: u64, start_ms: u64) -> ActivationRecord {
        let result = RawValue::from_string(format!("{{\"n\":{id}}}")).unwrap();
        ActivationRecord {
            activation_id: format!("{id:032x}"),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            version: "0.0.1".to_owned(),
            subject: "guest".to_owned(),
            start_ms,
            end_ms: start_ms + 5,
            duration_ms: 5,
            publish: false,
            cause: None,
            logs: vec!["a line".to_owned()],
            annotations: Vec::new(),
            response: ActivationResponse::new(ActivationStatus::Success, Some(result)),
        }
    }

    #[test]
    fn a_record_has_openwhisks_fields() {
        let json = serde_json::to_value(record("guest", "hello", 255, 1_000)).unwrap();
        let expected = serde_json::json!({
            "activationId": "000000000000000000000000000000ff", "namespace": "guest", "name": "hello",
            "version": "0.0.1", "subject": "guest", "start": 1000, "end": 1005, "duration": 5, "publish": false,
            "logs": ["a line"], "annotations": [],
            "response": {"status": "success", "success": true, "result": {"n": 255}, "size": 9},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_summary_has_a_status_code_and_neither_logs_nor_result() {
        let mut record = record("guest", "hello", 1, 1_000);
        record.response = ActivationResponse::new(ActivationStatus::DeveloperError, None);
        let json = serde_json::to_value(record.summary()).unwrap();
        assert_eq!(json["statusCode"], 2);
        assert!(json.get("logs").is_none() && json.get("response").is_none());
        assert_eq!(json["start"], 1000);
    }

    #[test]
    fn a_result_keeps_its_very_bytes() {
        let text = "{ \"b\":1.50,  \"a\": [ ] }";
        let mut record = record("guest", "hello", 1, 1);
        record.response = ActivationResponse::new(ActivationStatus::Success, Some(serde_json::from_str(text).unwrap()));
        let back: ActivationRecord = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(back.response.result.unwrap().get(), text);
    }
}
