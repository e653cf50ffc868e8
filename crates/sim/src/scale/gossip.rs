//! One gossip domain, as chitchat 0.11 spreads what its members publish.
//!
//! Each member meets three others at random in each round, every 250 ms, at a moment of its own; a meeting is a Syn with
//! the digest of all members, a SynAck with the other's digest and news, an Ack with the rest of the news. What a
//! member has heard it passes on from then on, and tells its node at its next look, 50 ms apart. Of several values of
//! one key only the last goes on. Everybody knows everybody from the beginning, and nobody fails.
//!
//! The datagrams themselves take no time: a hundredth of what passes between two rounds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use embermesh_core::ActionHash;
use embermesh_core::output::{Advert, IntentNotice};
use embermesh_core::time::MS;

use super::Random;
use super::pack::{FRAME_BYTES, Packer, digest_entry_bytes};
use super::tally::Spread;

/// Between two rounds of a member, and whom it meets in each.
const ROUND_US: u64 = 250 * MS;
const MEETINGS: usize = 3;
/// Between two looks of a node at what has come.
const LOOK_US: u64 = 50 * MS;
/// In every Syn.
const CLUSTER: &str = "embermesh";

/// What a value means to whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Advert(ActionHash, Advert),
    Facts {
        draining: bool,
        room_mb: u64,
    },
    Intent(IntentNotice),
    /// For bytes alone.
    Other,
}

/// Something that a member hears of another.
#[derive(Debug)]
pub struct Told {
    pub to: usize,
    pub of: usize,
    pub news: News,
    /// An action that had the key before, and has none by now.
    pub gone: Option<ActionHash>,
}

/// A key, by the place it has in every member's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(u8);

impl Key {
    pub const ABOUT: Key = Key(0);
    pub const FACTS: Key = Key(1);
    pub const REGISTRY: Key = Key(2);

    pub fn intent(place: u64) -> Key {
        Key(3 + (place % 8) as u8)
    }

    pub fn advert(slot: usize) -> Key {
        Key(11 + slot as u8)
    }

    fn bit(self) -> u128 {
        1 << self.0
    }

    fn text(self) -> String {
        match self.0 {
            0 => "n".to_owned(),
            1 => "f".to_owned(),
            2 => "r".to_owned(),
            n @ 3..=10 => format!("i/{}", n - 3),
            n => format!("a/{}", n - 11),
        }
    }
}

/// One value that a member published. Its version is its place in the member's log, from 1.
#[derive(Debug)]
struct Value {
    key: Key,
    text: Box<str>,
    news: News,
    at: u64,
    /// Members that have not heard of it.
    unheard: u32,
    counted: bool,
}

#[derive(Debug)]
pub struct Domain {
    names: Vec<String>,
    logs: Vec<Vec<Value>>,
    /// Versions that a member has of another, and those that its node was told of: `member * members + other`.
    has: Vec<u32>,
    told: Vec<u32>,
    /// Members whose news wait for the node's next look.
    news_of: Vec<Vec<usize>>,
    looks_at: Vec<u64>,
    agenda: BinaryHeap<Reverse<(u64, bool, usize)>>,
    random: Random,
    digest_bytes: usize,
    counting: bool,
    pub spread: Spread,
}

impl Domain {
    pub fn new(names: Vec<String>, seed: u64) -> Self {
        let members = names.len();
        let mut random = Random::new(seed, 1);
        let rounds = (0..members).map(|member| Reverse((random.below(ROUND_US), false, member))).collect();
        Self {
            logs: (0..members).map(|_| Vec::new()).collect(),
            has: vec![0; members * members],
            told: vec![0; members * members],
            news_of: vec![Vec::new(); members],
            looks_at: (0..members).map(|_| random.below(LOOK_US)).collect(),
            agenda: rounds,
            random,
            digest_bytes: 2 + names.iter().map(|name| digest_entry_bytes(name)).sum::<usize>(),
            counting: false,
            spread: Spread { nodes: members, ..Spread::default() },
            names,
        }
    }

    /// From now on what is sent and spread counts, or no more.
    pub fn count(&mut self, counting: bool) {
        self.counting = counting;
    }

    /// When something happens next.
    pub fn next_at(&self) -> u64 {
        self.agenda.peek().map_or(u64::MAX, |Reverse((at, ..))| *at)
    }

    pub fn set(&mut self, now: u64, member: usize, key: Key, text: String, news: News) {
        let others = self.names.len() as u32 - 1;
        let value = Value { key, text: text.into(), news, at: now, unheard: others, counted: self.counting };
        self.logs[member].push(value);
        let version = self.logs[member].len() as u32;
        let own = member * self.names.len() + member;
        self.has[own] = version;
        self.told[own] = version;
    }

    /// Does what is next; what nodes hear by it.
    pub fn step(&mut self) -> Vec<Told> {
        let Some(Reverse((now, look, member))) = self.agenda.pop() else { return Vec::new() };
        if look {
            return self.look(now, member);
        }
        self.agenda.push(Reverse((now + ROUND_US, false, member)));
        for other in self.meets(member) {
            self.meet(now, member, other);
        }
        Vec::new()
    }

    /// Three others, or all there are.
    fn meets(&mut self, member: usize) -> Vec<usize> {
        let members = self.names.len();
        let mut met = Vec::with_capacity(MEETINGS);
        while met.len() < MEETINGS.min(members - 1) {
            let other = self.random.below(members as u64) as usize;
            if other != member && !met.contains(&other) {
                met.push(other);
            }
        }
        met
    }

    fn meet(&mut self, now: u64, from: usize, to: usize) {
        let syn = FRAME_BYTES + self.digest_bytes + 2 + CLUSTER.len();
        let asked = self.digest_of(from);
        let digest = self.digest_of(to);
        let (news, bytes) = self.delta(to, &asked, self.digest_bytes);
        let syn_ack = FRAME_BYTES + self.digest_bytes + bytes;
        self.take(now, from, &news);
        let (rest, bytes) = self.delta(from, &digest, 0);
        let ack = FRAME_BYTES + bytes;
        self.take(now, to, &rest);
        if self.counting {
            for bytes in [syn, syn_ack, ack] {
                self.spread.datagrams += 1;
                self.spread.bytes += bytes as u64;
                self.spread.largest = self.spread.largest.max(bytes);
            }
            self.spread.digest_bytes += 2 * self.digest_bytes as u64;
        }
    }

    fn digest_of(&self, member: usize) -> Vec<u32> {
        let members = self.names.len();
        self.has[member * members..(member + 1) * members].to_vec()
    }

    /// What a member has and another does not: up to which version of whom, as far as the datagram takes it. Whoever is
    /// not known at all comes first, then whoever has most news.
    fn delta(&mut self, of: usize, known: &[u32], beside: usize) -> (Vec<(usize, u32)>, usize) {
        let own = self.digest_of(of);
        let mut stale: Vec<_> = (0..own.len())
            .filter(|subject| own[*subject] > known[*subject])
            .map(|subject| {
                let values = self.values(subject, known[subject], own[subject]);
                let rank = if known[subject] == 0 { (0, i64::from(own[subject])) } else { (1, -(values.len() as i64)) };
                (rank, subject, values)
            })
            .collect();
        stale.sort_by_key(|(rank, ..)| *rank);
        let mut packer = Packer::beside(beside);
        let mut taken = Vec::new();
        'whole: for (_, subject, values) in stale {
            if !packer.node(&self.names[subject], known[subject]) {
                break;
            }
            let last = values.len().wrapping_sub(1);
            for (nth, version) in values.into_iter().enumerate() {
                let value = &self.logs[subject][version as usize - 1];
                if !packer.key_value(&value.key.text(), &value.text, version) {
                    break 'whole;
                }
                let upto = if nth == last { own[subject] } else { version };
                match taken.last_mut() {
                    Some((before, reached)) if *before == subject => *reached = upto,
                    _ => taken.push((subject, upto)),
                }
            }
        }
        (taken, packer.finish())
    }

    /// Versions in (from, to] that no later one up to `to` replaces, oldest first.
    fn values(&self, subject: usize, from: u32, to: u32) -> Vec<u32> {
        let mut replaced = 0;
        let mut values = Vec::new();
        for version in (from + 1..=to).rev() {
            let bit = self.logs[subject][version as usize - 1].key.bit();
            if replaced & bit == 0 {
                replaced |= bit;
                values.push(version);
            }
        }
        values.reverse();
        values
    }

    fn take(&mut self, now: u64, member: usize, news: &[(usize, u32)]) {
        for (subject, version) in news {
            let place = member * self.names.len() + *subject;
            if self.has[place] >= *version {
                continue;
            }
            if self.has[place] == self.told[place] {
                if self.news_of[member].is_empty() {
                    let phase = self.looks_at[member];
                    let look = now + LOOK_US - (now + LOOK_US - phase) % LOOK_US;
                    self.agenda.push(Reverse((look, true, member)));
                }
                self.news_of[member].push(*subject);
            }
            self.has[place] = *version;
        }
    }

    fn look(&mut self, now: u64, member: usize) -> Vec<Told> {
        let mut heard = Vec::new();
        for subject in std::mem::take(&mut self.news_of[member]) {
            let place = member * self.names.len() + subject;
            let (from, to) = (self.told[place], self.has[place]);
            self.told[place] = to;
            for version in self.values(subject, from, to) {
                let value = &self.logs[subject][version as usize - 1];
                let gone = self.replaced_action(subject, value.key, &value.news, from, to);
                heard.push(Told { to: member, of: subject, news: value.news.clone(), gone });
            }
            for value in &mut self.logs[subject][from as usize..to as usize] {
                value.unheard -= 1;
                if value.unheard == 0 && value.counted {
                    self.spread.took_us.push(now - value.at);
                }
            }
        }
        heard
    }

    /// The action whose advert stood under that key at version `from`, if another one has it now and the first has no
    /// other key by `to`: what `facts.rs` works out from its table.
    fn replaced_action(&self, subject: usize, key: Key, news: &News, from: u32, to: u32) -> Option<ActionHash> {
        let News::Advert(hash, _) = news else { return None };
        let log = &self.logs[subject];
        let before = log[..from as usize].iter().rev().find(|value| value.key == key)?;
        let had = shown(&before.news).filter(|had| had != hash)?;
        let mut latest = BTreeMap::new();
        for value in log[..to as usize].iter().rev() {
            latest.entry(value.key).or_insert(&value.news);
        }
        let elsewhere = latest.values().any(|news| shown(news) == Some(had));
        (!elsewhere).then_some(had)
    }
}

/// The action that an advert shows something of.
fn shown(news: &News) -> Option<ActionHash> {
    match news {
        News::Advert(hash, advert) if *advert != Advert::default() => Some(*hash),
        _ => None,
    }
}

/// Gossip alone: each member has ten adverts and changes one of them each second. For the same with chitchat itself see
/// `gossip::tests::scale` in `embermesh-node`.
pub fn spread_alone(members: usize, seconds: u64, seed: u64) -> Spread {
    const ADVERTS: usize = 10;
    let names = (1..=members).map(|n| format!("n{n}")).collect();
    let mut domain = Domain::new(names, seed);
    let mut random = Random::new(seed, 2);
    for member in 0..members {
        domain.set(0, member, Key::ABOUT, "x".repeat(150), News::Other);
        domain.set(0, member, Key::FACTS, "0,4096".to_owned(), News::Other);
        domain.set(0, member, Key::REGISTRY, "0123456789abcdef".to_owned(), News::Other);
        for slot in 0..ADVERTS {
            domain.set(0, member, Key::advert(slot), advert_text(member, slot, 0), News::Other);
        }
    }
    let second = 1_000 * MS;
    let mut changes: BinaryHeap<_> = (0..members).map(|m| Reverse((random.below(second), m, 0))).collect();
    let (from, until) = (5 * second, (5 + seconds) * second);
    while let Some(Reverse((at, member, nth))) = changes.pop() {
        while domain.next_at() <= at.min(until) {
            domain.step();
        }
        if at >= until {
            break;
        }
        domain.count(at >= from);
        let slot = nth as usize % ADVERTS;
        domain.set(at, member, Key::advert(slot), advert_text(member, slot, nth + 1), News::Other);
        changes.push(Reverse((at + second, member, nth + 1)));
    }
    domain.count(false);
    while domain.next_at() <= until + 5 * second {
        domain.step();
    }
    domain.spread.us = until - from;
    domain.spread
}

/// As an advert looks, each with a hash of its own.
fn advert_text(member: usize, slot: usize, nth: u32) -> String {
    let hash = ActionHash(((member * 31 + slot) as u64 * 0x51_2345_6789) & ((1 << 40) - 1));
    format!("{hash},{}", Advert { warm: 1 + nth % 3, paused: 0, starting: 0, free_bucket: (nth % 4) as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advert(warm: u32) -> Advert {
        Advert { warm, ..Advert::default() }
    }

    fn run_until(domain: &mut Domain, until: u64) -> Vec<Told> {
        let mut told = Vec::new();
        while domain.next_at() <= until {
            told.extend(domain.step());
        }
        told
    }

    #[test]
    fn every_member_hears_the_last_of_each_key_once() {
        let mut domain = Domain::new((0..20).map(|n| format!("n{n}")).collect(), 7);
        domain.count(true);
        for warm in 1..=3 {
            domain.set(0, 4, Key::advert(0), "same".to_owned(), News::Advert(ActionHash(1), advert(warm)));
        }
        domain.set(0, 4, Key::FACTS, "0,128".to_owned(), News::Facts { draining: false, room_mb: 128 });
        let told = run_until(&mut domain, 5_000 * MS);
        for member in (0..20).filter(|m| *m != 4) {
            let heard: Vec<_> = told.iter().filter(|t| t.to == member).map(|t| &t.news).collect();
            let facts = News::Facts { draining: false, room_mb: 128 };
            assert_eq!(heard, [&News::Advert(ActionHash(1), advert(3)), &facts], "member {member}");
        }
        assert_eq!(domain.spread.took_us.len(), 4);
    }

    #[test]
    fn an_action_whose_key_another_one_took_is_gone() {
        let mut domain = Domain::new(vec!["a".to_owned(), "b".to_owned()], 7);
        domain.set(0, 0, Key::advert(0), "one".to_owned(), News::Advert(ActionHash(1), advert(1)));
        run_until(&mut domain, 1_000 * MS);
        domain.set(1_000 * MS, 0, Key::advert(0), "none".to_owned(), News::Advert(ActionHash(1), advert(0)));
        domain.set(1_000 * MS, 0, Key::advert(0), "two".to_owned(), News::Advert(ActionHash(2), advert(1)));
        let told = run_until(&mut domain, 2_000 * MS);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].gone, Some(ActionHash(1)));
    }

    #[test]
    fn the_same_seed_spreads_the_same() {
        assert_eq!(spread_alone(20, 3, 5), spread_alone(20, 3, 5));
        assert_ne!(spread_alone(20, 3, 5), spread_alone(20, 3, 6));
    }
}
