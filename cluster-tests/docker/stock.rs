//! Images that know nothing of Embermesh: they serve OpenWhisk's contract on port 8080. Made of this test program,
//! which serves it when it is told so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::OnceLock;

use embermesh_node::containers::docker::executable_archive;
use serde_json::{Value, json};

use crate::engine::{DockerMesh, Image, is_here};
use crate::support::{at_once, distinct, until};

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
        json!({"code": code, "value": asked["value"], "activation": asked["activation_id"], "host": host})
    };
    let answer = answer.to_string();
    write!(&stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
}

#[test]
fn an_image_that_the_action_names_serves_all_nodes_with_its_code_and_its_log_lines() {
    if !is_here() {
        return;
    }
    let image = StockImage::serving("serves");
    let mesh = DockerMesh::of(2);
    let exec = json!({"kind": "blackbox", "image": image.name(), "code": "the code", "binary": false});
    mesh[1].create("boxed", &json!({"exec": exec, "limits": {"memory": 128}}));
    let first = mesh[1].run("boxed", &json!({"n": 1}));
    assert_eq!((&first.result["code"], &first.result["value"]), (&json!("the code"), &json!({"n": 1})));
    let record = mesh[1].record(&first.activation_id);
    let mut logs: Vec<&str> = record["logs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    // Those of before it was called.
    logs.retain(|line| !line.contains("[unattributed]"));
    assert_eq!(logs.len(), 1, "{record}");
    assert!(logs[0].ends_with(&format!("stdout: a line of {}", first.activation_id)), "{record}");
    until("the other node uses it", || mesh[2].run("boxed", &json!({})).result["host"] == first.result["host"]);

    // A second container beside it: neither waits for the other's address.
    let ran = at_once(2, |at| mesh[at + 1].run("boxed", &json!({"at": at})));
    assert!(distinct(ran.iter().map(|ran| ran.text("host").to_owned())) <= 2);
    let shown = mesh[1].get("/api/v1/namespaces/_/actions/boxed").expect(200);
    assert_eq!((&shown["exec"]["kind"], &shown["exec"]["image"]), (&json!("blackbox"), &json!(image.name())));
}
