//! Agents whose data folder is on a disk that fills up, can only be read, or stops taking writes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::Uid;
use serde_json::json;

use crate::journal::accept;
use crate::support::api::{action_path, blocking};
use crate::support::{Answer, Place, Settings, skipped, soon, until, within};

#[test]
fn a_full_disk_refuses_new_promises_and_nothing_else_until_there_is_room_again() {
    let place = Place::new();
    let Some(disk) = Disk::in_memory(&place, "24m") else { return };
    let settings = Settings { data_dir: disk.path().join("n1"), ..Settings::new(&place, "n1") };
    let mut agent = settings.set("EMBERMESH_GOSSIP_INTERVAL", "100ms").start();
    agent.create_builtin("echo", "echo", 4);
    agent.run("echo", &json!({}));
    agent.record(&accept(&agent, "echo", &json!({})));
    agent.create_builtin("sleep", "sleep", 4);
    agent.run("sleep", &json!({"ms": 0}));
    disk.fill();
    // What is free in the store's own file is used up first, and what was promised leaves some when it has ended.
    let refused = |ask: &dyn Fn() -> Answer| {
        within(Duration::from_secs(30), "a promise is refused", || Some(ask()).filter(|answer| answer.status != 202))
    };
    let body = json!({"x": "y".repeat(100_000)});
    let promise = || agent.post(&action_path("echo"), &body);
    let first = refused(&promise);
    let said = first.refusal(503);
    assert!(said.contains("No space left") && said.contains("blocking=true"), "{said}");
    assert!(first.header("retry-after").is_some(), "{first}");
    // Some room comes and goes, as what was promised ends: both are asked until neither has met with it.
    let shown = || {
        refused(&promise);
        let (ready, status) = (agent.get("/readyz"), agent.status());
        Some([ready.json().to_string(), status["not_ready"][0].as_str()?.to_owned()]).filter(|_| ready.status == 503)
    };
    let told = soon("it says that it isn't ready", shown);
    assert!(told.iter().all(|why| why.contains("No space left")), "{told:?}");
    for n in 0..20 {
        assert_eq!(agent.run("echo", &json!({"n": n})).result["echo"], json!({"n": n}), "blocking work goes on");
    }
    assert_eq!(refused(&promise).status, 503);
    // One that waits too long is told what becomes of it.
    let turned = refused(&|| agent.post(&format!("{}&timeout=100", blocking("sleep")), &json!({"ms": 10_000})));
    assert!(turned.refusal(503).contains("if it has begun it goes on"), "{turned}");
    disk.make_room();
    until("it is ready again", || agent.get("/readyz").status == 200);
    let id = accept(&agent, "echo", &json!({"after": 1}));
    assert_eq!(agent.record(&id)["response"]["result"]["echo"], json!({"after": 1}));
    until("nothing is owed", || agent.status()["owed"] == 0);
    assert_eq!(agent.record(&id)["response"]["result"]["echo"], json!({"after": 1}));
    agent.kill();
    agent.restart();
    assert_eq!(agent.record(&id)["response"]["result"]["echo"], json!({"after": 1}), "it was on disk");
    agent.stop();
}

#[test]
fn a_data_folder_on_a_disk_that_can_only_be_read_is_refused_and_named() {
    let place = Place::new();
    let Some(disk) = Disk::in_memory(&place, "24m") else { return };
    let settings = Settings { data_dir: disk.path().join("n1"), ..Settings::new(&place, "n1") };
    let mut agent = settings.clone().start();
    agent.stop();
    disk.remount("ro");
    fs::remove_file(settings.data_dir.with_extension("log")).ok();
    let output = settings.command().stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    disk.remount("rw");
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [&settings.data_dir.display().to_string(), "can't be written"] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

#[test]
fn a_disk_that_stops_taking_writes_stops_new_promises_and_nothing_else_and_loses_none() {
    let place = Place::new();
    let Some(disk) = Disk::in_a_file(&place, 48 << 20) else { return };
    let settings = Settings { data_dir: disk.path().join("n1"), ..Settings::new(&place, "n1") };
    let mut agent = settings.start();
    agent.create_builtin("echo", "echo", 4);
    agent.run("echo", &json!({}));
    let id = accept(&agent, "echo", &json!({"kept": 1}));
    agent.record(&id);
    // As the kernel does with a disk that fails: what is open stays open, and no write is taken any more.
    disk.remount("abort");
    let refused = agent.post(&action_path("echo"), &json!({}));
    let said = refused.refusal(503);
    assert!(said.contains("Read-only file system") && said.contains("blocking=true"), "{said}");
    assert!(refused.header("retry-after").is_some(), "{refused}");
    assert!(agent.get("/readyz").refusal(503).contains("Read-only file system"));
    assert!(agent.status()["not_ready"][0].as_str().unwrap().contains("Read-only file system"));
    for n in 0..20 {
        assert_eq!(agent.run("echo", &json!({"n": n})).result["echo"], json!({"n": n}), "blocking work goes on");
    }
    agent.kill();
    disk.mount_again();
    agent.restart();
    assert_eq!(agent.record(&id)["response"]["result"]["echo"], json!({"kept": 1}));
    agent.record(&accept(&agent, "echo", &json!({})));
    agent.stop();
}

/// A file system of the test's own, in its place: dropped before that, which then sees that it is gone.
struct Disk {
    at: PathBuf,
    /// What it is on, if not in memory.
    image: Option<PathBuf>,
}

impl Disk {
    /// None, with a word, where it can't be had.
    fn in_memory(place: &Place, size: &str) -> Option<Self> {
        Self { at: place.file("disk"), image: None }.mounted(&["-t", "tmpfs", "-o", &format!("size={size}")])
    }

    fn in_a_file(place: &Place, bytes: u64) -> Option<Self> {
        let image = place.file("image");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            skipped("mkfs.ext4 makes no file system");
            return None;
        }
        Self { at: place.file("disk"), image: Some(image) }.mounted(&["-o", "loop"])
    }

    fn mounted(self, options: &[&str]) -> Option<Self> {
        if !Uid::effective().is_root() {
            skipped("only root can mount a small disk");
            return None;
        }
        fs::create_dir(&self.at).unwrap();
        if self.mount(options) {
            return Some(self);
        }
        skipped("a small disk can't be mounted");
        None
    }

    fn mount(&self, options: &[&str]) -> bool {
        let what = self.image.as_deref().unwrap_or(Path::new("embermesh-test"));
        Command::new("mount").args(options).arg(what).arg(&self.at).status().is_ok_and(|status| status.success())
    }

    fn path(&self) -> &Path {
        &self.at
    }

    fn fill(&self) {
        let block = vec![1_u8; 64 << 10];
        let mut ballast = fs::File::create(self.path().join("ballast")).unwrap();
        while ballast.write_all(&block).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }

    fn remount(&self, how: &str) {
        // Somebody may still be on its way out.
        until("it is mounted otherwise", || {
            let remount = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.at).output().unwrap();
            remount.status.success()
        });
    }

    /// Agents of other tests may have it in mount namespaces of theirs: as long as they live, it comes back as it was.
    fn mount_again(&self) {
        let umount = || Command::new("umount").arg(&self.at).stderr(Stdio::null()).status().unwrap().success();
        within(Duration::from_secs(60), "it takes writes again", || {
            let mounted = umount() && self.mount(&["-o", "loop"]);
            (mounted && fs::write(self.at.join("probe"), "").is_ok()).then_some(())
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.at).status().ok();
    }
}
