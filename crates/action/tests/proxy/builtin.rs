use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Container, eventually, example, id, post, request};

#[test]
fn a_run_before_init_is_a_502_and_a_second_init_a_403() {
    let container = Container::start("builtin", 1);
    let early = container.run(&id(1), json!({}));
    assert_eq!(early.status, 502);
    assert!(early.error().contains("not initialised"));
    assert_eq!(container.init(json!({"main": "echo"})).status, 200);
    assert_eq!(container.init(json!({"main": "echo"})).status, 403);
    assert_eq!(container.run(&id(1), json!({"a": 1})).json()["echo"], json!({"a": 1}));
}

#[test]
fn proof_tells_the_container_and_log_lines_are_framed_and_counted() {
    let container = Container::start("builtin", 1);
    container.init(json!({}));
    let reply = container.run(&id(7), json!({"log": 3}));
    let body = reply.json();
    assert_eq!((&body["container"], &body["node"]), (&json!("n1-1-1"), &json!("n1")));
    assert_eq!(body["pid"], json!(container.pid()));
    assert_eq!(reply.log_lines, Some(3));
    assert_eq!(container.stdout.of(&id(7)), ["line 1", "line 2", "line 3"]);
    assert!(container.stderr.of(&id(7)).is_empty());
}

#[test]
fn two_hundred_runs_at_once_see_each_other() {
    let container = Container::start("builtin", 200);
    container.init(json!({"main": "sleep"}));
    let replies = container.run_all(200, |_| json!({"ms": 25_000, "until": 200}));
    assert!(replies.iter().all(|reply| reply.status == 200));
    for (n, reply) in replies.iter().enumerate() {
        assert_eq!(reply.json()["activation_id"], json!(id(n)));
    }
    let peak = replies.iter().filter_map(|reply| reply.json()["peak"].as_u64()).max();
    assert_eq!(peak, Some(200));
}

#[test]
fn with_a_concurrency_of_one_a_second_run_is_a_403_while_the_first_goes_on() {
    let container = Container::start("builtin", 1);
    container.init(json!({"main": "sleep"}));
    let socket = container.socket();
    let long =
        std::thread::spawn(move || post(&socket, "/run", &request(&id(1), json!({"ms": 5_000, "log": 1})).to_string()));
    container.stdout.await_started(&id(1));
    let second = container.run(&id(2), json!({"ms": 0}));
    assert_eq!(second.status, 403);
    assert!(second.error().contains("concurrency"));
    assert_eq!(long.join().unwrap().unwrap().status, 200);
    assert_eq!(container.run(&id(3), json!({"ms": 0})).json()["running"], json!(1));
}

#[test]
fn a_caller_that_hangs_up_does_not_end_its_run() {
    use std::io::Write;
    let container = Container::start("builtin", 2);
    container.init(json!({"main": "sleep"}));
    let body = request(&id(1), json!({"ms": 20_000, "log": 1, "until": 2})).to_string();
    let mut stream = std::os::unix::net::UnixStream::connect(container.socket()).unwrap();
    write!(stream, "POST /run HTTP/1.1\r\nhost: c\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    container.stdout.await_started(&id(1));
    drop(stream);
    assert_eq!(container.run(&id(2), json!({"ms": 20_000, "until": 2})).json()["running"], json!(2));
    assert_eq!(container.stdout.of(&id(1)), ["line 1"], "and it comes to its own end");
}

#[test]
fn an_unknown_built_in_fails_init_and_names_those_there_are() {
    let container = Container::start("builtin", 1);
    let reply = container.init(json!({"main": "nope"}));
    assert_eq!(reply.status, 502);
    assert!(reply.error().contains("nope") && reply.error().contains("hang-init"));
}

#[test]
fn requests_that_are_not_the_contracts_are_told_what_is_wrong() {
    let container = Container::start("builtin", 1);
    container.init(json!({}));
    let socket = container.socket();
    assert_eq!(post(&socket, "/run", "{\"value\":").unwrap().status, 400);
    assert_eq!(post(&socket, "/walk", "{}").unwrap().status, 404);
    let large = post(&socket, "/run", &request(&id(1), json!({"x": "y".repeat(1_200_000)})).to_string()).unwrap();
    assert_eq!(large.status, 413);
    assert!(large.error().contains("send less"));
    let fits = container.run(&id(2), json!({"x": "y".repeat(1_000_000)}));
    assert_eq!(fits.status, 200);
}

#[test]
fn stdin_eof_ends_the_proxy_with_zero_even_while_a_run_is_in_progress() {
    let mut container = Container::start("builtin", 1);
    container.init(json!({"main": "fail"}));
    let socket = container.socket();
    let hung = std::thread::spawn(move || {
        post(&socket, "/run", &request(&id(1), json!({"how": "hang", "log": 1})).to_string())
    });
    container.stdout.await_started(&id(1));
    let before = Instant::now();
    container.close_stdin();
    assert!(container.await_exit().success());
    assert!(before.elapsed() < Duration::from_secs(10), "it was not waited for");
    assert!(hung.join().unwrap().is_err(), "its run has no answer");
}

#[test]
fn an_action_that_ends_its_process_takes_the_container_with_it() {
    let mut container = Container::start("builtin", 1);
    container.init(json!({"main": "fail"}));
    assert!(container.try_run(&id(1), json!({"how": "exit"})).is_err());
    assert_eq!(container.await_exit().code(), Some(3));
}

#[test]
fn a_folder_may_be_given_relative_to_where_the_proxy_starts() {
    let folder = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\nwhile read -r line; do echo \"{\\\"folder\\\":\\\"$PWD\\\"}\" >&3; done\n";
    let mut process = std::process::Command::new(example("container"))
        .args(["--socket", "s", "--runtime", "actionloop", "--workdir", "."])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let socket = folder.path().join("s");
    eventually("the socket", || socket.exists());
    assert_eq!(post(&socket, "/init", &json!({"value": {"code": script}}).to_string()).unwrap().status, 200);
    let reply = post(&socket, "/run", "{}").unwrap().json();
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
    assert_eq!(reply["folder"].as_str(), folder.path().canonicalize().unwrap().to_str());
}

#[test]
fn a_socket_that_is_there_accepts() {
    for _ in 0..10 {
        let container = Container::start("builtin", 1);
        assert_eq!(container.init(json!({})).status, 200);
    }
}

#[test]
fn orphans_are_reaped() {
    // An ActionLoop script leaves a grandchild behind, which comes to the proxy and must not stay a zombie.
    let script = "#!/bin/sh\nwhile read -r line; do\n  pid=$(sh -c 'sleep 0.2 >/dev/null 2>&1 3>&- & echo $!')\n  echo \"{\\\"pid\\\":$pid}\" >&3\ndone\n";
    let container = Container::ready("actionloop", 1, None, script);
    let pid = container.run(&id(1), json!({})).json()["pid"].as_u64().unwrap();
    eventually("the orphan's end", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}
