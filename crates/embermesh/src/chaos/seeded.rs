//! A scenario made of a seed: all the kinds that were asked for, in turns, with some calm in between.

use super::dice::Dice;
use super::scenario::{Containers, Expect, Fault, How, Kind, MeshPlan, Scenario, Span, Way, Workload};

/// Calm before the first fault: containers get warm, and leases are made.
const CALM_MS: u64 = 3_000;
/// Calm after the last.
const REST_MS: u64 = 1_000;
/// From the beginning of one fault to that of the next.
const GAP_MS: [u64; 2] = [1_500, 5_000];
const LASTS_MS: [u64; 2] = [1_500, 5_000];
/// The longest that a fault of this kind lasts for sure: a stopped node has to outlast its leases.
const STOPPED_MS: [u64; 2] = [2_000, 5_000];
/// Clocks stay within what the mesh promises to bear.
const MOST_DRIFT_PPM: u64 = 10_000;
/// What a node that was away may need until it takes faults again.
const BACK_MS: u64 = 1_000;
/// Tries to find a place for a fault before it is left out.
const TRIES: usize = 20;

pub(crate) struct Wishes {
    pub(crate) nodes: u32,
    pub(crate) duration: Span,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) seed: u64,
    pub(crate) engine: Containers,
}

/// The same wishes make the same scenario.
pub(crate) fn scenario(wishes: &Wishes) -> Scenario {
    let mut scenario = Scenario {
        duration: wishes.duration,
        seed: wishes.seed,
        mesh: MeshPlan { nodes: wishes.nodes, engine: wishes.engine, ..MeshPlan::default() },
        workload: Workload::default(),
        expect: Expect::default(),
        faults: Vec::new(),
    };
    let mut dice = Dice::new(wishes.seed);
    let ids = scenario.node_ids();
    let last_end = wishes.duration.as_ms().saturating_sub(REST_MS);
    let mut deck: Vec<Kind> = Vec::new();
    let mut at = CALM_MS;
    loop {
        if deck.is_empty() {
            deck.clone_from(&wishes.kinds);
            dice.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { break };
        let found = (0..TRIES).find_map(|_| {
            let fault = fault(&mut dice, kind, at, &ids, wishes.engine);
            let room = fault.ends().as_ms() <= last_end;
            (room && fits(&scenario.faults, &fault, ids.len())).then_some(fault)
        });
        scenario.faults.extend(found);
        at += dice.between(GAP_MS[0], GAP_MS[1]);
        if at + LASTS_MS[0] > last_end {
            break;
        }
    }
    scenario
}

/// At most half of the nodes are away at a time, no node suffers two faults that exclude each other, and none is to make
/// one while it is away.
fn fits(faults: &[Fault], new: &Fault, nodes: usize) -> bool {
    if !new.takes_the_node() {
        let away = |f: &&Fault| f.takes_it_away() && new.at.as_ms() < f.ends().as_ms() + BACK_MS;
        return !faults.iter().filter(away).any(|f| f.nodes.iter().any(|node| new.is_made_by(node)));
    }
    let meanwhile: Vec<&Fault> = faults.iter().filter(|f| f.takes_the_node() && f.overlaps(new)).collect();
    let away = meanwhile.iter().filter(|f| f.takes_it_away()).count();
    meanwhile.iter().all(|f| f.nodes != new.nodes) && (!new.takes_it_away() || away < nodes.div_ceil(2).max(2) - 1)
}

fn fault(dice: &mut Dice, kind: Kind, at: u64, ids: &[String], engine: Containers) -> Fault {
    let range = if kind == Kind::Stop { STOPPED_MS } else { LASTS_MS };
    let mut all = ids.to_vec();
    dice.shuffle(&mut all);
    // Of links sometimes several nodes at once, never all.
    let several = if kind == Kind::Partition { dice.between(1, (ids.len() as u64 / 2).max(1)) } else { 1 };
    let nodes: Vec<String> = all.iter().take(several as usize).cloned().collect();
    let one_link = kind.is_of_links() && dice.share() < 0.3;
    let from = if one_link { all.iter().skip(several as usize).take(1).cloned().collect() } else { Vec::new() };
    let ways = [Way::Both, Way::Both, Way::Send, Way::Receive];
    let mut fault = Fault {
        kind,
        at: Span::ms(at),
        lasts: Span::ms(dice.between(range[0], range[1])),
        nodes,
        from,
        way: dice.pick(&ways).copied().filter(|_| kind.is_of_links()),
        delay: None,
        loss: None,
        duplicate: None,
        ppm: None,
        how: None,
    };
    match kind {
        Kind::Delay => fault.delay = Some(Span::ms(dice.between(20, 400))),
        Kind::Loss => {
            fault.loss = Some(dice.between(5, 60) as f64 / 100.0);
            fault.duplicate = Some(dice.between(0, 30) as f64 / 100.0);
        }
        Kind::Clock => {
            let ppm = dice.between(1_000, MOST_DRIFT_PPM) as i64;
            fault.ppm = Some(if dice.share() < 0.5 { ppm } else { -ppm });
        }
        Kind::Engine => {
            let ways = [How::Stall, How::Kill, How::Pause];
            fault.how =
                Some(if engine == Containers::Docker { *dice.pick(&ways).unwrap_or(&How::Stall) } else { How::Stall });
        }
        Kind::Kill | Kind::Stop | Kind::Partition | Kind::Disk => {}
    }
    fault
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::ValueEnum as _;

    use super::*;

    fn wishes(seed: u64) -> Wishes {
        let kinds = Kind::value_variants().to_vec();
        Wishes { nodes: 5, duration: Span::ms(120_000), kinds, seed, engine: Containers::Process }
    }

    #[test]
    fn the_same_seed_makes_the_same_faults_and_another_one_others() {
        assert_eq!(scenario(&wishes(7)), scenario(&wishes(7)));
        assert_ne!(scenario(&wishes(7)).faults, scenario(&wishes(8)).faults);
    }

    #[test]
    fn every_seed_makes_a_scenario_that_is_possible_and_has_every_kind() {
        for seed in 0..200 {
            let scenario = scenario(&wishes(seed));
            assert_eq!(scenario.impossible(), Vec::<String>::new(), "seed {seed}");
            for kind in Kind::value_variants() {
                assert!(scenario.faults.iter().any(|f| f.kind == *kind), "seed {seed} has no {}", kind.name());
            }
            assert!(scenario.faults.len() >= 25, "seed {seed} has {}", scenario.faults.len());
        }
    }

    #[test]
    fn no_seed_plans_a_fault_that_an_agent_is_to_make_while_it_is_away() {
        for seed in 0..200 {
            let faults = scenario(&wishes(seed)).faults;
            let away = |node: &String, at: Span| {
                let away = faults.iter().filter(|f| f.takes_it_away() && f.nodes.contains(node));
                away.into_iter().any(|f| f.at <= at && at < f.ends())
            };
            for fault in faults.iter().filter(|f| !f.takes_the_node()) {
                let ends = fault.nodes.iter().chain(&fault.from);
                assert!(!ends.into_iter().any(|node| away(node, fault.at)), "seed {seed}: {fault:?}");
            }
        }
    }

    #[test]
    fn a_scenario_is_read_as_it_was_written() {
        let scenario = scenario(&wishes(3));
        assert_eq!(Scenario::parse(&scenario.to_toml().unwrap()).unwrap(), scenario);
    }
}
