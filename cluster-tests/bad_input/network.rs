//! What comes over the mesh port and should not, and peers that are not there.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::expect_it_serves;
use crate::support::agent::free_address;
use crate::support::{Mesh, Place, Settings, until};

#[test]
fn a_join_address_that_does_not_answer_is_told_tried_again_and_joined_when_it_is_there() {
    let place = Place::new();
    let late = Settings::new(&place, "n2");
    let first = Settings { join: vec![late.mesh], ..Settings::new(&place, "n1") }.start();
    let status = first.status();
    assert_eq!((&status["joining"], &status["ready"]), (&json!([late.mesh.to_string()]), &json!(true)), "{status}");
    first.create_builtin("alone", "echo", 1);
    first.run("alone", &json!({}));
    assert_eq!(first.status()["joining"], json!([late.mesh.to_string()]));
    // The very address is needed here, so that another one would not do.
    let wanted = late.mesh;
    let second = late.start();
    if second.mesh_addr() != wanted {
        return eprintln!("SKIPPED: somebody else took {wanted} meanwhile");
    }
    until("they know each other", || {
        let live = |agent: &crate::support::Agent, id: &str| agent.member_state(id).as_deref() == Some("live");
        live(&first, "n2") && live(&second, "n1")
    });
    until("nobody is waited for any more", || first.status()["joining"] == json!([]));
    assert_eq!(second.run("alone", &json!({})).node(), "n1");
}

#[test]
fn a_node_of_another_cluster_is_not_joined() {
    let mesh = Mesh::of(1);
    let place = Place::new();
    let foreign = Settings { join: vec![mesh[1].mesh_addr()], ..Settings::new(&place, "n2") }.start();
    until("its datagrams are counted and dropped", || dropped(&mesh) > 0);
    assert_eq!(foreign.members().len(), 1);
    assert_eq!(mesh[1].members().len(), 1);
    assert_eq!(foreign.status()["joining"], json!([mesh[1].mesh_addr().to_string()]));
    expect_it_serves(&mesh);
}

#[test]
fn malformed_truncated_and_foreign_datagrams_are_counted_and_dropped() {
    let mesh = Mesh::of(2);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = Random(0x5eed);
    let mut sent = 0;
    let mut send = |bytes: &[u8]| {
        socket.send_to(bytes, mesh[1].mesh_addr()).unwrap();
        sent += 1;
        // The socket's buffer is small, and what does not fit into it never arrives.
        until("it is counted", || dropped(&mesh) >= sent);
    };
    send(b"");
    send(b"GET / HTTP/1.1\r\n\r\n");
    send(&[0; 1400]);
    send(&[0xff; 65_000]);
    for length in [1, 7, 64, 500, 9000] {
        send(&random.bytes(length));
    }
    expect_it_serves(&mesh);

    // What a real node says, as somebody in between may have spoilt it.
    let real = captured(&mesh);
    for cut in [1, 4, 8, real.len() / 2, real.len() - 1] {
        send(&real[..cut]);
    }
    let before = dropped(&mesh);
    for _ in 0..300 {
        let mut spoilt = real.clone();
        for _ in 0..3 {
            let at = random.below(spoilt.len());
            spoilt[at] ^= 1 << random.below(8);
        }
        socket.send_to(&spoilt, mesh[1].mesh_addr()).unwrap();
    }
    until("spoilt ones are dropped", || dropped(&mesh) > before);
    mesh.await_all_live();
    assert_eq!(mesh[1].status()["gossip_restarts"], json!(0));
    expect_it_serves(&mesh);
    let metrics = String::from_utf8(mesh[1].get("/metrics").body).unwrap();
    let line = metrics.lines().find(|line| line.starts_with("embermesh_gossip_dropped_total ")).unwrap();
    let shown: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(shown >= sent, "{line}");
}

#[test]
fn garbage_on_the_grpc_port_harms_nobody() {
    let mesh = Mesh::of(2);
    let mut random = Random(0xba5e);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut cases: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 100_000],
        preface[..10].to_vec(),
        [preface.as_slice(), &settings, &[0xff; 1000]].concat(),
        // A frame that announces 16 MB.
        [preface.as_slice(), &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
    ];
    cases.extend((0..20).map(|_| [preface.as_slice(), &settings, &random.bytes(2000)].concat()));
    cases.extend((0..20).map(|_| random.bytes(3000)));
    for case in cases {
        let mut stream = TcpStream::connect(mesh[1].mesh_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // It may hang up in the middle of it.
        let _ = stream.write_all(&case).and_then(|()| stream.read(&mut [0; 4096]));
    }
    mesh[1].create_builtin("shared", "echo", 2);
    let first = mesh[1].run("shared", &json!({}));
    assert_eq!(mesh[2].run("shared", &json!({})).container(), first.container(), "peers still reach it");
    expect_it_serves(&mesh);
}

#[test]
fn garbage_on_the_api_port_harms_nobody() {
    let mesh = Mesh::of(1);
    let mut random = Random(0xcafe);
    let mut cases: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        [b"GET /".as_slice(), &[b'a'; 200_000], b" HTTP/1.1\r\n\r\n"].concat(),
        b"POST /api/v1/namespaces/_/actions/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"
            .to_vec(),
        b"POST /api/v1/namespaces/_/actions/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
    ];
    cases.extend((0..20).map(|_| random.bytes(2000)));
    for case in cases {
        let mut stream = TcpStream::connect(mesh[1].settings.api).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = stream.write_all(&case).and_then(|()| stream.read(&mut [0; 4096]));
    }
    expect_it_serves(&mesh);
}

fn dropped(mesh: &Mesh) -> u64 {
    mesh[1].status()["gossip_dropped"].as_u64().unwrap()
}

/// A datagram that the second node of this mesh sends: to whom it takes for a node to join.
fn captured(mesh: &Mesh) -> Vec<u8> {
    let seed = UdpSocket::bind(free_address()).unwrap();
    seed.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let join = vec![seed.local_addr().unwrap()];
    let mut third = Settings { join, ..Settings::new(&mesh.place, "n9") }.start();
    let mut buffer = [0; 65_536];
    let length = seed.recv(&mut buffer).unwrap();
    third.stop();
    buffer[..length].to_vec()
}

/// Xorshift: the same bytes in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}
