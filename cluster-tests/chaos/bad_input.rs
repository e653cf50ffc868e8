//! What can't be done is refused before anything is started, with its reason.

use crate::tool::Tool;

#[test]
fn an_unknown_kind_of_fault_is_named_with_the_near_one() {
    let tool = Tool::new();
    let (code, said) = tool.refused(&["run", "--faults", "kill,partitoin"]);
    assert!(code == Some(2) && said.contains("'partitoin'") && said.contains("'partition'"), "{said}");
    let (code, said) = scenario(&tool, "duration='9s'\n[[faults]]\nkind='kil'\nat='1s'\nfor='1s'\nnodes=['n1']\n");
    assert!(code == Some(2) && said.contains("`kil`") && said.contains("did you mean `kill`?"), "{said}");
    tool.expect_nothing_left();
}

#[test]
fn an_unknown_key_is_named_with_the_near_one_wherever_it_stands() {
    let tool = Tool::new();
    for (text, wrong, near) in [
        ("durration='9s'\n", "durration", "duration"),
        ("duration='9s'\n[workload]\nrates=3\n", "rates", "rate"),
        ("duration='9s'\n[expect]\nhealed_in='3s'\n", "healed_in", "healed_within"),
        ("duration='9s'\n[mesh.settings.protocol]\nttll='1s'\n", "ttll", "ttl"),
        ("duration='9s'\n[[faults]]\nkind='kill'\nat='1s'\nfor='1s'\nnode=['n1']\n", "node", "nodes"),
    ] {
        let (code, said) = scenario(&tool, text);
        let named = said.contains(&format!("`{wrong}`")) && said.contains(&format!("did you mean `{near}`?"));
        assert!(code == Some(2) && named, "{said}");
    }
    tool.expect_nothing_left();
}

#[test]
fn an_impossible_scenario_is_refused_with_every_reason_before_anything_starts() {
    let tool = Tool::new();
    let fault = |rest: &str| format!("duration='10s'\n[mesh]\nnodes=3\n[[faults]]\nat='2s'\nfor='2s'\n{rest}\n");
    for (text, reason) in [
        (fault("kind='kill'\nnodes=['n4']"), "there is no node `n4`: the mesh has n1 to n3"),
        (fault("kind='kill'\nnodes=['n1','n2','n3']"), "no node would be left"),
        (fault("kind='partition'\nnodes=['n1','n2','n3']"), "nobody is left at the other end"),
        (fault("kind='kill'\nnodes=['n1']\nppm=5"), "`ppm` means nothing here"),
        (fault("kind='clock'\nnodes=['n1']"), "give `ppm`"),
        (fault("kind='loss'\nnodes=['n1']\nloss=1.5"), "a share from 0 to 1"),
        (fault("kind='engine'\nnodes=['n1']\nhow='kill'"), "\"docker\""),
        (
            fault("kind='kill'\nnodes=['n1']\n[[faults]]\nkind='stop'\nat='3s'\nfor='2s'\nnodes=['n1']"),
            "kill at 2s and stop at 3s both concern n1",
        ),
        (
            fault("kind='kill'\nnodes=['n1']").replace("for='2s'", "for='9s'"),
            "it lasts until 11s, after the end at 10s",
        ),
        ("duration='10s'\n[mesh]\nnodes=1\n".to_owned(), "`mesh.nodes` is 1"),
        ("duration='10s'\n[mesh]\nmemory='many'\n".to_owned(), "`mesh.memory`: `many`"),
        ("duration='10s'\n[workload]\nrate=0\n".to_owned(), "`workload.rate` is 0"),
        ("duration='10s'\n[mesh.settings.listen]\napi='0.0.0.0:1'\n".to_owned(), "`listen` is decided by the run"),
        ("duration='10s'\n[mesh.settings.protocol]\nwindow='1ms'\n".to_owned(), "mesh.settings"),
    ] {
        let (code, said) = scenario(&tool, &text);
        assert!(code == Some(2) && said.contains(reason), "{text}: {said}");
    }
    let (_, said) = scenario(&tool, &fault("kind='kill'\nnodes=['n8','n9']"));
    assert!(said.contains("`n8`") && said.contains("`n9`"), "all reasons at once: {said}");
    assert!(!tool.path("report").exists(), "nothing was begun");
    tool.expect_nothing_left();
}

#[test]
fn a_report_that_exists_is_not_touched() {
    let tool = Tool::new();
    let folder = tool.path("report");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("precious"), "mine").unwrap();
    let (code, said) = tool.refused(&["run", "--duration", "10s", "--report", "report"]);
    assert!(code == Some(4) && said.contains("exists already") && said.contains("report"), "{said}");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["precious"]);
    tool.expect_nothing_left();
}

#[test]
fn a_time_that_has_no_room_for_a_fault_and_options_that_exclude_a_scenario_are_refused() {
    let tool = Tool::new();
    let (code, said) = tool.refused(&["run", "--duration", "2s"]);
    assert!(code == Some(2) && said.contains("longer --duration"), "{said}");
    let (code, said) = tool.refused(&["run", "--scenario", "x.toml", "--nodes", "3"]);
    assert!(code == Some(2) && said.contains("--scenario"), "{said}");
    let (code, said) = tool.refused(&["run", "--scenario", "nowhere.toml"]);
    assert!(code == Some(2) && said.contains("nowhere.toml"), "{said}");
    let (code, said) = tool.refused(&["run", "--nodes", "40"]);
    assert!(code == Some(2) && said.contains("40"), "{said}");
}

fn scenario(tool: &Tool, text: &str) -> (Option<i32>, String) {
    tool.file("scenario.toml", text);
    tool.refused(&["run", "--scenario", "scenario.toml", "--report", "report"])
}
