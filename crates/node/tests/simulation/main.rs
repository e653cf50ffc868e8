//! Three nodes of production code in one simulation: their TCP, UDP and time are turmoil's, their containers are
//! entries of a table. Waits are on conditions with simulated deadlines.
//!
//! Not from one seed yet: turmoil's network is seeded, gossip's and HashMaps' randomness is not. So nothing here may
//! depend on an order of messages.
#![allow(clippy::unwrap_used)]

mod engine;
mod mesh;
mod net;

use std::time::Duration;

use bytes::Bytes;
use embermesh_node::invocation::{Call, InvokeError, Invoked, Wait};
use embermesh_node::registry::action::{KeyValue, Kind};
use embermesh_node::registry::{ActionChange, LimitsChange};
use embermesh_node::store::{ActivationRecord, ActivationStatus};
use serde_json::{Value, json};

use mesh::{Mesh, Pending};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Joining, a death seen, a view healed.
const GOSSIP: Duration = Duration::from_secs(20);
const PROMPT: Duration = Duration::from_secs(3);
/// An advert is at all peers after this: the owner's least time between two, and gossip.
const ADVERT: Duration = Duration::from_millis(1500);
/// Longer than any activation may take here.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn three_nodes_share_a_container_lose_its_owner_and_find_together_again() {
    let mut mesh = joined(1);
    create(&mut mesh, "n3", "shared", 1, false);

    let cold = invoke(&mut mesh, "n1", "shared");
    assert_eq!((cold.owner(), cold.served.as_str()), ("n1", "cold"));
    mesh.pass(ADVERT);
    let leased = invoke(&mut mesh, "n2", "shared");
    assert_eq!((leased.container.as_str(), leased.served.as_str()), (cold.container.as_str(), "leased_new"));
    assert_eq!(mesh.node("n2").leases().held.len(), 1);
    let again = invoke(&mut mesh, "n2", "shared");
    assert_eq!((again.container.as_str(), again.served.as_str()), (cold.container.as_str(), "leased"));
    assert_eq!((mesh.engine("n2").started(), mesh.engine("n3").started()), (0, 0));

    mesh.cut_off("n1");
    mesh.until("both sides see the other dead, and the lease across the cut has ended on both", GOSSIP, |mesh| {
        let dead = |at: &str, other: &str| mesh.state_seen_by(at, other).as_deref() == Some("dead");
        let parted = dead("n1", "n2") && dead("n1", "n3") && dead("n2", "n1") && dead("n3", "n1");
        parted && mesh.node("n2").leases().held.is_empty() && slots_leased(mesh) == 0
    });
    let alone = invoke(&mut mesh, "n2", "shared");
    assert_eq!((alone.owner(), alone.served.as_str()), ("n2", "cold"));
    let cut_off = invoke(&mut mesh, "n1", "shared");
    assert_eq!((cut_off.container.as_str(), cut_off.served.as_str()), (cold.container.as_str(), "local"));

    mesh.repair("n1");
    mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES));
    create(&mut mesh, "n1", "later", 1, false);
    let everywhere = mesh.begin("n3", |node| async move { node.containers(true).await });
    let everywhere = mesh.end("n3 asks all nodes for their containers", PROMPT, everywhere);
    assert_eq!(everywhere.unreachable, Vec::<String>::new());
    let mut owners: Vec<_> = everywhere.containers.iter().map(|c| c.node_id.as_str()).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["n1", "n2"]);
    mesh.pass(ADVERT);
    let healed = invoke(&mut mesh, "n3", "shared");
    assert_eq!(healed.served, "leased_new", "{healed:?}");
    assert_eq!(mesh.engine("n3").started(), 0);
}

#[test]
fn the_slots_of_a_holder_that_crashed_come_back_after_ttl_and_grace() {
    let mut mesh = joined(2);
    create(&mut mesh, "n1", "shared", 3, false);
    let cold = invoke(&mut mesh, "n1", "shared");
    mesh.pass(ADVERT);
    let held: Vec<_> = (0..2).map(|_| begin(&mesh, "n2", "shared", 200)).collect();
    let held: Vec<_> = held.into_iter().map(|pending| answer(&mut mesh, pending)).collect();
    assert!(held.iter().all(|answer| answer.container == cold.container), "{held:?}");
    assert_eq!(slots_leased(&mesh), 2);

    mesh.crash("n2");
    let crashed = mesh.elapsed();
    mesh.until("n1 sees n2 dead", GOSSIP, |mesh| mesh.state_seen_by("n1", "n2").as_deref() == Some("dead"));
    assert_eq!(slots_leased(&mesh), 2, "a verdict of gossip ends no lease");
    let protocol = mesh.node("n1").config().protocol.clone();
    // The last run was accepted before the crash, on a clock that may be slow by its bound.
    let longest = (protocol.ttl + protocol.grace).mul_f64(1.0 + protocol.clock_rate_bound);
    mesh.until("the slots are free", longest, |mesh| slots_leased(mesh) == 0);
    let after = mesh.elapsed() - crashed;
    assert!(after <= longest, "free {after:?} after the crash, not {longest:?}");

    let all: Vec<_> = (0..3).map(|_| begin(&mesh, "n1", "shared", 500)).collect();
    let all: Vec<_> = all.into_iter().map(|pending| answer(&mut mesh, pending)).collect();
    assert!(all.iter().all(|answer| answer.container == cold.container), "{all:?}");
    assert_eq!(all.iter().map(|answer| answer.running).max(), Some(3), "all slots were in use at once");
    assert_eq!(mesh.engine("n1").started(), 1);
}

#[test]
fn an_activation_cut_off_on_its_way_is_indeterminate_and_run_again_only_if_its_user_allows() {
    let mut mesh = joined(3);
    for (action, idempotent) in [("once", false), ("again", true)] {
        create(&mut mesh, "n3", action, 1, idempotent);
        assert_eq!(invoke(&mut mesh, "n1", action).owner(), "n1");
    }
    mesh.pass(ADVERT);
    for action in ["once", "again"] {
        assert_eq!(invoke(&mut mesh, "n2", action).owner(), "n1");
    }
    mesh.cut_off("n1");
    let (once, again) = (begin(&mesh, "n2", "once", 0), begin(&mesh, "n2", "again", 0));
    let lost = record(&mut mesh, once);
    assert_eq!(lost.response.status, ActivationStatus::InternalError);
    assert!(lost.annotations.iter().any(|a| a.key == "indeterminate" && a.value == json!(true)), "{lost:?}");
    let again = answer(&mut mesh, again);
    assert_eq!(again.owner(), "n2");

    mesh.repair("n1");
    mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES));
    let runs = |id: &str| NODES.iter().map(|name| mesh.engine(name).runs_of(id)).sum::<u32>();
    assert_eq!(runs(&lost.activation_id), 0, "it was cut off before it left");
    assert_eq!(runs(&again.activation), 1);
}

/// A mesh in which all see all.
fn joined(seed: u64) -> Mesh {
    let mut mesh = Mesh::start(NODES, seed);
    mesh.until("all nodes run", PROMPT, |mesh| mesh.running() == NODES);
    mesh.until("all see all", GOSSIP, |mesh| mesh.agree_on_live(&NODES));
    mesh
}

/// Creates an action at one node and waits until all know it.
fn create(mesh: &mut Mesh, at: &str, name: &'static str, concurrency: u32, idempotent: bool) {
    let change = ActionChange {
        kind: Some(Kind::Builtin),
        main: Some("echo".to_owned()),
        limits: LimitsChange { concurrency: Some(concurrency), ..LimitsChange::default() },
        annotations: Some(vec![KeyValue { key: "idempotent".to_owned(), value: json!(idempotent) }]),
        ..ActionChange::default()
    };
    let made =
        mesh.begin(at, move |node| async move { node.put_action("guest", name, change, None, false).await.map(drop) });
    mesh.end("the action is made", PROMPT, made).unwrap();
    mesh.until("all nodes know the action", PROMPT, |mesh| {
        NODES.iter().all(|node| mesh.node(node).actions("guest", 0, 100).iter().any(|entry| entry.name == name))
    });
}

/// What the container answered, and how the activation came to it.
#[derive(Debug)]
struct Answer {
    container: String,
    activation: String,
    running: u64,
    served: String,
}

impl Answer {
    fn owner(&self) -> &str {
        self.container.split('-').next().unwrap()
    }
}

type Ending = Result<Invoked, InvokeError>;

fn invoke(mesh: &mut Mesh, at: &str, action: &'static str) -> Answer {
    let pending = begin(mesh, at, action, 0);
    answer(mesh, pending)
}

fn begin(mesh: &Mesh, at: &str, action: &'static str, hold_ms: u64) -> Pending<Ending> {
    mesh.begin(at, move |node| async move {
        let call = Call {
            namespace: "guest".to_owned(),
            name: action.to_owned(),
            params: Bytes::from(json!({ "hold_ms": hold_ms }).to_string()),
            transaction_id: "simulated".to_owned(),
            subject: "guest".to_owned(),
        };
        node.invoke(call, Wait::For(PATIENCE)).await
    })
}

fn answer(mesh: &mut Mesh, pending: Pending<Ending>) -> Answer {
    let record = record(mesh, pending);
    assert_eq!(record.response.status, ActivationStatus::Success, "{record:?}");
    let result: Value = serde_json::from_str(record.response.result.as_ref().unwrap().get()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    assert_eq!(text(&result["activation"]), record.activation_id, "A3_success_is_that_runs_result");
    Answer {
        container: text(&result["container"]),
        activation: record.activation_id,
        running: result["running"].as_u64().unwrap(),
        served: record.annotations.iter().find(|a| a.key == "served").map(|a| text(&a.value)).unwrap(),
    }
}

fn record(mesh: &mut Mesh, pending: Pending<Ending>) -> ActivationRecord {
    match mesh.end("the activation ends", PATIENCE, pending) {
        Ok(Invoked::Ended(record)) => *record,
        other => panic!("the activation did not end with a record: {other:?}"),
    }
}

/// Slots of n1's containers that peers hold by lease, as n1 counts them.
fn slots_leased(mesh: &Mesh) -> u32 {
    mesh.node("n1").leases().granted.iter().map(|lease| lease.slots).sum()
}
