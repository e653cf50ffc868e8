//! `…/activations`: what became of calls that this node took.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::Shared;
use super::asked::{Answer, Asked, json, json_sized};
use super::error::ApiError;
use super::query::Query;
use crate::store::{ActivationFilter, ActivationRecord};

const ID_DIGITS: usize = 32;

pub(super) async fn list(front: Shared, asked: Asked) -> Answer {
    let (namespace, query) = (asked.namespace()?, asked.query());
    let filter = filter(query)?;
    match what(query)? {
        What::Count => {
            let count = front.node.activation_count(namespace, filter).await?;
            json(StatusCode::OK, &json!({ "activations": count }))
        }
        What::Records => {
            let records = front.node.activation_records(namespace, filter).await?;
            let about_bytes = records.iter().map(ActivationRecord::approximate_bytes).sum();
            json_sized(StatusCode::OK, &records, about_bytes)
        }
        What::Summaries => {
            let summaries = front.node.activation_summaries(namespace, filter).await?;
            json_sized(StatusCode::OK, &summaries, 512 * summaries.len())
        }
    }
}

pub(super) async fn get(front: Shared, asked: Asked) -> Answer {
    let record = find(&front, asked.namespace()?, asked.path("id")?).await?;
    json_sized(StatusCode::OK, &*record, record.approximate_bytes() + 512)
}

pub(super) async fn logs(front: Shared, asked: Asked) -> Answer {
    #[derive(Serialize)]
    struct Logs<'a> {
        logs: &'a [String],
    }
    let record = find(&front, asked.namespace()?, asked.path("id")?).await?;
    json(StatusCode::OK, &Logs { logs: &record.logs })
}

pub(super) async fn result(front: Shared, asked: Asked) -> Answer {
    let record = find(&front, asked.namespace()?, asked.path("id")?).await?;
    json(StatusCode::OK, &record.response)
}

async fn find(front: &Shared, namespace: &str, id: &str) -> Result<Arc<ActivationRecord>, ApiError> {
    let id = activation_id(id)?;
    let found = front.node.activation(namespace, &id).await?;
    found.ok_or(ApiError::NoActivation { id })
}

fn activation_id(text: &str) -> Result<String, ApiError> {
    if text.len() == ID_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(ApiError::BadActivationId { id: text.chars().take(100).collect() })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Summaries,
    Records,
    Count,
}

fn what(query: Query<'_>) -> Result<What, ApiError> {
    match (query.flag("count", false)?, query.flag("docs", false)?) {
        (true, true) => Err(ApiError::CountWithDocs),
        (true, false) => Ok(What::Count),
        (false, true) => Ok(What::Records),
        (false, false) => Ok(What::Summaries),
    }
}

fn filter(query: Query<'_>) -> Result<ActivationFilter, ApiError> {
    let page = query.page()?;
    Ok(ActivationFilter {
        name: query.text("name")?.filter(|name| !name.is_empty()).map(Into::into),
        since_ms: query.number("since", 0..=u64::MAX)?,
        upto_ms: query.number("upto", 0..=u64::MAX)?,
        limit: page.limit,
        skip: page.skip,
        descending: true,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_list_is_narrowed_by_its_query() {
        assert_eq!(filter(Query::new("")).unwrap(), ActivationFilter::default());
        let query = Query::new("docs=true&limit=0&skip=2&since=1000&upto=2000&name=a%20b");
        assert_eq!(what(query).unwrap(), What::Records);
        let expected = ActivationFilter {
            name: Some("a b".to_owned()),
            since_ms: Some(1_000),
            upto_ms: Some(2_000),
            limit: 200,
            skip: 2,
            descending: true,
        };
        assert_eq!(filter(query).unwrap(), expected);
        assert!(filter(Query::new("since=yesterday")).unwrap_err().to_string().contains("`since`"));
    }

    #[test]
    fn a_count_has_no_documents() {
        assert_eq!(what(Query::new("count=true&docs=false")).unwrap(), What::Count);
        let error = what(Query::new("count=true&docs=true")).unwrap_err();
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn an_activation_id_has_32_hex_digits_in_either_case() {
        assert_eq!(activation_id("00112233445566778899AABBCCDDEEFF").unwrap(), "00112233445566778899aabbccddeeff");
        for bad in ["", "0011", "zz112233445566778899aabbccddeeff", "00112233445566778899aabbccddeeff0"] {
            assert_eq!(activation_id(bad).unwrap_err().status(), StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
