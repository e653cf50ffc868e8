//! Seeds: the addresses a node was told to join by, tried for as long as it runs; and for a while, the peers of its
//! earlier life.
//!
//! chitchat gets none of them: its own resolution is part of starting, only once a minute after that, and
//! tells nobody which seed never answered. The gossip task asks here each round whom to greet.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::GossipConfig;
use super::transport::{Datagrams, Wiring};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLVE_AGAIN_WHILE_JOINING: Duration = Duration::from_secs(2);
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
const WARN_EVERY: Duration = Duration::from_secs(10);
/// A name may stand for many nodes (a headless service); a few of them are enough to join.
const MAX_ADDRESSES: usize = 16;
/// Greetings sent in one round.
const MAX_GREETINGS: usize = 16;
/// How many rounds peers of an earlier life are greeted for: ten minutes at the usual interval.
const EARLIER_ROUNDS: u64 = 2400;
/// Seeds that answered once but are not among the live nodes are greeted every so many rounds, so that two
/// halves of a mesh that forgot each other meet again.
const REMEMBERED_EVERY: u64 = 8;

#[derive(Debug)]
pub(super) struct SeedTable {
    seeds: Vec<Seed>,
    /// Peers of an earlier life that were not heard since.
    earlier: Vec<SocketAddr>,
    advertise: SocketAddr,
    listen: SocketAddr,
    round: u64,
    /// Greetings so far: where the next round goes on.
    greeted: usize,
    next_warning: Option<Instant>,
}

#[derive(Debug)]
struct Seed {
    name: String,
    addresses: Vec<SocketAddr>,
    /// It answered at least once, or it is this very node.
    answered: bool,
    error: Option<String>,
}

impl SeedTable {
    pub(super) fn new(config: &GossipConfig) -> Self {
        let GossipConfig { advertise, listen, .. } = *config;
        let mut table = Self {
            seeds: Vec::new(),
            earlier: config.earlier_peers.iter().copied().filter(|peer| *peer != advertise).collect(),
            advertise,
            listen,
            round: 0,
            greeted: 0,
            next_warning: None,
        };
        for name in &config.seeds {
            table.seeds.push(Seed { name: name.clone(), addresses: Vec::new(), answered: false, error: None });
            if let Ok(address) = name.parse() {
                table.resolved(name, Ok(vec![address]));
            }
        }
        table
    }

    /// Seeds that never answered, as they were given.
    pub(super) fn joining(&self) -> Vec<String> {
        self.seeds.iter().filter(|seed| !seed.answered).map(|seed| seed.name.clone()).collect()
    }

    /// A valid datagram came from there, or a live node advertises it.
    pub(super) fn heard(&mut self, from: SocketAddr) {
        self.earlier.retain(|address| *address != from);
        for seed in &mut self.seeds {
            if !seed.answered && seed.addresses.contains(&from) {
                seed.answered = true;
            }
        }
    }

    /// Whom to greet in this round.
    pub(super) fn greetings(&mut self, live: &HashSet<SocketAddr>) -> Vec<SocketAddr> {
        self.round += 1;
        let remembered = self.round.is_multiple_of(REMEMBERED_EVERY);
        let ask_earlier = self.round <= EARLIER_ROUNDS && (remembered || live.is_empty());
        let earlier = self.earlier.iter().copied().filter(|_| ask_earlier);
        let due: Vec<SocketAddr> = self
            .seeds
            .iter()
            .filter(|seed| !seed.answered || remembered)
            .flat_map(|seed| seed.addresses.iter().copied())
            .chain(earlier)
            .filter(|address| !live.contains(address))
            .collect();
        let (offset, now) = (self.greeted % due.len().max(1), due.len().min(MAX_GREETINGS));
        self.greeted = self.greeted.wrapping_add(now);
        due.iter().cycle().skip(offset).take(now).copied().collect()
    }

    /// What to warn of now: the seeds that never answered, with the reason where one is known.
    pub(super) fn warning(&mut self, now: Instant) -> Option<String> {
        let silent: Vec<String> = self
            .seeds
            .iter()
            .filter(|seed| !seed.answered)
            .map(|seed| match &seed.error {
                Some(error) => format!("{} ({error})", seed.name),
                None => format!("{} (no answer)", seed.name),
            })
            .collect();
        // The first warning waits its time too: a seed that answers at once needs none.
        let due = *self.next_warning.get_or_insert(now + WARN_EVERY);
        if silent.is_empty() || now < due {
            return None;
        }
        self.next_warning = Some(now + WARN_EVERY);
        Some(silent.join(", "))
    }

    fn resolved(&mut self, name: &str, result: Result<Vec<SocketAddr>, String>) {
        let Some(seed) = self.seeds.iter_mut().find(|seed| seed.name == name) else {
            return;
        };
        match result {
            Ok(mut addresses) => {
                // `localhost` and the like name both families; a socket reaches only its own.
                addresses.retain(|address| address.is_ipv4() == self.listen.is_ipv4());
                seed.error = addresses.is_empty().then(|| format!("no address of the family of {}", self.listen));
                let only_me =
                    !addresses.is_empty() && addresses.iter().all(|at| *at == self.advertise || *at == self.listen);
                seed.answered |= only_me;
                addresses.retain(|at| *at != self.advertise && *at != self.listen);
                addresses.truncate(MAX_ADDRESSES);
                seed.addresses = addresses;
            }
            // Old addresses stay: a name server that is down is no reason to forget them.
            Err(error) => seed.error = Some(error),
        }
    }

    /// Names to look up, with whether that is urgent.
    fn names(&self) -> Vec<(String, bool)> {
        self.seeds
            .iter()
            .filter(|seed| seed.name.parse::<SocketAddr>().is_err())
            .map(|seed| (seed.name.clone(), !seed.answered))
            .collect()
    }
}

/// Resolves the seeds' names again and again. Ends at once when there are none; else runs until dropped.
pub(super) async fn resolve_names(datagrams: Arc<dyn Datagrams>, wiring: Arc<Wiring>) {
    let mut last_all: Option<Instant> = None;
    loop {
        let names = wiring.with_seeds(|seeds| seeds.names());
        if names.is_empty() {
            return;
        }
        let all = last_all.is_none_or(|at| at.elapsed() >= RESOLVE_AGAIN);
        if all {
            last_all = Some(Instant::now());
        }
        for (name, _) in names.iter().filter(|(_, urgent)| *urgent || all) {
            let result = match timeout(RESOLVE_TIMEOUT, datagrams.resolve(name)).await {
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("name not resolved in {} s", RESOLVE_TIMEOUT.as_secs())),
            };
            wiring.with_seeds(|seeds| seeds.resolved(name, result));
        }
        sleep(RESOLVE_AGAIN_WHILE_JOINING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn table(seeds: &[&str], own_port: u16) -> SeedTable {
        let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        SeedTable::new(&GossipConfig { seeds, ..GossipConfig::new("c", "n", 1, address(own_port)) })
    }

    #[test]
    fn a_seed_counts_as_joining_until_it_is_heard_and_is_greeted_less_often_after() {
        let mut table = table(&["127.0.0.1:1", "127.0.0.1:2"], 2);
        assert_eq!(table.joining(), ["127.0.0.1:1"], "a node does not wait for itself");
        let nobody = HashSet::new();
        for _ in 0..20 {
            assert_eq!(table.greetings(&nobody), [address(1)]);
        }
        table.heard(address(1));
        assert!(table.joining().is_empty());
        let greeted = (0..2 * REMEMBERED_EVERY).filter(|_| !table.greetings(&nobody).is_empty()).count();
        assert_eq!(greeted, 2);
        let live = HashSet::from([address(1)]);
        assert!((0..2 * REMEMBERED_EVERY).all(|_| table.greetings(&live).is_empty()));
    }

    #[test]
    fn a_seed_of_another_address_family_stays_joining_and_says_why() {
        let mut table = table(&["[::1]:1"], 9);
        assert_eq!(table.joining(), ["[::1]:1"]);
        assert!(table.greetings(&HashSet::new()).is_empty());
        let start = Instant::now();
        assert_eq!(table.warning(start), None);
        let warning = table.warning(start + WARN_EVERY).unwrap_or_default();
        assert!(warning.contains("no address of the family of 127.0.0.1:9"), "{warning}");
    }

    #[test]
    fn peers_of_an_earlier_life_are_greeted_until_they_are_heard_or_ten_minutes_have_passed() {
        let earlier_peers = vec![address(1), address(2), address(9)];
        let config = GossipConfig { earlier_peers, ..GossipConfig::new("c", "n", 1, address(9)) };
        let (nobody, somebody) = (HashSet::new(), HashSet::from([address(3)]));

        let many = GossipConfig { earlier_peers: (1..=32).map(address).collect(), ..config.clone() };
        let mut table = SeedTable::new(&many);
        let reached: HashSet<_> = (0..2 * REMEMBERED_EVERY).flat_map(|_| table.greetings(&somebody)).collect();
        assert_eq!(reached.len(), 30, "all but itself and who lives, in turn");

        let mut table = SeedTable::new(&config);
        assert!(table.joining().is_empty(), "nobody told it to join by them");
        assert_eq!(table.greetings(&nobody), [address(1), address(2)]);
        table.heard(address(1));
        assert_eq!(table.greetings(&nobody), [address(2)]);
        let greeted = (0..2 * REMEMBERED_EVERY).filter(|_| !table.greetings(&somebody).is_empty()).count();
        assert_eq!(greeted, 2);
        assert!((0..EARLIER_ROUNDS).any(|_| table.greetings(&nobody).is_empty()));
        assert!((0..2 * REMEMBERED_EVERY).all(|_| table.greetings(&nobody).is_empty()));
    }

    #[test]
    fn many_silent_seeds_are_greeted_in_turn() {
        let names: Vec<String> = (1..=40).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut table = table(&names.iter().map(String::as_str).collect::<Vec<_>>(), 99);
        let mut greeted = HashSet::new();
        for _ in 0..5 {
            let round = table.greetings(&HashSet::new());
            assert_eq!(round.len(), MAX_GREETINGS);
            greeted.extend(round);
        }
        assert_eq!(greeted.len(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_seeds_are_warned_of_every_ten_seconds_with_the_reason() {
        let mut table = table(&["127.0.0.1:1", "gone.invalid:2"], 9);
        table.resolved("gone.invalid:2", Err("no such host".into()));
        let start = Instant::now();
        let warnings: Vec<String> =
            (0..300).filter_map(|tenth| table.warning(start + Duration::from_millis(100 * tenth))).collect();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("gone.invalid:2 (no such host)"), "{}", warnings[0]);
        assert!(warnings[0].contains("127.0.0.1:1 (no answer)"), "{}", warnings[0]);
    }
}
