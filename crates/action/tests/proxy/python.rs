use std::path::PathBuf;

use serde_json::json;

use crate::support::{Container, id, interpreter};

fn python() -> Option<PathBuf> {
    interpreter("python3", &["-c", "import os, sys; print(os.path.realpath(sys.executable))"])
}

fn ready(concurrency: u32, code: &str) -> Option<Container> {
    python().map(|path| Container::ready("python", concurrency, Some(&path), code))
}

#[test]
fn a_function_is_called_with_its_parameters_and_its_lines_are_attributed() {
    let code = "import os, sys\nprint('loading')\ndef main(args):\n    print('hello', args['n'])\n    print('oops', file=sys.stderr)\n    sys.stdout.write('part')\n    os.system('echo from a child')\n    os.write(1, b'from below the interpreter\\n')\n    return {'n': args['n'], 'id': os.environ['__OW_ACTIVATION_ID'], 'colour': os.environ['colour'], 'c': os.popen('echo $__OW_ACTIVATION_ID').read().strip()}\n";
    let Some(path) = python() else { return };
    let container = Container::start_with("python", 1, Some(&path));
    assert_eq!(container.init(json!({"code": code, "env": {"colour": "red"}})).status, 200);
    for n in 1..=3 {
        let reply = container.run(&id(n), json!({"n": n}));
        assert_eq!((reply.status, reply.log_lines), (200, Some(3)), "{}", reply.json());
        assert_eq!(reply.json(), json!({"n": n, "id": id(n), "colour": "red", "c": id(n)}));
        assert_eq!(container.stdout.of(&id(n)), [format!("hello {n}"), "part".to_owned()]);
        assert_eq!(container.stderr.of(&id(n)), ["oops"]);
    }
    container.stdout.await_unattributed("loading");
    container.stdout.await_unattributed("from a child");
    container.stdout.await_unattributed("from below the interpreter");
    assert_eq!(container.init(json!({ "code": code })).status, 403);
}

/// What 50 calls of `code` at once must give: each its own id, from wherever it is read and printed.
fn fifty_at_once(code: &str) {
    let Some(container) = ready(50, code) else { return };
    let before = std::time::Instant::now();
    let replies = container.run_all(50, |n| json!({ "n": n }));
    let took = before.elapsed();
    for (n, reply) in replies.iter().enumerate() {
        let own = id(n);
        assert_eq!((reply.status, reply.json()), (200, json!({"n": n, "before": own, "after": own})));
        let expected = ["start", "thread", "executor", "end"].map(|what| format!("{what} {n} {own}"));
        assert_eq!(container.stdout.of(&own), expected);
        assert_eq!(container.stderr.of(&own), [format!("err {n}")]);
        assert_eq!(reply.log_lines, Some(5));
    }
    // One after the other they would sleep 50 times 0.3 s.
    assert!(took.as_secs() < 10, "they ran at once: {took:?}");
}

const BOTH: &str = "
import asyncio, concurrent.futures, os, sys, threading, time
executor = concurrent.futures.ThreadPoolExecutor(4)
def say(what, n):
    print(what, n, os.environ['__OW_ACTIVATION_ID'])
def begin(n):
    say('start', n)
    thread = threading.Thread(target=say, args=('thread', n))
    thread.start()
    thread.join()
    return os.environ['__OW_ACTIVATION_ID']
def end(n, before):
    say('end', n)
    print('err', n, file=sys.stderr)
    return {'n': n, 'before': before, 'after': os.getenv('__OW_ACTIVATION_ID')}
";

#[test]
fn fifty_synchronous_calls_at_once_each_have_their_own_id_and_lines() {
    fifty_at_once(&format!(
        "{BOTH}
def main(args):
    n = args['n']
    before = begin(n)
    executor.submit(say, 'executor', n).result()
    time.sleep(0.3)
    return end(n, before)
"
    ));
}

#[test]
fn fifty_asynchronous_calls_at_once_each_have_their_own_id_and_lines() {
    fifty_at_once(&format!(
        "{BOTH}
async def main(args):
    n = args['n']
    before = begin(n)
    await asyncio.get_running_loop().run_in_executor(executor, say, 'executor', n)
    await asyncio.sleep(0.3)
    return end(n, before)
"
    ));
}

#[test]
fn failures_are_told_and_the_interpreter_goes_on() {
    let code = "
import asyncio, os, sys
def main(args):
    how = args['how']
    if how == 'raise': raise ValueError('no luck')
    if how == 'exit': sys.exit(3)
    if how == 'number': return 7
    if how == 'set': return {'s': {1, 2}}
    if how == 'nan': return {'x': float('nan')}
    if how == 'huge': return {'x': 'y' * 5000000}
    if how == 'awaitable': return later()
    if how == 'error': return {'error': 'mine'}
    return [1, 2]
async def later():
    await asyncio.sleep(0)
    return {'later': True}
";
    for concurrency in [1, 4] {
        let Some(container) = ready(concurrency, code) else { return };
        for (n, (how, expected)) in [
            ("raise", "ValueError: no luck"),
            ("exit", "SystemExit: 3"),
            ("number", "did not return a dictionary or array, but int"),
            ("set", "not JSON serializable"),
            ("nan", "not JSON compliant"),
            ("huge", "return less"),
        ]
        .into_iter()
        .enumerate()
        {
            let reply = container.run(&id(n), json!({ "how": how }));
            assert_eq!(reply.status, if how == "huge" { 507 } else { 502 }, "{how}");
            assert!(reply.error().contains(expected), "{how}: {}", reply.error());
        }
        assert!(
            container.stderr.of(&id(0)).iter().any(|line| line.contains("ValueError: no luck")),
            "the traceback is logged"
        );
        assert!(!container.stderr.of(&id(0)).iter().any(|line| line.contains("launcher")), "without our frames");
        assert_eq!(container.run(&id(90), json!({"how": "array"})).json(), json!([1, 2]));
        assert_eq!(container.run(&id(91), json!({"how": "awaitable"})).json(), json!({"later": true}));
        let own = container.run(&id(92), json!({"how": "error"}));
        assert_eq!((own.status, own.json()), (200, json!({"error": "mine"})));
    }
}

#[test]
fn code_that_does_not_load_fails_init_with_the_reason() {
    let Some(path) = python() else { return };
    for (code, main, expected) in [
        ("def main(args:\n  pass", "main", "SyntaxError"),
        ("import no_such_module_at_all", "main", "no_such_module_at_all"),
        ("def other(args):\n  return {}", "main", "no function main in the code: it defines other"),
        ("import os\nos.write(2, b'last words\\n')\nos._exit(5)", "main", "exit code 5; its last words: last words"),
    ] {
        let container = Container::start_with("python", 1, Some(&path));
        let reply = container.init(json!({"code": code, "main": main}));
        assert_eq!(reply.status, 502);
        assert!(reply.error().contains(expected), "{code:?}: {}", reply.error());
        assert_eq!(container.run(&id(1), json!({})).status, 502);
    }
}

#[test]
fn the_interpreters_death_answers_every_run_and_ends_the_proxy() {
    let code = "import os, time\ndef main(args):\n    if args.get('die'):\n        time.sleep(0.3)\n        os.write(2, b'I am dying\\n')\n        os._exit(9)\n    time.sleep(30)\n    return {}\n";
    let Some(mut container) = ready(3, code) else { return };
    let replies = container.run_all(3, |n| json!({ "die": n == 2 }));
    for reply in replies {
        assert_eq!(reply.status, 502);
        assert!(reply.error().contains("the action's process ended: exit code 9"), "{}", reply.error());
        assert!(reply.error().contains("I am dying"));
    }
    assert_eq!(container.await_exit().code(), Some(1));
    assert!(container.stdout.of(&id(0)).is_empty(), "each log has its end");
}

#[test]
fn what_is_printed_behind_a_runs_end_or_in_a_forked_child_belongs_to_nobody() {
    let code = "
import multiprocessing, threading, time
context = multiprocessing.get_context('fork')
def late():
    time.sleep(1)
    print('late line')
def child():
    print('forked line')
def main(args):
    print('own line')
    process = context.Process(target=child)
    process.start()
    process.join()
    threading.Thread(target=late).start()
    return {}
";
    let Some(container) = ready(1, code) else { return };
    assert_eq!(container.run(&id(1), json!({})).log_lines, Some(1));
    container.stdout.await_unattributed("late line");
    container.stdout.await_unattributed("forked line");
    assert_eq!(container.stdout.of(&id(1)), ["own line"]);
}

#[test]
fn stdin_eof_ends_the_interpreter_too() {
    let code = "import os\ndef main(args):\n    return {'pid': os.getpid()}\n";
    let Some(mut container) = ready(2, code) else { return };
    let pid = container.run(&id(1), json!({})).json()["pid"].as_u64().unwrap();
    container.close_stdin();
    assert!(container.await_exit().success());
    crate::support::eventually("the interpreter's end", || !crate::support::is_alive(pid));
}

#[test]
fn parameters_that_python_cannot_read_are_refused_and_the_interpreter_goes_on() {
    let code = "def main(args):\n    print('fine')\n    return {'fine': True}\n";
    for concurrency in [1, 2] {
        let Some(container) = ready(concurrency, code) else { return };
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = format!(r#"{{"activation_id":"{}","value":{{"x":{deep}}}}}"#, id(1));
        let reply = crate::support::post(&container.socket(), "/run", &body).unwrap();
        assert_eq!((reply.status, reply.log_lines), (400, Some(0)));
        assert!(reply.error().contains("RecursionError"), "{}", reply.error());
        assert_eq!(container.run(&id(2), json!({})).json(), json!({"fine": true}));
        assert_eq!((container.stdout.of(&id(2)).len(), container.stderr.of(&id(2)).len()), (1, 0));
        assert!(container.stdout.has_none_of(&id(1)) && container.stderr.has_none_of(&id(1)));
    }
}
