//! Agents that can't start as they are told.

use std::fs;
use std::net::{TcpListener, UdpSocket};

use crate::expect_words;
use crate::support::agent::{can_be_elsewhere, free_address};
use crate::support::{Place, SOON, Settings, until};

/// A command line or configuration that can't be.
const USAGE: i32 = 2;
const FAILURE: i32 = 1;
/// The id is another agent's.
const CONFLICT: i32 = 4;

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
fn a_history_that_is_some_other_file_is_named_and_not_touched() {
    let place = Place::new();
    let settings = Settings::new(&place, "n1");
    fs::write(&settings.history, "dear diary\n").unwrap();
    let (code, said) = settings.refused();
    assert_eq!(code, FAILURE, "{said}");
    expect_words(&said, &["n1.history", "does not begin as a history does", "name another file"]);
    assert_eq!(fs::read_to_string(&settings.history).unwrap(), "dear diary\n");
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

#[test]
fn an_agent_with_the_id_of_one_that_answers_on_another_host_is_refused() {
    if !can_be_elsewhere() {
        return;
    }
    let place = Place::new();
    let mut first = Settings::new(&place, "n1").start();
    let mut peer = Settings { join: vec![first.mesh_addr()], ..Settings::new(&place, "n2") }.start();
    until("they know each other", || peer.member_state("n1").as_deref() == Some("live"));
    let folder = place.file("other");
    // By the one itself, and by a peer that knows it.
    for seed in [first.mesh_addr(), peer.mesh_addr()] {
        let second =
            Settings { data_dir: folder.clone(), join: vec![seed], elsewhere: true, ..Settings::new(&place, "n1") };
        let (code, said) = second.refused();
        assert_eq!(code, CONFLICT, "{said}");
        let at = first.mesh_addr().to_string();
        expect_words(&said, &["node `n1`", &place.cluster, "already up", &at, "--node-id"]);
        fs::remove_file(place.file("other.log")).unwrap();
    }
    // With the first one gone its id is free, whatever its peers still believe, and its epochs go on.
    let before = first.status()["epoch"].as_u64().unwrap();
    first.kill();
    let join = vec![peer.mesh_addr()];
    let mut second = Settings { data_dir: folder, join, elsewhere: true, ..Settings::new(&place, "n1") }.start();
    assert!(second.status()["epoch"].as_u64().unwrap() > before);
    until("its peer has met it", || peer.member_state("n1").as_deref() == Some("live"));
    second.stop();
    peer.stop();
}

#[test]
fn of_two_agents_with_one_id_that_meet_the_older_one_stops() {
    if !can_be_elsewhere() {
        return;
    }
    let place = Place::new();
    let mut older = Settings::new(&place, "n1").start();
    let mut newer = Settings { data_dir: place.file("other"), elsewhere: true, ..Settings::new(&place, "n1") }.start();
    let join = vec![older.mesh_addr(), newer.mesh_addr()];
    let mut peer = Settings { join, ..Settings::new(&place, "n2") }.start();
    assert_eq!(older.wait(SOON).code(), Some(CONFLICT));
    let said = older.log();
    let at = newer.mesh_addr().to_string();
    expect_words(&said, &["another agent", &at, "newer epoch", "--node-id"]);
    assert_eq!(newer.status()["node_id"], "n1", "the newer one goes on");
    until("their peer knows the newer one", || peer.member_state("n1").as_deref() == Some("live"));
    newer.stop();
    peer.stop();
}
