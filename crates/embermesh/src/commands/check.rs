//! `chaos check`: histories that agents wrote, judged by the protocol's invariants. No node is asked.

use std::path::PathBuf;

use embermesh_node::history;

use super::{CommandError, Exit};
use crate::output::Output;

pub(super) fn run(files: &[PathBuf], output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let verdict = check(files).map_err(CommandError::Input)?;
    output.line(&verdict).map_err(CommandError::Output)?;
    Ok(Exit::Ok)
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
