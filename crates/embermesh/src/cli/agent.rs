//! Options of `embermesh agent` and `embermesh demo`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values;

/// What the agent's command line said. All of it is optional: the environment, the configuration file and
/// the defaults give the rest, in this order.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Until peers and users authenticate, both addresses must be on loopback, unless --insecure is
given.

Examples, two nodes on one machine:
  embermesh agent --node-id n1 --data-dir ./n1 --mesh 127.0.0.1:7411 --api 127.0.0.1:3233
  embermesh agent --node-id n2 --data-dir ./n2 --mesh 127.0.0.1:7412 --api 127.0.0.1:3234 \\
      --join 127.0.0.1:7411")]
pub(crate) struct AgentArgs {
    /// This node's name in the mesh: short, unique, the same at every start
    #[arg(long, value_name = "NAME")]
    pub(crate) node_id: Option<String>,

    /// Folder of this node alone; made when it does not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Address for the peers: gossip on UDP, gRPC on TCP [default: 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) mesh: Option<SocketAddr>,

    /// Address of the HTTP API for users [default: 127.0.0.1:3233]
    // A string, since clap keeps it under the same id as the operator's `--api`.
    #[arg(long, value_name = "ADDR:PORT", value_parser = values::listen_address)]
    pub(crate) api: Option<String>,

    /// A node of the mesh to join; may be repeated. One that does not answer is tried again
    #[arg(long, value_name = "HOST:PORT", value_parser = values::host_port)]
    pub(crate) join: Vec<String>,

    /// Address under which peers reach this node, when it is not the one of --mesh
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) advertise: Option<SocketAddr>,

    /// What runs containers: processes of this host, or its Docker engine [default: process]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,

    /// Memory that containers may take together, e.g. 4GiB or 512MiB [default: three quarters
    /// of the host's]
    #[arg(long = "memory", value_name = "SIZE", value_parser = values::memory_mb)]
    pub(crate) memory_mb: Option<u64>,

    /// Threads that carry activations and messages [default: half of the host's cores; the other
    /// half is for the actions]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// File for the node's history: what it granted, ran, paused and removed, one JSON object a
    /// line, to be judged by the protocol's invariants
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,

    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "EMBERMESH_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// The mesh's name: nodes of another one are ignored [default: embermesh]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,

    /// Allow addresses off loopback, although neither peers nor users authenticate yet: whoever reaches
    /// them can run code on this machine
    #[arg(long)]
    pub(crate) insecure: bool,

    /// Let whoever reaches the API make faults on purpose (see `embermesh chaos inject`); never where
    /// anything matters
    #[arg(long)]
    pub(crate) enable_fault_injection: bool,

    /// Seed of the dice that decide which datagrams are lost or come twice, with --enable-fault-injection
    /// [default: any; the log tells it]
    #[arg(long, value_name = "N", requires = "enable_fault_injection")]
    pub(crate) fault_seed: Option<u64>,

    /// Go down when standard input closes: for whoever starts agents as its children
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,

    /// How log lines are written [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Process,
    Docker,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Starts agents as processes of their own on loopback, shows each promise of the mesh at work,
measures it, and leaves nothing running. Exits 1 when a step did not really happen.

Examples:
  embermesh demo
  embermesh demo --docker
  embermesh demo --json
  embermesh demo --keep")]
pub(crate) struct DemoArgs {
    /// Print the figures as one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Run the containers on this host's Docker engine; images are made of this program, no registry
    /// is asked
    #[arg(long)]
    pub(crate) docker: bool,

    /// Leave the mesh up and print how to talk to it
    #[arg(long)]
    pub(crate) keep: bool,

    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(3..=16))]
    pub(crate) nodes: u32,
}
