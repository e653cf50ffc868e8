//! What a node sees and does: `status`, `members`, `containers`, `leases`, `intents`.

use embermesh_node::views::{Container, Containers, Intent, Intents, Lease, Leases, Member, Members, Status, VetoView};

use super::{CommandError, Exit};
use crate::cli::ContainersArgs;
use crate::client::Client;
use crate::output::{Output, details, human_bytes, human_mb, human_ms, human_us, table};

pub(super) async fn status(client: &Client, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.get("/mesh/v1/status").await?;
    let status: Status = answer.parse()?;
    output.answer(&answer.body, || status_details(&status))?;
    Ok(Exit::Ok)
}

pub(super) async fn members(client: &Client, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.get("/mesh/v1/members").await?;
    let view: Members = answer.parse()?;
    output.answer(&answer.body, || members_table(&view.members))?;
    if view.members.is_empty() {
        output.remark("the node knows no member, not even itself");
    }
    Ok(Exit::Ok)
}

pub(super) async fn containers(
    client: &Client,
    args: &ContainersArgs,
    output: &mut Output<'_>,
) -> Result<Exit, CommandError> {
    let path = if args.all_nodes { "/mesh/v1/containers?all_nodes=true" } else { "/mesh/v1/containers" };
    let answer = client.get(path).await?;
    let view: Containers = answer.parse()?;
    output.answer(&answer.body, || containers_table(&view.containers))?;
    if view.containers.is_empty() {
        output.remark(if args.all_nodes {
            "no node has a container"
        } else {
            "this node has no container; --all-nodes asks the others too"
        });
    }
    for peer in &view.unreachable {
        output.remark(&format!("{peer} did not answer in time: its containers are missing here"));
    }
    Ok(Exit::Ok)
}

pub(super) async fn leases(client: &Client, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.get("/mesh/v1/leases").await?;
    let view: Leases = answer.parse()?;
    output.answer(&answer.body, || leases_table(&view))?;
    if view.held.is_empty() && view.granted.is_empty() {
        output.remark("this node neither holds a lease nor has granted one");
    }
    Ok(Exit::Ok)
}

pub(super) async fn intents(client: &Client, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.get("/mesh/v1/intents").await?;
    let view: Intents = answer.parse()?;
    output.answer(&answer.body, || intents_table(&view.intents))?;
    if view.intents.is_empty() {
        output.remark("this node knows of no open intent");
    }
    Ok(Exit::Ok)
}

pub(super) fn veto_list(vetoes: &[VetoView]) -> String {
    if vetoes.is_empty() {
        return "-".to_owned();
    }
    let vetoes: Vec<String> = vetoes.iter().map(|v| format!("{} for {}", v.peer, human_ms(v.hold_ms))).collect();
    vetoes.join(", ")
}

fn members_table(members: &[Member]) -> String {
    table(
        &["NODE", "STATE", "MESH", "API", "VERSION", "MEMORY", "RTT", "EPOCH"],
        members.iter().map(|m| {
            vec![
                if m.is_self { format!("{} (self)", m.node_id) } else { m.node_id.clone() },
                m.state.clone(),
                m.mesh_addr.clone(),
                or_dash(&m.api_addr),
                m.version.clone(),
                human_mb(m.memory_mb),
                human_us(m.rtt_us),
                m.epoch.to_string(),
            ]
        }),
    )
}

fn containers_table(containers: &[Container]) -> String {
    table(
        &["CONTAINER", "NODE", "ACTION", "REVISION", "STATE", "BUSY", "LEASED", "IDLE", "MEMORY", "RUNS", "INTENT"],
        containers.iter().map(|c| {
            vec![
                c.container_id.clone(),
                c.node_id.clone(),
                format!("{}/{}", c.namespace, c.action),
                c.revision.clone(),
                c.state.clone(),
                format!("{}/{}", c.busy, c.slots),
                c.leased.to_string(),
                if c.busy > 0 { "-".to_owned() } else { human_ms(c.idle_ms) },
                human_mb(c.memory_mb),
                c.runs.to_string(),
                c.intent.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        }),
    )
}

fn leases_table(leases: &Leases) -> String {
    let row = |role: &str, l: &Lease| {
        vec![
            l.lease_id.clone(),
            role.to_owned(),
            l.owner.clone(),
            l.holder.clone(),
            l.container_id.clone(),
            format!("{}/{}", l.namespace, l.action),
            format!("{}/{}", l.busy, l.slots),
            human_ms(l.expires_in_ms),
        ]
    };
    let held = leases.held.iter().map(|l| row("held", l));
    table(
        &["LEASE", "SIDE", "OWNER", "HOLDER", "CONTAINER", "ACTION", "BUSY", "EXPIRES"],
        held.chain(leases.granted.iter().map(|l| row("granted", l))),
    )
}

fn intents_table(intents: &[Intent]) -> String {
    table(
        &["INTENT", "KIND", "OWNER", "CONTAINER", "ACTION", "ROUND", "CLOSES", "VETOES"],
        intents.iter().map(|i| {
            vec![
                i.intent_id.clone(),
                if i.urgent { format!("{} (urgent)", i.kind) } else { i.kind.clone() },
                i.owner.clone(),
                i.container_id.clone(),
                format!("{}/{}", i.namespace, i.action),
                i.round.to_string(),
                human_ms(i.closes_in_ms),
                veto_list(&i.vetoes),
            ]
        }),
    )
}

fn status_details(s: &Status) -> String {
    let v = &s.served;
    let ready = match (s.ready, s.not_ready.is_empty()) {
        (true, _) => "yes".to_owned(),
        (false, true) => "no".to_owned(),
        (false, false) => format!("no: {}", s.not_ready.join("; ")),
    };
    let joining = if s.joining.is_empty() { "-".to_owned() } else { s.joining.join(", ") };
    let faults = s.fault_injection.then_some("can be made on purpose: see `embermesh chaos inject show`");
    let mut rows = vec![
        ("node", s.node_id.clone()),
        ("ready", ready),
        ("draining", if s.draining { "yes" } else { "no" }.to_owned()),
    ];
    rows.extend(faults.map(|text| ("faults", text.to_owned())));
    rows.extend([
        ("up for", human_ms(s.uptime_ms)),
        ("version", s.version.clone()),
        ("cluster", s.cluster.clone()),
        ("engine", s.engine.clone()),
        ("mesh address", s.mesh_addr.clone()),
        ("API address", s.api_addr.clone()),
        ("instance", s.instance.clone()),
        ("epoch", s.epoch.to_string()),
        ("peers live", s.peers_live.to_string()),
        ("still joining", joining),
        ("actions", s.actions.to_string()),
        ("containers", s.containers.to_string()),
        ("memory", format!("{} of {}", human_mb(s.memory_used_mb), human_mb(s.memory_mb))),
        ("activations", format!("{} running, {} queued, {} owed", s.running, s.queued, s.owed)),
        (
            "served",
            format!(
                "{} local, {} leased, {} resumed, {} cold, {} refused",
                v.local, v.leased, v.resumed, v.cold, v.refused
            ),
        ),
        ("cold starts", v.cold_starts.to_string()),
        ("leases", format!("{} granted, {} denied, {} expired", v.leases_granted, v.leases_denied, v.leases_expired)),
        (
            "intents",
            format!(
                "{} committed, {} vetoed, {} cancelled",
                v.intents_committed, v.intents_vetoed, v.intents_cancelled
            ),
        ),
        (
            "gossip",
            format!(
                "{} sent, {} received, {} messages dropped, {} restarts",
                human_bytes(s.gossip_bytes_sent),
                human_bytes(s.gossip_bytes_received),
                s.gossip_dropped,
                s.gossip_restarts
            ),
        ),
    ]);
    details(rows)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
