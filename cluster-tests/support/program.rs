//! The program in another place, for users who may not read this build's folder.

use std::path::Path;
use std::process::Command;

/// By a process of its own: what this one has open for writing, children of other tests have open for a moment as well,
/// and nobody can execute it meanwhile.
pub(crate) fn copy_to(place: &Path) {
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_embermesh")).arg(place).status().unwrap();
    assert!(copied.success());
}
