//! Options of `embermesh action`, `invoke` and `activation`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::{self, ActionName};

const CREATE_EXAMPLES: &str = "\
FILE is source code, an executable, or builtin:NAME for an action that ships with Embermesh.
Without --kind the file tells: .py is python:default; .js, .mjs and .cjs are nodejs:default; an
ELF executable is native:default. An ActionLoop executable needs --kind actionloop:default.
With --image the image runs the action, and FILE is what it gets as code, if it wants any.

Examples:
  embermesh action create hello hello.py
  embermesh action create resize ./resize --memory 512 --concurrency 8
  embermesh action create echo builtin:echo --annotation idempotent true
  embermesh action create report report.js --image openwhisk/action-nodejs-v20";

const UPDATE_EXAMPLES: &str = "\
What is not given stays as it is. Containers of the older revision end once they are idle;
until the mesh has heard of the update, other nodes may still run the older one.

Examples:
  embermesh action update hello hello.py
  embermesh action update hello --memory 512 --timeout 10000";

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ActionCommand {
    /// Register an action
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),

    /// Change an action's code or settings
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(UpdateArgs),

    /// Show an action
    Get(ActionArgs),

    /// List the actions
    List(ListArgs),

    /// Delete an action; its containers end once they are idle
    Delete(ActionArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CreateArgs {
    /// The action's name, or /NAMESPACE/NAME
    pub(crate) name: ActionName,

    /// Its code, or builtin:NAME
    #[arg(required_unless_present = "image")]
    pub(crate) file: Option<String>,

    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpdateArgs {
    /// The action's name, or /NAMESPACE/NAME
    pub(crate) name: ActionName,

    /// Its new code, or builtin:NAME
    pub(crate) file: Option<String>,

    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// What the node's defaults give when it is absent.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SettingsArgs {
    /// What runs the code, e.g. python:default [default: by the file]
    #[arg(long)]
    pub(crate) kind: Option<String>,

    /// A container image that serves the action on port 8080 (kind blackbox), for nodes whose engine
    /// is docker
    #[arg(long, conflicts_with = "kind")]
    pub(crate) image: Option<String>,

    /// The function to call [default: the kind's own, usually main]
    #[arg(long)]
    pub(crate) main: Option<String>,

    /// Most activations at once in one container [default: 1]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: Option<u32>,

    /// Memory of one container in megabytes [default: 256]
    #[arg(short, long, value_name = "MB")]
    pub(crate) memory: Option<u64>,

    /// Longest run in milliseconds [default: 60000]
    #[arg(short, long, value_name = "MS")]
    pub(crate) timeout: Option<u64>,

    /// A parameter that every activation gets unless it brings its own; VALUE is JSON, or else text. May
    /// be repeated
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], allow_negative_numbers = true)]
    pub(crate) param: Vec<String>,

    /// An annotation, e.g. `idempotent true`; VALUE is JSON, or else text. May be repeated
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], allow_negative_numbers = true)]
    pub(crate) annotation: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ActionArgs {
    /// The action's name, or /NAMESPACE/NAME
    pub(crate) name: ActionName,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    /// Most entries to list, up to 200
    #[arg(short, long, value_name = "N", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) limit: u32,

    /// Leave out so many of the first
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) skip: u32,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exits 1 when the action failed, and shows its record or result all the same. A call that takes
longer than the node keeps it open is asked for until it ends or --deadline is over (exit 5).

Examples:
  embermesh invoke hello -p name Ada -p times 3
  embermesh invoke hello --param-file body.json --result
  id=$(embermesh invoke hello --async -o json | jq -r .activationId)")]
pub(crate) struct InvokeArgs {
    /// The action's name, or /NAMESPACE/NAME
    pub(crate) name: ActionName,

    /// A parameter; VALUE is JSON, or else text. May be repeated, and goes before --param-file
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], allow_negative_numbers = true)]
    pub(crate) param: Vec<String>,

    /// File with the parameters as a JSON object; `-` reads them from standard input
    #[arg(short = 'P', long, value_name = "FILE")]
    pub(crate) param_file: Option<PathBuf>,

    /// Print what the action answered instead of the activation's record
    #[arg(short, long, conflicts_with = "no_wait")]
    pub(crate) result: bool,

    /// Do not wait: print the activation's id
    #[arg(long = "async", id = "no_wait")]
    pub(crate) no_wait: bool,

    /// How long to wait for the activation to end
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "6m")]
    #[arg(conflicts_with = "no_wait")]
    pub(crate) deadline: Duration,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ActivationCommand {
    /// Show an activation's record
    Get(ActivationArgs),

    /// List activations, the newest first
    #[command(after_help = "Example:\n  embermesh activation list --name hello --limit 5")]
    List(ActivationListArgs),

    /// Print what an activation wrote on standard output and standard error
    Logs(ActivationArgs),

    /// Print what an activation answered
    Result(ActivationArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ActivationArgs {
    /// The activation's id: 32 hexadecimal digits
    #[arg(value_name = "ID", value_parser = values::activation_id)]
    pub(crate) activation_id: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ActivationListArgs {
    #[command(flatten)]
    pub(crate) page: ListArgs,

    /// Only those of this action
    #[arg(short, long)]
    pub(crate) name: Option<String>,
}
