//! Agents that are not root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::engine::{Docker, is_here, settings};
use crate::relay::Relay;
use crate::support::api::Api;
use crate::support::{Place, SOON, Settings, program, skipped, soon, within};

const NOBODY: u32 = 65534;

/// The agent as nobody, who can read neither this build's folder nor root's files.
fn spawn(place: &Place, agent: &Settings, env: &[(&str, &str)]) -> Child {
    chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let binary = place.file("embermesh");
    program::copy_to(&binary);
    let mut command = Command::new(&binary);
    command.args(agent.command().get_args()).arg("--until-stdin-closes");
    command.env_clear().envs(env.iter().copied()).uid(NOBODY).gid(NOBODY);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn an_agent_without_the_right_to_use_the_engine_says_what_to_do() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can start an agent as somebody else");
    }
    if !is_here() {
        return;
    }
    let place = Place::new();
    let output = spawn(&place, &settings(Settings::new(&place, "n1")), &[]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in ["/var/run/docker.sock", "ermission denied", "group `docker`"] {
        assert!(said.contains(words), "no `{words}` in: {said}");
    }
    assert!(Docker::of(&place).containers().is_empty());
}

#[test]
fn an_agent_that_may_use_the_engine_and_is_not_root_runs_containers_as_itself() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can start an agent as somebody else");
    }
    if !is_here() {
        return;
    }
    let place = Place::new();
    let socket = place.file("docker.sock");
    let _relay = Relay::start(&socket);
    chown(&socket, Some(NOBODY), Some(NOBODY)).unwrap();
    let agent = settings(Settings::new(&place, "n1"));
    let mut child = spawn(&place, &agent, &[("EMBERMESH_DOCKER_SOCKET", socket.to_str().unwrap())]);
    let api = Api(agent.api);
    soon("it serves", || api.try_call("GET", "/readyz", b"").ok().filter(|answer| answer.status == 200));
    api.create_builtin("own", "echo", 1);
    let ran = api.run("own", &json!({}));
    let docker = Docker::of(&place);
    let user = crate::engine::docker(&["inspect", "-f", "{{.Config.User}}", &docker.name(ran.container())]);
    assert_eq!(user, format!("{NOBODY}:{NOBODY}"));
    api.post("/mesh/v1/leave", &json!({})).expect(202);
    let status = within(SOON, "it ends", || child.try_wait().unwrap());
    let left = docker.sweep();
    assert!(status.success() && left.is_empty(), "{status}, left: {left:?}");
}
