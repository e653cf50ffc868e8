//! The runtime images that deploy/images makes.

use serde_json::json;

use crate::engine::{DockerMesh, Image, is_here};
use crate::support::{skipped, soon, until};

#[test]
fn python_and_nodejs_actions_run_in_images_made_of_this_hosts_interpreters() {
    if !installed("/usr/bin/python3") || !installed("/usr/bin/node") {
        return skipped("the images are made of /usr/bin/python3 and /usr/bin/node");
    }
    if !is_here() {
        return;
    }
    let tag = std::process::id();
    let python = Image::build("python.sh", &format!("embermesh-test-python:{tag}"));
    let nodejs = Image::build("nodejs.sh", &format!("embermesh-test-nodejs:{tag}"));
    let images = format!("{{python = \"{}\", nodejs = \"{}\"}}", python.0, nodejs.0);
    let mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_DOCKER_IMAGES", &images));
    let source = "import json, os, ssl, sqlite3\ndef main(args):\n    print('from python')\n    return {'uid': os.getuid(), 'n': args['n'], 'at': os.environ['__EMBERMESH_CONTAINER']}\n";
    mesh[1].create("py", &json!({"exec": {"kind": "python:3", "code": source, "binary": false}}));
    let source = "const crypto = require('crypto');\nexports.main = async ({ n }) => { console.log('from node'); return { uid: process.getuid(), n, at: process.env.__EMBERMESH_CONTAINER }; };";
    mesh[1].create("js", &json!({"exec": {"kind": "nodejs:20", "code": source, "binary": false}}));
    for name in ["py", "js"] {
        // Lines that Docker is slow to hand over are left out of a record.
        soon("a run's line is in its record", || {
            let ran = mesh[1].run(name, &json!({"n": 7}));
            assert_eq!((ran.number("uid"), ran.number("n")), (65532, 7));
            assert_eq!(mesh.docker.state(ran.text("at")).as_deref(), Some("running"));
            let record = mesh[1].record(&ran.activation_id);
            record["logs"][0].as_str()?.contains("stdout: from ").then_some(())
        });
    }
}

#[test]
fn a_python_action_over_its_memory_is_ended_by_the_engine_and_the_next_one_is_served() {
    if !installed("/usr/bin/python3") {
        return skipped("the image is made of /usr/bin/python3");
    }
    if !is_here() {
        return;
    }
    let python = Image::build("python.sh", &format!("embermesh-test-python-oom:{}", std::process::id()));
    let images = format!("{{python = \"{}\"}}", python.0);
    let mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_DOCKER_IMAGES", &images));
    let source = "def main(args):\n    eaten = bytearray(args['mb'] << 20)\n    return {'mb': len(eaten) >> 20}\n";
    mesh[1].create(
        "eats",
        &json!({"exec": {"kind": "python:3", "code": source, "binary": false}, "limits": {"memory": 128}}),
    );
    assert_eq!(mesh[1].run("eats", &json!({"mb": 20})).number("mb"), 20);
    assert_eq!(mesh[1].invoke("eats", &json!({"mb": 500})).status, 502);
    until("the agent tells why", || mesh[1].log().contains("out of memory: over the limit of 128 MB"));
    assert_eq!(mesh[1].run("eats", &json!({"mb": 10})).number("mb"), 10);
}

fn installed(path: &str) -> bool {
    std::path::Path::new(path).exists()
}
