//! `POST …/actions/{name}`: the way of every invocation, so it does little. Parameters and result pass as
//! the bytes they are.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Shared;
use super::asked::{Answer, Asked, GUEST, json, json_sized};
use super::body::{self, Intake};
use crate::invocation::{Call, Invoked, Wait};
use crate::store::{ActivationRecord, ActivationStatus};

const ACTIVATION_ID: HeaderName = HeaderName::from_static("x-openwhisk-activation-id");
/// The longest, and the default, that a blocking call waits.
const MAX_WAIT_MS: u64 = 60_000;
const PARAMETERS: &str = "the parameters";

pub(super) async fn invoke(front: Shared, mut asked: Asked) -> Answer {
    let query = asked.query();
    let blocking = query.flag("blocking", false)?;
    let only_result = query.flag("result", false)?;
    let wait_ms = query.number("timeout", 1..=MAX_WAIT_MS)?.unwrap_or(MAX_WAIT_MS);

    let max_bytes = front.node.limits().payload_max.bytes();
    let params = asked.read(&Intake::new(PARAMETERS, max_bytes, "pass large data by reference")).await?;
    let call = Call {
        namespace: asked.namespace()?.to_owned(),
        name: asked.path("name")?.to_owned(),
        params: parameters(params)?,
        transaction_id: asked.transaction().to_owned(),
        subject: GUEST.to_owned(),
    };
    let wait = if blocking { Wait::For(Duration::from_millis(wait_ms)) } else { Wait::No };
    match front.node.invoke(call, wait).await? {
        Invoked::Ended(record) => ended(&record, only_result),
        Invoked::Accepted { activation_id } => accepted(&activation_id),
    }
}

/// No body means no parameters.
fn parameters(body: Bytes) -> Result<Bytes, super::error::ApiError> {
    if body.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    body::check_object(PARAMETERS, &body)?;
    Ok(body)
}

fn ended(record: &ActivationRecord, only_result: bool) -> Answer {
    let status = match record.response.status {
        ActivationStatus::Success => StatusCode::OK,
        ActivationStatus::ApplicationError | ActivationStatus::DeveloperError => StatusCode::BAD_GATEWAY,
        ActivationStatus::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let response = if only_result {
        json(status, &BareResult(record.response.result.as_deref()))
    } else {
        json_sized(status, record, record.approximate_bytes() + 512)
    };
    Ok(of_activation(response?, &record.activation_id))
}

fn accepted(activation_id: &str) -> Answer {
    #[derive(Serialize)]
    struct Accepted<'a> {
        #[serde(rename = "activationId")]
        activation_id: &'a str,
    }
    Ok(of_activation(json(StatusCode::ACCEPTED, &Accepted { activation_id })?, activation_id))
}

fn of_activation(mut response: Response, id: &str) -> Response {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(ACTIVATION_ID, id);
    }
    response
}

/// An activation without a result has an empty one.
struct BareResult<'a>(Option<&'a RawValue>);

impl Serialize for BareResult<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(result) => result.serialize(serializer),
            None => serializer.collect_map(std::iter::empty::<((), ())>()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http_body_util::BodyExt;

    use super::*;
    use crate::store::ActivationResponse;
    use crate::store::activation::tests::record;

    async fn shown(answer: Answer) -> (u16, String, String) {
        let response = answer.unwrap();
        let id = response.headers()[&ACTIVATION_ID].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, id, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_status_tells_how_the_activation_ended() {
        for (status, code) in [
            (ActivationStatus::Success, 200),
            (ActivationStatus::ApplicationError, 502),
            (ActivationStatus::DeveloperError, 502),
            (ActivationStatus::InternalError, 500),
        ] {
            let mut record = record("guest", "hello", 255, 1_000);
            record.response = ActivationResponse::new(status, record.response.result);
            let (answered, id, body) = shown(ended(&record, false)).await;
            assert_eq!((answered, id.as_str()), (code, record.activation_id.as_str()));
            let back: ActivationRecord = serde_json::from_str(&body).unwrap();
            assert_eq!(back.response.status, status);
            assert_eq!(shown(ended(&record, true)).await, (code, id, "{\"n\":255}".to_owned()));
        }
    }

    #[tokio::test]
    async fn a_result_keeps_its_very_bytes_and_none_is_an_empty_object() {
        let mut record = record("guest", "hello", 1, 1_000);
        let text = "{ \"b\":1.50,  \"a\": [ ] }";
        record.response = ActivationResponse::new(ActivationStatus::Success, Some(serde_json::from_str(text).unwrap()));
        assert_eq!(shown(ended(&record, true)).await.2, text);
        assert!(shown(ended(&record, false)).await.2.contains(text));
        record.response = ActivationResponse::new(ActivationStatus::InternalError, None);
        assert_eq!(shown(ended(&record, true)).await.2, "{}");
    }

    #[tokio::test]
    async fn an_accepted_call_answers_202_and_where_to_look() {
        let id = "0".repeat(32);
        let (status, header, body) = shown(accepted(&id)).await;
        assert_eq!((status, header, body), (202, id.clone(), format!("{{\"activationId\":\"{id}\"}}")));
    }

    #[test]
    fn parameters_pass_as_they_came_and_none_are_an_empty_object() {
        let body = Bytes::from_static(b" {\"a\": 1.50} ");
        assert_eq!(parameters(body.clone()).unwrap().as_ptr(), body.as_ptr());
        assert_eq!(parameters(Bytes::new()).unwrap(), "{}");
        assert!(parameters(Bytes::from_static(b"[1]")).unwrap_err().to_string().contains("a JSON object"));
    }
}
