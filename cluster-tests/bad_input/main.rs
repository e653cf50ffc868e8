//! What must not bring a node down: each sort of bad input gets an answer that tells the cause, the value and
//! what to try, and the node goes on.
#![allow(clippy::unwrap_used)]

mod actions;
mod folders;
mod network;
mod peers;
mod requests;
mod starts;
#[allow(dead_code, unused_imports, reason = "each target uses its own part of it")]
#[path = "../support/mod.rs"]
mod support;

use serde_json::json;

use support::Mesh;

/// The node serves as before.
#[track_caller]
fn expect_it_serves(mesh: &Mesh) {
    let name = "still-there";
    let path = format!("{}?overwrite=true", support::api::action_path(name));
    mesh[1].put(&path, &json!({"exec": {"kind": "builtin:1", "main": "echo"}, "limits": {"memory": 128}})).expect(200);
    assert_eq!(mesh[1].run(name, &json!({"n": 7})).result["echo"], json!({"n": 7}));
    let log = mesh[1].log();
    assert!(!log.contains("panicked"), "{log}");
}

/// Fails unless all of the words are in the text.
#[track_caller]
fn expect_words(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}
