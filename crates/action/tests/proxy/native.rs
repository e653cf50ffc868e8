use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};

use crate::support::{Container, eventually, example, id, is_alive, post, post_by, request};

fn code(name: &str) -> Value {
    let bytes = std::fs::read(example(name)).unwrap();
    json!({"code": base64::engine::general_purpose::STANDARD.encode(bytes), "binary": true, "name": name})
}

#[test]
fn an_sdk_executable_serves_on_the_socket_that_init_names() {
    let container = Container::start("native", 1);
    let init = container.init(code("echo"));
    assert_eq!(init.status, 200, "{}", String::from_utf8_lossy(&init.bytes));
    let socket = init.socket.unwrap();
    let reply = post(Path::new(&socket), "/run", &request(&id(1), json!({"a": 1})).to_string()).unwrap();
    assert_eq!((reply.status, reply.log_lines), (200, Some(1)));
    assert_eq!(reply.json(), json!({"echo": {"a": 1}, "activation_id": id(1)}));
    assert_eq!(container.stdout.of(&id(1)), ["1 runs in progress"]);
    let through = container.run(&id(2), json!({"b": 2}));
    assert_eq!((&through.json()["echo"], through.log_lines), (&json!({"b": 2}), Some(1)), "and through the proxy");
}

#[test]
fn it_is_adopted_through_the_proxy_and_answers_no_older_agent_from_then_on() {
    let container = Container::start("native", 2);
    let socket = container.init(code("echo")).socket.unwrap();
    let adopted = post_by(7, &container.socket(), "/adopt", "");
    assert_eq!((adopted.status, adopted.json()), (200, json!({"running": 0})));
    assert_eq!(adopted.socket.as_deref(), Some(socket.as_str()), "who adopts it learns where it serves");
    let run = |epoch| post_by(epoch, Path::new(&socket), "/run", &request(&id(1), json!({"n": 1})).to_string());
    assert_eq!((run(6).status, run(7).status), (409, 200));
    assert_eq!(post_by(6, &container.socket(), "/adopt", "").status, 409);
}

#[test]
fn a_run_through_the_proxy_is_refused_by_an_executable_that_a_newer_agent_has_adopted() {
    let container = Container::start("native", 1);
    let socket = container.init(code("echo")).socket.unwrap();
    // As if it came about while the run was on its way through the proxy.
    assert_eq!(post_by(7, Path::new(&socket), "/adopt", "").status, 200);
    let run = |epoch| post_by(epoch, &container.socket(), "/run", &request(&id(1), json!({"n": 1})).to_string());
    assert_eq!((run(6).status, run(7).status), (409, 200));
}

#[test]
fn its_concurrency_is_the_containers() {
    for (concurrency, accepted) in [(1, 1), (3, 3)] {
        let container = Container::start("native", concurrency);
        let socket = container.init(code("sleep")).socket.unwrap();
        let run = |n: usize| {
            let (socket, body) = (socket.clone(), request(&id(n), json!({"ms": 4_000})).to_string());
            std::thread::spawn(move || post(Path::new(&socket), "/run", &body).unwrap().status)
        };
        let runs: Vec<_> = (0..4).map(run).collect();
        let statuses: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), accepted, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 403).count(), 4 - accepted);
    }
}

#[test]
fn an_executable_that_is_not_made_with_the_sdk_fails_init() {
    let container = Container::start("native", 1);
    let reply = container.init(json!({"code": "#!/bin/sh\nexit 4\n"}));
    assert_eq!(reply.status, 502);
    assert!(reply.error().contains("exit code 4"), "{}", reply.error());
    let container = Container::start("native", 1);
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() + 100;
    let env = json!({"__OW_DEADLINE": soon.to_string()});
    let reply = container.init(json!({"code": "#!/bin/sh\nexec sleep 60\n", "env": env}));
    assert!(reply.status == 502 && reply.error().contains("made with the SDK"), "{}", reply.error());
}

#[test]
fn its_death_ends_the_proxy_and_the_proxys_stdin_ends_both() {
    let mut container = Container::start("native", 1);
    let socket = container.init(code("echo")).socket.unwrap();
    let child = child_of(container.pid());
    assert!(is_alive(child));
    container.close_stdin();
    assert!(container.await_exit().success());
    eventually("the executable's end", || !is_alive(child));
    assert!(post(Path::new(&socket), "/run", "{}").is_err());

    let mut container = Container::start("native", 1);
    container.init(code("echo"));
    let child = child_of(container.pid());
    std::process::Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
    assert_eq!(container.await_exit().code(), Some(1));
    container.stderr.await_unattributed("killed by SIGKILL");
}

fn child_of(pid: u32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}
