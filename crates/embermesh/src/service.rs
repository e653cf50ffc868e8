//! What the service manager is told (systemd's notify protocol, where there is one): that the agent is up, that it
//! still turns, that it goes down.

use embermesh_node::Node;
use sd_notify::NotifyState;

/// The agent serves.
pub(crate) fn ready(node: &Node) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("node {} serves on {}", node.id(), node.api_addr()))]);
}

pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("lets runs end")]);
}

/// Says again and again that the agent lives, at half the time that it is given. Each time the node's core has to be
/// free for a look: one that hangs is told by silence.
pub(crate) async fn watchdog(node: Node) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        let status = node.status();
        tell(&[
            NotifyState::Watchdog,
            NotifyState::Status(&format!("{} containers, {} peers live", status.containers, status.peers_live)),
        ]);
        tokio::time::sleep(patience / 2).await;
    }
}

/// Without a service manager nobody listens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
