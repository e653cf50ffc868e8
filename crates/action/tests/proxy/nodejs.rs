use std::path::PathBuf;

use serde_json::json;

use crate::support::{Container, eventually, id, interpreter, is_alive};

fn node() -> Option<PathBuf> {
    interpreter("node", &["-p", "process.execPath"])
}

fn ready(concurrency: u32, code: &str) -> Option<Container> {
    node().map(|path| Container::ready("nodejs", concurrency, Some(&path), code))
}

#[test]
fn a_function_is_called_with_its_parameters_and_its_lines_are_attributed() {
    let code = "
const { execSync } = require('child_process');
console.log('loading');
function main(params) {
  console.log('hello', params.n);
  console.error('oops');
  process.stdout.write('part');
  execSync('echo from a child', { stdio: 'inherit' });
  const inherited = execSync('echo $__OW_ACTIVATION_ID').toString().trim();
  return { n: params.n, id: process.env.__OW_ACTIVATION_ID, colour: process.env.colour, inherited };
}
// a comment at the end";
    let Some(path) = node() else { return };
    let container = Container::start_with("nodejs", 1, Some(&path));
    assert_eq!(container.init(json!({"code": code, "env": {"colour": "red"}})).status, 200);
    for n in 1..=3 {
        let reply = container.run(&id(n), json!({ "n": n }));
        assert_eq!((reply.status, reply.log_lines), (200, Some(3)), "{}", reply.json());
        assert_eq!(reply.json(), json!({"n": n, "id": id(n), "colour": "red", "inherited": id(n)}));
        assert_eq!(container.stdout.of(&id(n)), [format!("hello {n}"), "part".to_owned()]);
        assert_eq!(container.stderr.of(&id(n)), ["oops"]);
    }
    container.stdout.await_unattributed("loading");
    container.stdout.await_unattributed("from a child");
    assert_eq!(container.init(json!({ "code": code })).status, 403);
}

#[test]
fn fifty_calls_at_once_each_have_their_own_id_and_lines() {
    let code = "
const { execFile } = require('child_process');
async function main({ n }) {
  const say = (what) => console.log(what, n, process.env.__OW_ACTIVATION_ID);
  say('start');
  const before = process.env.__OW_ACTIVATION_ID;
  await new Promise((resolve) => setTimeout(() => { say('timer'); resolve(); }, 300));
  process.nextTick(() => say('tick'));
  await Promise.resolve();
  await new Promise((resolve) => setImmediate(resolve));
  console.error('err', n);
  return { n, before, after: { ...process.env }.__OW_ACTIVATION_ID };
}";
    let Some(container) = ready(50, code) else { return };
    let before = std::time::Instant::now();
    let replies = container.run_all(50, |n| json!({ "n": n }));
    let took = before.elapsed();
    for (n, reply) in replies.iter().enumerate() {
        let own = id(n);
        assert_eq!((reply.status, reply.json()), (200, json!({"n": n, "before": own, "after": own})));
        assert_eq!(container.stdout.of(&own), ["start", "timer", "tick"].map(|what| format!("{what} {n} {own}")));
        assert_eq!(container.stderr.of(&own), [format!("err {n}")]);
        assert_eq!(reply.log_lines, Some(4));
    }
    // One after the other they would wait 50 times 0.3 s.
    assert!(took.as_secs() < 10, "they ran at once: {took:?}");
}

#[test]
fn failures_are_told_and_the_interpreter_goes_on() {
    let code = "
exports.main = (params) => {
  switch (params.how) {
    case 'throw': throw new Error('no luck');
    case 'reject': return Promise.reject(new TypeError('later no luck'));
    case 'number': return 7;
    case 'null': return null;
    case 'bare': throw Object.create(null);
    case 'circular': { const a = {}; a.a = a; return a; }
    case 'date': return new Date(0);
    case 'huge': return { x: 'y'.repeat(5000000) };
    case 'error': return { error: 'mine' };
    case 'reject-value': return Promise.reject({ code: 7 });
    case 'array': return [1, 2];
  }
};";
    let Some(container) = ready(1, code) else { return };
    for (n, (how, expected)) in [
        ("throw", "Error: no luck"),
        ("reject", "TypeError: later no luck"),
        ("number", "did not return a dictionary or array, but number"),
        ("null", "did not return a dictionary or array, but null"),
        ("bare", "Object: null prototype"),
        ("circular", "cannot be written as JSON"),
        ("date", "did not return a dictionary or array"),
        ("huge", "return less"),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = container.run(&id(n), json!({ "how": how }));
        assert_eq!(reply.status, if how == "huge" { 507 } else { 502 }, "{how}");
        assert!(reply.error().contains(expected), "{how}: {}", reply.error());
    }
    assert!(container.stderr.of(&id(0)).iter().any(|line| line.contains("no luck")), "the stack is logged");
    assert_eq!(container.run(&id(90), json!({"how": "array"})).json(), json!([1, 2]));
    assert_eq!(container.run(&id(91), json!({"how": "nothing"})).json(), json!({}));
    for (n, how, expected) in
        [(92, "error", json!({"error": "mine"})), (93, "reject-value", json!({"error": {"code": 7}}))]
    {
        let own = container.run(&id(n), json!({ "how": how }));
        assert_eq!((own.status, own.json()), (200, expected));
    }
}

#[test]
fn the_function_may_be_local_exported_or_in_an_ecmascript_module() {
    let Some(path) = node() else { return };
    for (code, main) in [
        ("const handler = () => ({ ok: 1 });", "handler"),
        ("module.exports = { api: { call: async () => ({ ok: 1 }) } };", "api.call"),
        ("module.exports = () => ({ ok: 1 });", "main"),
        ("import fs from 'node:fs';\nexport function main() { return { ok: fs ? 1 : 0 }; }", "main"),
        ("export default async () => ({ ok: 1 });", "main"),
    ] {
        let container = Container::start_with("nodejs", 1, Some(&path));
        let init = container.init(json!({"code": code, "main": main}));
        assert_eq!(init.status, 200, "{code}: {}", String::from_utf8_lossy(&init.bytes));
        assert_eq!(container.run(&id(1), json!({})).json(), json!({"ok": 1}), "{code}");
    }
}

#[test]
fn code_that_does_not_load_fails_init_with_the_reason() {
    let Some(path) = node() else { return };
    for (code, expected) in [
        ("function main( {", "SyntaxError"),
        ("require('no-such-module-at-all')", "no-such-module-at-all"),
        ("function other() {}", "no function main"),
        ("require('fs').writeSync(2, 'last words\\n'); process.exit(5)", "exit code 5; its last words: last words"),
    ] {
        let container = Container::start_with("nodejs", 1, Some(&path));
        let reply = container.init(json!({ "code": code }));
        assert_eq!(reply.status, 502);
        assert!(reply.error().contains(expected), "{code:?}: {}", reply.error());
        assert_eq!(container.run(&id(1), json!({})).status, 502);
    }
}

#[test]
fn the_interpreters_death_answers_every_run_and_ends_the_proxy() {
    let code = "function main({ die }) {
  return new Promise(() => setTimeout(() => { if (die) throw new Error('thrown where nobody catches'); }, die ? 300 : 30000));
}";
    let Some(mut container) = ready(3, code) else { return };
    let replies = container.run_all(3, |n| json!({ "die": n == 2 }));
    for reply in replies {
        assert_eq!(reply.status, 502);
        assert!(reply.error().contains("the action's process ended: exit code 1"), "{}", reply.error());
        assert!(reply.error().contains("nobody catches"));
    }
    assert_eq!(container.await_exit().code(), Some(1));
    assert!(container.stdout.of(&id(0)).is_empty(), "each log has its end");
}

#[test]
fn what_is_printed_behind_a_runs_end_belongs_to_nobody() {
    let code =
        "function main() { console.log('own line'); setTimeout(() => console.log('late line'), 100); return {}; }";
    let Some(container) = ready(1, code) else { return };
    assert_eq!(container.run(&id(1), json!({})).log_lines, Some(1));
    container.stdout.await_unattributed("late line");
    assert_eq!(container.stdout.of(&id(1)), ["own line"]);
}

#[test]
fn stdin_eof_ends_the_interpreter_too() {
    let code = "const main = () => ({ pid: process.pid });";
    let Some(mut container) = ready(2, code) else { return };
    let pid = container.run(&id(1), json!({})).json()["pid"].as_u64().unwrap();
    container.close_stdin();
    assert!(container.await_exit().success());
    eventually("the interpreter's end", || !is_alive(pid));
}
