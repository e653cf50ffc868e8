//! Commands as an operator gives them, against a server that answers as a node would.

#![allow(clippy::unwrap_used)]

mod calls;
mod views;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};
use crate::client::test_server::TestServer;

/// What came of a command line.
#[derive(Debug)]
struct Ran {
    exit: Exit,
    answers: String,
    remarks: String,
}

/// Runs a command line; words are separated by one space.
async fn run_line(api: &str, line: &str) -> Ran {
    run_words(api, &line.split(' ').collect::<Vec<_>>()).await
}

async fn run_words(api: &str, words: &[&str]) -> Ran {
    let cli = Cli::try_parse_from(["embermesh"].iter().chain(words)).unwrap();
    let Command::Operator(command) = cli.command else { panic!("{words:?} is no operator's command") };
    let (mut answers, mut remarks) = (Vec::new(), Vec::new());
    let mut output = Output::new(cli.target.format, &mut answers, &mut remarks);
    let exit = run_with(&cli.target, Some(api.to_owned()), command, &mut output).await;
    Ran { exit, answers: String::from_utf8(answers).unwrap(), remarks: String::from_utf8(remarks).unwrap() }
}

#[tokio::test]
async fn the_option_goes_before_the_environment() {
    let server = TestServer::saying(200, r#"{"members":[]}"#).await;
    let ran = run_line("http://127.0.0.1:1", &format!("members --api {}", server.url)).await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    let ran = run_line(&server.url, "members").await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
}

#[tokio::test]
async fn an_api_that_is_no_address_is_a_usage_error_that_tells_where_it_came_from() {
    let ran = run_line("ftp://x", "members").await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.remarks.starts_with("error: EMBERMESH_API: `ftp://x`"), "{ran:?}");
}

#[tokio::test]
async fn an_error_tells_its_cause_its_code_and_what_to_try() {
    let server = TestServer::saying(404, r#"{"error":"no action `x` in namespace `guest`","code":"tid7"}"#).await;
    let ran = run_line(&server.url, "action get x").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::NotFound, ""));
    insta::assert_snapshot!(ran.remarks, @r"
    error: no action `x` in namespace `guest` (404)
    code: tid7
    hint: `embermesh action list` shows the actions; one created a moment ago at another node may take a second to be known here
    ");
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    struct Gone;
    impl io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let server = TestServer::saying(200, r#"{"members":[]}"#).await;
    let cli = Cli::try_parse_from(["embermesh", "members"]).unwrap();
    let Command::Operator(command) = cli.command else { panic!() };
    let (mut answers, mut remarks) = (Gone, Vec::new());
    let mut output = Output::new(cli.target.format, &mut answers, &mut remarks);
    let exit = run_with(&cli.target, Some(server.url.clone()), command, &mut output).await;
    assert_eq!((exit, remarks.as_slice()), (Exit::Ok, b"".as_slice()));
}
