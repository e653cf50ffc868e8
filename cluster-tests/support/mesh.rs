//! Several agents that form one mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Index;
use std::thread;
use std::time::{Duration, Instant};

use embermesh_node::history;
use nix::sys::signal::Signal;

use super::{Agent, Place, Settings, until, within};

/// After a fault has ended, everybody sees everybody again within this.
pub(crate) const HEALED: Duration = Duration::from_secs(10);
/// How many lines of each agent's log and history a failed test shows.
const LAST_LINES: usize = 80;

/// How a mesh is set up: nodes `n1`, `n2` …, all alike unless said otherwise.
#[derive(Debug)]
pub(crate) struct Plan {
    place: Place,
    nodes: Vec<Settings>,
}

/// Agents that know each other. `mesh[1]` is node `n1`.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) agents: Vec<Agent>,
    pub(crate) place: Place,
}

impl Plan {
    pub(crate) fn nodes(count: usize) -> Self {
        let place = Place::new();
        let nodes = (1..=count).map(|number| Settings::new(&place, &format!("n{number}"))).collect();
        Self { place, nodes }
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.place.cluster
    }

    /// Changes each node's settings.
    pub(crate) fn each(mut self, change: impl Fn(Settings) -> Settings) -> Self {
        self.nodes = self.nodes.into_iter().map(change).collect();
        self
    }

    /// A configuration key's environment variable, at all nodes.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.nodes = self.nodes.into_iter().map(|node| node.set(name, value)).collect();
        self
    }

    /// An argument of the agent's command line, at all nodes.
    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.nodes = self.nodes.into_iter().map(|node| node.arg(arg)).collect();
        self
    }

    /// Memory for containers, at all nodes.
    pub(crate) fn memory(mut self, memory: &str) -> Self {
        self.nodes.iter_mut().for_each(|node| memory.clone_into(&mut node.memory));
        self
    }

    /// The same at one node.
    pub(crate) fn memory_of(mut self, number: usize, memory: &str) -> Self {
        memory.clone_into(&mut self.nodes[number - 1].memory);
        self
    }

    /// Starts the first, then all others at once, which join it; waits until everybody sees everybody.
    #[track_caller]
    pub(crate) fn start(self) -> Mesh {
        let Self { place, nodes } = self;
        let mut nodes = nodes.into_iter();
        let mut mesh = Mesh { agents: vec![nodes.next().unwrap().start()], place };
        let seed = mesh[1].mesh_addr();
        let others: Vec<Settings> = nodes.map(|node| Settings { join: vec![seed], ..node }).collect();
        let started: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = others.into_iter().map(|node| scope.spawn(move || node.start())).collect();
            starts.into_iter().map(|start| start.join()).collect()
        });
        mesh.agents.extend(started.into_iter().map(|agent| agent.unwrap()));
        mesh.await_all_live();
        mesh
    }
}

impl Mesh {
    #[track_caller]
    pub(crate) fn of(count: usize) -> Self {
        Plan::nodes(count).start()
    }

    /// One more node, which joins the first.
    #[track_caller]
    pub(crate) fn add(&mut self, id: &str) {
        let settings = Settings { join: vec![self[1].mesh_addr()], ..Settings::new(&self.place, id) };
        self.agents.push(settings.start());
        self.await_all_live();
    }

    /// Waits until every agent sees all of them.
    #[track_caller]
    pub(crate) fn await_all_live(&self) {
        until("everybody sees everybody", || self.all_live());
    }

    /// The same after a fault, within the time that a mesh has to heal.
    #[track_caller]
    pub(crate) fn heals(&self, after: &str) {
        within(HEALED, &format!("everybody sees everybody again after {after}"), || self.all_live().then_some(()));
    }

    fn all_live(&self) -> bool {
        self.agents.iter().all(|agent| {
            let members = agent.members();
            self.agents.iter().all(|other| members.contains(&(other.id().to_owned(), "live".to_owned())))
        })
    }

    /// Whether a node counts another one as `live`, `dead` …
    pub(crate) fn sees(&self, at: usize, peer: &str, state: &str) -> bool {
        self[at].member_state(peer).as_deref() == Some(state)
    }

    /// Leaves all containers alone until they are gone, and demands that some were kept as the last copies, for nearly
    /// all of `idle_timeout`, and others, as spare ones, were not.
    #[track_caller]
    pub(crate) fn expect_one_kept_longest(&self, idle_timeout: Duration) {
        // By the owners' word: an engine may be long about a removal.
        let mut paused: BTreeMap<String, (Instant, Instant)> = BTreeMap::new();
        until("all copies have idled out", || {
            let mut left = false;
            for container in self.agents.iter().flat_map(|agent| agent.containers()) {
                left |= container["state"] != "removing";
                if container["state"] == "paused" {
                    let (id, now) = (container["container_id"].as_str().unwrap().to_owned(), Instant::now());
                    paused.entry(id).or_insert((now, now)).1 = now;
                }
            }
            !left
        });
        let kept: Vec<Duration> = paused.into_values().map(|(from, to)| to - from).collect();
        let long = kept.iter().filter(|time| **time > idle_timeout * 3 / 4).count();
        assert!(0 < long && long < kept.len(), "of {idle_timeout:?} they were kept {kept:?}");
    }

    /// Waits until node `at` has heard by gossip of a container of `owner`. From then on it asks there; before, it asks
    /// the action's home, which may be slow to answer on a busy machine.
    #[track_caller]
    pub(crate) fn hears_of_container(&self, at: usize, owner: usize) {
        let heard = format!(r#""advert_taken":{{"peer":"{}""#, self[owner].id());
        let history = &self[at].settings.history;
        until("it is heard of", || fs::read_to_string(history).is_ok_and(|told| told.contains(&heard)));
    }

    pub(crate) fn agent(&mut self, number: usize) -> &mut Agent {
        &mut self.agents[number - 1]
    }

    fn end(&mut self) {
        let running: Vec<&mut Agent> = self.agents.iter_mut().filter_map(|a| a.runs().then_some(a)).collect();
        running.iter().for_each(|agent| agent.signal(Signal::SIGTERM));
        running.into_iter().for_each(Agent::expect_clean_end);
        for agent in self.agents.iter().filter(|agent| !agent.was_killed()) {
            assert_eq!(agent.container_folders(), Vec::<String>::new(), "{} left containers behind", agent.id());
        }
        self.place.expect_no_processes();
        self.judge();
    }

    /// The invariants of the protocol, over what all nodes have told of all their lives.
    #[track_caller]
    fn judge(&self) {
        let histories: BTreeSet<_> = self.agents.iter().map(|agent| agent.settings.history.clone()).collect();
        let judgement = history::judge(&Vec::from_iter(histories)).unwrap();
        let cut_off = |agent: &&Agent| judgement.unfinished.contains(&agent.settings.history) && !agent.was_killed();
        if let Some(agent) = self.agents.iter().find(cut_off) {
            panic!("the history of {} ends in half a line, and it was not killed", agent.id());
        }
        let violations: Vec<String> =
            judgement.violation.iter().chain(&judgement.further).map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        assert!(judgement.records > 0, "the nodes have told nothing");
    }
}

impl Index<usize> for Mesh {
    type Output = Agent;

    fn index(&self, number: usize) -> &Agent {
        &self.agents[number - 1]
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !thread::panicking() {
            return self.end();
        }
        for agent in &self.agents {
            show_end(&format!("log of {}", agent.id()), &agent.log());
            let history = fs::read(&agent.settings.history).unwrap_or_default();
            show_end(&format!("history of {}", agent.id()), &String::from_utf8_lossy(&history));
        }
    }
}

fn show_end(what: &str, text: &str) {
    let skipped = text.lines().count().saturating_sub(LAST_LINES);
    eprintln!("--- {what}, without its first {skipped} lines");
    text.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
}
