//! Joining, dying and starting again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_seed_that_does_not_answer_shows_as_joining_until_it_comes_up() {
    let net = Net::default();
    let mut settings = config(2, 100, &[1]);
    settings.seeds.push("late.example:7411".into());
    let mut node = Node::start(&net, settings).await;
    net.pass(Duration::from_secs(60)).await;
    assert_eq!(node.gossip.joining(), [address(1).to_string(), "late.example:7411".to_owned()]);
    assert!(node.gossip.healthy(), "waiting for a seed is not being ill");

    let seed = Node::start(&net, config(1, 100, &[])).await;
    node.until("the seed", |node| node.up.contains_key("n1")).await;
    assert_eq!(node.gossip.joining(), ["late.example:7411"]);

    let named = Node::start(&net, config(3, 100, &[])).await;
    net.name("late.example:7411", address(3));
    node.until("the named seed", |node| node.up.contains_key("n3")).await;
    assert!(node.gossip.joining().is_empty());
    drop((seed, named));
}

#[tokio::test(start_paused = true)]
async fn two_halves_that_forgot_each_other_meet_again_by_their_seeds() {
    let net = Net::default();
    let short = |number| GossipConfig { dead_node_grace: Duration::from_secs(20), ..config(number, 100, &[1]) };
    let mut seed = Node::start(&net, short(1)).await;
    let mut other = Node::start(&net, short(2)).await;
    seed.until("joined", |node| node.up.len() == 1).await;
    other.until("joined", |node| node.up.len() == 1).await;
    net.cut(address(1));
    seed.until("apart", |node| node.up.is_empty()).await;
    net.pass(Duration::from_secs(60)).await;
    assert_eq!(seed.gossip.counters().snapshot().nodes, 1, "the other one is forgotten");
    net.heal(address(1));
    // Wait for the second meeting only.
    other.drain();
    seed.until("together", |node| node.up.len() == 1).await;
    other.until("together", |node| node.up.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn gossip_that_dies_is_started_again_with_all_keys_and_nobody_notices_a_new_epoch() {
    for way in [Net::break_socket as fn(&Net, SocketAddr), Net::panic_at] {
        let net = Net::default();
        let mut nodes = mesh(&net, 3).await;
        nodes[0].gossip.set("kept", "as it was").unwrap();
        nodes[0].gossip.set("changed", "before").unwrap();
        nodes[1].until("both keys", |node| node.entries.len() == 2).await;

        net.refuse_open(address(1), true);
        way(&net, address(1));
        net.pass(Duration::from_millis(50)).await;
        assert!(!nodes[0].gossip.healthy(), "a dead gossip is told");
        nodes[0].gossip.set("changed", "while it was down").unwrap();
        net.pass(Duration::from_millis(500)).await;
        net.refuse_open(address(1), false);

        for index in [1, 2] {
            let changed = |node: &Node| node.entry("n1", "changed") == Some("while it was down");
            nodes[index].until("the change", changed).await;
            nodes[index].listen_for(Duration::from_secs(20)).await;
            assert_eq!(nodes[index].entry("n1", "kept"), Some("as it was"));
            assert_eq!(nodes[index].up.get("n1"), Some(&100));
            let downs = nodes[index].history.iter().filter(|event| matches!(event, GossipEvent::PeerDown { .. }));
            assert_eq!(downs.count(), 0, "{:?}", nodes[index].history);
        }
        assert!(nodes[0].gossip.healthy());
        assert_eq!(nodes[0].gossip.restarts(), 1);
        nodes[0].drain();
        assert_eq!(nodes[0].up.len(), 2, "{:?}", nodes[0].history);
        let downs = nodes[0].history.iter().filter(|event| matches!(event, GossipEvent::PeerDown { .. })).count();
        assert_eq!(downs, 0, "its own peers did not die with it");
        assert!(nodes[0].twins.is_empty(), "its former incarnation is no twin");

        nodes[1].gossip.set("back", "heard").unwrap();
        nodes[0].until("news after the restart", |node| node.entry("n2", "back") == Some("heard")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_gossip_was_down_for_long_does_not_take_its_peers_for_dead() {
    let net = Net::default();
    let mut nodes = mesh(&net, 3).await;
    net.refuse_open(address(1), true);
    net.break_socket(address(1));
    nodes[1].until("it is missed", |node| !node.up.contains_key("n1")).await;
    net.pass(Duration::from_secs(20)).await;
    net.refuse_open(address(1), false);
    nodes[1].until("it is back", |node| node.up.contains_key("n1")).await;
    nodes[0].listen_for(Duration::from_secs(20)).await;
    assert_eq!((nodes[0].up.len(), nodes[0].history.len()), (2, 2), "{:?}", nodes[0].history);
}

#[tokio::test(start_paused = true)]
async fn a_broken_address_is_retried_at_a_bounded_rate() {
    let net = Net::default();
    let node = Node::start(&net, config(1, 100, &[])).await;
    net.refuse_open(address(1), true);
    net.break_socket(address(1));
    net.pass(Duration::from_secs(3600)).await;
    assert!(!node.gossip.healthy());
    assert_eq!(node.gossip.restarts(), 0);
    net.refuse_open(address(1), false);
    net.pass(Duration::from_secs(31)).await;
    assert!(node.gossip.healthy());
    assert_eq!(node.gossip.restarts(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_live_agents_with_one_id_notice_each_other() {
    let net = Net::default();
    let mut first = Node::start(&net, config(1, 100, &[2])).await;
    let other = Node::start(&net, config(2, 100, &[])).await;
    let mut second = Node::start(&net, GossipConfig { node_id: "n1".into(), ..config(3, 105, &[2]) }).await;
    first.until("the younger twin", |node| node.twins.contains(&(105, address(3)))).await;
    second.until("the older twin", |node| node.twins.contains(&(100, address(1)))).await;
    first.listen_for(Duration::from_secs(10)).await;
    let told = first.history.iter().filter(|event| matches!(event, GossipEvent::Twin { .. })).count();
    assert_eq!(told, 1);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_can_not_work_says_why() {
    let net = Net::default();
    let start = async |config| {
        let (sender, _events) = mpsc::channel(1);
        Gossip::start(config, Arc::new(net.clone()), sender).await.unwrap_err().to_string()
    };
    net.refuse_open(address(1), true);
    let message = start(config(1, 1, &[])).await;
    assert!(message.contains("10.0.0.1:7411") && message.contains("port free"), "{message}");

    let mut bad = config(2, 1, &[]);
    bad.advertise = ([0, 0, 0, 0], 7411).into();
    assert!(start(bad).await.contains("advertise `0.0.0.0:7411`"));
    let mut bad = config(2, 1, &[]);
    bad.seeds = vec!["nowhere".into()];
    assert!(start(bad).await.contains("seed `nowhere`"));
    assert!(start(config(2, 1 << 52, &[])).await.contains("epoch"));
    let mut bad = config(2, 1, &[]);
    bad.node_id = "zwölf".into();
    assert!(start(bad).await.contains("node_id `zwölf`"));
}

#[tokio::test]
async fn two_nodes_meet_over_real_udp_sockets() {
    let free = || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let start = async |name: &str, listen: SocketAddr, seeds: Vec<String>| {
        let config =
            GossipConfig { seeds, interval: Duration::from_millis(20), ..GossipConfig::new("test", name, 1, listen) };
        let (sender, events) = mpsc::channel(64);
        (Gossip::start(config, Arc::new(UdpDatagrams), sender).await.unwrap(), events)
    };
    let (one, two) = (free(), free());
    let (first, _events) = start("n1", one, Vec::new()).await;
    first.set("n", "over udp").unwrap();
    let (second, mut events) = start("n2", two, vec![format!("localhost:{}", one.port())]).await;
    let entry = async {
        loop {
            match events.recv().await.unwrap() {
                GossipEvent::Entry { value, .. } => return value,
                _ => continue,
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(20), entry).await.unwrap(), "over udp");
    first.shutdown().await;
    second.shutdown().await;
    std::net::UdpSocket::bind(one).expect("the port is free after a shutdown");
}
