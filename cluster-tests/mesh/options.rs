//! Options of `embermesh agent` that other tests leave alone.

use std::fs;
use std::thread;

use serde_json::json;

use crate::support::api::action_path;
use crate::support::network::{Network, mesh_addr};
use crate::support::{Mesh, Place, Settings, skipped};

#[test]
fn an_agent_heeds_its_file_and_its_command_line_above_it() {
    let place = Place::new();
    let file = place.file("node.toml");
    fs::write(&file, "[engine]\nkind = \"docker\"\n[limits]\nconcurrency_max = 3\n").unwrap();
    let file = file.to_str().unwrap();
    let settings = |id: &str| Settings::new(&place, id).arg("--engine").arg("process");
    for (id, settings) in
        [("n1", settings("n1").arg("--config").arg(file)), ("n2", settings("n2").set("EMBERMESH_CONFIG", file))]
    {
        let mut agent = settings.start();
        assert_eq!(agent.status()["engine"], json!("process"), "{id}");
        let wide = json!({"exec": {"kind": "builtin:1", "main": "echo"}, "limits": {"concurrency": 4}});
        let refused = agent.put(&action_path("wide"), &wide).refusal(400);
        assert!(refused.contains("concurrency 4") && refused.contains('3'), "{id}: {refused}");
        agent.create_builtin("narrow", "echo", 3);
        assert_eq!(agent.run("narrow", &json!({})).node(), id);
        agent.stop();
    }
}

#[test]
fn an_agent_that_listens_everywhere_is_reached_at_the_address_that_it_advertises() {
    // A thread of its own: what is unshared is unshared for good.
    let told = thread::spawn(|| {
        let Some(network) = Network::new(2) else { return skipped("network namespaces need root") };
        let place = Place::new();
        let advertised = mesh_addr(1);
        let everywhere = ([0, 0, 0, 0], advertised.port()).into();
        let first = network.settings(&place, 1).arg("--advertise").arg(&advertised.to_string());
        let first = Settings { mesh: everywhere, ..first }.start();
        let mesh = Mesh { agents: vec![first, network.settings(&place, 2).start()], place };
        mesh.await_all_live();
        let members = mesh[2].get("/mesh/v1/members").expect(200);
        let shown = members["members"].as_array().unwrap().iter().find(|member| member["node_id"] == "n1").unwrap();
        assert_eq!(shown["mesh_addr"], json!(advertised.to_string()), "{members}");
        mesh[1].create_builtin("far", "echo", 2);
        let ran = mesh[1].run("far", &json!({}));
        mesh.hears_of_container(2, 1);
        assert_eq!(mesh[2].run("far", &json!({})).container(), ran.container(), "its peer calls it there");
    });
    if let Err(panic) = told.join() {
        std::panic::resume_unwind(panic);
    }
}
