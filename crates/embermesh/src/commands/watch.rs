//! `watch`: the node's events as they happen.

use std::future::Future;

use embermesh_node::views::Event;
use serde_json::Value;

use super::{CommandError, Exit};
use crate::cli::{Format, WatchArgs};
use crate::client::{Client, EventStream};
use crate::output::{Output, utc, visible};

pub(super) async fn run(client: &Client, args: &WatchArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let events = client.events("/mesh/v1/events").await?;
    let interrupted = async {
        // Without a handler Ctrl-C ends the process as it does by default.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    follow(events, args.count, interrupted, output).await
}

async fn follow(
    mut events: EventStream,
    count: Option<u64>,
    interrupted: impl Future<Output = ()>,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    tokio::pin!(interrupted);
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) {
        let data = tokio::select! {
            () = &mut interrupted => return Ok(Exit::Ok),
            data = events.next() => data?,
        };
        let Some(data) = data else {
            output.remark("the node ended the stream of events; it may be stopping");
            return Ok(Exit::Unavailable);
        };
        match line(&data, output.format) {
            Ok(line) => output.line(&line)?,
            Err(e) => output.remark(&format!("left out an event that can't be understood ({e}): {}", visible(&data))),
        }
        seen += 1;
    }
    Ok(Exit::Ok)
}

fn line(data: &str, format: Format) -> Result<String, serde_json::Error> {
    match format {
        // As it came, fields that this version does not know included; only line breaks go.
        Format::Json => {
            serde_json::from_str::<Value>(data)?;
            Ok(data.replace(['\r', '\n'], " "))
        }
        Format::Table => Ok(event_line(&serde_json::from_str(data)?)),
    }
}

fn event_line(event: &Event) -> String {
    let mut line = format!("{}  {:<6}  {:<20}", utc(event.at_ms), event.node_id, event.kind);
    let fields = [("container", &event.container_id), ("action", &event.action), ("peer", &event.peer)];
    for (name, value) in fields {
        if let Some(value) = value {
            line.push_str(&format!("  {name}={value}"));
        }
    }
    if let Some(detail) = &event.detail {
        line.push_str(&format!("  {detail}"));
    }
    visible(line.trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::client::test_server::{Reply, TestServer};

    const EVENTS: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"at_ms\":1735689600000,\"node_id\":\"n1\",\"kind\":\"container_started\",\"container_id\":\"n1-7-1\",\"action\":\"guest/hello\"}\n\n",
        "data: nonsense\n\n",
        "data: {\"at_ms\":1735689600250,\"node_id\":\"n1\",\"kind\":\"veto_received\",\"peer\":\"n2\",\"detail\":\"holds for 12000 ms\",\"new\":1}\n\n",
    );

    async fn watch(
        reply: Reply,
        format: Format,
        count: Option<u64>,
        interrupted: impl Future<Output = ()>,
    ) -> (Exit, String, String) {
        let server = TestServer::start(move |_, _| reply.clone()).await;
        let events = server.client(Duration::from_secs(20)).events("/mesh/v1/events").await.unwrap();
        let (mut answers, mut remarks) = (Vec::new(), Vec::new());
        let mut output = Output::new(format, &mut answers, &mut remarks);
        let exit = follow(events, count, interrupted, &mut output).await.unwrap();
        (exit, String::from_utf8(answers).unwrap(), String::from_utf8(remarks).unwrap())
    }

    #[tokio::test]
    async fn each_event_is_a_line_and_a_strange_one_is_left_out() {
        let (exit, answers, remarks) =
            watch(Reply::Events(vec![EVENTS]), Format::Table, None, std::future::pending()).await;
        insta::assert_snapshot!(answers, @r"
        2025-01-01T00:00:00.000Z  n1      container_started     container=n1-7-1  action=guest/hello
        2025-01-01T00:00:00.250Z  n1      veto_received         peer=n2  holds for 12000 ms
        ");
        assert_eq!(exit, Exit::Unavailable);
        assert!(remarks.contains("nonsense") && remarks.contains("ended the stream"), "{remarks}");
    }

    #[tokio::test]
    async fn as_json_each_event_is_one_line_with_all_its_fields() {
        let (_, answers, _) = watch(Reply::Events(vec![EVENTS]), Format::Json, None, std::future::pending()).await;
        insta::assert_snapshot!(answers, @r#"
        {"at_ms":1735689600000,"node_id":"n1","kind":"container_started","container_id":"n1-7-1","action":"guest/hello"}
        {"at_ms":1735689600250,"node_id":"n1","kind":"veto_received","peer":"n2","detail":"holds for 12000 ms","new":1}
        "#);
    }

    #[tokio::test]
    async fn watching_ends_well_after_its_count() {
        let reply = Reply::OpenEvents(vec![EVENTS]);
        let (exit, answers, _) = watch(reply, Format::Table, Some(1), std::future::pending()).await;
        assert_eq!((exit, answers.lines().count()), (Exit::Ok, 1));
    }

    #[tokio::test]
    async fn an_interruption_ends_watching_well_while_nothing_happens() {
        let (exit, answers, remarks) =
            watch(Reply::OpenEvents(Vec::new()), Format::Table, None, std::future::ready(())).await;
        assert_eq!((exit, answers.as_str(), remarks.as_str()), (Exit::Ok, "", ""));
    }
}
