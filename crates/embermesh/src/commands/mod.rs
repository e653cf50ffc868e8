//! The operator's commands: each asks a node over HTTP and prints what it says. `run` finds the node,
//! does the command and turns its end into an exit code.

mod action;
mod activation;
mod chaos;
mod check;
mod code;
mod error;
mod intent;
mod invoke;
mod mesh;
mod node;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::process::ExitCode;

use crate::cli::{OperatorCommand, TargetArgs};
use crate::client::{BaseUrl, Client, DEFAULT_API};
use crate::output::Output;

pub(crate) use error::{CommandError, Exit};

/// Does what the operator asked of a node; everything that is to be said has been printed.
pub(crate) async fn run(target: &TargetArgs, command: OperatorCommand) -> ExitCode {
    let (mut answers, mut remarks) = (io::stdout(), io::stderr());
    let mut output = Output::new(target.format, &mut answers, &mut remarks);
    let environment = std::env::var("EMBERMESH_API").ok();
    run_with(target, environment, command, &mut output).await.into()
}

async fn run_with(
    target: &TargetArgs,
    environment: Option<String>,
    command: OperatorCommand,
    output: &mut Output<'_>,
) -> Exit {
    let result = match client(target, environment) {
        // On the heap: the commands' futures together are larger than a stack frame should be.
        Ok(client) => Box::pin(dispatch(&client, command, output)).await,
        Err(e) => Err(e),
    };
    match result {
        Ok(exit) => exit,
        Err(error) => {
            error.report(output);
            error.exit()
        }
    }
}

async fn dispatch(client: &Client, command: OperatorCommand, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    match command {
        OperatorCommand::Action(command) => action::run(client, command, output).await,
        OperatorCommand::Invoke(args) => invoke::run(client, args, output).await,
        OperatorCommand::Activation(command) => activation::run(client, command, output).await,
        OperatorCommand::Status => mesh::status(client, output).await,
        OperatorCommand::Members => mesh::members(client, output).await,
        OperatorCommand::Containers(args) => mesh::containers(client, &args, output).await,
        OperatorCommand::Leases => mesh::leases(client, output).await,
        OperatorCommand::Intents => mesh::intents(client, output).await,
        OperatorCommand::Watch(args) => watch::run(client, &args, output).await,
        OperatorCommand::Pause(args) => intent::open(client, "pause", &args.container_id, false, output).await,
        OperatorCommand::Remove(args) => {
            intent::open(client, "remove", &args.container.container_id, args.force, output).await
        }
        OperatorCommand::Veto(args) => intent::veto(client, &args, output).await,
        OperatorCommand::Release(args) => intent::release(client, &args, output).await,
        OperatorCommand::Drain(args) => node::drain(client, &args, output).await,
        OperatorCommand::Leave { force } => node::leave(client, force, output).await,
        OperatorCommand::Chaos(command) => chaos::run(client, command, output).await,
    }
}

/// Option before environment before default. An empty variable counts as none.
fn client(target: &TargetArgs, environment: Option<String>) -> Result<Client, CommandError> {
    let environment = environment.filter(|url| !url.is_empty());
    let (source, url) = match (&target.api, environment) {
        (Some(url), _) => ("--api", url.clone()),
        (None, Some(url)) => ("EMBERMESH_API", url),
        (None, None) => ("the default", DEFAULT_API.to_owned()),
    };
    let base: BaseUrl = url.parse().map_err(|e| CommandError::Usage(format!("{source}: {e}")))?;
    Ok(Client::new(base, target.request_timeout))
}
