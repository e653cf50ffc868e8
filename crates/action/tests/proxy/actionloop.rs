use serde_json::json;

use crate::support::{Container, id};

/// Answers with the request it got and logs on both streams.
const ECHO: &str = r#"#!/bin/sh
echo "started"
while IFS= read -r line; do
  echo "got a request"
  echo "and an error" >&2
  printf '{"request":%s}\n' "$line" >&3
done
"#;

#[test]
fn a_script_that_says_nothing_at_its_start_is_served() {
    let container = Container::ready("actionloop", 1, None, ECHO);
    for n in 1..=3 {
        let reply = container.run(&id(n), json!({"n": n, "text": "a\nb"}));
        assert_eq!((reply.status, reply.log_lines), (200, Some(2)));
        let request = &reply.json()["request"];
        assert_eq!(request["value"], json!({"n": n, "text": "a\nb"}));
        assert_eq!((&request["activation_id"], &request["action_name"]), (&json!(id(n)), &json!("/guest/test")));
        assert_eq!(container.stdout.of(&id(n)), ["got a request"]);
        assert_eq!(container.stderr.of(&id(n)), ["and an error"]);
    }
    container.stdout.await_unattributed("started");
}

#[test]
fn an_acknowledgement_is_not_taken_for_an_answer() {
    for delay in ["0", "0.3"] {
        let script = format!(
            "#!/bin/sh\nsleep {delay}\n[ -n \"$__OW_WAIT_FOR_ACK\" ] && echo '{{\"ok\":true}}' >&3\nn=0\nwhile read -r line; do n=$((n+1)); echo \"{{\\\"n\\\":$n}}\" >&3; done\n"
        );
        let container = Container::ready("actionloop", 1, None, &script);
        assert_eq!(container.run(&id(1), json!({})).json(), json!({"n": 1}), "delay {delay}");
        assert_eq!(container.run(&id(2), json!({})).json(), json!({"n": 2}));
    }
}

#[test]
fn base64_code_and_init_parameters_reach_the_executable() {
    use base64::Engine;
    let script = "#!/bin/sh\nwhile read -r line; do echo \"{\\\"colour\\\":\\\"$colour\\\"}\" >&3; done\n";
    let code = base64::engine::general_purpose::STANDARD.encode(script);
    let container = Container::start("actionloop", 1);
    let init = container.init(json!({"code": code, "binary": true, "env": {"colour": "red"}}));
    assert_eq!(init.status, 200);
    assert_eq!(container.run(&id(1), json!({})).json(), json!({"colour": "red"}));
}

#[test]
fn a_death_in_a_run_is_a_502_with_the_last_words_and_the_proxy_goes() {
    let script = "#!/bin/sh\nread -r line; echo 'out of ideas' >&2; exit 7\n";
    let mut container = Container::ready("actionloop", 1, None, script);
    let reply = container.run(&id(1), json!({}));
    assert_eq!(reply.status, 502);
    assert!(reply.error().contains("the action's process ended: exit code 7"), "{}", reply.error());
    assert!(reply.error().contains("out of ideas"));
    if let Ok(later) = container.try_run(&id(2), json!({})) {
        assert!(later.status == 502 && later.error().contains("exit code 7"));
    }
    assert_eq!(container.await_exit().code(), Some(1));
    assert_eq!(container.stderr.of(&id(1)), ["out of ideas"]);
}

#[test]
fn an_answer_that_is_no_object_is_a_502_that_shows_it_and_the_next_run_is_fine() {
    let script = "#!/bin/sh\nread -r line; echo 'hello' >&3\nread -r line; echo '{\"fine\":true}' >&3\nread -r line\n";
    let container = Container::ready("actionloop", 1, None, script);
    let rubbish = container.run(&id(1), json!({}));
    assert_eq!(rubbish.status, 502);
    assert!(rubbish.error().contains("hello"));
    assert_eq!(container.run(&id(2), json!({})).json(), json!({"fine": true}));
}

#[test]
fn an_answer_over_a_few_megabytes_is_a_507_and_one_over_one_is_passed_on() {
    let script = "#!/bin/sh\nfor size in 2000000 6000000; do read -r line; printf '{\"x\":\"%0*d\"}\\n' $size 0 >&3; done\nread -r line; echo '{}' >&3\nread -r line\n";
    let container = Container::ready("actionloop", 1, None, script);
    let passed = container.run(&id(1), json!({}));
    assert!(passed.status == 200 && passed.bytes.len() > 2_000_000);
    let refused = container.run(&id(2), json!({}));
    assert_eq!(refused.status, 507);
    assert!(refused.error().contains("return less"), "{}", refused.error());
    assert_eq!(container.run(&id(3), json!({})).status, 200);
}

#[test]
fn a_line_that_nobody_asked_for_ends_the_executable() {
    let script = "#!/bin/sh\nread -r line; printf '{\"n\":1}\\n{\"n\":2}\\n' >&3; read -r line; echo '{\"n\":3}' >&3; read -r line\n";
    let container = Container::ready("actionloop", 1, None, script);
    assert_eq!(container.run(&id(1), json!({})).json(), json!({"n": 1}));
    let reply = container.run(&id(2), json!({}));
    assert_eq!(reply.status, 502, "never the answer to another request");
    assert!(reply.error().contains("without being asked"), "{}", reply.error());
}

#[test]
fn code_that_cannot_be_started_fails_init_with_the_reason() {
    for (code, expected) in [
        ("\u{7f}ELF, but not of this world", "is it one for this machine"),
        ("#!/no/such/interpreter\n", "does not exist"),
        ("#!/bin/sh\necho broken >&2; exit 9\n", "exit code 9; its last words: broken"),
        ("", "empty"),
    ] {
        // One that takes long to end has started, as far as anyone can tell.
        let tried = (0..5).map(|_| {
            let container = Container::start("actionloop", 1);
            let reply = container.init(json!({ "code": code }));
            (container, reply)
        });
        let (container, reply) = tried.into_iter().find(|(_, reply)| reply.status == 502).unwrap();
        assert!(reply.error().contains(expected), "{code:?}: {}", reply.error());
        assert_eq!(container.init(json!({ "code": ECHO })).status, 403, "a container is initialised once");
        assert_eq!(container.run(&id(1), json!({})).status, 502);
    }
}

#[test]
fn much_output_in_a_run_is_attributed_to_it_whole() {
    let script = "#!/bin/sh\nwhile read -r line; do i=0; while [ $i -lt 3000 ]; do echo \"line $i of a run that talks a lot\"; i=$((i+1)); done; printf 'no newline'; echo '{}' >&3; done\n";
    let container = Container::ready("actionloop", 1, None, script);
    for n in 1..=2 {
        assert_eq!(container.run(&id(n), json!({})).log_lines, Some(3001));
        assert_eq!(container.stdout.of(&id(n)).last().map(String::as_str), Some("no newline"));
    }
}
