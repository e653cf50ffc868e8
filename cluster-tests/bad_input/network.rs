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
    // The very address is needed, so that another one would not do: somebody else may take it meanwhile.
    assert!((0..5).any(|_| joins_late()), "the address was taken again and again");
}

/// False if the address was taken by somebody else.
fn joins_late() -> bool {
    let place = Place::new();
    let late = Settings::new(&place, "n2");
    let first = Settings { join: vec![late.mesh], ..Settings::new(&place, "n1") }.start();
    let status = first.status();
    assert_eq!((&status["joining"], &status["ready"]), (&json!([late.mesh.to_string()]), &json!(true)), "{status}");
    first.create_builtin("alone", "echo", 1);
    first.run("alone", &json!({}));
    assert_eq!(first.status()["joining"], json!([late.mesh.to_string()]));
    let wanted = late.mesh;
    let second = late.start();
    if second.mesh_addr() != wanted {
        return false;
    }
    until("they know each other", || {
        let live = |agent: &crate::support::Agent, id: &str| agent.member_state(id).as_deref() == Some("live");
        live(&first, "n2") && live(&second, "n1")
    });
    until("nobody is waited for any more", || first.status()["joining"] == json!([]));
    assert_eq!(second.run("alone", &json!({})).node(), "n1");
    true
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
    mesh.hears_of_container(2, 1);
    assert_eq!(mesh[2].run("shared", &json!({})).container(), first.container(), "peers still reach it");
    expect_it_serves(&mesh);
}

#[test]
fn grpc_messages_that_are_no_messages_are_counted_and_refused() {
    const RUN: &str = "/embermesh.v1.Mesh/Run";
    let mesh = Mesh::of(1);
    let message = |says: u32, compressed: u8, bytes: &[u8]| [&[compressed], &says.to_be_bytes()[..], bytes].concat();
    let cases = [
        ("bytes that are no protobuf", RUN, message(3, 0, &[0xff; 3])),
        ("less than it says", RUN, message(100, 0, &[0; 3])),
        ("no head of a message", RUN, vec![0, 0]),
        ("an unknown compression", RUN, message(3, 7, &[0; 3])),
        ("more than is taken in", RUN, message(u32::MAX, 0, &[0; 3])),
        ("an unknown method", "/embermesh.v1.Mesh/Nope", message(0, 0, &[])),
        ("an unknown service", "/embermesh.v9.Mesh/Run", message(0, 0, &[])),
    ];
    for (number, (what, path, message)) in cases.into_iter().enumerate() {
        let mut stream = TcpStream::connect(mesh[1].mesh_addr()).unwrap();
        stream.write_all(&grpc_call(path, &message)).unwrap();
        until(&format!("it is counted: {what}"), || {
            let metrics = String::from_utf8(mesh[1].get("/metrics").body).unwrap();
            metrics.lines().any(|line| line == format!("embermesh_grpc_malformed_total {}", number + 1))
        });
    }
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

/// A connection's first bytes: the preface, and one call with that message.
fn grpc_call(path: &str, message: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let text = |value: &str| [&[value.len() as u8], value.as_bytes()].concat();
    // HPACK: POST and http by their numbers, then :path, :authority, content-type and te as texts.
    let (post, http) = (0x83, 0x86);
    let headers = [
        &[post, http, 0x04][..],
        &text(path),
        &[0x01],
        &text("n1"),
        &[0x0f, 0x10],
        &text("application/grpc"),
        &[0x00],
        &text("te"),
        &text("trailers"),
    ]
    .concat();
    let (end_stream, end_headers) = (1, 4);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    [preface, frame(4, 0, 0, &[]), frame(1, end_headers, 1, &headers), frame(0, end_stream, 1, message)].concat()
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
