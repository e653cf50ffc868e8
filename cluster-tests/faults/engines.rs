//! Container engines that stand still.

use serde_json::json;

use crate::support::{Api, until};
use crate::{breakable, faults, heal};

#[test]
fn a_node_whose_engine_stands_still_serves_what_is_warm_and_starts_the_rest_when_it_goes_on() {
    let mesh = breakable(1);
    mesh[1].create_builtin("warm", "echo", 4);
    mesh[1].create_builtin("cold", "echo", 4);
    let first = mesh[1].run("warm", &json!({}));
    faults(&mesh[1], &json!({"engine_stalled": true}));
    let api: Api = *mesh[1];
    let waiting = std::thread::spawn(move || api.run("cold", &json!({"n": 1})));
    until("it waits", || mesh[1].status()["queued"] == 1);
    for _ in 0..10 {
        assert_eq!(mesh[1].run("warm", &json!({})).container(), first.container());
    }
    assert_eq!(mesh[1].status()["queued"], 1, "the other still waits");
    heal(&mesh);
    assert_eq!(waiting.join().unwrap().result["echo"], json!({"n": 1}));
}
