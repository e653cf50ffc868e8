//! `chaos check`: the report of a run, or histories that agents wrote, judged again. No node is asked.

use embermesh_node::history;

use super::{CommandError, Exit};
use crate::chaos;
use crate::cli::CheckArgs;
use crate::output::Output;

pub(super) fn run(args: &CheckArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let CheckArgs { files, unfinished, timeline } = args;
    match files.as_slice() {
        [folder] if folder.is_dir() && *unfinished => {
            let said = "a report tells by itself which agents were killed: leave --unfinished out";
            return Err(CommandError::Usage(said.to_owned()));
        }
        [folder] if folder.is_dir() => return chaos::check(folder, timeline.as_deref(), output),
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
        let said = format!("{} ends in half a line: the rest of its last record is missing", file.display());
        if !unfinished {
            return Err(CommandError::Input(format!(
                "{said}. Give the whole file; or, if its agent was killed while it wrote, --unfinished to judge what is there"
            )));
        }
        output.remark(&format!("{said}, and so not judged"));
    }
    output.remark(&format!("{} records of {} files", judgement.records, files.len()));
    chaos::tell(&chaos::of_histories(&judgement), output)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;
    use crate::cli::Format;

    const HEADER: &str = r#"{"embermesh_history":1,"node":"n1","wall_us":1,"at":1}"#;
    const BEGAN: &str = r#"{"at":1,"node":"n1","epoch":1,"step":1,"what":{"began":{"accepts_us":1,"late_after_us":1,"max_hold_us":1,"memory_mb":1}}}"#;

    fn check(files: &[PathBuf], unfinished: bool) -> Result<(Exit, String), CommandError> {
        let (mut answers, mut remarks) = (Vec::new(), Vec::new());
        let args = CheckArgs { files: files.to_vec(), unfinished, timeline: None };
        let exit = run(&args, &mut Output::new(Format::Table, &mut answers, &mut remarks))?;
        Ok((exit, String::from_utf8([answers, remarks].concat()).unwrap()))
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
            let error = check(&files, false).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_history_that_ends_in_half_a_line_is_an_error_unless_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n1.history");
        std::fs::write(&file, format!("{HEADER}\n{BEGAN}\n{}", &BEGAN[..40])).unwrap();
        let error = check(std::slice::from_ref(&file), false).unwrap_err();
        let said = error.to_string();
        assert_eq!(error.exit(), Exit::Failure, "{said}");
        for words in ["n1.history", "half a line", "the rest of its last record is missing", "--unfinished"] {
            assert!(said.contains(words), "no `{words}` in: {said}");
        }
        let (exit, text) = check(&[file], true).unwrap();
        assert!(exit == Exit::Ok && text.contains("half a line") && text.contains("1 records"), "{text}");
    }

    #[test]
    fn histories_without_a_record_are_not_judged_and_no_success() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n1.history");
        std::fs::write(&file, format!("{HEADER}\n")).unwrap();
        let (exit, text) = check(&[file], false).unwrap();
        assert!(exit == Exit::Failure && text.contains("nothing could be judged"), "{text}");
        assert!(text.contains("not judged") && !text.contains("held"), "{text}");
    }

    #[test]
    fn what_records_alone_can_not_tell_is_never_said_to_hold() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n1.history");
        std::fs::write(&file, format!("{HEADER}\n{BEGAN}\n")).unwrap();
        let (exit, text) = check(&[file], false).unwrap();
        assert_eq!(exit, Exit::Ok);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        for name in ["L0_runs_within_slots", "L1b_beliefs_within_slots", "L3_holder_stops", "the history is faithful"] {
            assert!(line(name).contains("not judged"), "{text}");
        }
        assert!(line("A1_started_at_most_once").contains("held"), "{text}");
    }
}
