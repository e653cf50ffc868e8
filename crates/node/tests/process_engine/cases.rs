//! The cases; each is run with each isolation that the host allows.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use embermesh_node::containers::logs::{LogSink, Stream};
use embermesh_node::containers::process::{Isolation, ProcessEngine, ProcessEngineConfig};
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, EngineEvent, Reply, Runtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::processes::{self, until, within};

const LONG: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

type Case = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, Case)] = &[$((stringify!($name), |bench| Box::pin($name(bench)))),*];
    };
}

cases![
    a_container_starts_runs_pauses_resumes_and_is_removed,
    its_environment_and_limits_are_its_own,
    grandchildren_that_left_their_session_stop_continue_and_end_with_it,
    a_container_that_ends_by_itself_is_reported_once,
    a_removed_container_is_not_reported,
    removing_a_dead_container_leaves_others_alone,
    removing_again_or_what_never_was_succeeds,
    a_paused_container_can_be_removed,
    nothing_outlives_a_killed_agent,
    nothing_outlives_a_killed_supervisor,
    a_program_that_ends_at_once_fails_the_start_with_what_it_said,
    an_abandoned_start_leaves_nothing,
    an_abandoned_run_leaves_the_container_usable,
    a_run_over_its_time_out_says_so,
    an_answer_that_is_too_large_says_so,
    a_container_over_its_memory_is_ended_with_the_reason,
    a_container_with_too_many_processes_is_ended_with_the_reason,
    lines_arrive_with_their_activation,
    a_second_socket_is_used_only_inside_the_own_folder,
    many_runs_at_once_share_a_container,
    calls_for_unknown_containers_and_a_second_start_are_refused,
    a_deep_data_folder_works,
    shutdown_ends_everything_and_refuses_more,
];

/// One engine with a folder of its own.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    isolation: Isolation,
    engine: Arc<ProcessEngine>,
    lines: Arc<Lines>,
    id: String,
}

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl LogSink for Lines {
    fn line(&self, stream: Stream, activation: Option<&str>, text: &str) {
        self.0.lock().unwrap().push(format!("{stream:?} {} {text}", activation.unwrap_or("-")));
    }

    fn end(&self, stream: Stream, activation: &str) {
        self.0.lock().unwrap().push(format!("{stream:?} {activation} ends"));
    }
}

fn config(root: PathBuf, isolation: Isolation) -> ProcessEngineConfig {
    let mut config = ProcessEngineConfig::new("/proc/self/exe", root, "n1", "http://127.0.0.1:3233");
    config.isolation = isolation;
    config.max_processes = 60;
    config.max_files = 300;
    config
}

impl Bench {
    /// `None` if the host refuses that isolation.
    pub(crate) fn new(isolation: Isolation) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let engine = Arc::new(ProcessEngine::new(config(folder.path().join("containers"), isolation)).unwrap());
        let id = format!("n1-{}-{}", folder.path().file_name()?.to_str()?.replace('.', ""), isolation.as_str().len());
        (engine.isolation() == isolation).then(|| Bench { folder, isolation, engine, lines: Arc::default(), id })
    }

    pub(crate) async fn end(self) {
        self.engine.shutdown().await;
        assert!(processes::of(&self.id).is_empty(), "a case left a process behind");
    }

    fn spec(&self) -> ContainerSpec {
        spec(&self.id, self.lines.clone())
    }

    async fn start(&self) {
        self.engine.start(self.spec()).await.unwrap();
    }

    async fn ask(&self, body: Value, timeout: Duration) -> Result<Reply, EngineError> {
        self.engine.run(&self.id, Bytes::from(body.to_string()), timeout).await
    }

    async fn run(&self, body: Value) -> Value {
        let reply = self.ask(body, LONG).await.unwrap();
        assert_eq!(reply.status, 200);
        serde_json::from_slice(&reply.body).unwrap()
    }

    fn container_folder(&self) -> PathBuf {
        self.folder.path().join("containers").join(&self.id)
    }

    /// Waits for the report of a death and for nothing more to come.
    async fn only_death(&self) -> String {
        let mut events = self.engine.events().unwrap();
        let event = tokio::time::timeout(LONG, events.recv()).await.expect("no report").unwrap();
        let EngineEvent::Died { id, reason } = event;
        assert_eq!(id, self.id);
        // What comes after its end certainly was not run.
        let later = self.ask(json!({"do": "echo"}), LONG).await;
        assert!(matches!(&later, Err(EngineError::Refused(why)) if why.ends_with(&reason)), "{later:?}");
        self.engine.remove(&self.id).await.unwrap();
        assert!(events.try_recv().is_err(), "reported twice");
        reason
    }
}

fn spec(id: &str, logs: Arc<dyn LogSink>) -> ContainerSpec {
    ContainerSpec {
        id: id.into(),
        namespace: "guest".to_owned(),
        action: "test".to_owned(),
        revision: "1@n1".to_owned(),
        runtime: Runtime::Builtin,
        image: None,
        memory_mb: 128,
        concurrency: 4,
        logs,
    }
}

async fn a_container_starts_runs_pauses_resumes_and_is_removed(bench: &Bench) {
    let begun = Instant::now();
    bench.start().await;
    println!("  started in {:?}", begun.elapsed());
    let reply = bench.engine.init(&bench.id, Bytes::from_static(b"{}"), LONG).await.unwrap();
    assert_eq!((reply.status, reply.log_lines), (200, Some(2)));
    let pid = bench.run(json!({"do": "echo"})).await["pid"].as_u64().unwrap();
    assert_eq!(pid == 1, bench.isolation != Isolation::ProcessGroup, "pid {pid}");
    bench.run(json!({"do": "daemons", "count": 9})).await;

    let begun = Instant::now();
    bench.engine.pause(&bench.id).await.unwrap();
    println!("  paused ten processes in {:?}", begun.elapsed());
    assert!(processes::inside(&bench.id).iter().all(|process| process.state == 'T'));
    let stuck = bench.ask(json!({"do": "echo"}), Duration::from_millis(100)).await;
    assert!(matches!(stuck, Err(EngineError::Timeout(_))), "{stuck:?}");
    bench.engine.pause(&bench.id).await.unwrap();

    let begun = Instant::now();
    bench.engine.resume(&bench.id).await.unwrap();
    println!("  resumed in {:?}", begun.elapsed());
    assert_eq!(bench.run(json!({"do": "echo"})).await["pid"].as_u64(), Some(pid));
    assert!(bench.container_folder().exists());
    let begun = Instant::now();
    bench.engine.remove(&bench.id).await.unwrap();
    println!("  removed in {:?}", begun.elapsed());
    assert!(processes::of(&bench.id).is_empty());
    assert!(!bench.container_folder().exists());
}

async fn its_environment_and_limits_are_its_own(bench: &Bench) {
    bench.start().await;
    let environment = bench.run(json!({"do": "environment"})).await;
    let work = bench.container_folder().canonicalize().unwrap().join("work");
    for (name, value) in [
        ("__EMBERMESH_CONTAINER", bench.id.as_str()),
        ("__EMBERMESH_NODE", "n1"),
        ("__OW_API_HOST", "http://127.0.0.1:3233"),
        ("__OW_ALLOW_CONCURRENT", "true"),
        ("HOME", work.to_str().unwrap()),
        ("TMPDIR", work.join("tmp").to_str().unwrap()),
    ] {
        assert_eq!(environment[name], value, "{name}");
    }
    // These six, PATH and LANG.
    assert_eq!(environment.as_object().unwrap().len(), 8, "{environment}");

    let limits = bench.run(json!({"do": "limits"})).await;
    let line = |name: &str| limits.as_str().unwrap().lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("Max data size").contains(&((128 + 64) << 20).to_string()), "{}", line("Max data size"));
    assert!(line("Max open files").contains(" 300 "), "{}", line("Max open files"));
    assert!(line("Max core file size").contains(" 0 "), "{}", line("Max core file size"));
    if bench.isolation == Isolation::UserAndPidNamespace {
        assert!(line("Max processes").contains(" 60 "), "{}", line("Max processes"));
    }
}

async fn grandchildren_that_left_their_session_stop_continue_and_end_with_it(bench: &Bench) {
    bench.start().await;
    bench.run(json!({"do": "daemons", "count": 3})).await;
    let daemons = || processes::inside(&bench.id).into_iter().filter(|process| process.args.contains("stays"));
    until("three daemons run", || daemons().count() == 3).await;
    bench.engine.pause(&bench.id).await.unwrap();
    assert_eq!(daemons().filter(|daemon| daemon.state == 'T').count(), 3);
    bench.engine.resume(&bench.id).await.unwrap();
    until("all run again", || daemons().filter(|daemon| daemon.state != 'T').count() == 3).await;
    bench.engine.remove(&bench.id).await.unwrap();
    assert_eq!(daemons().count(), 0);
}

/// What a run is told whose container ended. On a machine that stands still just then, its end is seen too late for that.
fn expect_ended(outcome: &Result<Reply, EngineError>, reason: &str) {
    let told = match outcome {
        Err(EngineError::Died(why)) => why.starts_with(reason),
        Err(EngineError::Indeterminate(_)) => true,
        _ => false,
    };
    assert!(told, "{outcome:?}");
}

async fn a_container_that_ends_by_itself_is_reported_once(bench: &Bench) {
    bench.start().await;
    let outcome = bench.ask(json!({"do": "exit", "code": 7}), LONG).await;
    expect_ended(&outcome, "exit status 7");
    let reason = bench.only_death().await;
    assert_eq!(reason, "exit status 7; it said: exiting on purpose");
}

async fn a_removed_container_is_not_reported(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    assert!(bench.engine.events().is_none());
    bench.start().await;
    let body = json!({"do": "sleep", "ms": 60_000});
    let (outcome, removed) = tokio::join!(bench.ask(body, LONG), async {
        until("the run has begun", || !processes::inside(&bench.id).is_empty()).await;
        bench.engine.remove(&bench.id).await
    });
    removed.unwrap();
    expect_ended(&outcome, "it was removed");
    assert!(events.try_recv().is_err());
}

/// The kernel gives the numbers of what ended to what starts next.
async fn removing_a_dead_container_leaves_others_alone(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    assert!(bench.ask(json!({"do": "exit", "code": 0}), LONG).await.is_err());
    events.recv().await.unwrap();
    let others: Vec<String> = (0..4).map(|n| format!("{}-{n}", bench.id)).collect();
    for id in &others {
        bench.engine.start(spec(id, bench.lines.clone())).await.unwrap();
    }
    bench.engine.remove(&bench.id).await.unwrap();
    for id in &others {
        bench.engine.run(id, Bytes::from_static(br#"{"do": "echo"}"#), LONG).await.unwrap();
    }
    assert!(events.try_recv().is_err());
}

async fn removing_again_or_what_never_was_succeeds(bench: &Bench) {
    bench.start().await;
    let (first, second) = tokio::join!(bench.engine.remove(&bench.id), bench.engine.remove(&bench.id));
    first.and(second).unwrap();
    bench.engine.remove(&bench.id).await.unwrap();
    bench.engine.remove("never").await.unwrap();
}

async fn a_paused_container_can_be_removed(bench: &Bench) {
    bench.start().await;
    bench.run(json!({"do": "daemons", "count": 2})).await;
    bench.engine.pause(&bench.id).await.unwrap();
    bench.engine.remove(&bench.id).await.unwrap();
    assert!(processes::of(&bench.id).is_empty());
}

async fn nothing_outlives_a_killed_agent(bench: &Bench) {
    let root = bench.folder.path().join("other");
    let mut agent = Command::new("/proc/self/exe")
        .args(["__agent", root.to_str().unwrap(), bench.isolation.as_str(), &bench.id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let up = tokio::task::spawn_blocking(move || lines.map_while(Result::ok).any(|line| line == "up")).await.unwrap();
    assert!(up, "the agent did not come up");
    // Two supervisors, two containers of which one is paused, and a daemon in each.
    let other = format!("{}-paused", bench.id);
    assert_eq!((processes::of(&bench.id).len(), processes::of(&other).len()), (3, 3));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let all_gone = || processes::of(&bench.id).is_empty() && processes::of(&other).is_empty();
    let took = within(10 * SECOND, "all are gone", all_gone).await;
    println!("  all gone after {took:?}");
    assert!(root.join(&bench.id).exists());
    let _next_life = ProcessEngine::new(config(root.clone(), bench.isolation)).unwrap();
    assert!(!root.join(&bench.id).exists(), "the folder was left over");
}

/// Starts two containers with a daemon each, stops one, says so and waits to be killed.
pub(crate) fn agent(mut args: impl Iterator<Item = String>) -> ExitCode {
    let mut next = || args.next().unwrap();
    let (root, isolation, id) = (PathBuf::from(next()), next().parse().unwrap(), next());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let engine = ProcessEngine::new(config(root, isolation)).unwrap();
        let paused = format!("{id}-paused");
        for id in [&id, &paused] {
            engine.start(spec(id, Arc::<Lines>::default())).await.unwrap();
            engine.run(id, Bytes::from_static(br#"{"do": "daemons", "count": 1}"#), LONG).await.unwrap();
            until("the daemon runs", || processes::of(id).iter().any(|process| process.args.contains("stays"))).await;
            until("its starter is gone", || processes::of(id).len() == 3).await;
        }
        engine.pause(&paused).await.unwrap();
        println!("up");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

async fn nothing_outlives_a_killed_supervisor(bench: &Bench) {
    bench.start().await;
    if bench.isolation != Isolation::ProcessGroup {
        bench.run(json!({"do": "daemons", "count": 1})).await;
    }
    let supervisor = processes::of(&bench.id).into_iter().find(|process| process.args.contains("__supervise")).unwrap();
    kill(Pid::from_raw(supervisor.pid), Signal::SIGKILL).unwrap();
    let reason = bench.only_death().await;
    assert!(reason.contains("supervisor was killed"), "{reason}");
    assert!(processes::of(&bench.id).is_empty());
}

async fn a_program_that_ends_at_once_fails_the_start_with_what_it_said(bench: &Bench) {
    let spec = ContainerSpec { runtime: Runtime::Python, ..bench.spec() };
    let Err(EngineError::Refused(message)) = bench.engine.start(spec).await else { panic!("not refused") };
    if bench.engine.supports(Runtime::Python, 1).is_ok() {
        assert!(message.contains("exit status 3") && message.contains("cannot start on purpose"), "{message}");
        let interpreter = message.split("interpreter is ").nth(1).unwrap();
        assert!(interpreter.starts_with('/') && !interpreter.contains("shims"), "{message}");
    } else {
        assert!(message.contains("Install Python"), "{message}");
    }
    assert!(!bench.container_folder().exists());
    assert!(matches!(bench.ask(json!({"do": "echo"}), LONG).await, Err(EngineError::Unknown(_))));
}

async fn an_abandoned_start_leaves_nothing(bench: &Bench) {
    for delay in [0, 1, 2, 4, 8] {
        let abandoned = tokio::time::timeout(Duration::from_millis(delay), bench.engine.start(bench.spec())).await;
        if abandoned.is_ok() {
            bench.engine.remove(&bench.id).await.unwrap();
        }
        until("nothing is left", || {
            processes::of(&bench.id).is_empty() && !bench.container_folder().exists() && bench.is_unknown()
        })
        .await;
    }
}

impl Bench {
    fn is_unknown(&self) -> bool {
        let call = self.engine.resume(&self.id);
        let outcome = futures::FutureExt::now_or_never(call);
        matches!(outcome, Some(Err(EngineError::Unknown(_))))
    }
}

async fn an_abandoned_run_leaves_the_container_usable(bench: &Bench) {
    bench.start().await;
    for _ in 0..10 {
        let run = bench.ask(json!({"do": "sleep", "ms": 60_000}), LONG);
        assert!(tokio::time::timeout(Duration::from_millis(5), run).await.is_err());
        bench.run(json!({"do": "echo"})).await;
    }
}

async fn a_run_over_its_time_out_says_so(bench: &Bench) {
    bench.start().await;
    let short = Duration::from_millis(50);
    let outcome = bench.ask(json!({"do": "sleep", "ms": 60_000}), short).await;
    assert!(matches!(outcome, Err(EngineError::Timeout(after)) if after == short), "{outcome:?}");
    bench.run(json!({"do": "echo"})).await;
}

async fn an_answer_that_is_too_large_says_so(bench: &Bench) {
    bench.start().await;
    assert_eq!(bench.ask(json!({"do": "answer", "bytes": 1 << 20}), LONG).await.unwrap().body.len(), 1 << 20);
    let outcome = bench.ask(json!({"do": "answer", "bytes": 2 << 20}), LONG).await;
    assert!(matches!(outcome, Err(EngineError::TooLarge { .. })), "{outcome:?}");
    bench.run(json!({"do": "echo"})).await;
}

async fn a_container_over_its_memory_is_ended_with_the_reason(bench: &Bench) {
    bench.start().await;
    bench.run(json!({"do": "hogs", "count": 1, "mb": 20})).await;
    let run = bench.ask(json!({"do": "sleep", "ms": 60_000}), LONG);
    // Each within what one process may allocate, together too much.
    let (outcome, _) = tokio::join!(run, bench.ask(json!({"do": "hogs", "count": 3, "mb": 60}), LONG));
    expect_ended(&outcome, "out of memory: ");
    let reason = bench.only_death().await;
    assert!(reason.ends_with(" MB over the limit of 128 MB"), "{reason}");
    assert!(processes::of(&bench.id).is_empty());
}

async fn a_container_with_too_many_processes_is_ended_with_the_reason(bench: &Bench) {
    bench.start().await;
    if bench.isolation == Isolation::UserAndPidNamespace && !nix::unistd::geteuid().is_root() {
        // There the kernel refuses the one that is too many: the stand-in panics and closes the connection.
        let outcome = bench.ask(json!({"do": "hogs", "count": 100, "mb": 0}), LONG).await;
        let count = processes::inside(&bench.id).len();
        assert!(outcome.is_err() && count <= 60, "{outcome:?}, {count} processes");
        return;
    }
    // It may end before it has answered.
    let _ = bench.ask(json!({"do": "hogs", "count": 70, "mb": 0}), LONG).await;
    let reason = bench.only_death().await;
    assert!(reason.starts_with("too many processes: ") && reason.ends_with("over the limit of 60"), "{reason}");
}

async fn lines_arrive_with_their_activation(bench: &Bench) {
    bench.start().await;
    let id = "0123456789abcdef0123456789abcdef";
    let end = format!("\x1e{id}\x1fXXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n");
    bench.run(json!({"do": "print", "lines": format!("free\n\x1e{id}\x1fbound\n{end}")})).await;
    let expected: Vec<String> = ["Stdout", "Stderr"]
        .iter()
        .flat_map(|stream| [format!("{stream} - free"), format!("{stream} {id} bound"), format!("{stream} {id} ends")])
        .collect();
    until("all lines have come", || {
        let seen = bench.lines.0.lock().unwrap();
        let of = |stream: &str| seen.iter().filter(|line| line.starts_with(stream)).cloned().collect::<Vec<_>>();
        [of("Stdout"), of("Stderr")].concat() == expected
    })
    .await;
}

async fn a_second_socket_is_used_only_inside_the_own_folder(bench: &Bench) {
    bench.start().await;
    let init = |file: &str| bench.engine.init(&bench.id, Bytes::from(json!({"socket": file}).to_string()), LONG);
    init("direct").await.unwrap();
    // Only the second one is left to be called.
    std::fs::remove_file(bench.container_folder().join("socket")).unwrap();
    bench.run(json!({"do": "echo"})).await;
    let outside = bench.folder.path().join("outside");
    init(outside.to_str().unwrap()).await.unwrap();
    std::fs::remove_file(&outside).unwrap();
    bench.run(json!({"do": "echo"})).await;
}

async fn many_runs_at_once_share_a_container(bench: &Bench) {
    bench.start().await;
    let begun = Instant::now();
    let runs = (0..200).map(|_| bench.run(json!({"do": "sleep", "ms": 200})));
    let pids = futures::future::join_all(runs).await;
    assert!(begun.elapsed() < 10 * SECOND, "they waited for each other: {:?}", begun.elapsed());
    assert!(pids.iter().all(|pid| *pid == pids[0]));
    println!("  200 at once in {:?}", begun.elapsed());
    // On a worker, as requests of the API are.
    let (engine, id) = (bench.engine.clone(), bench.id.clone());
    let took = tokio::spawn(async move {
        let mut took = Vec::new();
        for _ in 0..500 {
            let begun = Instant::now();
            engine.run(&id, Bytes::from_static(br#"{"do": "echo"}"#), LONG).await.unwrap();
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        took
    });
    let took = took.await.unwrap();
    println!("  one after another: p50 {:?}, p99 {:?}", took[250], took[495]);
}

async fn calls_for_unknown_containers_and_a_second_start_are_refused(bench: &Bench) {
    let body = Bytes::from_static(b"{}");
    assert!(matches!(bench.engine.run("never", body.clone(), LONG).await, Err(EngineError::Unknown(_))));
    assert!(matches!(bench.engine.init("never", body, LONG).await, Err(EngineError::Unknown(_))));
    assert!(matches!(bench.engine.pause("never").await, Err(EngineError::Unknown(_))));
    assert!(matches!(bench.engine.resume("never").await, Err(EngineError::Unknown(_))));
    bench.start().await;
    assert!(matches!(bench.engine.start(bench.spec()).await, Err(EngineError::Refused(why)) if why.contains("exists")));
    bench.run(json!({"do": "echo"})).await;
    let refused = bench.engine.supports(Runtime::ActionLoop, 2);
    assert!(matches!(refused, Err(EngineError::Refused(why)) if why.contains("concurrency 2")));
    bench.engine.supports(Runtime::ActionLoop, 1).unwrap();
}

async fn a_deep_data_folder_works(bench: &Bench) {
    let deep = bench.folder.path().join("d".repeat(120));
    let engine = ProcessEngine::new(config(deep, bench.isolation)).unwrap();
    engine.start(bench.spec()).await.unwrap();
    engine.run(&bench.id, Bytes::from_static(br#"{"do": "echo"}"#), LONG).await.unwrap();
    engine.shutdown().await;
}

async fn shutdown_ends_everything_and_refuses_more(bench: &Bench) {
    bench.start().await;
    let second = format!("{}-2", bench.id);
    bench.engine.start(spec(&second, bench.lines.clone())).await.unwrap();
    bench.engine.shutdown().await;
    assert!(processes::of(&bench.id).is_empty() && processes::of(&second).is_empty());
    let root = bench.folder.path().join("containers");
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    assert!(matches!(bench.engine.start(bench.spec()).await, Err(EngineError::Refused(_))));
}
