//! Images and engines that fail: each is told with its cause, and the node goes on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::engine::{DockerMesh, Image, is_here};
use crate::relay::Relay;
use crate::stock::StockImage;
use crate::support::{Ran, until, within};

/// How long each piece of what is said to a slow engine, or by it, is on its way. A ping that takes 2 s is none.
const SLOW: Duration = Duration::from_millis(300);

/// It failed in a way that is not the action's fault, and says why.
#[track_caller]
fn expect_failure(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.status, 500, "{}", ran.record);
    for word in words {
        assert!(ran.error().contains(word), "no `{word}` in: {}", ran.error());
    }
}

/// An agent that reaches Docker by a relay's socket, what its container said at first, and an action `fresh` that has none.
fn behind_a_relay() -> (TempDir, PathBuf, Relay, DockerMesh, Ran) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let relay = Relay::start(&socket);
    let mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_DOCKER_SOCKET", socket.to_str().unwrap()));
    mesh[1].create_builtin("runs", "echo", 1);
    mesh[1].create_builtin("fresh", "echo", 1);
    let first = mesh[1].run("runs", &json!({}));
    (folder, socket, relay, mesh, first)
}

#[test]
fn images_that_can_not_serve_are_told_and_the_node_goes_on() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_DOCKER_START_TIMEOUT", "2s"));
    let (ends, deaf) = (StockImage::ending("ends"), StockImage::deaf("deaf"));
    let blackbox = |image: &str| json!({"exec": {"kind": "blackbox", "image": image}, "limits": {"memory": 128}});
    for (name, image, words) in [
        ("absent", "embermesh-test/absent:1", ["embermesh-test/absent:1", "docker pull"]),
        ("ends", ends.name(), ["exit status 7", "not today"]),
        ("deaf", deaf.name(), ["port 8080", "docker.start_timeout"]),
    ] {
        mesh[1].create(name, &blackbox(image));
        // Last words that an engine is slow to hand over are left out.
        let told = |ran: &Ran| words.iter().all(|word| ran.error().contains(word));
        let ran = (0..3).map(|_| mesh[1].invoke(name, &json!({}))).find(told);
        expect_failure(&ran.unwrap_or_else(|| mesh[1].invoke(name, &json!({}))), &words);
    }
    assert!(mesh[1].put("/api/v1/namespaces/_/actions/none", &json!({"exec": {"kind": "blackbox"}})).status == 400);
    mesh[1].create_builtin("well", "echo", 1);
    mesh[1].run("well", &json!({}));
    until("only the good one is left", || (mesh.docker.containers().len(), mesh[1].containers().len()) == (1, 1));
}

#[test]
fn a_container_that_answers_after_its_time_out_fails_that_call_and_serves_nobody_again() {
    if !is_here() {
        return;
    }
    let mesh = DockerMesh::of(1);
    let limits = json!({"memory": 128, "timeout": 2000});
    mesh[1].create("late", &json!({"exec": {"kind": "builtin:1", "main": "sleep"}, "limits": limits}));
    let first = mesh[1].run("late", &json!({"ms": 1}));
    let ran = mesh[1].invoke("late", &json!({"ms": 6_000}));
    assert_eq!(ran.status, 502, "{}", ran.record);
    assert!(ran.error().contains("exceeded its time limits of 2000 milliseconds"), "{}", ran.record);
    assert_ne!(mesh[1].run("late", &json!({"ms": 1})).container(), first.container());
    until("it is gone", || mesh.docker.state(first.container()).is_none());
}

#[test]
fn an_image_without_a_runtime_in_it_is_told() {
    if !is_here() {
        return;
    }
    let name = format!("embermesh-test-empty:{}", std::process::id());
    // An archive's end, and nothing before it.
    let image = Image::import(&name, &[0; 1024], &[]);
    let native = format!("{{native = \"{}\"}}", image.0);
    let mesh = DockerMesh::with(1, |node| node.set("EMBERMESH_DOCKER_IMAGES", &native));
    mesh[1].create_builtin("empty", "echo", 1);
    expect_failure(&mesh[1].invoke("empty", &json!({})), &[&image.0, "no Embermesh runtime"]);
}

#[test]
fn while_the_engine_is_gone_the_node_says_so_serves_what_runs_and_recovers_by_itself() {
    if !is_here() {
        return;
    }
    let (_folder, socket, relay, mesh, first) = behind_a_relay();
    mesh[1].get("/readyz").expect(200);

    relay.stop();
    within(Duration::from_secs(10), "the node says that it is not ready", || {
        let answer = mesh[1].get("/readyz");
        let told = answer.json().to_string();
        (answer.status == 503 && told.contains("docker.sock") && told.contains("can't be reached")).then_some(())
    });
    let status = mesh[1].status();
    let told = status["not_ready"].to_string();
    assert!(status["ready"] == false && told.contains("docker.sock") && told.contains("can't be reached"), "{status}");
    let began = Instant::now();
    let ran = mesh[1].run("runs", &json!({}));
    assert_eq!((ran.container(), ran.annotation("served")), (first.container(), json!("local")));
    assert!(began.elapsed() < Duration::from_secs(5));
    expect_failure(&mesh[1].invoke("fresh", &json!({})), &["can't be reached"]);

    let _relay = Relay::start(&socket);
    until("the node is ready again", || mesh[1].get("/readyz").status == 200);
    mesh[1].run("fresh", &json!({}));
    assert_eq!(mesh[1].run("runs", &json!({})).container(), first.container());
    // It needs the engine for that.
    drop(mesh);
}

#[test]
fn while_the_engine_hangs_the_node_says_so_serves_what_runs_and_goes_on_when_it_does() {
    if !is_here() {
        return;
    }
    let (_folder, _, relay, mesh, first) = behind_a_relay();

    relay.stall();
    let api = *mesh[1];
    let waiting = std::thread::spawn(move || api.invoke("fresh", &json!({})));
    within(Duration::from_secs(20), "the node says that it is not ready", || {
        let answer = mesh[1].get("/readyz");
        (answer.status == 503 && answer.json().to_string().contains("docker.sock")).then_some(())
    });
    let status = mesh[1].status();
    let told = status["not_ready"].to_string();
    assert!(status["ready"] == false && told.contains("docker.sock") && told.contains("did not answer"), "{status}");
    assert_eq!(mesh[1].run("runs", &json!({})).container(), first.container());

    assert!(relay.go_on() > 0, "nothing was said to the engine meanwhile");
    until("the node is ready again", || mesh[1].get("/readyz").status == 200);
    // It waited, or was told of the engine; whatever had begun is of use or gone.
    let waited = waiting.join().unwrap();
    assert!(waited.status == 200 || waited.error().contains("docker.sock"), "{}", waited.record);
    mesh[1].run("fresh", &json!({}));
}

#[test]
fn while_the_engine_is_slow_the_node_is_ready_serves_what_runs_and_starts() {
    if !is_here() {
        return;
    }
    let (_folder, _, relay, mesh, first) = behind_a_relay();

    relay.slow_down(SLOW);
    let began = Instant::now();
    mesh[1].run("fresh", &json!({}));
    let took = began.elapsed();
    assert!(took > 4 * SLOW, "nothing was slow: a start of at least two calls took {took:?}");
    let ran = mesh[1].run("runs", &json!({}));
    assert_eq!((ran.container(), ran.annotation("served")), (first.container(), json!("local")));
    // For as long as some pings take. A machine that stands still meanwhile may make one of them too slow.
    let stays_ready = (0..3).any(|_| {
        until("it is ready", || mesh[1].get("/readyz").status == 200);
        let end = Instant::now() + 10 * SLOW;
        std::iter::repeat_with(|| mesh[1].get("/readyz").status).take_while(|_| Instant::now() < end).all(|s| s == 200)
    });
    assert!(stays_ready, "slow was taken for gone");
    relay.slow_down(Duration::ZERO);
}
