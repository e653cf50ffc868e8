//! Data folders that an agent can't use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Uid;
use serde_json::json;

use crate::expect_words;
use crate::support::agent::can_be_elsewhere;
use crate::support::{Place, SOON, Settings, skipped, until};

const FAILURE: i32 = 1;
/// The id is another agent's.
const CONFLICT: i32 = 4;
/// A user without privileges.
const NOBODY: u32 = 65534;

#[test]
fn a_data_folder_of_another_node_is_refused_and_named() {
    let place = Place::new();
    used_by_n1(&place);
    let other = Settings { data_dir: place.file("n1"), ..Settings::new(&place, "n2") };
    let (code, said) = other.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &[&path(&place, "n1"), "belongs to node `n1`, not to `n2`", "--node-id n1"]);
    let mut moved = Settings::new(&place, "n1");
    moved.cluster = "another-mesh".to_owned();
    fs::remove_file(place.file("n1.log")).unwrap();
    let (code, said) = moved.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &["belongs to cluster", &place.cluster, "another-mesh"]);
}

#[test]
fn a_data_folder_of_a_newer_version_is_refused_and_left_alone() {
    let place = Place::new();
    used_by_n1(&place);
    let identity = place.file("n1").join("node.toml");
    let newer = fs::read_to_string(&identity).unwrap().replace("format = 1", "format = 99\nnews = true");
    fs::write(&identity, &newer).unwrap();
    let before = listing(&place.file("n1"));
    let (code, said) = Settings::new(&place, "n1").refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &[&path(&place, "n1"), "format 99", "the newer version"]);
    assert_eq!(fs::read_to_string(&identity).unwrap(), newer);
    assert_eq!(listing(&place.file("n1")), before);
}

#[test]
fn a_data_folder_that_is_locked_is_refused_with_who_holds_it() {
    let place = Place::new();
    let mut first = Settings::new(&place, "n1").start();
    let (code, said) = Settings::new(&place, "n1").refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &[&path(&place, "n1"), "in use", &format!("pid {}", first.pid())]);
    assert_eq!(first.status()["ready"], true, "the first goes on");
    first.stop();
}

#[test]
fn a_data_folder_that_is_not_writable_is_refused_and_named() {
    let place = Place::new();
    // Somebody else's folder, on a way that everybody may go.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let folder = place.file("n1");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = Settings::new(&place, "n1").command();
    if Uid::effective().is_root() {
        // To root everything is writable.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = match command.stderr(Stdio::piped()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return skipped(&format!("other users can't run this build's binary: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILURE), "{said}");
    expect_words(&said, &[&folder.display().to_string(), "can't be written", "--data-dir"]);
    assert!(listing(&folder).is_empty());
}

#[test]
fn a_data_folder_that_is_a_file_is_refused_and_left_alone() {
    let place = Place::new();
    fs::write(place.file("n1"), "precious").unwrap();
    let (code, said) = Settings::new(&place, "n1").refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &[&path(&place, "n1"), "not a folder"]);
    assert_eq!(fs::read_to_string(place.file("n1")).unwrap(), "precious");
}

#[test]
fn a_damaged_data_folder_is_refused_with_the_file_and_what_to_do() {
    let place = Place::new();
    used_by_n1(&place);
    for (file, content) in [("epoch", "yesterday\n"), ("node.toml", "format = ")] {
        let damaged = place.file("n1").join(file);
        let good = fs::read(&damaged).unwrap();
        fs::write(&damaged, content).unwrap();
        let (code, said) = Settings::new(&place, "n1").refused();
        assert_eq!(code, FAILURE, "{said}");
        expect_words(&said, &[&damaged.display().to_string(), "is damaged", "backup"]);
        fs::write(&damaged, good).unwrap();
    }
    Settings::new(&place, "n1").start().stop();
}

#[test]
fn a_data_folder_that_was_copied_to_another_host_is_refused_while_its_node_is_up() {
    if !can_be_elsewhere() {
        return;
    }
    let place = Place::new();
    let mut first = Settings::new(&place, "n1").start();
    first.create_builtin("kept", "echo", 1);
    first.stop();
    copy(&place.file("n1"), &place.file("copy"));
    first.restart();
    let copied = || Settings { data_dir: place.file("copy"), elsewhere: true, ..Settings::new(&place, "n1") };
    let (code, said) = Settings { join: vec![first.mesh_addr()], ..copied() }.refused();
    assert_eq!(code, CONFLICT, "{said}");
    expect_words(&said, &["node `n1`", "already up", &first.mesh_addr().to_string(), "not a copy"]);
    assert_eq!(first.status()["ready"], true, "the first goes on");
    // Nobody tells this one: it finds out when they meet, and the newer one goes on.
    let mut copy = copied().start();
    let join = vec![first.mesh_addr(), copy.mesh_addr()];
    let mut peer = Settings { join, ..Settings::new(&place, "n2") }.start();
    assert_eq!(first.wait(SOON).code(), Some(CONFLICT));
    until("their peer knows the newer one", || peer.member_state("n1").as_deref() == Some("live"));
    assert_eq!(copy.run("kept", &json!({"n": 1})).result["echo"], json!({"n": 1}));
    copy.stop();
    peer.stop();
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// A folder that node `n1` has been started on and that it left cleanly.
fn used_by_n1(place: &Place) {
    Settings::new(place, "n1").start().stop();
    fs::remove_file(place.file("n1.log")).unwrap();
}

fn path(place: &Place, name: &str) -> String {
    place.file(name).canonicalize().unwrap().display().to_string()
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}
