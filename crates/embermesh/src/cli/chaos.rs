//! Options of `embermesh chaos`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Engine, values};
use crate::chaos::scenario::Kind;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Make something go wrong at a node, or show and heal what was made to
    #[command(after_help = INJECT_EXAMPLES)]
    Inject(InjectArgs),

    /// Start a throw-away mesh on this machine, call it, break it, and judge what came of it
    #[command(after_help = RUN_EXAMPLES)]
    Run(ChaosRunArgs),

    /// Judge the report of a run, or histories that agents wrote with --history
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
}

const RUN_EXAMPLES: &str = "\
Agents are real processes of this program, on loopback, with everything in one temporary folder.
Calls come in an open loop, waiting and not waiting, of actions that write down each run. After
the last fault the mesh has to heal. Then the promises are judged: the protocol's invariants over
what the nodes told of themselves, what the actions wrote down, and what is left at the end.
Exits 1 when one does not hold. Ctrl-C ends everything, and nothing is left.

What needs root (disk) is left out without it, and said to be. How to write a scenario of one's
own: docs/chaos.md.

Examples:
  embermesh chaos run --duration 30s
  embermesh chaos run --faults kill,partition --seed 7 --report ./report
  embermesh chaos run --scenario two-sides.toml --report ./report
  embermesh chaos check ./report";

#[derive(Debug, Clone, Args)]
pub(crate) struct ChaosRunArgs {
    /// How many nodes [default: 5]
    #[arg(long, value_name = "N", conflicts_with = "scenario")]
    pub(crate) nodes: Option<u32>,

    /// How long calls are made and faults come and go, e.g. 10m [default: 2m]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "scenario")]
    pub(crate) duration: Option<Duration>,

    /// Kinds of faults, with commas [default: all of them]
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',', conflicts_with = "scenario")]
    pub(crate) faults: Vec<Kind>,

    /// The same seed makes the same faults and calls at the same times [default: any]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// What runs the containers [default: process]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,

    /// A new folder for everything that was seen, and a time line to read
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,

    /// What to do, as a TOML file, instead of faults made of the seed
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    /// A report's folder; or histories of nodes of one mesh, all on one host: what crosses nodes is judged by their
    /// clocks
    #[arg(value_name = "DIR|FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Judge histories that end in half a line as far as they go: their agents were killed
    #[arg(long)]
    pub(crate) unfinished: bool,

    /// Draw the report's time line into a new file, with these verdicts
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,
}

const CHECK_EXAMPLES: &str = "\
Exits 1 and names the invariant, with what happened before, when one does not hold; and when
nothing can be judged, or a history is cut off. No node is asked.

Examples:
  embermesh chaos check ./report
  embermesh chaos check ./report --timeline again.html
  embermesh agent --node-id n1 --data-dir ./n1 --history n1.history
  embermesh chaos check n1.history n2.history
  embermesh chaos check --unfinished killed.history n2.history";

const INJECT_EXAMPLES: &str = "\
Only agents that were started with --enable-fault-injection take faults. A link's faults concern what this
node sends and receives on connections that it made itself, and in gossip: to cut a link altogether, cut it
at both ends; to cut it one way, cut `--way send` at one end and `--way receive` at the other.

Examples:
  embermesh chaos inject partition n2 n3 --for 20s
  embermesh chaos inject partition n2 --way send
  embermesh chaos inject link n2 --delay 200ms --loss 0.1
  embermesh chaos inject stall --for 10s
  embermesh chaos inject drift 5000
  embermesh chaos inject show
  embermesh chaos inject heal";

#[derive(Debug, Clone, Args)]
pub(crate) struct InjectArgs {
    #[command(subcommand)]
    pub(crate) fault: Fault,

    /// Heal everything at this node after so long, and wait for that
    #[arg(long = "for", global = true, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) duration: Option<Duration>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Fault {
    /// Cut the links to peers
    Partition {
        /// Node ids, or mesh addresses
        #[arg(value_name = "PEER", required = true)]
        peers: Vec<String>,
        /// Which way
        #[arg(long, value_enum, default_value_t = Way::Both)]
        way: Way,
    },

    /// Make a link slow or lossy; without options it is whole again
    Link {
        /// A node id, or a mesh address
        #[arg(value_name = "PEER")]
        peer: String,
        /// Hold what passes back for so long
        #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "0ms")]
        delay: Duration,
        /// Share of gossip's datagrams that are lost, 0 to 1
        #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
        loss: f64,
        /// Share of gossip's datagrams that come twice, 0 to 1
        #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
        duplicate: f64,
        /// Which way
        #[arg(long, value_enum, default_value_t = Way::Both)]
        way: Way,
    },

    /// Let the container engine stand still: nothing starts, pauses, resumes or is removed
    Stall,

    /// Let the node's clock run fast (or slow) by so many parts per million
    #[command(allow_negative_numbers = true)]
    Drift {
        /// From -500000 to 500000; the mesh promises to bear 10000
        #[arg(value_name = "PPM")]
        ppm: i64,
    },

    /// Show what was made to go wrong
    Show,

    /// Make everything whole again
    Heal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    Both,
    Send,
    Receive,
}
