//! The command line: every command, option and help text. What they do is in `commands`; the agent and
//! the demo only have their options here.

pub(crate) mod action;
pub(crate) mod agent;
pub(crate) mod chaos;
pub(crate) mod values;

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use action::{ActionCommand, ActivationCommand, InvokeArgs};
pub(crate) use agent::{AgentArgs, DemoArgs, Engine, LogFormat};
pub(crate) use chaos::{ChaosCommand, ChaosRunArgs, CheckArgs, Fault, InjectArgs, Way};

const EXAMPLES: &str = "\
Start a node, then talk to it from another terminal:
  embermesh agent --node-id n1 --data-dir ./n1
  embermesh action create hello hello.py
  embermesh invoke hello -p name Ada

Exit codes:
  0  it worked                    4  vetoed, or in conflict with what is there
  1  it failed                    5  unavailable, or not done in time
  2  wrong usage                  6  not authorised
  3  not found";

/// A mesh of nodes that share their warm containers.
#[derive(Debug, Clone, Parser)]
#[command(name = "embermesh", version, about, long_about = None, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: TargetArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which node a command talks to, and how it shows the answer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node and output")]
pub(crate) struct TargetArgs {
    /// The node's HTTP API [env: EMBERMESH_API] [default: http://127.0.0.1:3233]
    // The environment and the default are resolved in `commands`: clap would hand them on to the
    // agent's `--api`, which is an address to listen on.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) api: Option<String>,

    /// How to print the answer: a table, or the API's JSON unchanged
    #[arg(short = 'o', long = "output", global = true, value_enum, value_name = "FORMAT")]
    #[arg(default_value_t = Format::Table, hide_possible_values = false)]
    pub(crate) format: Format,

    /// How long to wait for an answer, on top of what the command itself waits for
    #[arg(long, global = true, value_name = "DURATION", value_parser = values::duration)]
    #[arg(default_value = "30s")]
    pub(crate) request_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Run a node of the mesh
    Agent(AgentArgs),

    /// Start a mesh of three nodes on this machine and show what it does
    Demo(DemoArgs),

    #[command(flatten)]
    Operator(OperatorCommand),
}

/// Everything that is asked of a running node.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Register, change, show and delete actions
    #[command(subcommand)]
    Action(ActionCommand),

    /// Run an action and show what came of it
    Invoke(InvokeArgs),

    /// Show what became of activations: records, logs and results
    #[command(subcommand)]
    Activation(ActivationCommand),

    /// Show whether the node is ready, what it holds and what it has done
    Status,

    /// List the nodes that this one knows
    Members,

    /// List containers: the node's own, or those of all nodes
    Containers(ContainersArgs),

    /// List the leases that the node holds at peers and those it granted to them
    Leases,

    /// List the open intents to pause or remove a container
    Intents,

    /// Follow what happens, one line an event, until Ctrl-C
    Watch(WatchArgs),

    /// Ask the peers whether a container may be paused, and show how that ended
    #[command(after_help = PAUSE_EXAMPLES)]
    Pause(ContainerArgs),

    /// Ask the peers whether a container may be removed, and show how that ended
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(RemoveArgs),

    /// Object to an open intent, as the node that is asked
    Veto(VetoArgs),

    /// Give a lease back before it runs out
    Release(ReleaseArgs),

    /// Empty the node: no new work, what was accepted is finished, then all containers end
    Drain(DrainArgs),

    /// Take the node out of the mesh and end its agent, once all activations that it accepted have ended
    Leave {
        /// Leave at once: accepted activations that have not ended stay in the data folder
        #[arg(long)]
        force: bool,
    },

    /// Make faults on purpose, and judge what a mesh makes of them
    #[command(subcommand)]
    Chaos(ChaosCommand),
}

const PAUSE_EXAMPLES: &str = "\
The intent stays open for one window; a peer that expects to need the container can veto it,
and a run or a lease in the window cancels it. Exits 4 when the container was not paused.

Example:
  embermesh pause n1-1718000000000000-1";

const REMOVE_EXAMPLES: &str = "\
The intent stays open for one window; a peer that expects to need the container can veto it,
and a run or a lease in the window cancels it. Exits 4 when the container was not removed.
With --force nobody is asked: the container takes no new run and goes once its last has ended.

Examples:
  embermesh remove n1-1718000000000000-1
  embermesh remove n1-1718000000000000-1 --force";

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  embermesh containers\n  embermesh containers --all-nodes -o json")]
pub(crate) struct ContainersArgs {
    /// Ask the peers for theirs as well
    #[arg(short, long)]
    pub(crate) all_nodes: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  embermesh watch\n  embermesh watch -o json --count 10")]
pub(crate) struct WatchArgs {
    /// Stop after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ContainerArgs {
    /// The container's id, as `embermesh containers` lists it
    #[arg(value_name = "CONTAINER")]
    pub(crate) container_id: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,

    /// Do not ask the peers
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  embermesh veto n1-1718000000000000-1-r1 --hold 20s")]
pub(crate) struct VetoArgs {
    /// The intent's id, as `embermesh intents` lists it
    #[arg(value_name = "INTENT")]
    pub(crate) intent_id: String,

    /// How long the container should be kept, e.g. 20s [default: the longest that the mesh allows]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) hold: Option<Duration>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  embermesh release n2-1718000000000000-L7")]
pub(crate) struct ReleaseArgs {
    /// The lease's id, as `embermesh leases` lists it
    #[arg(value_name = "LEASE")]
    pub(crate) lease_id: String,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Waits until the node is empty: runs have ended, here and at peers, and everything that was accepted
with a 202 has its record. When something is left at the deadline it is told, and the command exits 5;
the node stays draining.

Examples:
  embermesh drain --deadline 2m
  embermesh drain --deadline 30s --force")]
pub(crate) struct DrainArgs {
    /// How long to wait for runs to end, e.g. 2m [default: what the node is configured with]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) deadline: Option<Duration>,

    /// Kill what is left here at the deadline; what was accepted and has not begun ends as failed
    #[arg(long)]
    pub(crate) force: bool,
}

#[cfg(test)]
mod tests;
