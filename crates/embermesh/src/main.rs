//! `embermesh`: the agent, the demo and the operator's commands, in one binary.

mod agent;
mod chaos;
mod cli;
mod client;
mod commands;
mod demo;
mod local_mesh;
mod output;
mod service;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let mut args = std::env::args();
    // Hidden: what runs inside and around a container of the `process` engine. Before anything else, since
    // the supervisor must be alone in its process.
    match args.nth(1).as_deref() {
        Some("__supervise") => return embermesh_node::containers::process::supervisor::supervise(args),
        Some("__container") => {
            return match embermesh_action::proxy::ContainerOptions::from_args(args) {
                Ok(options) => embermesh_action::proxy::run(options),
                Err(error) => {
                    eprintln!("embermesh __container: {error}");
                    ExitCode::from(2)
                }
            };
        }
        Some("__echo") => return demo::echo::serve(),
        Some(chaos::HOLD) => return chaos::hold(args),
        _ => {}
    }
    let cli = Cli::parse();
    match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Operator(command) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(commands::run(&cli.target, command)),
            Err(error) => {
                eprintln!("error: no runtime could be made: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
