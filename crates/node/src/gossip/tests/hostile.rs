//! Malformed, truncated, foreign and forged datagrams: counted, dropped, and gossip goes on.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};

use super::super::transport::{accept, header};
use super::forge::{Op, Seen, ack, body, bomb, datagram, id, start, syn, syn_ack};
use super::*;

#[tokio::test(start_paused = true)]
async fn each_kind_of_harmful_datagram_is_counted_by_its_reason_and_changes_nothing() {
    let net = Net::default();
    let mut nodes = mesh(&net, 3).await;
    nodes[0].gossip.set("n", "truth").unwrap();
    nodes[1].until("the truth", |node| node.entry("n1", "n") == Some("truth")).await;
    let before = nodes[0].gossip.counters().snapshot();
    assert_eq!(before.dropped_total(), 0);

    let mut expected = [0; DropReason::ALL.len()];
    for (reason, what, datagram) in harmful() {
        expected[reason as usize] += 1;
        net.inject(address(9), address(1), datagram);
        net.pass(Duration::from_millis(1)).await;
        assert_eq!(nodes[0].gossip.counters().snapshot().dropped, expected, "{what}");
    }

    nodes[0].gossip.set("n", "truth after all").unwrap();
    nodes[1].until("the next truth", |node| node.entry("n1", "n") == Some("truth after all")).await;
    nodes[0].listen_for(Duration::from_secs(5)).await;
    assert_eq!((nodes[0].gossip.restarts(), nodes[0].up.len()), (0, 2));
    assert_eq!(nodes[0].gossip.counters().snapshot().nodes, 3);
}

fn harmful() -> Vec<(DropReason, &'static str, Vec<u8>)> {
    let me = || id("n1", 100, address(1));
    let peer = || id("n2", 100, address(2));
    let at = |address: &str| id("n7", 1, address.parse().unwrap());
    let key = |key: &str, value: &str| datagram(&ack(&[Op::node(peer()), Op::key(key, value, 1)]));
    let good = syn("test", &[Seen::of(peer())]);
    let mut newer = datagram(&good);
    newer[4] = 2;
    let mut other_cluster = header("other").to_vec();
    other_cluster.extend(&good);
    let many_keys: Vec<Op> = std::iter::once(Op::node(peer()))
        .chain((1..=MAX_KEYS as u64 + 1).map(|version| Op::key(&format!("k{version}"), "", version)))
        .collect();
    let crowd: Vec<Seen> =
        (0..2 * MAX_NODES + 1).map(|number| Seen::of(id(&number.to_string(), 1, address(7)))).collect();
    let status = |status| Op::Key { key: "k".into(), value: String::new(), version: 5, status };
    let seen = |heartbeat, last_gc, max_version| {
        datagram(&syn("test", &[Seen { id: peer(), heartbeat, last_gc, max_version }]))
    };
    use DropReason::*;
    vec![
        (Truncated, "nothing", Vec::new()),
        (Truncated, "half a header", header("test")[..7].to_vec()),
        (Truncated, "a header alone", header("test").to_vec()),
        (Truncated, "half a message", datagram(&good[..good.len() / 2])),
        (Foreign, "another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (Foreign, "bare chitchat", good.clone()),
        (Format, "a newer format", newer),
        (Cluster, "another cluster", other_cluster),
        (Cluster, "another cluster behind our header", datagram(&syn("other", &[]))),
        (Cluster, "a refusal", datagram(&start(3))),
        (Malformed, "an unknown kind", datagram(&start(9))),
        (Malformed, "another magic", datagram(&[1, 2, 0, 0, 0, 0])),
        (Malformed, "trailing bytes", datagram(&[&good[..], b"x"].concat())),
        (Malformed, "a block that is no zstd", datagram(&[&start(2)[..], &[1, 3, 0, 7, 7, 7, 0]].concat())),
        (Malformed, "a key of no node", datagram(&ack(&[Op::key("k", "v", 1)]))),
        (
            Malformed,
            "a maximum below the keys, which makes chitchat panic",
            datagram(&ack(&[Op::node(peer()), Op::key("k", "v", 1 << 40), Op::MaxVersion(1 << 30)])),
        ),
        (Oversize, "a compression bomb", datagram(&bomb(100))),
        (Oversize, "a long value", key("k", &"v".repeat(MAX_VALUE_BYTES + 1))),
        (Oversize, "a long key", key(&"k".repeat(MAX_KEY_BYTES + 1), "v")),
        (Oversize, "many keys", datagram(&ack(&many_keys))),
        (Oversize, "a crowd", datagram(&syn("test", &crowd))),
        (Oversize, "a long node id", datagram(&syn("test", &[Seen::of(id(&"n".repeat(65), 1, address(7)))]))),
        (Implausible, "a key that is not ASCII", key("ä", "v")),
        (Implausible, "an empty key", key("", "v")),
        (Implausible, "the last version", datagram(&ack(&[Op::node(peer()), Op::key("k", "v", u64::MAX)]))),
        (Implausible, "the last maximum", datagram(&ack(&[Op::node(peer()), Op::MaxVersion(u64::MAX)]))),
        (Implausible, "version zero", datagram(&ack(&[Op::node(peer()), Op::key("k", "v", 0)]))),
        (Implausible, "a tombstone", datagram(&ack(&[Op::node(peer()), status(1)]))),
        (
            Implausible,
            "a reset",
            datagram(&ack(&[Op::Node { id: peer(), last_gc: 1 << 40, from: 0 }, Op::key("k", "v", 1)])),
        ),
        (Implausible, "the last heartbeat", seen(u64::MAX, 0, 0)),
        (Implausible, "a collected digest", seen(1, 7, 0)),
        (Implausible, "the last version in a digest", seen(1, 0, u64::MAX)),
        (Implausible, "an address nobody has", datagram(&syn("test", &[Seen::of(at("0.0.0.0:7411"))]))),
        (Implausible, "an address of many", datagram(&syn("test", &[Seen::of(at("[ff02::1]:7411"))]))),
        (Implausible, "port zero", datagram(&syn("test", &[Seen::of(at("10.0.0.7:0"))]))),
        (Implausible, "a node id with a space", datagram(&syn("test", &[Seen::of(id("a b", 1, address(7)))]))),
        (AboutSelf, "a forged Ack about self", datagram(&ack(&[Op::node(me()), Op::key("n", "lie", 1 << 40)]))),
        (
            AboutSelf,
            "a forged SynAck about self",
            datagram(&syn_ack(&[Seen::of(peer())], &[Op::node(me()), Op::MaxVersion(1 << 47)])),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_mesh_that_is_full_refuses_more_nodes_and_goes_on() {
    let net = Net::default();
    let mut nodes = mesh(&net, 2).await;
    let crowd = |from: usize| -> Vec<Seen> {
        (from..from + 200).map(|number| Seen::of(id(&format!("x{number}"), 1, address(99)))).collect()
    };
    for from in (0..1000).step_by(200) {
        net.inject(address(9), address(1), datagram(&syn("test", &crowd(from))));
        net.pass(Duration::from_millis(1)).await;
    }
    net.pass(Duration::from_secs(2)).await;
    let stats = nodes[0].gossip.counters().snapshot();
    assert_eq!((stats.nodes, stats.dropped_total()), (MAX_NODES as u64, 0), "{stats:?}");
    assert!(stats.refused_nodes >= 1000 + 2 - MAX_NODES as u64, "{stats:?}");
    assert!(stats.digest_bytes < 65_000, "{stats:?}");
    nodes[1].gossip.set("n", "still heard").unwrap();
    nodes[0].until("news in the full mesh", |node| node.entry("n2", "n") == Some("still heard")).await;
    nodes[0].until_within("no ghost is up", Duration::from_secs(1), |node| node.up.len() == 1).await;
    assert_eq!(nodes[0].gossip.restarts(), 0);
}

#[tokio::test(start_paused = true)]
async fn long_names_raise_the_digest_alarm_before_a_datagram_is_full() {
    let net = Net::default();
    let nodes = mesh(&net, 2).await;
    for from in 0..6 {
        let crowd: Vec<Seen> =
            (0..100).map(|number| Seen::of(id(&format!("{:0>64}", from * 100 + number), 1, address(99)))).collect();
        net.inject(address(9), address(1), datagram(&syn("test", &crowd)));
        net.pass(Duration::from_millis(1)).await;
    }
    net.pass(Duration::from_secs(2)).await;
    let stats = nodes[0].gossip.counters().snapshot();
    assert!(stats.digest_alarm && stats.digest_bytes <= DIGEST_MAX_BYTES as u64, "{stats:?}");
    assert!(stats.nodes < MAX_NODES as u64 && stats.refused_nodes > 0, "{stats:?}");
    assert!(nodes[0].gossip.healthy());
}

/// What a fuzzed datagram is made of.
#[derive(Debug, Clone)]
enum Fuzz {
    Bytes(Vec<u8>),
    /// A real message with bytes changed and its end cut off or doubled.
    Mutated {
        which: Index,
        flips: Vec<(Index, u8)>,
        cut: Option<Index>,
        header_too: bool,
    },
}

fn fuzz() -> impl Strategy<Value = Fuzz> {
    let flips = prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    let cut = prop::option::weighted(0.2, any::<Index>());
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Fuzz::Bytes),
        4 => (any::<Index>(), flips, cut, prop::bool::weighted(0.1)).prop_map(
            |(which, flips, cut, header_too)| Fuzz::Mutated { which, flips, cut, header_too }
        ),
    ]
}

impl Fuzz {
    fn build(&self, real: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => datagram(bytes),
            Self::Mutated { which, flips, cut, header_too } => {
                let mut bytes = which.get(real).clone();
                let first = if *header_too { 0 } else { header("test").len() };
                let length = bytes.len() - first;
                for (at, value) in flips {
                    bytes[first + at.index(length)] ^= value;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(length));
                }
                bytes
            }
        }
    }
}

/// Messages as three nodes really exchange them, while keys change.
async fn real_messages(net: &Net, nodes: &[Node]) -> Vec<Vec<u8>> {
    net.tap();
    for number in 0..20 {
        nodes[number % 3].gossip.set(&format!("k{number}"), &"some value ".repeat(number % 5)).unwrap();
        net.pass(Duration::from_millis(100)).await;
    }
    net.tapped()
}

#[tokio::test(start_paused = true)]
async fn gossip_survives_thousands_of_mutated_datagrams_and_keeps_its_own_keys() {
    let net = Net::default();
    let nodes = mesh(&net, 3).await;
    nodes[0].gossip.set("n", "mine").unwrap();
    let real = real_messages(&net, &nodes).await;
    let before = nodes[0].gossip.counters().snapshot();
    let mut runner = TestRunner::deterministic();
    let mut injected = 0;
    for _ in 0..4000 {
        let datagram = fuzz().new_tree(&mut runner).unwrap().current().build(&real);
        net.inject(address(9), address(1), datagram);
        injected += 1;
        if injected % 50 == 0 {
            net.pass(Duration::from_millis(20)).await;
        }
    }
    net.pass(Duration::from_secs(1)).await;
    let after = nodes[0].gossip.counters().snapshot();
    assert!(after.received_messages - before.received_messages >= injected, "{after:?}");
    let dropped: Vec<_> = DropReason::ALL.map(|reason| (reason.name(), after.dropped_by(reason))).into();
    println!("of {injected} mutated datagrams dropped: {dropped:?}");
    assert!(after.dropped_total() > injected / 4, "{dropped:?}");
    for reason in [DropReason::Truncated, DropReason::Malformed, DropReason::Implausible] {
        assert!(after.dropped_by(reason) > 0, "{dropped:?}");
    }
    assert!(nodes[0].gossip.healthy());
    assert_eq!(nodes[0].gossip.restarts(), 0, "no message that got through made chitchat panic");

    // A node that was not lied to still hears what node 1 says of itself.
    let mut witness = Node::start(&net, config(8, 100, &[1])).await;
    nodes[0].gossip.set("after", "all").unwrap();
    let true_to_itself =
        |node: &Node| node.entry("n1", "after") == Some("all") && node.entry("n1", "n") == Some("mine");
    witness.until("node 1's own keys", true_to_itself).await;
}

/// chitchat messages of all three kinds, small and with many keys.
fn samples() -> Vec<Vec<u8>> {
    let peers: Vec<_> = (2..5).map(|number| id(&format!("n{number}"), 100, address(number))).collect();
    let seen = || peers.iter().cloned().map(Seen::of).collect::<Vec<_>>();
    let ops: Vec<Op> = peers
        .iter()
        .flat_map(|peer| {
            let keys = (1..30).map(|version| Op::key(&format!("a/{version}"), "warm 2 paused 1", version));
            std::iter::once(Op::node(peer.clone())).chain(keys)
        })
        .collect();
    [syn("test", &seen()), syn_ack(&seen(), &ops), ack(&ops), ack(&[])].map(|body| datagram(&body)).into()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(2000)
    })]

    #[test]
    fn no_datagram_makes_the_check_panic_and_what_it_lets_through_chitchat_can_read(fuzz in fuzz()) {
        let wiring = Shared::new(&config(1, 100, &[])).wiring.clone();
        let me = chitchat::Serializable::serialize_to_vec(&id("n1", 100, address(1)));
        let datagram = fuzz.build(&samples());
        let inspected = datagram
            .get(header("test").len()..)
            .map(|body| super::super::wire::inspect(body, "test", &me).is_ok());
        let accepted = accept(&datagram, &header("test"), &wiring, &me);
        if datagram.starts_with(&header("test")) {
            prop_assert_eq!(accepted.is_ok(), inspected == Some(true), "our reading and chitchat's differ");
        } else {
            prop_assert!(accepted.is_err());
        }
    }

    #[test]
    fn leaving_nodes_out_of_a_digest_gives_a_message_with_just_the_others(keep in prop::collection::vec(any::<bool>(), 3)) {
        for datagram in &samples()[..2] {
            let inspected = super::super::wire::inspect(body(datagram), "test", b"").unwrap();
            let shorter = super::super::wire::without_entries(body(datagram), &inspected.entries, &keep);
            let again = super::super::wire::inspect(&shorter, "test", b"").unwrap();
            prop_assert_eq!(again.entries.len(), keep.iter().filter(|kept| **kept).count());
            let names = |bytes: &[u8], entries: &[super::super::wire::Entry]| -> Vec<Vec<u8>> {
                entries.iter().map(|entry| bytes[entry.whole.clone()].to_vec()).collect()
            };
            let mut expected = names(body(datagram), &inspected.entries);
            let mut kept = keep.iter();
            expected.retain(|_| *kept.next().unwrap());
            prop_assert_eq!(names(&shorter, &again.entries), expected);
        }
    }
}
