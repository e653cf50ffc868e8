//! `chaos check`: the report of a run, or histories that agents wrote, judged again. No node is asked.

use std::path::{Path, PathBuf};

use embermesh_node::history;

use super::{CommandError, Exit};
use crate::chaos;
use crate::output::Output;

pub(super) fn run(files: &[PathBuf], timeline: Option<&Path>, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    match files {
        [folder] if folder.is_dir() => return chaos::check(folder, timeline, output),
        _ => {}
    }
    if timeline.is_some() {
        let said = "histories alone make no time line: give a report's folder, or leave --timeline out";
        return Err(CommandError::Usage(said.to_owned()));
    }
    if let Some(folder) = files.iter().find(|file| file.is_dir()) {
        let said = format!("{} is a folder: give one report alone, or files only", folder.display());
        return Err(CommandError::Usage(said));
    }
    let judgement = history::judge(files).map_err(|e| CommandError::Input(e.to_string()))?;
    for file in &judgement.unfinished {
        output.remark(&format!(
            "{} ends in half a line: its agent was killed while it wrote, or the file was cut off; what is missing is not judged",
            file.display()
        ));
    }
    output.remark(&format!("{} records of {} files", judgement.records, files.len()));
    chaos::tell(&chaos::of_histories(&judgement), output)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::Format;

    fn check(files: &[PathBuf]) -> Result<(Exit, String), CommandError> {
        let (mut answers, mut remarks) = (Vec::new(), Vec::new());
        let exit = run(files, None, &mut Output::new(Format::Table, &mut answers, &mut remarks))?;
        Ok((exit, String::from_utf8(answers).unwrap()))
    }

    #[test]
    fn a_missing_or_empty_history_is_named_and_so_is_a_folder_that_is_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        std::fs::write(&empty, "").unwrap();
        for (files, said) in [
            (vec![missing], "missing"),
            (vec![empty.clone()], "empty: no agent"),
            (vec![folder.path().to_owned()], "no report"),
            (vec![empty, folder.path().to_owned()], "is a folder"),
        ] {
            let error = check(&files).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_records_alone_can_not_tell_is_never_said_to_hold() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n1.history");
        std::fs::write(&file, "{\"embermesh_history\":1,\"node\":\"n1\",\"wall_us\":1,\"at\":1}\n").unwrap();
        let (exit, text) = check(&[file]).unwrap();
        assert_eq!(exit, Exit::Ok);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        for name in ["L0_runs_within_slots", "L1b_beliefs_within_slots", "L3_holder_stops", "the history is faithful"] {
            assert!(line(name).contains("not judged"), "{text}");
        }
        assert!(line("A1_started_at_most_once").contains("held"), "{text}");
    }
}
