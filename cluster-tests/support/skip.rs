//! What a test needs of its host. Where that is missing the test says so and is passed over; with
//! `EMBERMESH_REQUIRE_DOCKER=1`, which says that this host has all of it, it fails.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::thread;

/// Says why, past the test harness: it shows nothing of what a test prints that has passed.
#[track_caller]
pub(crate) fn skipped(missing: &str) {
    let required = std::env::var("EMBERMESH_REQUIRE_DOCKER").as_deref() == Ok("1");
    assert!(!required, "EMBERMESH_REQUIRE_DOCKER is set, and {missing}");
    let test = thread::current().name().unwrap_or_default().to_owned();
    writeln!(io::stderr(), "SKIPPED {test}: {missing}").ok();
}

#[track_caller]
pub(crate) fn docker_is_here() -> bool {
    let asked = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let here = asked.is_ok_and(|status| status.success());
    if !here {
        skipped("`docker version` finds no engine");
    }
    here
}
