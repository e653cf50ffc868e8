//! Three nodes of production code in one simulation: what happens to a container that is shared, told step by step.
//! Waits are on conditions with simulated deadlines; the judge looks at all that the nodes tell.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use embermesh_core::NodeId;
use embermesh_node::config::ProtocolSection;
use embermesh_node::invocation::{Call, InvokeError, Invoked, Wait};
use embermesh_node::registry::action::{KeyValue, Kind};
use embermesh_node::registry::{ActionChange, LimitsChange};
use embermesh_node::store::{ActivationRecord, ActivationStatus};
use embermesh_sim::simulator::{
    Answered, Loses, NodeSetting, Parameters, Pending, Setting, World, on_a_thread_of_the_seed,
};
use serde_json::json;

const NODES: [usize; 3] = [N1, N2, N3];
const N1: usize = 0;
const N2: usize = 1;
const N3: usize = 2;
/// Joining, a death seen, a view healed.
const GOSSIP: Duration = Duration::from_secs(20);
const PROMPT: Duration = Duration::from_secs(3);
/// An advert is at all peers after this: the owner's least time between two, and gossip.
const ADVERT: Duration = Duration::from_millis(1500);
/// Longer than any activation may take here.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn three_nodes_share_a_container_lose_its_owner_and_find_together_again() {
    with_mesh(1, |mut mesh| {
        create(&mut mesh, N3, "shared", 1, false);

        let cold = invoke(&mut mesh, N1, "shared");
        assert_eq!((cold.owner(), cold.served.as_str()), ("n1", "cold"));
        mesh.pass(ADVERT).unwrap();
        let leased = invoke(&mut mesh, N2, "shared");
        assert_eq!((leased.container.as_str(), leased.served.as_str()), (cold.container.as_str(), "leased_new"));
        assert_eq!(mesh.node(N2).unwrap().leases().held.len(), 1);
        let again = invoke(&mut mesh, N2, "shared");
        assert_eq!((again.container.as_str(), again.served.as_str()), (cold.container.as_str(), "leased"));
        assert_eq!((mesh.engine(N2).started(), mesh.engine(N3).started()), (0, 0));

        mesh.isolate(N1, true);
        mesh.until("both sides see the other dead, and the lease across the cut has ended on both", GOSSIP, |mesh| {
            let dead = |at: usize, other: usize| mesh.state_seen_by(at, other).as_deref() == Some("dead");
            let parted = dead(N1, N2) && dead(N1, N3) && dead(N2, N1) && dead(N3, N1);
            parted && mesh.node(N2).unwrap().leases().held.is_empty() && slots_leased(mesh) == 0
        })
        .unwrap();
        let alone = invoke(&mut mesh, N2, "shared");
        assert_eq!((alone.owner(), alone.served.as_str()), ("n2", "cold"));
        let cut_off = invoke(&mut mesh, N1, "shared");
        assert_eq!((cut_off.container.as_str(), cut_off.served.as_str()), (cold.container.as_str(), "local"));

        mesh.isolate(N1, false);
        mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES)).unwrap();
        create(&mut mesh, N1, "later", 1, false);
        let everywhere = mesh.begin(N3, |node| async move { node.containers(true).await });
        let everywhere = mesh.end("n3 asks all nodes for their containers", PROMPT, everywhere).unwrap();
        assert_eq!(everywhere.unreachable, Vec::<String>::new());
        let mut owners: Vec<_> = everywhere.containers.iter().map(|c| c.node_id.as_str()).collect();
        owners.sort_unstable();
        assert_eq!(owners, ["n1", "n2"]);
        mesh.pass(ADVERT).unwrap();
        let healed = invoke(&mut mesh, N3, "shared");
        assert_eq!(healed.served, "leased_new", "{healed:?}");
        assert_eq!(mesh.engine(N3).started(), 0);
    });
}

#[test]
fn the_slots_of_a_holder_that_crashed_come_back_after_ttl_and_grace() {
    with_mesh(2, |mut mesh| {
        create(&mut mesh, N1, "shared", 3, false);
        let cold = invoke(&mut mesh, N1, "shared");
        mesh.pass(ADVERT).unwrap();
        let held: Vec<_> = (0..2).map(|_| begin(&mesh, N2, "shared", 200)).collect();
        let held: Vec<_> = held.into_iter().map(|pending| answer(&mut mesh, pending)).collect();
        assert!(held.iter().all(|answer| answer.container == cold.container), "{held:?}");
        assert_eq!(slots_leased(&mesh), 2);

        mesh.crash(N2, Loses::Nothing);
        let crashed = mesh.elapsed();
        mesh.until("n1 sees n2 dead", GOSSIP, |mesh| mesh.state_seen_by(N1, N2).as_deref() == Some("dead")).unwrap();
        assert_eq!(slots_leased(&mesh), 2, "a verdict of gossip ends no lease");
        let protocol = mesh.node(N1).unwrap().config().protocol.clone();
        // The last run was accepted before the crash, on a clock that may be slow by its bound.
        let longest = (protocol.ttl + protocol.grace).mul_f64(1.0 + protocol.clock_rate_bound);
        mesh.until("the slots are free", longest, |mesh| slots_leased(mesh) == 0).unwrap();
        let after = mesh.elapsed() - crashed;
        assert!(after <= longest, "free {after:?} after the crash, not {longest:?}");

        let all: Vec<_> = (0..3).map(|_| begin(&mesh, N1, "shared", 500)).collect();
        let all: Vec<_> = all.into_iter().map(|pending| answer(&mut mesh, pending)).collect();
        assert!(all.iter().all(|answer| answer.container == cold.container), "{all:?}");
        assert_eq!(all.iter().map(|answer| answer.running).max(), Some(3), "all slots were in use at once");
        assert_eq!(mesh.engine(N1).started(), 1);
    });
}

#[test]
fn an_activation_cut_off_on_its_way_is_indeterminate_and_run_again_only_if_its_user_allows() {
    with_mesh(3, |mut mesh| {
        for (action, idempotent) in [("once", false), ("again", true)] {
            create(&mut mesh, N3, action, 1, idempotent);
            assert_eq!(invoke(&mut mesh, N1, action).owner(), "n1");
        }
        mesh.pass(ADVERT).unwrap();
        for action in ["once", "again"] {
            assert_eq!(invoke(&mut mesh, N2, action).owner(), "n1");
        }
        mesh.isolate(N1, true);
        let (once, again) = (begin(&mesh, N2, "once", 0), begin(&mesh, N2, "again", 0));
        let lost = record(&mut mesh, once);
        assert_eq!(lost.response.status, ActivationStatus::InternalError);
        assert!(lost.annotations.iter().any(|a| a.key == "indeterminate" && a.value == json!(true)), "{lost:?}");
        let again = answer(&mut mesh, again);
        assert_eq!(again.owner(), "n2");

        mesh.isolate(N1, false);
        mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES)).unwrap();
        assert_eq!(mesh.witness().runs_of(&lost.activation_id), 0, "it was cut off before it left");
        assert_eq!(mesh.witness().runs_of(&again.activation), 1);
    });
}

#[test]
fn a_202_that_a_peer_has_refused_runs_in_the_next_life_of_its_node_whatever_was_asked_of_that_peer_since() {
    // Room for both containers, at the first node alone.
    with_memory(5, [512, 128, 128], |mut mesh| {
        for action in ["busy", "other"] {
            create(&mut mesh, N3, action, 1, false);
            assert_eq!(invoke(&mut mesh, N1, action).owner(), "n1");
        }
        mesh.pass(ADVERT).unwrap();
        let busy = begin(&mesh, N1, "busy", 20_000);
        mesh.until("the slot is taken", PROMPT, |mesh| mesh.node(N1).unwrap().status().running == 1).unwrap();
        // Its body goes to n1, which shows a free slot still, and comes back.
        let late = begin_for(&mesh, N2, "busy", 0, Duration::from_secs(2));
        mesh.until("n1 has refused it", PROMPT, |mesh| {
            mesh.node(N2).unwrap().look(|core, _| core.estimates().refusal(&NodeId::new("n1")) > 0)
        })
        .unwrap();
        assert_eq!(invoke(&mut mesh, N2, "other").owner(), "n1", "a later request closes the number of that one");
        let accepted = mesh.end("its caller waits no more", PROMPT, late).unwrap().unwrap();
        let Invoked::Accepted { activation_id } = accepted else { panic!("{accepted:?}") };
        mesh.crash(N2, Loses::Nothing);
        mesh.until("n1 sees n2 dead", GOSSIP, |mesh| mesh.state_seen_by(N1, N2).as_deref() == Some("dead")).unwrap();
        mesh.restart(N2);
        mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES)).unwrap();
        answer(&mut mesh, busy);
        let record = stored(&mut mesh, N2, activation_id);
        assert_eq!(record.response.status, ActivationStatus::Success, "{record:?}");
        assert_eq!(mesh.witness().runs_of(&record.activation_id), 1);
    });
}

#[test]
fn a_node_without_gossip_is_not_ready_until_it_gossips_again() {
    with_mesh(4, |mut mesh| {
        let reasons = |mesh: &World| mesh.node(N1).unwrap().not_ready();
        assert_eq!(reasons(&mesh), Vec::<String>::new());
        mesh.break_gossip(N1, true);
        mesh.until("it says so", GOSSIP, |mesh| reasons(mesh) == ["gossip is not running"]).unwrap();
        mesh.break_gossip(N1, false);
        mesh.until("it gossips again", GOSSIP, |mesh| reasons(mesh).is_empty()).unwrap();
        mesh.until("all see all again", GOSSIP, |mesh| mesh.agree_on_live(&NODES)).unwrap();
    });
}

#[test]
fn a_node_whose_disk_was_full_learns_what_it_missed_once_it_can_write() {
    with_mesh(5, |mut mesh| {
        create(&mut mesh, N1, "changed", 1, false);
        mesh.fill_disk(N2, true);
        let update = mesh.begin(N1, |node| async move {
            let change = ActionChange { main: Some("sleep".to_owned()), ..ActionChange::default() };
            node.put_action("guest", "changed", change, None, true).await.map(drop)
        });
        mesh.end("the action is changed", PROMPT, update).unwrap().unwrap();
        let knows = |mesh: &World, node: usize| mesh.node(node).unwrap().actions("guest", 0, 1)[0].main == "sleep";
        mesh.until("the third node knows it", PROMPT, |mesh| knows(mesh, N3)).unwrap();
        mesh.pass(GOSSIP).unwrap();
        assert!(!knows(&mesh, N2), "what can't be written is not taken");
        mesh.fill_disk(N2, false);
        mesh.until("so does the second", 2 * GOSSIP, |mesh| knows(mesh, N2)).unwrap();
    });
}

#[test]
fn a_node_that_starts_again_finds_its_mesh_although_the_address_it_joins_by_is_silent() {
    with_mesh(6, |mut mesh| {
        // n1 is what the others join by.
        mesh.pass(PROMPT).unwrap();
        mesh.crash(N1, Loses::Everything);
        mesh.crash(N2, Loses::LastWrites);
        mesh.crash(N3, Loses::LastWrites);
        mesh.restart(N2);
        mesh.restart(N3);
        mesh.until("the two find each other", GOSSIP, |mesh| mesh.agree_on_live(&[N2, N3])).unwrap();
    });
}

/// Plays it in the seed's time, on nodes whose clocks differ within the promised bound.
fn with_mesh(seed: u64, scenario: impl FnOnce(World) + Send + 'static) {
    with_memory(seed, [2048; 3], scenario);
}

fn with_memory(seed: u64, memory_mb: [u64; 3], scenario: impl FnOnce(World) + Send + 'static) {
    on_a_thread_of_the_seed(seed, move || {
        let drifts = [4_000, -4_000, 0].into_iter();
        let node = |(drift_ppm, memory_mb)| NodeSetting { drift_ppm, wall_off_s: 0, memory_mb };
        let setting = Setting {
            protocol: ProtocolSection::default(),
            gossip: Duration::from_millis(250),
            nodes: drifts.zip(memory_mb).map(node).collect(),
            actions: Vec::new(),
            latency_ms: 4,
            adopts: false,
            frozen: None,
        };
        let mut mesh = World::start(seed, &setting, false).unwrap();
        mesh.until("all nodes run", PROMPT, |mesh| mesh.running() == NODES).unwrap();
        mesh.until("all see all", GOSSIP, |mesh| mesh.agree_on_live(&NODES)).unwrap();
        scenario(mesh);
    });
}

/// Creates an action at one node and waits until all know it.
fn create(mesh: &mut World, at: usize, name: &'static str, concurrency: u32, idempotent: bool) {
    let change = ActionChange {
        kind: Some(Kind::Builtin),
        main: Some("echo".to_owned()),
        limits: LimitsChange { concurrency: Some(concurrency), ..LimitsChange::default() },
        annotations: Some(vec![KeyValue { key: "idempotent".to_owned(), value: json!(idempotent) }]),
        ..ActionChange::default()
    };
    let made =
        mesh.begin(at, move |node| async move { node.put_action("guest", name, change, None, false).await.map(drop) });
    mesh.end("the action is made", PROMPT, made).unwrap().unwrap();
    let known = |mesh: &World, node: &usize| {
        mesh.node(*node).unwrap().actions("guest", 0, 100).iter().any(|entry| entry.name == name)
    };
    mesh.until("all nodes know the action", PROMPT, |mesh| NODES.iter().all(|node| known(mesh, node))).unwrap();
}

/// What the container answered, and how the activation came to it.
#[derive(Debug)]
struct Answer {
    container: String,
    activation: String,
    running: usize,
    served: String,
}

impl Answer {
    fn owner(&self) -> &str {
        self.container.split('-').next().unwrap()
    }
}

type Ending = Result<Invoked, InvokeError>;

fn invoke(mesh: &mut World, at: usize, action: &'static str) -> Answer {
    let pending = begin(mesh, at, action, 0);
    answer(mesh, pending)
}

fn begin(mesh: &World, at: usize, action: &'static str, hold_ms: u64) -> Option<Pending<Ending>> {
    begin_for(mesh, at, action, hold_ms, PATIENCE)
}

fn begin_for(mesh: &World, at: usize, action: &'static str, hold_ms: u64, wait: Duration) -> Option<Pending<Ending>> {
    mesh.begin(at, move |node| async move {
        let parameters = Parameters { work_ms: 5 + hold_ms, ..Parameters::default() };
        let call = Call {
            namespace: "guest".to_owned(),
            name: action.to_owned(),
            params: Bytes::from(json!(parameters).to_string()),
            transaction_id: "simulated".to_owned(),
            subject: "guest".to_owned(),
        };
        node.invoke(call, Wait::For(wait)).await
    })
}

fn answer(mesh: &mut World, pending: Option<Pending<Ending>>) -> Answer {
    let record = record(mesh, pending);
    assert_eq!(record.response.status, ActivationStatus::Success, "{record:?}");
    let answered: Answered = serde_json::from_str(record.response.result.as_ref().unwrap().get()).unwrap();
    assert_eq!(answered.activation, record.activation_id, "A3_success_is_that_runs_result");
    let served = record.annotations.iter().find(|a| a.key == "served").unwrap();
    Answer {
        container: answered.container,
        activation: record.activation_id,
        running: answered.running,
        served: served.value.as_str().unwrap().to_owned(),
    }
}

fn record(mesh: &mut World, pending: Option<Pending<Ending>>) -> ActivationRecord {
    match mesh.end("the activation ends", PATIENCE, pending).unwrap() {
        Ok(Invoked::Ended(record)) => *record,
        other => panic!("the activation did not end with a record: {other:?}"),
    }
}

/// The record of one that nobody waits for.
fn stored(mesh: &mut World, at: usize, id: String) -> ActivationRecord {
    let record = mesh.begin(at, |node| async move {
        loop {
            match node.activation("guest", &id).await.unwrap() {
                Some(record) => return ActivationRecord::clone(&record),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    mesh.end("it has a record", PATIENCE, record).unwrap()
}

/// Slots of n1's containers that peers hold by lease, as n1 counts them.
fn slots_leased(mesh: &World) -> u32 {
    mesh.node(N1).unwrap().leases().granted.iter().map(|lease| lease.slots).sum()
}
