//! The node's front door: OpenWhisk's REST API under `/api/v1`, the mesh's own under `/mesh/v1`, and what
//! probes and Prometheus ask.
//!
//! | module | what it has |
//! | --- | --- |
//! | `asked` | a call's beginning and end: transaction id, headers, the shape of errors |
//! | `body`, `query`, `error` | what comes in, checked; why it is refused |
//! | `invoke` | the way of an invocation, kept short |
//! | `actions`, `action_json` | actions, and their shape both ways |
//! | `activations`, `about` | records; namespaces, limits and what the API is |
//! | `mesh`, `events` | what a node sees and does, and its events as they happen |
//! | `faults` | faults made on purpose |
//! | `health` | `/livez`, `/readyz`, `/metrics` |
//! | `server` | connections |
//!
//! Nobody authenticates yet: any `Authorization` header is accepted and not looked at, every caller is
//! `guest`, and the namespace `_` means `guest`. That is why agents bind to loopback only, and why there a
//! call that a web page of another site makes is refused (see `asked::Desk`): such a page runs in the
//! browser of somebody who may reach this port.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::routing::MethodFilter;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::Node;

mod about;
mod action_json;
mod actions;
mod activations;
mod asked;
mod body;
mod error;
mod events;
mod faults;
mod health;
mod invoke;
mod mesh;
mod query;
mod server;

use asked::{Desk, HasDesk, no_such_method, no_such_path, on};

/// Actions with large code that are taken in at a time: each is in memory several times over.
const LARGE_UPLOADS: usize = 2;

/// All paths, for a node. Calls from web pages are not told apart: that needs a listener's address.
pub fn router(node: Node) -> Router {
    routes(node, Desk::new(false))
}

/// Serves the API until `shutdown`, then lets what runs end for some seconds.
pub async fn serve(
    listener: TcpListener,
    node: Node,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let desk = Desk::new(listener.local_addr()?.ip().is_loopback());
    let closing = desk.closing().clone();
    let asked = node.clone();
    server::run(listener, routes(node, desk), move |from| asked.engine().bars(from), closing, shutdown).await
}

/// What every handler has.
struct Front {
    node: Node,
    desk: Desk,
    uploads: Semaphore,
}

type Shared = Arc<Front>;

impl HasDesk for Shared {
    fn desk(&self) -> &Desk {
        &self.desk
    }
}

fn routes(node: Node, desk: Desk) -> Router {
    const GET: MethodFilter = MethodFilter::GET;
    const PUT: MethodFilter = MethodFilter::PUT;
    const POST: MethodFilter = MethodFilter::POST;
    const DELETE: MethodFilter = MethodFilter::DELETE;

    let action = on(GET, actions::get)
        .merge(on(PUT, actions::put))
        .merge(on(DELETE, actions::delete))
        .merge(on(POST, invoke::invoke));
    let packaged = GET.or(PUT).or(DELETE).or(POST);
    let openwhisk = Router::new()
        .route("/", on(GET, about::root))
        .route("/api/v1", on(GET, about::version))
        .route("/api/v1/", on(GET, about::version))
        .route("/api/v1/namespaces", on(GET, about::namespaces))
        .route("/api/v1/namespaces/{namespace}/limits", on(GET, about::limits))
        .route("/api/v1/namespaces/{namespace}/packages", on(GET, about::no_packages))
        .route("/api/v1/namespaces/{namespace}/triggers", on(GET, about::no_triggers))
        .route("/api/v1/namespaces/{namespace}/rules", on(GET, about::no_rules))
        .route("/api/v1/namespaces/{namespace}/actions", on(GET, actions::list))
        .route("/api/v1/namespaces/{namespace}/actions/{name}", action)
        .route("/api/v1/namespaces/{namespace}/actions/{package}/{name}", on(packaged, actions::in_package))
        .route("/api/v1/namespaces/{namespace}/activations", on(GET, activations::list))
        .route("/api/v1/namespaces/{namespace}/activations/{id}", on(GET, activations::get))
        .route("/api/v1/namespaces/{namespace}/activations/{id}/logs", on(GET, activations::logs))
        .route("/api/v1/namespaces/{namespace}/activations/{id}/result", on(GET, activations::result));
    let mesh = Router::new()
        .route("/mesh/v1/members", on(GET, mesh::members))
        .route("/mesh/v1/containers", on(GET, mesh::containers))
        .route("/mesh/v1/containers/{id}/pause", on(POST, mesh::pause))
        .route("/mesh/v1/containers/{id}/remove", on(POST, mesh::remove))
        .route("/mesh/v1/leases", on(GET, mesh::leases))
        .route("/mesh/v1/leases/{id}/release", on(POST, mesh::release))
        .route("/mesh/v1/intents", on(GET, mesh::intents))
        .route("/mesh/v1/intents/{id}/veto", on(POST, mesh::veto))
        .route("/mesh/v1/status", on(GET, mesh::status))
        .route("/mesh/v1/drain", on(POST, mesh::drain))
        .route("/mesh/v1/leave", on(POST, mesh::leave))
        .route(
            "/mesh/v1/faults",
            on(GET, faults::shown).merge(on(POST, faults::change)).merge(on(DELETE, faults::heal)),
        )
        .route("/mesh/v1/events", on(GET, events::events));
    let probes = Router::new()
        .route("/livez", on(GET, health::livez))
        .route("/readyz", on(GET, health::readyz))
        .route("/metrics", on(GET, health::metrics));
    openwhisk
        .merge(mesh)
        .merge(probes)
        .fallback(no_such_path::<Shared>)
        .method_not_allowed_fallback(no_such_method::<Shared>)
        .with_state(Arc::new(Front { node, desk, uploads: Semaphore::new(LARGE_UPLOADS) }))
}
