//! Many containers of an earlier life at once.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::engine::{DockerMesh, docker, is_here};
use crate::stock::StockImage;
use crate::support::{Settings, at_once, within};

/// Of each sort.
const HALF: usize = 25;
/// On a machine of its own it is three seconds; others may use this one.
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn fifty_containers_of_a_killed_agent_are_settled_soon_after_its_start() {
    if !is_here() {
        return;
    }
    let mut mesh = DockerMesh::with(1, |node| Settings { memory: "16GiB".to_owned(), ..node });
    let kept: Vec<String> = (0..HALF).map(|n| format!("kept-{n}")).collect();
    for names in kept.chunks(5) {
        names.iter().for_each(|name| mesh[1].create_builtin(name, "echo", 1));
        at_once(names.len(), |n| mesh[1].run(&names[n], &json!({})));
    }
    let before = mesh.docker.containers();
    assert_eq!(before.len(), HALF);
    mesh.agent(1).kill();
    // As many that are its own, and serve an action that is no more.
    let labels = docker(&["inspect", "-f", "{{json .Config.Labels}}", &before[0].0]);
    let labels: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&labels).unwrap();
    let image = StockImage::deaf("of-no-use");
    at_once(5, |part| {
        for n in (0..HALF).skip(part).step_by(5) {
            let id = format!("n1-1-{n}");
            let mut args = ["run", "-d", "--network", "none", "--name"].map(str::to_owned).to_vec();
            args.push(mesh.docker.name(&id));
            for (key, value) in &labels {
                let value = match key.as_str() {
                    "embermesh.container" => &id,
                    "embermesh.action" => "guest/no-more",
                    _ => value.as_str().unwrap(),
                };
                args.extend(["--label".to_owned(), format!("{key}={value}")]);
            }
            args.push(image.name().to_owned());
            docker(&args.iter().map(String::as_str).collect::<Vec<_>>());
        }
    });
    assert_eq!(mesh.docker.containers().len(), 2 * HALF);

    let began = Instant::now();
    mesh.agent(1).restart();
    println!("  it is ready {:?} after its start", began.elapsed());
    within(BOUND, "all of use serve", || {
        mesh[1].containers().iter().all(|container| container["state"] == "warm").then_some(())
    });
    println!("  those of use serve {:?} after its start", began.elapsed());
    within(BOUND, "those of no use are gone", || (mesh.docker.containers().len() == HALF).then_some(()));
    println!("  those of no use are gone {:?} after its start", began.elapsed());
    assert_eq!((mesh.docker.containers(), mesh[1].containers().len()), (before, HALF), "the very same ones");
    for name in &kept {
        assert_eq!(mesh[1].run(name, &json!({})).annotation("served"), json!("local"));
    }
}
