//! Two rules that no history of one mesh tells well, each played by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use embermesh_core::input::RunEnd;
use embermesh_core::output::IntentKind;
use embermesh_core::stage::Stage;
use embermesh_core::{ActionId, ActionSpec, ActivationId, Config, Epoch, Input, Node, NodeId, Output, Revision, Time};

const QUANTUM: u64 = 256;

/// Q1_fair_share: of two namespaces that both have queued work all the while, neither gets more of a stage than the
/// other and a quantum and one item of each, however they arrive.
pub fn fair_share(seed: u64) -> Result<(), String> {
    let mut random = seed | 1;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 3) % bound
    };
    let names = ["red", "green", "blue"];
    let mut stage = Stage::new(QUANTUM);
    let mut queued: BTreeMap<&str, u64> = BTreeMap::new();
    // Served to each since both of a pair have had work without a break.
    let mut served: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for _ in 0..400 {
        if below(5) < 3 {
            // One namespace is greedy.
            let name = names[(below(6).saturating_sub(3)) as usize];
            let cost = 128 << below(3);
            stage.push(name, cost, (name, cost));
            *queued.entry(name).or_default() += 1;
        } else if let Some((name, cost)) = stage.pop() {
            for other in names.iter().filter(|n| **n != name && queued.get(*n).is_some_and(|q| *q > 0)) {
                let (mine, theirs) = served.entry((name, other)).or_default();
                *mine += cost;
                if *mine > *theirs + 2 * QUANTUM + 2 * 512 {
                    return Err(format!("Q1_fair_share: {name} got {mine} MB and {other} {theirs} MB, both queued"));
                }
                served.entry((other, name)).or_default().1 += cost;
            }
            if let Some(left) = queued.get_mut(name) {
                *left -= 1;
                if *left == 0 {
                    served.retain(|(a, b), _| *a != name && *b != name);
                }
            }
        }
    }
    Ok(())
}

/// Of nodes that all have a warm copy and know of each other, exactly one counts its own as the last: or all would go
/// together when their time is over, or none.
pub fn one_keeper(nodes: usize) -> Result<(), String> {
    let spec = Arc::new(ActionSpec {
        action: ActionId::new("red", "a"),
        revision: Revision { counter: 1, node: NodeId::new("n0") },
        concurrency: 1,
        memory_mb: 256,
        timeout_us: 1_000_000,
        idempotent: false,
        image: "image".into(),
    });
    let mut mesh = Vec::new();
    for n in 0..nodes {
        let mut node = Node::new(NodeId::new(&format!("n{n}")), Epoch(1), Arc::new(Config::default()), 1);
        let mut out = Vec::new();
        let mut at = Time(1_000_000);
        let mut give = |node: &mut Node, input| {
            at = at + 1;
            node.handle(at, input, &mut out);
            std::mem::take(&mut out)
        };
        let activation = ActivationId(n as u128 + 1);
        give(
            &mut node,
            Input::InvokeRequested { activation, spec: spec.clone(), body_bytes: 1, attempt: 0, journaled: false },
        );
        give(&mut node, Input::ContainerCreated { container: 1 });
        let outputs = give(&mut node, Input::ContainerReady { container: 1 });
        for output in outputs {
            if let Output::RunLocal { run, container, .. } = output {
                give(&mut node, Input::RunFinished { container, run, end: RunEnd::Answered });
            }
        }
        mesh.push(node);
    }
    let mut keepers = BTreeSet::new();
    for (n, node) in mesh.iter_mut().enumerate() {
        let mut out = Vec::new();
        let advert = embermesh_core::output::Advert { warm: 1, paused: 0, starting: 0, free_bucket: 1 };
        for peer in (0..nodes).filter(|p| *p != n).map(|p| NodeId::new(&format!("n{p}"))) {
            let (at, epoch) = (Time(2_000_000), Epoch(1));
            node.handle(at, Input::PeerUp { peer: peer.clone(), epoch }, &mut out);
            node.handle(at, Input::AdvertReceived { peer, epoch, hash: spec.action_hash(), advert }, &mut out);
        }
        let intent = Input::IntentRequested { container: 1, kind: IntentKind::Remove, force: false };
        node.handle(Time(2_000_001), intent, &mut out);
        let told = out.iter().find_map(|o| match o {
            Output::SendIntent { notice, .. } => Some(notice.last_copy),
            _ => None,
        });
        match told {
            Some(true) => keepers.insert(n),
            Some(false) => false,
            None => return Err(format!("n{n} opens no intent")),
        };
    }
    if keepers.len() == 1 { Ok(()) } else { Err(format!("of {nodes} siblings {keepers:?} count theirs as the last")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_with_queued_work_get_the_same_share_of_a_stage() {
        for seed in 1..200 {
            assert_eq!(fair_share(seed), Ok(()), "seed {seed}");
        }
    }

    #[test]
    fn of_many_siblings_exactly_one_counts_its_copy_as_the_last() {
        for nodes in 1..8 {
            assert_eq!(one_keeper(nodes), Ok(()));
        }
    }
}
