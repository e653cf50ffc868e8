#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn open(&self, name: &str, node_id: &str, cluster: &str) -> Result<DataDir, DataDirError> {
        DataDir::open_with(&self.folder(name), node_id, cluster, &[self.folder("run")])
    }
}

#[test]
fn a_new_folder_is_private_and_keeps_its_instance() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(dir.containers_dir().is_dir() && dir.code_dir().is_dir());
    let instance = dir.instance();
    drop(dir);
    assert_eq!(place.open("d", "n1", "c").unwrap().instance(), instance);
    assert_ne!(place.open("e", "n1", "c").unwrap().instance(), instance);
}

#[test]
fn another_nodes_folder_is_refused_with_both_ids() {
    let place = Place::new();
    drop(place.open("d", "n1", "c").unwrap());
    let error = place.open("d", "n2", "c").unwrap_err();
    assert!(matches!(&error, DataDirError::OtherNode { found, wanted, .. } if found == "n1" && wanted == "n2"));
    let text = error.to_string();
    assert!(text.contains("`n1`") && text.contains("`n2`") && text.contains("--node-id n1"), "{text}");
}

#[test]
fn another_clusters_folder_is_refused() {
    let place = Place::new();
    drop(place.open("d", "n1", "c").unwrap());
    let error = place.open("d", "n1", "other").unwrap_err();
    assert!(matches!(error, DataDirError::OtherCluster { .. }), "{error}");
}

#[test]
fn a_newer_format_is_refused_even_with_keys_we_do_not_know() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    let identity = dir.path().join(IDENTITY);
    drop(dir);
    fs::write(&identity, "format = 7\nshape = \"new\"\n").unwrap();
    let error = place.open("d", "n1", "c").unwrap_err();
    assert!(matches!(error, DataDirError::NewerFormat { found: 7, .. }), "{error}");
    assert_eq!(fs::read_to_string(&identity).unwrap(), "format = 7\nshape = \"new\"\n");
}

#[test]
fn a_held_folder_is_refused_with_the_holders_pid_until_it_is_dropped() {
    let place = Place::new();
    let held = place.open("d", "n1", "c").unwrap();
    let error = place.open("d", "n1", "c").unwrap_err();
    let pid = format!("pid {}", std::process::id());
    assert!(matches!(&error, DataDirError::Locked { holder, .. } if *holder == pid), "{error}");
    drop(held);
    place.open("d", "n1", "c").unwrap();
}

#[test]
fn a_second_agent_with_the_same_id_on_this_host_is_refused() {
    let place = Place::new();
    let held = place.open("d", "n1", "c").unwrap();
    let error = place.open("e", "n1", "c").unwrap_err();
    assert!(matches!(&error, DataDirError::NodeRuns { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(held.path().to_str().unwrap()) && text.contains("pid "), "{text}");
    place.open("f", "n1", "other").unwrap();
    place.open("g", "n2", "c").unwrap();
    drop(held);
    place.open("e", "n1", "c").unwrap();
}

#[test]
fn host_locks_leave_no_file_behind() {
    let place = Place::new();
    let held = place.open("d", "n1", "c").unwrap();
    assert_eq!(fs::read_dir(place.folder("run")).unwrap().count(), 1);
    drop(held);
    assert_eq!(fs::read_dir(place.folder("run")).unwrap().count(), 0);
}

#[test]
fn a_runtime_folder_that_can_not_be_written_is_passed_over() {
    let place = Place::new();
    fs::write(place.folder("file"), "").unwrap();
    let dirs = [place.folder("file"), place.folder("run")];
    let _held = DataDir::open_with(&place.folder("d"), "n1", "c", &dirs).unwrap();
    assert_eq!(fs::read_dir(place.folder("run")).unwrap().count(), 1);
}

#[test]
fn a_folder_that_can_not_be_written_says_so() {
    // Not writable even for root, who passes permission bits.
    let error = DataDir::open_with(Path::new("/sys/embermesh-test"), "n1", "c", &[]).unwrap_err();
    assert!(matches!(error, DataDirError::NotWritable { .. }), "{error}");
}

#[test]
fn a_file_in_the_folders_place_is_refused_and_kept() {
    let place = Place::new();
    fs::write(place.folder("d"), "mine").unwrap();
    let error = place.open("d", "n1", "c").unwrap_err();
    assert!(matches!(error, DataDirError::NotAFolder { .. }), "{error}");
    let error = place.open("d/below", "n1", "c").unwrap_err();
    assert!(matches!(error, DataDirError::NotAFolder { .. }), "{error}");
    assert_eq!(fs::read_to_string(place.folder("d")).unwrap(), "mine");
}

#[test]
fn a_damaged_identity_is_refused_and_kept() {
    let place = Place::new();
    drop(place.open("d", "n1", "c").unwrap());
    let identity = place.folder("d").join(IDENTITY);
    let no_uuid = &b"format = 1\nnode_id = \"n1\"\ncluster = \"c\"\ninstance = \"7\"\n"[..];
    let cut = &b"format = 1\nnode_id = \"n1\"\n"[..];
    for bad in [no_uuid, cut, b"format = ", b"", b"\xff\xfe", b"format = -3"] {
        fs::write(&identity, bad).unwrap();
        let error = place.open("d", "n1", "c").unwrap_err();
        assert!(matches!(error, DataDirError::Corrupt { .. }), "{bad:?}: {error}");
        assert_eq!(fs::read(&identity).unwrap(), bad);
    }
}

#[test]
fn a_used_folder_that_lost_its_identity_is_refused() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    dir.next_epoch(1, None).unwrap();
    drop(dir);
    fs::remove_file(place.folder("d").join(IDENTITY)).unwrap();
    let error = place.open("d", "n1", "c").unwrap_err();
    assert!(matches!(error, DataDirError::Corrupt { .. }), "{error}");
}

#[test]
fn epochs_rise_above_the_clock_the_disk_and_what_peers_know() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    assert_eq!(dir.next_epoch(1_000, None).unwrap(), 1_000);
    assert_eq!(dir.next_epoch(1_000, None).unwrap(), 1_001);
    assert_eq!(dir.next_epoch(500, Some(2_000)).unwrap(), 2_001);
    assert_eq!(dir.next_epoch(9_000, Some(2_000)).unwrap(), 9_000);
    drop(dir);
    let dir = place.open("d", "n1", "c").unwrap();
    assert_eq!(dir.next_epoch(0, Some(3)).unwrap(), 9_001);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().ends_with(".tmp")), "{names:?}");
}

#[test]
fn an_epoch_beyond_all_numbers_is_an_error_and_changes_nothing() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    dir.next_epoch(5, None).unwrap();
    let error = dir.next_epoch(6, Some(u64::MAX)).unwrap_err();
    assert!(matches!(error, DataDirError::EpochExhausted { highest: u64::MAX, .. }), "{error}");
    assert_eq!(dir.next_epoch(0, None).unwrap(), 6);
}

#[test]
fn a_damaged_epoch_is_refused_rather_than_started_from_nothing() {
    let place = Place::new();
    let dir = place.open("d", "n1", "c").unwrap();
    for bad in ["", "12x", "-1", "99999999999999999999999"] {
        fs::write(dir.path().join(EPOCH), bad).unwrap();
        let error = dir.next_epoch(5, None).unwrap_err();
        assert!(matches!(error, DataDirError::Corrupt { .. }), "{bad}: {error}");
    }
}
