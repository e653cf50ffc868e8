//! `GET /mesh/v1/events`: what happens, as server-sent events, from the moment of the call on.

use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Shared;
use super::asked::{Answer, Asked};
use crate::clock::wall_ms;
use crate::views::Event;

/// A comment so often shows both ends, and what is between them, that the other one is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) async fn events(front: Shared, _asked: Asked) -> Answer {
    let events = follow(front.node.events(), front.node.id().to_string());
    // It would keep the server from ending.
    let events = events.take_until(front.desk.closing().clone().cancelled_owned());
    let events = events.map(|event| sse::Event::default().json_data(&*event));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// The events, and in the place of those that a slow reader missed one that counts them.
fn follow(receiver: Receiver<Arc<Event>>, node_id: String) -> impl Stream<Item = Arc<Event>> {
    stream::unfold((receiver, node_id), |(mut receiver, node_id)| async move {
        let event = match receiver.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(lost)) => Arc::new(lagged(&node_id, lost)),
            Err(RecvError::Closed) => return None,
        };
        Some((event, (receiver, node_id)))
    })
}

fn lagged(node_id: &str, lost: u64) -> Event {
    Event {
        at_ms: wall_ms(),
        node_id: node_id.to_owned(),
        kind: "lagged".to_owned(),
        container_id: None,
        action: None,
        peer: None,
        detail: Some(format!("{lost} events were lost: they came faster than they were read")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_how_much_it_missed_and_gets_what_is_left() {
        let (sender, receiver) = broadcast::channel(2);
        for number in 0..5 {
            let kind = format!("event_{number}");
            sender.send(Arc::new(Event { kind, ..lagged("n1", 0) })).unwrap();
        }
        drop(sender);
        let events: Vec<_> = follow(receiver, "n1".to_owned()).collect().await;
        let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["lagged", "event_3", "event_4"]);
        assert!(events[0].detail.as_ref().unwrap().starts_with("3 events"), "{events:?}");
    }
}
