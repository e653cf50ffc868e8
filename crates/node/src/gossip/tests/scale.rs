//! What gossip costs and how long it takes among many nodes: chitchat itself, behind our transport, in virtual time.
//! What `embermesh_sim::scale` models is measured here.

use super::*;

const ADVERTS: usize = 10;
const SECONDS: u64 = 15;

/// Ten adverts a node, one of them changed each second, as in `scale --gossip`.
async fn spread(count: usize) -> (Vec<Duration>, f64) {
    let net = Net::default();
    let mut nodes = Vec::new();
    for number in 1..=count {
        nodes.push(Node::start_with_room(&net, config(number, 100, &[1]), 1 << 16).await);
        // Spread over the whole of a round.
        net.pass(Duration::from_millis(37)).await;
    }
    for (index, node) in nodes.iter_mut().enumerate() {
        node.until_within("all see all", Duration::from_secs(60), |node| node.up.len() == count - 1).await;
        node.gossip.set("n", &"x".repeat(150)).unwrap();
        node.gossip.set("f", "0,4096").unwrap();
        node.gossip.set("r", "0123456789abcdef").unwrap();
        for slot in 0..ADVERTS {
            node.gossip.set(&format!("a/{slot}"), &advert(index, slot, 0)).unwrap();
        }
    }
    for _ in 0..500 {
        net.pass(Duration::from_millis(10)).await;
        nodes.iter_mut().for_each(|node| drop(node.forget()));
    }
    let sent = |nodes: &[Node]| nodes.iter().map(|n| n.gossip.counters().snapshot().sent_bytes).sum::<u64>();
    let (before, mut after) = (sent(&nodes), 0);
    // When each change was made, and how many have not heard of it.
    let mut open: BTreeMap<(String, String, String), (Instant, usize)> = BTreeMap::new();
    let mut took = Vec::new();
    let steps = SECONDS * 100;
    for step in 0..steps + 300 {
        if step == steps {
            after = sent(&nodes);
        }
        let writers = (0..count).filter(|index| step < steps && (index * 37 + step as usize).is_multiple_of(100));
        for index in writers {
            let nth = step as usize / 100;
            let (key, value) = (format!("a/{}", nth % ADVERTS), advert(index, nth % ADVERTS, nth + 1));
            nodes[index].gossip.set(&key, &value).unwrap();
            open.insert((format!("n{}", index + 1), key, value), (Instant::now(), count - 1));
        }
        net.pass(Duration::from_millis(10)).await;
        for node in &mut nodes {
            for heard in node.forget() {
                let Some((at, left)) = open.get_mut(&heard) else { continue };
                *left -= 1;
                if *left == 0 {
                    took.push(at.elapsed());
                    open.remove(&heard);
                }
            }
        }
    }
    assert!(open.is_empty(), "never known to all: {open:?}");
    let kb = (after - before) as f64 / 1_000.0 / count as f64 / SECONDS as f64;
    took.sort_unstable();
    (took, kb)
}

impl Node {
    /// Takes in what has come, and keeps only what is asked for here: entries as (node, key, value).
    fn forget(&mut self) -> Vec<(String, String, String)> {
        let mut heard = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if let GossipEvent::Entry { node_id, key, value, .. } = event {
                heard.push((node_id, key, value));
            }
        }
        heard
    }
}

fn advert(index: usize, slot: usize, nth: usize) -> String {
    let hash = embermesh_core::ActionHash(((index * 31 + slot) as u64).wrapping_mul(0x51_2345_6789) & ((1 << 40) - 1));
    format!("{hash},{},0,0,{}", 1 + nth % 3, nth % 4)
}

fn show(count: usize, took: &[Duration], kb: f64) {
    let ms = |per_mille: usize| (took[(took.len() * per_mille).div_ceil(1_000).max(1) - 1]).as_millis();
    println!("| {count} | {} / {} / {} | {kb:.1} |", ms(500), ms(990), ms(1_000));
}

#[tokio::test(start_paused = true)]
async fn what_thirty_nodes_change_each_second_is_known_to_all_in_less_than_one() {
    let (took, kb) = spread(30).await;
    show(30, &took, kb);
    assert!(took[took.len() * 99 / 100] < Duration::from_millis(900), "{:?}", took.last());
    assert!((20.0..80.0).contains(&kb), "{kb} kB a node and second");
}

#[tokio::test(start_paused = true)]
#[ignore = "a measurement: cargo test -p embermesh-node --lib gossip::tests::scale -- --ignored --nocapture"]
async fn a_hundred_nodes_and_more() {
    println!("| nodes | known to all, p50 / p99 / max (ms) | sent per node (kB/s) |\n| ---: | ---: | ---: |");
    for count in [10, 50, 100, 200] {
        let (took, kb) = spread(count).await;
        show(count, &took, kb);
    }
}
