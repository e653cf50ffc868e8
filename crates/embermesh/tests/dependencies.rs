//! Who may depend on whom: the shape that docs/architecture.md promises.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Direct dependencies of each member of the workspace, those for tests and builds left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let normal = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    packages().iter().map(|p| (p["name"].as_str().unwrap().to_owned(), normal(p))).collect()
}

/// The members of the workspace.
fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether a package asks for bugs on purpose, by a dependency or by default.
fn asks_for_mutations(package: &serde_json::Value) -> bool {
    let has = |list: &serde_json::Value| {
        list.as_array().into_iter().flatten().any(|f| f.as_str().is_some_and(|f| f.contains("mutations")))
    };
    let dependencies = package["dependencies"].as_array().unwrap();
    has(&package["features"]["default"]) || dependencies.iter().any(|d| has(&d["features"]))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_core_depends_on_nothing_that_does_io_or_knows_the_time() {
    let core = &dependencies()["embermesh-core"];
    assert_eq!(core, &BTreeSet::from(["serde".to_owned(), "thiserror".to_owned()]));
}

#[test]
fn the_contract_does_not_depend_on_the_core_nor_anything_but_the_node_and_the_binary_on_it() {
    let all = dependencies();
    assert!(!all["embermesh-proto"].contains("embermesh-core"));
    assert!(!all["embermesh-action"].iter().any(|d| d.starts_with("embermesh-")));
    assert!(!all["embermesh-node"].contains("embermesh-action"), "the engine and its proxy meet in the binary");
}

#[test]
fn nothing_that_ships_depends_on_the_simulation() {
    for (package, dependencies) in dependencies() {
        let simulates = ["turmoil", "stateright", "proptest", "embermesh-sim"];
        let found: Vec<_> = simulates.iter().filter(|s| dependencies.contains(**s)).collect();
        assert!(found.is_empty() || package == "embermesh-sim", "{package} depends on {found:?}");
    }
}

#[test]
fn no_build_has_bugs_on_purpose_unless_it_asks_for_them_by_name() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        assert!(!asks_for_mutations(&package), "{name} asks for mutations");
        let features = package["features"].as_object().unwrap();
        let known = ["embermesh-core", "embermesh-node", "embermesh-sim"].contains(&name);
        assert!(known || !features.contains_key("mutations"), "{name} can have mutations");
    }
}

#[test]
fn gossip_containers_and_rpc_do_not_import_each_other() {
    let source = workspace().join("crates/node/src");
    let rooms = ["gossip", "containers", "rpc"];
    for room in rooms {
        for file in rust_files(&source.join(room)) {
            let text = fs::read_to_string(&file).unwrap();
            for other in rooms.iter().filter(|o| **o != room) {
                assert!(!text.contains(&format!("crate::{other}")), "{} imports {other}", file.display());
            }
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{} has no source", folder.display());
    found
}
