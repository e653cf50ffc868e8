//! Images that know nothing of Embermesh: they serve OpenWhisk's contract on port 8080. Made of this test program,
//! which serves it when it is told so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use embermesh_node::containers::docker::executable_archive;
use serde_json::{Value, json};

use crate::engine::{DockerMesh, Image, docker, is_here};
use crate::support::{SOON, Settings, at_once, distinct, soon, until};

const MODE: &str = "STOCK_MODE";
const END_MARK: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

#[derive(Debug)]
pub(crate) struct StockImage(Image);

impl StockImage {
    pub(crate) fn serving(name: &str) -> Self {
        Self::made(name, "serves")
    }

    pub(crate) fn ending(name: &str) -> Self {
        Self::made(name, "ends")
    }

    pub(crate) fn deaf(name: &str) -> Self {
        Self::made(name, "is deaf")
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.0
    }

    fn made(name: &str, mode: &str) -> Self {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        let archive = ARCHIVE.get_or_init(|| executable_archive(Path::new("/proc/self/exe")).unwrap());
        let command = "CMD [\"/embermesh\", \"stock::inside_of_a_stock_image\", \"--exact\", \"--nocapture\"]";
        let mode = format!("ENV {MODE}=\"{mode}\"");
        Self(Image::import(&format!("embermesh-test-{name}:{}", std::process::id()), archive, &[command, &mode]))
    }
}

/// No test, but what runs in the images.
#[test]
fn inside_of_a_stock_image() {
    match std::env::var(MODE).as_deref() {
        Err(_) => {}
        Ok("ends") => {
            eprintln!("not today");
            std::process::exit(7);
        }
        Ok("serves") => serve(),
        Ok(_) => loop {
            std::thread::park();
        },
    }
}

fn serve() {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    let mut code = Value::Null;
    for stream in listener.incoming() {
        // The engine may look whether the port is open, and say nothing.
        let _ = answer(stream.unwrap(), &mut code);
    }
}

fn answer(stream: TcpStream, code: &mut Value) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        head.push(line.to_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let answer = if head[0].starts_with("post /init") {
        *code = asked["value"]["code"].clone();
        json!({"ok": true})
    } else {
        println!("a line of {}", asked["activation_id"].as_str().unwrap());
        println!("{END_MARK}");
        eprintln!("{END_MARK}");
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        if let Some(at) = asked["value"]["ask"].as_str() {
            asked_at(at, asked["value"]["tell"].as_array().unwrap())
        } else {
            json!({"code": code, "value": asked["value"], "activation": asked["activation_id"], "host": host})
        }
    };
    let answer = answer.to_string();
    write!(&stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
}

/// What whoever listens there has to say, if anything; then one datagram to each of the others, in order.
fn asked_at(at: &str, others: &[Value]) -> Value {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let told = others.iter().all(|to| socket.send_to(b"rubbish", to.as_str().unwrap()).is_ok());
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at.parse().unwrap(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut said = [0; 512];
        let count = stream.read(&mut said)?;
        Ok(String::from_utf8_lossy(&said[..count]).into_owned())
    };
    json!({"said": ask().unwrap_or_default(), "told": told})
}

#[test]
fn an_action_on_the_bridge_gets_no_answer_from_an_agent_of_its_host() {
    if !is_here() {
        return;
    }
    let image = StockImage::serving("asks");
    for everywhere in [false, true] {
        let mesh = DockerMesh::with(1, |node| if everywhere { on_all_addresses(node) } else { node });
        mesh[1].create("asks", &json!({"exec": {"kind": "blackbox", "image": image.name()}}));
        mesh[1].run("asks", &json!({}));
        let gateway = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", &mesh.docker.cluster]);
        let there = |port: u16| format!("{gateway}:{port}");
        let of_agent = [mesh[1].settings.api, mesh[1].settings.mesh].map(|own| there(own.port()));

        // What listens there and is no agent is reached.
        let (listener, socket) = (TcpListener::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        let own = [listener.local_addr(), socket.local_addr()].map(|own| there(own.unwrap().port()));
        let control = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"here").unwrap());
        let asked = mesh[1].run("asks", &json!({"ask": own[0], "tell": []}));
        assert_eq!(asked.text("said"), "here");
        control.join().unwrap();

        let dropped = || mesh[1].status()["gossip_dropped"].as_u64().unwrap();
        let before = dropped();
        for at in &of_agent {
            let asked = mesh[1].run("asks", &json!({"ask": at, "tell": [of_agent[1], own[1]]}));
            assert_eq!((asked.text("said"), &asked.result["told"]), ("", &json!(true)), "{at}");
            // Sent later, to the same host: what was for the agent has been there.
            assert_eq!(socket.recv(&mut [0; 64]).unwrap(), "rubbish".len());
        }
        // The host's own is read, and is all that was.
        socket.send_to(b"rubbish", ("127.0.0.1", mesh[1].settings.mesh.port())).unwrap();
        until("its rubbish is dropped", || dropped() > before);
        assert_eq!(dropped(), before + 1);
    }
}

/// An agent that can be called at every address of this host.
fn on_all_addresses(node: Settings) -> Settings {
    let at = |own: SocketAddr| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), own.port());
    let (mesh, api, advertised) = (at(node.mesh), at(node.api), node.mesh.to_string());
    Settings { mesh, api, ..node }.arg("--insecure").arg("--advertise").arg(&advertised)
}

#[test]
fn an_image_that_the_action_names_serves_all_nodes_with_its_code_and_its_log_lines() {
    if !is_here() {
        return;
    }
    let image = StockImage::serving("serves");
    let mesh = DockerMesh::where_one_has_room(2);
    let exec = json!({"kind": "blackbox", "image": image.name(), "code": "the code", "binary": false});
    mesh[1].create("boxed", &json!({"exec": exec, "limits": {"memory": 256}}));
    let first = mesh[1].run("boxed", &json!({"n": 1}));
    assert_eq!((&first.result["code"], &first.result["value"]), (&json!("the code"), &json!({"n": 1})));
    // Lines that Docker is slow to hand over are left out of a record, and may be in the next one.
    let line_of = |activation: &str| format!("stdout: a line of {activation}");
    let mut before = vec![line_of(&first.activation_id)];
    soon("a run's line is in its record", || {
        let ran = mesh[1].run("boxed", &json!({"n": 1}));
        let record = mesh[1].record(&ran.activation_id);
        let mut logs: Vec<&str> = record["logs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        // What it printed before it was called may be read only afterwards, and is the run's then.
        logs.retain(|line| {
            let early = line.ends_with("stdout: ") || line.ends_with("running 1 test");
            let late = before.iter().any(|before| line.ends_with(before));
            !early && !late && !line.contains("[unattributed]")
        });
        let own = line_of(&ran.activation_id);
        before.push(own.clone());
        assert!(logs.len() < 2 && logs.iter().all(|line| line.ends_with(&own)), "{record}");
        (!logs.is_empty()).then_some(())
    });
    until("the other node uses it", || mesh[2].run("boxed", &json!({})).result["host"] == first.result["host"]);

    // A second container beside it: neither waits for the other's address.
    let ran = at_once(2, |at| mesh[at + 1].run("boxed", &json!({"at": at})));
    assert!(distinct(ran.iter().map(|ran| ran.text("host").to_owned())) <= 2);
    let shown = mesh[1].get("/api/v1/namespaces/_/actions/boxed").expect(200);
    assert_eq!((&shown["exec"]["kind"], &shown["exec"]["image"]), (&json!("blackbox"), &json!(image.name())));
}
