//! What the commands ask of a node, and what they make of its answers.

use embermesh_node::views::{IntentOutcome, VetoView};
use serde_json::{Value, json};

use super::*;
use crate::client::test_server::Reply;

const ID: &str = "00112233445566778899aabbccddeeff";

fn action() -> String {
    json!({
        "namespace": "guest", "name": "hello", "version": "0.0.2", "publish": false,
        "exec": {"kind": "python:3", "binary": false},
        "limits": {"timeout": 60000, "memory": 256, "logs": 10, "concurrency": 4},
        "parameters": [{"key": "greeting", "value": "hi"}],
        "annotations": [{"key": "exec", "value": "python:3"}, {"key": "idempotent", "value": true}],
        "updated": 1_735_689_600_000_u64
    })
    .to_string()
}

fn record(status: &str, result: &Value) -> String {
    let success = status == "success";
    format!(
        r#"{{"activationId":"{ID}","namespace":"guest","name":"hello","version":"0.0.2","subject":"guest",
        "start":1735689600000,"end":1735689600012,"duration":12,"publish":false,
        "logs":["2025-01-01T00:00:00.001Z       stdout: hello"],
        "annotations":[{{"key":"path","value":"guest/hello"}},{{"key":"initTime","value":40}},
            {{"key":"waitTime","value":51}},{{"key":"node","value":"n2"}}],
        "response":{{"status":"{status}","success":{success},"result":{result},"size":2}}}}"#
    )
}

#[tokio::test]
async fn create_sends_code_limits_and_pairs_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hello.py");
    std::fs::write(&file, "def main(args): return args").unwrap();
    let server = TestServer::start(|_, _| Reply::Json(200, action())).await;
    let line = format!(
        "action create hello {} --concurrency 4 --param greeting hi --annotation idempotent true",
        file.display()
    );
    let ran = run_line(&server.url, &line).await;
    assert_eq!((ran.exit, ran.remarks.as_str()), (Exit::Ok, ""));
    assert_eq!(ran.answers, "created action guest/hello (python:3, version 0.0.2)\n");
    let asked = server.asked();
    assert_eq!(asked[0].line, "PUT /api/v1/namespaces/_/actions/hello?overwrite=false");
    assert_eq!(
        asked[0].body,
        json!({
            "exec": {"kind": "python:default", "code": "def main(args): return args", "binary": false},
            "limits": {"concurrency": 4},
            "parameters": [{"key": "greeting", "value": "hi"}],
            "annotations": [{"key": "idempotent", "value": true}]
        })
    );
}

#[tokio::test]
async fn an_image_makes_the_action_a_blackbox_with_or_without_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.js");
    std::fs::write(&file, "the code").unwrap();
    let server = TestServer::start(|_, _| Reply::Json(200, action())).await;
    run_line(&server.url, "action create report --image host:5000/own:1").await;
    run_line(&server.url, &format!("action create report {} --image own --main go", file.display())).await;
    run_line(&server.url, "action update report --image own:2").await;
    let asked = server.asked();
    assert_eq!(asked[0].body, json!({"exec": {"kind": "blackbox", "image": "host:5000/own:1"}}));
    let exec = json!({"kind": "blackbox", "image": "own", "code": "the code", "binary": false, "main": "go"});
    assert_eq!(asked[1].body, json!({ "exec": exec }));
    let exec = json!({"kind": "blackbox", "image": "own:2", "binary": false});
    assert_eq!(asked[3].body, json!({ "exec": exec }));
}

#[tokio::test]
async fn create_of_what_exists_points_to_update() {
    let server = TestServer::saying(409, r#"{"error":"action `hello` exists","code":"t"}"#).await;
    let ran = run_line(&server.url, "action create hello builtin:echo").await;
    assert_eq!(ran.exit, Exit::Conflict);
    assert!(ran.remarks.contains("hint: `embermesh action update hello`"), "{ran:?}");
}

#[tokio::test]
async fn update_changes_only_what_is_given_and_creates_nothing() {
    let server = TestServer::start(|_, _| Reply::Json(200, action())).await;
    let ran = run_line(&server.url, "action update hello --memory 512").await;
    assert_eq!(ran.answers, "updated action guest/hello (python:3, version 0.0.2)\n");
    let asked = server.asked();
    assert_eq!(asked[0].line, "GET /api/v1/namespaces/_/actions/hello?code=false");
    assert_eq!(asked[1].line, "PUT /api/v1/namespaces/_/actions/hello?overwrite=true");
    assert_eq!(asked[1].body, json!({"limits": {"memory": 512}}));

    let ran = run_line(&server.url, "action update hello --main other").await;
    assert_eq!(ran.exit, Exit::Ok, "{ran:?}");
    let asked = server.asked();
    assert_eq!(asked[2].line, "GET /api/v1/namespaces/_/actions/hello?code=true");
    assert_eq!(asked[3].body, json!({"exec": {"kind": "python:3", "binary": false, "main": "other"}}));

    let before = server.asked().len();
    assert_eq!(run_line(&server.url, "action update hello").await.exit, Exit::Usage);
    assert_eq!(server.asked().len(), before);
}

#[tokio::test]
async fn update_of_an_unknown_action_sends_no_settings() {
    let server = TestServer::saying(404, r#"{"error":"no action","code":"t"}"#).await;
    let ran = run_line(&server.url, "action update hello --memory 512").await;
    assert_eq!((ran.exit, server.asked().len()), (Exit::NotFound, 1));
}

#[tokio::test]
async fn actions_are_shown_in_detail_and_as_a_list() {
    let server = TestServer::start(|line, _| match line {
        "GET /api/v1/namespaces/_/actions?limit=5&skip=0" => Reply::Json(200, format!("[{}]", action())),
        "GET /api/v1/namespaces/guest/actions/hello?code=false" => Reply::Json(200, action()),
        "DELETE /api/v1/namespaces/_/actions/a%20b" => Reply::Json(200, action()),
        other => Reply::Json(400, format!(r#"{{"error":"{other}"}}"#)),
    })
    .await;
    insta::assert_snapshot!(run_line(&server.url, "action list --limit 5").await.answers, @r"
    ACTION       KIND      VERSION  CONCURRENCY  MEMORY  TIMEOUT  UPDATED
    guest/hello  python:3    0.0.2            4  256 MB       1m  2025-01-01T00:00:00.000Z
    ");
    insta::assert_snapshot!(run_line(&server.url, "action get /guest/hello").await.answers, @r#"
    action       guest/hello
    version      0.0.2
    kind         python:3
    main         -
    concurrency  4
    memory       256 MB
    timeout      1m
    parameters   greeting="hi"
    annotations  exec="python:3" idempotent=true
    updated      2025-01-01T00:00:00.000Z
    "#);
    let deleted = run_words(&server.url, &["action", "delete", "a b"]).await;
    assert_eq!((deleted.exit, deleted.answers.as_str()), (Exit::Ok, "deleted action a b\n"));
}

#[tokio::test]
async fn a_blocking_call_shows_the_record() {
    let server = TestServer::start(|_, _| Reply::Json(200, record("success", &json!({"greeting": "hi"})))).await;
    let ran = run_line(&server.url, "invoke hello -p name Ada -p n 3").await;
    assert_eq!((ran.exit, ran.remarks.as_str()), (Exit::Ok, ""));
    insta::assert_snapshot!(ran.answers, @r#"
    activation  00112233445566778899aabbccddeeff
    action      guest/hello (0.0.2)
    status      success
    began       2025-01-01T00:00:00.000Z
    duration    12ms
    start       cold, init 40ms
    waited      51ms
    node        n2
    log lines   1
    result      {"greeting":"hi"}
    "#);
    let asked = server.asked();
    assert_eq!(asked[0].line, "POST /api/v1/namespaces/_/actions/hello?blocking=true&result=false&timeout=60000");
    assert_eq!(asked[0].body, json!({"name": "Ada", "n": 3}));

    let ran = run_line(&server.url, "invoke hello --result").await;
    insta::assert_snapshot!(ran.answers, @r#"
    {
      "greeting": "hi"
    }
    "#);
    let ran = run_line(&server.url, "invoke hello -o json").await;
    insta::assert_snapshot!(ran.answers, @r#"
    {
      "activationId": "00112233445566778899aabbccddeeff",
      "namespace": "guest",
      "name": "hello",
      "version": "0.0.2",
      "subject": "guest",
      "start": 1735689600000,
      "end": 1735689600012,
      "duration": 12,
      "publish": false,
      "logs": [
        "2025-01-01T00:00:00.001Z       stdout: hello"
      ],
      "annotations": [
        {
          "key": "path",
          "value": "guest/hello"
        },
        {
          "key": "initTime",
          "value": 40
        },
        {
          "key": "waitTime",
          "value": 51
        },
        {
          "key": "node",
          "value": "n2"
        }
      ],
      "response": {
        "status": "success",
        "success": true,
        "result": {
          "greeting": "hi"
        },
        "size": 2
      }
    }
    "#);
}

#[tokio::test]
async fn an_action_that_fails_exits_1_and_shows_what_it_answered() {
    let server = TestServer::start(|_, _| Reply::Json(502, record("application error", &json!({"error": "no"})))).await;
    let ran = run_line(&server.url, "invoke hello").await;
    assert_eq!(ran.exit, Exit::Failure);
    assert!(ran.answers.contains("application error") && ran.answers.contains(r#"{"error":"no"}"#), "{ran:?}");
    assert!(ran.remarks.contains(&format!("embermesh activation logs {ID}")), "{ran:?}");
    let ran = run_line(&server.url, "invoke hello --result").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Failure, "{\n  \"error\": \"no\"\n}\n"));
}

#[tokio::test]
async fn a_failure_without_a_record_is_the_nodes_error() {
    for status in [500, 502] {
        let server = TestServer::saying(status, r#"{"error":"the container is gone","code":"t1"}"#).await;
        let ran = run_line(&server.url, "invoke hello").await;
        assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Failure, ""));
        assert!(ran.remarks.contains("the container is gone"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_blocking_call_that_turns_into_202_is_asked_for_until_it_ends() {
    let server = TestServer::start(|line, before| {
        if line.starts_with("POST") {
            Reply::Json(202, json!({ "activationId": ID }).to_string())
        } else if before < 3 {
            Reply::Json(404, r#"{"error":"not yet"}"#.to_owned())
        } else {
            Reply::Json(200, record("success", &json!({"late": true})))
        }
    })
    .await;
    let ran = run_line(&server.url, "invoke hello --result").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Ok, "{\n  \"late\": true\n}\n"));
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn an_activation_that_does_not_end_in_time_is_named_and_exits_5() {
    let server = TestServer::start(|line, _| {
        if line.starts_with("POST") {
            Reply::Json(202, json!({ "activationId": ID }).to_string())
        } else {
            Reply::Json(404, r#"{"error":"not yet"}"#.to_owned())
        }
    })
    .await;
    let ran = run_line(&server.url, "invoke hello --deadline 250ms").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Unavailable, ""));
    assert!(ran.remarks.contains(ID) && ran.remarks.contains("within 250ms"), "{ran:?}");
    assert!(server.asked()[0].line.ends_with("timeout=250"));
}

#[tokio::test]
async fn an_asynchronous_call_prints_the_id() {
    let server = TestServer::saying(202, &json!({ "activationId": ID }).to_string()).await;
    let ran = run_line(&server.url, "invoke hello --async").await;
    assert_eq!(ran.exit, Exit::Ok);
    assert!(ran.answers.starts_with(&format!("accepted {ID};")), "{ran:?}");
    assert_eq!(server.asked()[0].line, "POST /api/v1/namespaces/_/actions/hello?blocking=false");
    let ran = run_line(&server.url, "invoke hello --async -o json").await;
    assert_eq!(ran.answers, format!("{{\n  \"activationId\": \"{ID}\"\n}}\n"));
}

#[tokio::test]
async fn activations_are_listed_and_their_parts_printed() {
    let server = TestServer::start(|line, _| {
        let summary = json!([{
            "activationId": ID, "namespace": "guest", "name": "hello", "version": "0.0.2", "duration": 12,
            "start": 1_735_689_600_000_u64, "statusCode": 1, "annotations": []
        }]);
        let base = format!("GET /api/v1/namespaces/_/activations/{ID}");
        match line {
            "GET /api/v1/namespaces/_/activations?limit=30&skip=2&name=a%20b" => Reply::Json(200, summary.to_string()),
            line if line == base => Reply::Json(200, record("success", &json!(null))),
            line if line == format!("{base}/logs") => Reply::Json(200, r#"{"logs":["one","two"]}"#.to_owned()),
            line if line == format!("{base}/result") => {
                Reply::Json(200, r#"{"status":"success","success":true,"result":{"a":1}}"#.to_owned())
            }
            other => Reply::Json(400, format!(r#"{{"error":"{other}"}}"#)),
        }
    })
    .await;
    let list = run_words(&server.url, &["activation", "list", "--skip", "2", "--name", "a b"]).await;
    insta::assert_snapshot!(list.answers, @r"
    ACTIVATION                        ACTION  VERSION  STATUS             START  DURATION  BEGAN
    00112233445566778899aabbccddeeff  hello     0.0.2  application error  warm       12ms  2025-01-01T00:00:00.000Z
    ");
    let get = run_line(&server.url, &format!("activation get {ID}")).await;
    assert!(get.answers.contains("cold, init 40ms") && get.answers.contains("node        n2"), "{get:?}");
    let logs = run_line(&server.url, &format!("activation logs {ID}")).await;
    assert_eq!(logs.answers, "one\ntwo\n");
    let result = run_line(&server.url, &format!("activation result {ID}")).await;
    assert_eq!(result.answers, "{\n  \"a\": 1\n}\n");
    let json = run_line(&server.url, &format!("activation result {ID} -o json")).await;
    assert!(json.answers.contains("\"status\": \"success\""), "{json:?}");
}

#[tokio::test]
async fn an_intent_by_hand_shows_how_it_ended() {
    let outcome = |outcome: &str| {
        serde_json::to_string(&IntentOutcome {
            intent_id: "n1-7-1-r1".to_owned(),
            container_id: "n1-7-1".to_owned(),
            kind: "remove".to_owned(),
            outcome: outcome.to_owned(),
            reason: "n2 vetoed for 12000 ms".to_owned(),
            vetoes: vec![VetoView { peer: "n2".to_owned(), hold_ms: 12_000 }],
        })
        .unwrap()
    };
    let server = TestServer::saying(409, &outcome("vetoed")).await;
    let ran = run_line(&server.url, "remove n1-7-1").await;
    assert_eq!((ran.exit, ran.remarks.as_str()), (Exit::Conflict, ""));
    insta::assert_snapshot!(ran.answers, @r"
    container  n1-7-1
    intent     n1-7-1-r1
    kind       remove
    outcome    vetoed
    reason     n2 vetoed for 12000 ms
    vetoes     n2 for 12s
    ");
    let json = run_line(&server.url, "remove n1-7-1 -o json").await;
    insta::assert_snapshot!(json.answers, @r#"
    {
      "intent_id": "n1-7-1-r1",
      "container_id": "n1-7-1",
      "kind": "remove",
      "outcome": "vetoed",
      "reason": "n2 vetoed for 12000 ms",
      "vetoes": [
        {
          "peer": "n2",
          "hold_ms": 12000
        }
      ]
    }
    "#);

    let server = TestServer::saying(200, &outcome("retired")).await;
    assert_eq!(run_line(&server.url, "remove n1-7-1 --force").await.exit, Exit::Ok);
    assert_eq!(server.asked()[0].line, "POST /mesh/v1/containers/n1-7-1/remove");
    assert_eq!(server.asked()[0].body, json!({"force": true}));

    let server = TestServer::saying(409, r#"{"error":"the container is not idle","code":"t"}"#).await;
    let ran = run_line(&server.url, "pause n1-7-1").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Conflict, ""));
    assert!(ran.remarks.contains("not idle"), "{ran:?}");

    let server = TestServer::saying(404, r#"{"error":"no container","code":"t"}"#).await;
    let ran = run_line(&server.url, "pause n1-7-9").await;
    assert_eq!(ran.exit, Exit::NotFound);
    assert!(ran.remarks.contains("embermesh containers"), "{ran:?}");
}

#[tokio::test]
async fn veto_release_and_leave_confirm_what_they_did() {
    let server = TestServer::saying(204, "").await;
    let ran = run_line(&server.url, "veto n1-7-1-r1 --hold 20s").await;
    assert_eq!(ran.answers, "vetoed intent n1-7-1-r1, to hold for 20s\n");
    let ran = run_line(&server.url, "release n1-7-L4").await;
    assert_eq!(ran.answers, "released lease n1-7-L4\n");
    let ran = run_line(&server.url, "release n1-7-L4 -o json").await;
    assert_eq!((ran.exit, ran.answers.as_str()), (Exit::Ok, ""));
    assert_eq!(run_line(&server.url, "leave").await.exit, Exit::Ok);
    assert_eq!(run_line(&server.url, "leave --force").await.exit, Exit::Ok);
    let asked = server.asked();
    assert_eq!(asked[0].line, "POST /mesh/v1/intents/n1-7-1-r1/veto");
    assert_eq!(asked[0].body, json!({"hold_ms": 20000}));
    assert_eq!(asked[1].line, "POST /mesh/v1/leases/n1-7-L4/release");
    assert_eq!(asked[3].line, "POST /mesh/v1/leave");
    assert_eq!((&asked[3].body, &asked[4].body), (&json!({"force": false}), &json!({"force": true})));
}

#[tokio::test]
async fn a_drain_lists_what_is_left() {
    let server =
        TestServer::saying(200, r#"{"drained":true,"left":[],"at_peers":0,"owed":0,"killed":2,"given_up":5}"#).await;
    let ran = run_line(&server.url, "drain --deadline 2m --force").await;
    assert_eq!(ran.exit, Exit::Ok);
    insta::assert_snapshot!(ran.answers, @r"
    drained         yes
    left            -
    calls at peers  0
    owed            0
    killed          2
    given up        5
    ");
    assert_eq!(server.asked()[0].body, json!({"deadline_ms": 120_000, "force": true}));

    let left = r#"{"drained":false,"left":["n1-7-1","n1-7-2"],"at_peers":3,"owed":1}"#;
    let server = TestServer::saying(409, left).await;
    let ran = run_line(&server.url, "drain").await;
    assert_eq!(ran.exit, Exit::Unavailable, "it was not done in time");
    insta::assert_snapshot!(ran.answers, @r"
    drained         no
    left            n1-7-1, n1-7-2
    calls at peers  3
    owed            1
    ");
    assert!(ran.remarks.contains("--force"), "{ran:?}");

    let server = TestServer::saying(503, r#"{"error":"starting","code":"t"}"#).await;
    assert_eq!(run_line(&server.url, "drain").await.exit, Exit::Unavailable);
}
