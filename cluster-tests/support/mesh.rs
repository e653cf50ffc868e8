//! Several agents that form one mesh.

use std::ops::Index;
use std::thread;

use nix::sys::signal::Signal;

use super::{Agent, Place, Settings, until};

/// How many lines of each agent's log a failed test shows.
const LOG_LINES: usize = 80;

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
        until("everybody sees everybody", || {
            self.agents.iter().all(|agent| {
                let members = agent.members();
                self.agents.iter().all(|other| members.contains(&(other.id().to_owned(), "live".to_owned())))
            })
        });
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
            let log = agent.log();
            let skipped = log.lines().count().saturating_sub(LOG_LINES);
            eprintln!("--- log of {}, without its first {skipped} lines", agent.id());
            log.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
        }
    }
}
