//! Who is there, and what they say.

use super::*;

const INTERVAL: Duration = Duration::from_millis(250);

#[tokio::test(start_paused = true)]
async fn three_nodes_see_each_other_and_each_others_entries() {
    let net = Net::default();
    let mut nodes = mesh(&net, 3).await;
    for (index, node) in nodes.iter().enumerate() {
        node.gossip.set("n", &format!("node {}", index + 1)).unwrap();
        assert!(node.gossip.healthy());
        assert!(node.gossip.joining().is_empty());
    }
    for node in &mut nodes {
        node.until("entries", |node| node.entries.len() == 2).await;
    }
    assert_eq!(nodes[2].entry("n1", "n"), Some("node 1"));
    assert_eq!(nodes[2].up, BTreeMap::from([("n1".into(), 100), ("n2".into(), 100)]));
    let stats = nodes[0].gossip.counters().snapshot();
    assert!(stats.sent_messages > 0 && stats.received_messages > 0, "{stats:?}");
    assert!(stats.sent_bytes > 20 * stats.sent_messages, "{stats:?}");
    assert_eq!((stats.nodes, stats.dropped_total(), stats.digest_alarm), (3, 0, false), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_known_to_all_of_ten_nodes_within_600_ms() {
    let net = Net::default();
    let mut nodes = mesh(&net, 10).await;
    let mut spreads = Vec::new();
    for sample in 0..200 {
        // Another writer at another moment of its round each time.
        net.pass(Duration::from_millis(sample % 7 * 41)).await;
        let writer = sample as usize % nodes.len();
        let value = format!("sample {sample}");
        let start = Instant::now();
        nodes[writer].gossip.set("a/1", &value).unwrap();
        let name = format!("n{}", writer + 1);
        for (_, node) in nodes.iter_mut().enumerate().filter(|(index, _)| *index != writer) {
            node.until("the entry", |node| node.entry(&name, "a/1") == Some(&value)).await;
        }
        spreads.push(start.elapsed());
    }
    spreads.sort_unstable();
    let (median, p99, worst) = (spreads[100], spreads[197], spreads[199]);
    println!("an entry known to all of 10 nodes: p50 {median:?}, p99 {p99:?}, max {worst:?}");
    assert!(p99 < Duration::from_millis(600), "p50 {median:?}, p99 {p99:?}, max {worst:?}");
}

#[tokio::test(start_paused = true)]
async fn a_death_is_noticed_by_all_within_five_seconds_and_not_told_of_anybody_else() {
    for count in [3, 10] {
        let net = Net::default();
        let mut nodes = mesh(&net, count).await;
        net.pass(Duration::from_secs(30)).await;
        let dead = nodes.pop().unwrap();
        net.cut(address(count));
        let start = Instant::now();
        for node in &mut nodes {
            node.until("the death", |node| node.up.len() == count - 2).await;
        }
        let noticed = start.elapsed();
        println!("a death is noticed by all of {} nodes after {noticed:?}", count - 1);
        assert!(noticed <= Duration::from_secs(5), "{noticed:?}");
        assert!(noticed >= 2 * Duration::from_secs(1), "a stall of two seconds is no death: {noticed:?}");
        for node in &mut nodes {
            node.listen_for(Duration::from_secs(5)).await;
            assert_eq!(node.up.len(), count - 2);
        }
        drop(dead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_two_seconds_kills_nobody_and_a_peer_that_returns_tells_everything_again() {
    let net = Net::default();
    let mut nodes = mesh(&net, 3).await;
    nodes[0].gossip.set("n", "first").unwrap();
    nodes[1].until("the entry", |node| node.entry("n1", "n").is_some()).await;
    net.pass(Duration::from_secs(20)).await;

    net.cut(address(1));
    net.pass(Duration::from_secs(2)).await;
    net.heal(address(1));
    nodes[1].listen_for(Duration::from_secs(5)).await;
    let downs = |node: &Node| node.history.iter().filter(|event| matches!(event, GossipEvent::PeerDown { .. })).count();
    assert_eq!(downs(&nodes[1]), 0, "{:?}", nodes[1].history);

    net.cut(address(1));
    nodes[1].until("the death", |node| !node.up.contains_key("n1")).await;
    net.heal(address(1));
    nodes[1].until("the return", |node| node.entry("n1", "n") == Some("first")).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_under_a_higher_epoch_replaces_and_the_old_epoch_never_shows_again() {
    let net = Net::default();
    let mut nodes = mesh(&net, 4).await;
    let old = nodes.remove(3);
    for number in 0..20 {
        old.gossip.set("x", &format!("old {number}")).unwrap();
        net.pass(Duration::from_millis(100)).await;
    }
    nodes[0].until("old state", |node| node.entry("n4", "x").is_some()).await;
    old.gossip.shutdown().await;
    drop(old);

    let new = Node::start(&net, config(4, 101, &[1])).await;
    new.gossip.set("x", "new").unwrap();
    for node in &mut nodes {
        node.until("the new epoch", |node| node.entry("n4", "x") == Some("new")).await;
        node.listen_for(Duration::from_secs(30)).await;
        assert_eq!(node.up.get("n4"), Some(&101));
        let first =
            node.history.iter().position(|event| matches!(event, GossipEvent::PeerUp { epoch: 101, .. })).unwrap();
        let epoch = |event: &GossipEvent| match event {
            GossipEvent::PeerUp { node_id, epoch, .. }
            | GossipEvent::PeerDown { node_id, epoch }
            | GossipEvent::Entry { node_id, epoch, .. }
            | GossipEvent::Twin { node_id, epoch, .. } => (node_id == "n4").then_some(*epoch),
        };
        assert!(node.history[first..].iter().filter_map(epoch).all(|epoch| epoch == 101), "{:?}", node.history);
    }
    assert!(new.twins.is_empty(), "the own past is no twin");
}

#[tokio::test(start_paused = true)]
async fn a_full_event_channel_delays_but_loses_nothing() {
    let net = Net::default();
    let mut slow = Node::start_with_room(&net, config(1, 100, &[]), 1).await;
    let talker = Node::start(&net, config(2, 100, &[1])).await;
    let leaver = Node::start(&net, config(3, 100, &[1])).await;
    for number in 0..300 {
        talker.gossip.set(&format!("k{}", number % 60), &number.to_string()).unwrap();
        net.pass(Duration::from_millis(20)).await;
    }
    net.pass(2 * INTERVAL).await;
    drop(leaver);
    net.pass(Duration::from_secs(10)).await;
    assert!(slow.gossip.healthy());
    // Only now does anybody read.
    slow.until("the last values", |node| {
        (0..60).all(|key| node.entry("n2", &format!("k{key}")) == Some(&(240 + key).to_string()))
    })
    .await;
    slow.listen_for(Duration::from_secs(1)).await;
    assert_eq!(slow.up, BTreeMap::from([("n2".into(), 100)]), "{:?}", slow.history);
}

#[tokio::test(start_paused = true)]
async fn leaving_is_seen_as_left_by_all_at_once_and_nothing_can_be_set_after() {
    let net = Net::default();
    let mut nodes = mesh(&net, 4).await;
    let leaver = nodes.remove(0);
    leaver.gossip.set(STATE_KEY, "live").unwrap();
    nodes[0].until("live", |node| node.entry("n1", STATE_KEY) == Some("live")).await;
    let start = Instant::now();
    leaver.gossip.leave().await;
    assert!(start.elapsed() <= 2 * INTERVAL, "{:?}", start.elapsed());
    assert!(matches!(leaver.gossip.set("n", "x"), Err(GossipError::Closed)));
    leaver.gossip.shutdown().await;
    assert!(!net.is_open(address(1)), "the port is free after a shutdown");
    for node in &mut nodes {
        let left = |node: &Node| node.entry("n1", STATE_KEY) == Some(STATE_LEFT);
        node.until_within("left", Duration::from_millis(500), left).await;
    }
}
