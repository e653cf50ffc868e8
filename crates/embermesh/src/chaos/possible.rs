//! What makes no sense in a scenario: told all at once, before anything is started.

use std::collections::BTreeSet;

use crate::cli::values;

use super::scenario::{Action, Containers, Fault, How, Kind, Scenario, Span};

const MOST_NODES: u32 = 16;
const LONGEST: Span = Span::ms(24 * 3600 * 1000);
const MOST_RATE: f64 = 2_000.0;
const LONGEST_RUN_MS: u64 = 20_000;
const LONGEST_DELAY: Span = Span::ms(60_000);
const MOST_DRIFT_PPM: u64 = 500_000;

impl Scenario {
    /// Every reason why it can't be.
    pub(crate) fn impossible(&self) -> Vec<String> {
        let mut said = Vec::new();
        let mut demand = |holds: bool, why: String| {
            if !holds {
                said.push(why);
            }
        };
        let (mesh, work) = (&self.mesh, &self.workload);
        demand(
            (2..=MOST_NODES).contains(&mesh.nodes),
            format!("`mesh.nodes` is {}: give 2 to {MOST_NODES}", mesh.nodes),
        );
        demand(
            self.duration >= Span::ms(1000) && self.duration <= LONGEST,
            format!("`duration` is {}: give 1s to {LONGEST}", self.duration),
        );
        demand(
            work.rate > 0.0 && work.rate <= MOST_RATE,
            format!("`workload.rate` is {}: give up to {MOST_RATE}", work.rate),
        );
        for (name, share) in [("workload.blocking", work.blocking), ("expect.failed_share", self.expect.failed_share)] {
            demand((0.0..=1.0).contains(&share), format!("`{name}` is {share}: give a share from 0 to 1"));
        }
        demand(!work.actions.is_empty(), "`workload.actions` is empty: nothing would be called".to_owned());
        let names: BTreeSet<&str> = work.actions.iter().map(|a| a.name.as_str()).collect();
        demand(names.len() == work.actions.len(), "two `workload.actions` have the same name".to_owned());
        said.extend(work.actions.iter().filter_map(wrong_action));
        if let Err(why) = values::memory_mb(&mesh.memory) {
            said.push(format!("`mesh.memory`: {why}"));
        }
        if let Err(why) = self.agent_config() {
            said.push(why);
        }
        for (n, fault) in self.faults.iter().enumerate() {
            said.extend(
                self.wrong_fault(fault)
                    .into_iter()
                    .map(|why| format!("fault {} ({}): {why}", n + 1, fault.kind.name())),
            );
        }
        said.extend(self.in_each_others_way());
        said
    }

    fn wrong_fault(&self, fault: &Fault) -> Vec<String> {
        let mut said = Vec::new();
        let ids = self.node_ids();
        if fault.nodes.is_empty() {
            said.push("`nodes` is empty: name at least one".to_owned());
        }
        for id in fault.nodes.iter().chain(&fault.from) {
            if !ids.contains(id) {
                said.push(format!("there is no node `{id}`: the mesh has n1 to n{}", self.mesh.nodes));
            }
        }
        let nodes: BTreeSet<&String> = fault.nodes.iter().collect();
        if nodes.len() < fault.nodes.len() {
            said.push("a node is named twice".to_owned());
        }
        if fault.lasts.0.is_zero() {
            said.push("`for` is nothing: say how long".to_owned());
        }
        if fault.at.0 + fault.lasts.0 > self.duration.0 {
            said.push(format!(
                "it lasts until {}, after the end at {}",
                Span(fault.at.0 + fault.lasts.0),
                self.duration
            ));
        }
        if fault.kind.is_of_links() {
            if fault.from.iter().any(|id| nodes.contains(id)) {
                said.push("a node is in `nodes` and in `from`: a link has two ends".to_owned());
            }
            if fault.from.is_empty() && nodes.len() == ids.len() {
                said.push("all nodes are in `nodes`: nobody is left at the other end".to_owned());
            }
        }
        said.extend(self.wrong_keys(fault));
        said
    }

    /// Keys that a kind needs, and those that mean nothing for it.
    fn wrong_keys(&self, fault: &Fault) -> Vec<String> {
        let kind = fault.kind;
        let mut said = Vec::new();
        let given = [
            ("from", !fault.from.is_empty(), kind.is_of_links()),
            ("way", fault.way.is_some(), kind.is_of_links()),
            ("delay", fault.delay.is_some(), kind == Kind::Delay),
            ("loss", fault.loss.is_some(), kind == Kind::Loss),
            ("duplicate", fault.duplicate.is_some(), kind == Kind::Loss),
            ("ppm", fault.ppm.is_some(), kind == Kind::Clock),
            ("how", fault.how.is_some(), kind == Kind::Engine),
        ];
        for (key, _, _) in given.iter().filter(|(_, given, fits)| *given && !fits) {
            said.push(format!("`{key}` means nothing here"));
        }
        match kind {
            Kind::Delay if fault.delay.is_none_or(|d| d.0.is_zero() || d > LONGEST_DELAY) => {
                said.push(format!("give a `delay` of up to {LONGEST_DELAY}"));
            }
            Kind::Loss => {
                let shares = [fault.loss, fault.duplicate].map(|share| share.unwrap_or(0.0));
                if !shares.iter().all(|share| (0.0..=1.0).contains(share)) || shares == [0.0, 0.0] {
                    said.push("give `loss` or `duplicate`, a share from 0 to 1".to_owned());
                }
            }
            Kind::Clock if fault.ppm.is_none_or(|ppm| ppm == 0 || ppm.unsigned_abs() > MOST_DRIFT_PPM) => {
                said.push(format!("give `ppm`, parts per million from -{MOST_DRIFT_PPM} to {MOST_DRIFT_PPM}"));
            }
            Kind::Engine
                if fault.how.is_some_and(|how| how != How::Stall) && self.mesh.engine != Containers::Docker =>
            {
                said.push(
                    "containers can be killed and paused where `mesh.engine` is \"docker\": use `how = \"stall\"`"
                        .to_owned(),
                );
            }
            _ => {}
        }
        said
    }

    /// Faults that can't be at the same time.
    fn in_each_others_way(&self) -> Vec<String> {
        let mut said = Vec::new();
        let whole: Vec<&Fault> = self.faults.iter().filter(|f| f.takes_the_node()).collect();
        for (n, one) in whole.iter().enumerate() {
            for other in &whole[n + 1..] {
                if let Some(id) = one.nodes.iter().find(|id| other.nodes.contains(id) && one.overlaps(other)) {
                    let (first, second) = (one.kind.name(), other.kind.name());
                    said.push(format!(
                        "{first} at {} and {second} at {} both concern {id}: one after the other",
                        one.at, other.at
                    ));
                }
            }
            let down: BTreeSet<&String> =
                whole.iter().filter(|f| f.takes_it_away() && f.is_on(one.at)).flat_map(|f| &f.nodes).collect();
            if one.takes_it_away() && down.len() >= self.mesh.nodes as usize {
                said.push(format!("at {} no node would be left", one.at));
            }
        }
        said
    }
}

impl Fault {
    pub(crate) fn ends(&self) -> Span {
        Span(self.at.0 + self.lasts.0)
    }

    /// Nothing else of this sort can be done to its nodes meanwhile.
    pub(super) fn takes_the_node(&self) -> bool {
        matches!(self.kind, Kind::Kill | Kind::Stop | Kind::Disk)
    }

    pub(super) fn takes_it_away(&self) -> bool {
        matches!(self.kind, Kind::Kill | Kind::Stop)
    }

    /// Whether that is its node or a named end of its links: either may have to make it.
    pub(super) fn is_made_by(&self, node: &String) -> bool {
        self.nodes.contains(node) || self.from.contains(node)
    }

    pub(super) fn overlaps(&self, other: &Fault) -> bool {
        self.at < other.ends() && other.at < self.ends()
    }

    fn is_on(&self, at: Span) -> bool {
        self.at <= at && at < self.ends()
    }
}

fn wrong_action(action: &Action) -> Option<String> {
    let Action { name, concurrency, ms: [least, most], weight } = action;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let why = if !plain {
        "its name takes letters, digits, - and _".to_owned()
    } else if *concurrency == 0 || *concurrency > 100 {
        format!("`concurrency` is {concurrency}: give 1 to 100")
    } else if least > most || *most > LONGEST_RUN_MS {
        format!("`ms` is [{least}, {most}]: give [from, to], up to {LONGEST_RUN_MS}")
    } else if *weight == 0 {
        "`weight` is 0: leave it out instead".to_owned()
    } else {
        return None;
    };
    Some(format!("action `{name}`: {why}"))
}
