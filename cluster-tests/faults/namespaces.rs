//! Five agents in network namespaces of their own, and a fixed story over the real network between them: packets that
//! are dropped one way, both ways and in a circle, or get lost, and an agent that is stopped for longer than a lease
//! lasts. Everything is in a namespace of the test's thread: it is gone with the test.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::network::{Network, PEERS, host};
use crate::support::{Mesh, Place, skipped, until, within};
use crate::traffic::Traffic;

const NODES: usize = 5;
/// Agents of tests have a ttl of 1 s.
const LONGER_THAN_A_LEASE: Duration = Duration::from_millis(1_500);
/// Twelve rounds of gossip until a silent peer is taken for dead, and some.
const CUT: Duration = Duration::from_secs(3);

#[test]
fn agents_in_namespaces_of_their_own_bear_a_bad_network_and_heal() {
    // A thread of its own: what is unshared is unshared for good.
    let told = thread::spawn(|| match Network::new(NODES) {
        Some(network) => bear(&network),
        None => skipped("network namespaces need root"),
    });
    if let Err(panic) = told.join() {
        std::panic::resume_unwind(panic);
    }
}

fn bear(network: &Network) {
    let place = Place::new();
    let agents = (1..=NODES).map(|n| network.settings(&place, n).start()).collect();
    let mesh = Mesh { agents, place };
    mesh.await_all_live();
    let traffic = Traffic::new(&mesh);
    let outcome = traffic.run(|| {
        traffic.goes_on(60);
        // Both ways: two against three.
        for inside in [1, 2] {
            (3..=NODES).for_each(|outside| network.cut_both(inside, outside));
        }
        until("each side counts the other as dead", || mesh.sees(1, "n4", "dead") && mesh.sees(5, "n2", "dead"));
        traffic.goes_on(60);
        network.heal();
        mesh.heals("two sides");

        // One way: nobody hears n3, which hears everybody.
        (1..=NODES).filter(|n| *n != 3).for_each(|n| network.cut(3, n));
        passes(CUT);
        network.heal();
        mesh.heals("a node that nobody hears");

        // A stopped agent outlives its leases, and others' leases of it.
        mesh[4].signal(Signal::SIGSTOP);
        passes(LONGER_THAN_A_LEASE);
        mesh[4].signal(Signal::SIGCONT);
        mesh.heals("a stopped agent");

        // Lossy links: TCP repairs what gossip has to bear.
        (1..=NODES).for_each(|n| network.lose(n, 0.08));
        traffic.goes_on(100);
        network.heal();
        mesh.heals("lossy links");

        // Cut one way in a circle: everybody hears somebody, nobody can answer them.
        (1..=NODES).for_each(|n| network.cut(n, n % NODES + 1));
        passes(CUT);
        network.heal();
        mesh.heals("a circle");
        traffic.goes_on(30);
    });
    outcome.check();
    assert!(outcome.succeeded() >= 200, "{} succeeded, {} did not", outcome.succeeded(), outcome.failed());
    until("L7_no_slot_leak: all leases have ended", || mesh.agents.iter().all(|a| a.granted_leases().is_empty()));
}

impl Network {
    /// What one sends does not arrive at the other.
    fn cut(&self, sender: usize, receiver: usize) {
        self.at(receiver, &format!("iptables -A INPUT -s {} -j DROP", host(sender)));
    }

    fn cut_both(&self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// A share of what other nodes send to it gets lost.
    fn lose(&self, n: usize, share: f64) {
        let chance = format!("-m statistic --mode random --probability {share}");
        self.at(n, &format!("iptables -A INPUT -s {PEERS} {chance} -j DROP"));
    }

    fn heal(&self) {
        (1..=NODES).for_each(|n| self.at(n, "iptables -F INPUT"));
    }
}

/// Lets time pass: how long something is broken is the fault itself.
fn passes(time: Duration) {
    let began = Instant::now();
    within(time * 2, "time passes", || (began.elapsed() >= time).then_some(()));
}
