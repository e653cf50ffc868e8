//! What the API says of itself, namespaces and their limits; and the collections that are always empty.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::Shared;
use super::asked::{Answer, Asked, GUEST, json};
use crate::config::LimitsSection;
use crate::registry::action::Kind;

const MEGABYTE: u64 = 1 << 20;

pub(super) async fn root(front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &description(front.node.limits()))
}

/// `wsk property get` shows the build.
pub(super) async fn version(_front: Shared, _asked: Asked) -> Answer {
    let version = env!("CARGO_PKG_VERSION");
    json(
        StatusCode::OK,
        &json!({
            "description": "OpenWhisk API", "api_version": "1.0.0", "api_version_path": "v1",
            "build": format!("embermesh {version}"), "buildno": version,
        }),
    )
}

pub(super) async fn namespaces(_front: Shared, _asked: Asked) -> Answer {
    json(StatusCode::OK, &[GUEST])
}

pub(super) async fn limits(front: Shared, asked: Asked) -> Answer {
    asked.namespace()?;
    json(StatusCode::OK, &user_limits(front.node.limits()))
}

pub(super) async fn no_packages(_front: Shared, asked: Asked) -> Answer {
    nothing(&asked, "packages")
}

pub(super) async fn no_triggers(_front: Shared, asked: Asked) -> Answer {
    nothing(&asked, "triggers")
}

pub(super) async fn no_rules(_front: Shared, asked: Asked) -> Answer {
    nothing(&asked, "rules")
}

fn nothing(asked: &Asked, what: &str) -> Answer {
    asked.query().page()?;
    let count = asked.query().flag("count", false)?;
    if count { json(StatusCode::OK, &json!({ what: 0 })) } else { json(StatusCode::OK, &[(); 0]) }
}

/// Durations in milliseconds, sizes in bytes, as OpenWhisk has them here.
fn description(limits: &LimitsSection) -> Value {
    json!({
        "description": "Embermesh, with the OpenWhisk API",
        "version": env!("CARGO_PKG_VERSION"),
        "api_paths": ["/api/v1", "/mesh/v1"],
        "runtimes": runtimes(),
        "limits": {
            "min_action_duration": 100,
            "max_action_duration": timeout_max_ms(limits),
            "min_action_memory": limits.memory_min_mb * MEGABYTE,
            "max_action_memory": limits.memory_max_mb * MEGABYTE,
            "min_action_logs": 0,
            "max_action_logs": 10 * MEGABYTE,
            "max_action_concurrency": limits.concurrency_max,
            "max_action_code": limits.code_max.bytes(),
            "max_payload": limits.payload_max.bytes(),
        },
    })
}

fn runtimes() -> Value {
    let mut families = Map::new();
    // An image of the user's is no runtime of ours.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Blackbox) {
        let family = kind.as_str().split(':').next().unwrap_or_default();
        let runtime = json!({
            "kind": kind, "default": true, "deprecated": false, "requireMain": false, "image": "",
            "attached": kind != Kind::Builtin,
        });
        families.insert(family.to_owned(), json!([runtime]));
    }
    families.into()
}

/// Memory and logs in megabytes, times in milliseconds, as actions' limits have them.
fn user_limits(limits: &LimitsSection) -> Value {
    json!({
        "allowedKinds": Kind::ALL,
        "storeActivations": true,
        "minActionMemory": limits.memory_min_mb,
        "maxActionMemory": limits.memory_max_mb,
        "minActionTimeout": 100,
        "maxActionTimeout": timeout_max_ms(limits),
        "minActionConcurrency": 1,
        "maxActionConcurrency": limits.concurrency_max,
        "minActionLogs": 0,
        "maxActionLogs": 10,
        "maxParameterSize": limits.payload_max.bytes(),
    })
}

fn timeout_max_ms(limits: &LimitsSection) -> u64 {
    u64::try_from(limits.timeout_max.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_configured_ones_in_openwhisks_units() {
        let limits = LimitsSection::default();
        let about = description(&limits);
        assert_eq!(about["limits"]["max_action_memory"], 536_870_912);
        assert_eq!(about["limits"]["max_action_duration"], 300_000);
        assert_eq!(about["runtimes"]["nodejs"][0]["kind"], "nodejs:20");
        let limits = user_limits(&limits);
        assert_eq!(limits["maxActionMemory"], 512);
        assert_eq!(limits["allowedKinds"].as_array().map(Vec::len), Some(Kind::ALL.len()));
    }
}
