//! Options of `embermesh chaos`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::values;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Make something go wrong at a node, or show and heal what was made to
    #[command(after_help = INJECT_EXAMPLES)]
    Inject(InjectArgs),

    /// Judge histories that agents wrote with --history by the protocol's invariants
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Histories of nodes of one mesh, all on one host: what crosses nodes is judged by their clocks
        #[arg(value_name = "FILE", required = true)]
        files: Vec<std::path::PathBuf>,
    },
}

const CHECK_EXAMPLES: &str = "\
Exits 1 and names the invariant, with what happened before, when one does not hold.

Example:
  embermesh agent --node-id n1 --data-dir ./n1 --history n1.history
  embermesh chaos check n1.history n2.history";

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
