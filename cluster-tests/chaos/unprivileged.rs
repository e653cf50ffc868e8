//! The tool without root: what needs it is left out, said to be, and never counted as passed.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::program;
use crate::tool::{Tool, verdicts};

const NOBODY: u32 = 65534;

#[test]
fn without_root_the_disk_is_left_out_and_not_judged_and_alone_nothing_is_left_to_be_made() {
    let Some(tool) = of_nobody() else { return };
    let (code, said) = refused(&tool, &["run", "--faults", "disk", "--report", "report"]);
    assert!(code == Some(2) && said.contains("no fault is left to be made: disk: it needs root"), "{said}");
    assert!(!tool.path("report").exists(), "nothing was begun");

    let run = ["run", "--nodes", "2", "--duration", "8s", "--faults", "clock,disk", "--report", "report"];
    let (code, said) = refused(&tool, &run);
    assert!(code == Some(0) && said.contains("left out: disk, it needs root"), "{said}");
    let verdicts = verdicts(&tool.path("report"));
    let of = |name: &str| verdicts.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    assert_eq!(of("fault disk"), ["not_judged"]);
    assert_eq!(of("faults were made"), ["held"]);
    let faults = std::fs::read_to_string(tool.path("report").join("faults.jsonl")).unwrap();
    assert!(faults.contains("\"clock\"") && !faults.contains("\"disk\""), "{faults}");

    // Whoever judges the report later is told so as well.
    let checked = tool.run(&["check", "report"]);
    let told = String::from_utf8_lossy(&checked.stdout);
    let line = told.lines().find(|line| line.starts_with("fault disk")).unwrap_or_default();
    assert!(line.contains("not judged") && line.contains("left out: it needs root"), "{told}");
    // Where agents that are not root keep their locks for the host: none is left in it.
    std::fs::remove_dir(tool.path("tmp").join(format!("embermesh-{NOBODY}"))).unwrap();
    tool.expect_nothing_left();
}

/// A tool that nobody may use: neither this build's folder nor root's files are theirs to read. None without root, who
/// alone can become somebody else.
fn of_nobody() -> Option<Tool> {
    if !nix::unistd::geteuid().is_root() {
        crate::skip::skipped("only root can start the tool as somebody else");
        return None;
    }
    let tool = Tool::new();
    program::copy_to(&tool.path("embermesh"));
    for own in ["", "tmp"] {
        chown(tool.path(own), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    Some(tool)
}

/// The exit code and what it said, as nobody.
fn refused(tool: &Tool, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(tool.path("embermesh"));
    command.arg("chaos").args(args).current_dir(tool.path("")).env_clear().env("TMPDIR", tool.path("tmp"));
    command.env("PATH", std::env::var_os("PATH").unwrap()).uid(NOBODY).gid(NOBODY);
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
