//! `embermesh chaos`: what helps to find out whether a mesh keeps its promises.

use std::path::PathBuf;
use std::process::ExitCode;

use embermesh_node::history;

use crate::cli::ChaosCommand;

pub(crate) fn run(command: ChaosCommand) -> ExitCode {
    let ChaosCommand::Check { files } = command;
    match check(&files) {
        Ok(verdict) => {
            println!("{verdict}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn check(files: &[PathBuf]) -> Result<String, String> {
    let judgement = history::judge(files).map_err(|e| e.to_string())?;
    match judgement.violation {
        Some(violation) => Err(violation.to_string()),
        None => Ok(format!("{} records of {} files keep every invariant", judgement.records, files.len())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_missing_history_is_named_and_an_empty_one_keeps_every_invariant() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        std::fs::write(&empty, "").unwrap();
        assert!(check(std::slice::from_ref(&missing)).unwrap_err().contains("missing"));
        assert_eq!(check(&[empty]).unwrap(), "0 records of 1 files keep every invariant");
    }
}
