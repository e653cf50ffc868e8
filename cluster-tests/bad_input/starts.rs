//! Agents that can't start as they are told.

use std::fs;
use std::net::{TcpListener, UdpSocket};

use crate::expect_words;
use crate::support::agent::free_address;
use crate::support::{Place, Settings};

/// A command line or configuration that can't be.
const USAGE: i32 = 2;
const FAILURE: i32 = 1;

#[test]
fn a_mesh_port_whose_tcp_side_is_in_use_is_named() {
    let place = Place::new();
    let settings = Settings::new(&place, "n1");
    let _other = TcpListener::bind(settings.mesh).unwrap();
    let (code, said) = settings.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &["the mesh port (TCP)", &settings.mesh.to_string(), "another address"]);
}

#[test]
fn a_mesh_port_whose_udp_side_is_in_use_is_named() {
    let place = Place::new();
    let settings = Settings::new(&place, "n1");
    let _other = UdpSocket::bind(settings.mesh).unwrap();
    let (code, said) = settings.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &["gossip", "(UDP)", &settings.mesh.to_string()]);
}

#[test]
fn an_api_port_in_use_is_named() {
    let place = Place::new();
    let settings = Settings::new(&place, "n1");
    let _other = TcpListener::bind(settings.api).unwrap();
    let (code, said) = settings.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &["the API", &settings.api.to_string(), "another address"]);
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_the_near_one() {
    let place = Place::new();
    let file = place.file("node.toml");
    for (text, words) in [
        (
            "[protocol]\nttl = \"5s\"\nidle_timeuot = \"1m\"\n",
            ["node.toml:3", "`protocol.idle_timeuot`", "`protocol.idle_timeout`"],
        ),
        ("[protocl]\nttl = \"5s\"\n", ["node.toml:1", "`protocl`", "`protocol`"]),
        ("[protocol]\nttl = \"5 parsecs\"\n", ["node.toml:2", "5 parsecs", "\"5s\""]),
    ] {
        fs::write(&file, text).unwrap();
        let settings = Settings::new(&place, "n1").arg("--config").arg(file.to_str().unwrap());
        let (code, said) = settings.refused();
        assert_eq!(code, USAGE, "{said}");
        expect_words(&said, &words);
        fs::remove_file(place.file("n1.log")).unwrap();
    }
    let (code, said) = Settings::new(&place, "n1").set("EMBERMESH_PROTOCOL_IDLE_TIMOUT", "1m").refused();
    assert_eq!(code, USAGE, "{said}");
    expect_words(&said, &["EMBERMESH_PROTOCOL_IDLE_TIMOUT", "EMBERMESH_PROTOCOL_IDLE_TIMEOUT"]);
    assert!(!place.file("n1").exists(), "nothing was made");
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused_with_what_to_change() {
    let place = Place::new();
    let (code, said) = Settings::new(&place, "n1").set("EMBERMESH_PROTOCOL_TTL", "10m").refused();
    assert_eq!(code, USAGE, "{said}");
    expect_words(&said, &["protocol.margin", "protocol.grace", "ttl"]);
    let (code, said) = Settings::new(&place, "no_name!").refused();
    assert_eq!(code, USAGE, "{said}");
    expect_words(&said, &["no_name!", "a-z"]);
}

#[test]
fn addresses_off_loopback_are_refused_without_insecure() {
    let place = Place::new();
    let (mut mesh, mut api) = (free_address(), free_address());
    mesh.set_ip([0, 0, 0, 0].into());
    api.set_ip([0, 0, 0, 0].into());
    for settings in [
        Settings { mesh, ..Settings::new(&place, "n1") }.arg("--advertise").arg("127.0.0.1:7411"),
        Settings { api, ..Settings::new(&place, "n1") },
    ] {
        let (code, said) = settings.refused();
        assert_eq!(code, USAGE, "{said}");
        expect_words(&said, &["0.0.0.0", "neither peers nor users are authenticated", "--insecure"]);
        fs::remove_file(place.file("n1.log")).unwrap();
    }
}

#[test]
fn a_second_agent_with_the_same_id_is_refused_even_with_a_folder_of_its_own() {
    let place = Place::new();
    let mut first = Settings::new(&place, "n1").start();
    let second = Settings { data_dir: place.file("other"), ..Settings::new(&place, "n1") };
    let (code, said) = second.refused();
    assert_eq!(code, FAILURE, "{said}");
    let pid = format!("pid {}", first.pid());
    expect_words(&said, &["node `n1`", &place.cluster, "already runs on this host", &pid, "--node-id"]);
    assert_eq!(first.status()["node_id"], "n1", "the first goes on");
    first.stop();
    // With the first one gone the id is free, and so it is after a SIGKILL.
    let mut second = second.start();
    second.kill();
    first.restart();
    first.stop();
}
