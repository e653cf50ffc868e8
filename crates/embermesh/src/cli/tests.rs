#![allow(clippy::unwrap_used)]

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("embermesh").chain(line.split_whitespace()))
}

fn operator(line: &str) -> OperatorCommand {
    match parse(line).unwrap().command {
        Command::Operator(command) => command,
        other => panic!("{line} is {other:?}"),
    }
}

#[test]
fn the_definition_has_no_contradictions() {
    Cli::command().debug_assert();
}

#[test]
fn the_agents_api_is_an_address_and_the_operators_a_url() {
    let cli = parse("agent --node-id n1 --api 127.0.0.1:4000 --join a:1 --join b:2 --memory 4GiB").unwrap();
    let Command::Agent(agent) = cli.command else { panic!("no agent") };
    assert_eq!(agent.api.as_deref(), Some("127.0.0.1:4000"));
    assert_eq!(agent.join, ["a:1", "b:2"]);
    assert_eq!(agent.memory_mb, Some(4_096));
    assert!(parse("agent --api http://127.0.0.1:4000").is_err());

    for line in ["--api http://h:1 members", "members --api http://h:1"] {
        assert_eq!(parse(line).unwrap().target.api.as_deref(), Some("http://h:1"), "{line}");
    }
}

#[test]
fn an_agent_without_options_leaves_all_of_them_to_its_configuration() {
    let Command::Agent(agent) = parse("agent").unwrap().command else { panic!("no agent") };
    let AgentArgs {
        node_id,
        data_dir,
        mesh,
        api,
        join,
        advertise,
        engine,
        memory_mb,
        threads,
        config,
        cluster,
        insecure,
        enable_fault_injection,
        fault_seed,
        until_stdin_closes,
        history,
        log_format,
    } = agent;
    assert!(node_id.is_none() && data_dir.is_none() && mesh.is_none() && api.is_none() && join.is_empty());
    assert!(advertise.is_none() && engine.is_none() && memory_mb.is_none() && config.is_none());
    assert!(history.is_none() && cluster.is_none() && !insecure && !until_stdin_closes && log_format.is_none());
    assert!(!enable_fault_injection && fault_seed.is_none() && threads.is_none());
}

#[test]
fn the_output_format_may_stand_before_or_after_the_command() {
    assert_eq!(parse("members").unwrap().target.format, Format::Table);
    assert_eq!(parse("-o json members").unwrap().target.format, Format::Json);
    assert_eq!(parse("activation list -o json").unwrap().target.format, Format::Json);
}

#[test]
fn parameters_come_in_pairs_and_may_be_negative_numbers() {
    let OperatorCommand::Invoke(invoke) = operator("invoke hello -p n -5 -p name Ada --result") else {
        panic!("no invoke")
    };
    assert_eq!(invoke.param, ["n", "-5", "name", "Ada"]);
    assert!(invoke.result && !invoke.no_wait);
    assert_eq!(parse("invoke hello -p n").unwrap_err().kind(), ErrorKind::WrongNumberOfValues);
}

#[test]
fn an_asynchronous_call_has_no_result_to_print() {
    let OperatorCommand::Invoke(invoke) = operator("invoke hello --async") else { panic!("no invoke") };
    assert!(invoke.no_wait);
    assert_eq!(parse("invoke hello --async --result").unwrap_err().kind(), ErrorKind::ArgumentConflict);
    assert_eq!(parse("invoke hello --async --deadline 1s").unwrap_err().kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn an_actions_settings_are_optional_and_typed() {
    let OperatorCommand::Action(ActionCommand::Create(create)) = operator(
        "action create hello hello.py --kind python:3 --concurrency 8 --memory 512 --timeout 100 --param a 1 \
         --annotation idempotent true --main f",
    ) else {
        panic!("no create")
    };
    assert_eq!((create.settings.concurrency, create.settings.memory), (Some(8), Some(512)));
    assert_eq!(create.settings.annotation, ["idempotent", "true"]);
    let OperatorCommand::Action(ActionCommand::Update(update)) = operator("action update hello --memory 256") else {
        panic!("no update")
    };
    assert!(update.file.is_none());
    assert!(parse("action create hello").is_err() && parse("action create hello f.py --concurrency 0").is_err());
}

#[test]
fn usage_errors_exit_with_2() {
    for line in ["nonsense", "members --nonsense", "veto", "activation get xyz", "drain --deadline 5", "list -o yaml"] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn a_pause_can_not_be_forced_but_a_removal_can() {
    assert_eq!(parse("pause n1-7-1 --force").unwrap_err().exit_code(), 2);
    assert!(matches!(operator("remove n1-7-1 --force"), OperatorCommand::Remove(RemoveArgs { force: true, .. })));
    assert!(matches!(operator("remove n1-7-1"), OperatorCommand::Remove(RemoveArgs { force: false, .. })));
}

#[test]
fn every_command_has_a_line_of_help() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}
