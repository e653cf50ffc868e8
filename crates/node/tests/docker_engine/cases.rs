//! The cases, each with an engine of its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig, NetworkCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, KillContainerOptions, RemoveContainerOptionsBuilder,
    StartContainerOptions,
};
use bytes::Bytes;
use embermesh_node::containers::docker::{DockerEngine, Pull};
use embermesh_node::containers::{ContainerSpec, Engine, EngineError, Found, Runtime};
use futures::StreamExt;
use serde_json::json;

use crate::bench::{Bench, LONG, death, until};
use crate::registry::Registry;
use crate::relay::{Mode, Relay};

const SECOND: Duration = Duration::from_secs(1);
/// What is done to containers behind our back is noticed within a second, but for a machine that is busy otherwise.
const NOTICED: Duration = Duration::from_secs(5);

type Case = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, Case)] = &[$((stringify!($name), |bench| Box::pin($name(bench)))),*];
    };
}

cases![
    a_container_starts_runs_pauses_resumes_and_is_removed,
    a_container_of_ours_has_no_rights_no_network_and_its_limits,
    an_image_of_the_users_serves_on_a_bridge_and_reaches_no_neighbour,
    who_calls_from_a_bridge_of_this_host_is_barred_by_every_agent,
    connections_to_a_container_are_closed_before_it_is_removed,
    a_network_that_connects_its_containers_is_refused,
    a_container_that_somebody_kills_is_reported_soon,
    a_container_that_somebody_removes_is_reported_soon,
    a_container_that_somebody_pauses_goes_on,
    a_paused_container_that_somebody_resumes_is_paused_again,
    somebody_who_insists_ends_the_container,
    a_container_over_its_memory_is_reported_with_the_limit,
    one_that_went_over_its_memory_while_the_engine_was_gone_is_told_as_that,
    an_end_long_after_a_child_went_over_the_memory_is_not_told_as_that,
    an_old_want_of_memory_that_is_told_again_after_a_break_is_not_taken_for_a_new_one,
    a_removed_container_is_not_reported,
    a_second_socket_is_used_only_inside_the_own_folder,
    lines_arrive_with_their_activation,
    an_image_that_does_not_exist_is_named_with_what_to_try,
    a_missing_image_is_pulled_once_and_used_by_all_who_wait,
    images_that_are_slow_to_come_leave_a_place_to_other_starts,
    a_removed_image_is_made_again_and_a_full_image_store_is_told,
    an_image_without_a_runtime_is_told_as_that,
    a_container_that_ends_at_once_fails_its_start_with_its_last_words,
    a_container_that_never_opens_its_port_fails_its_start,
    an_abandoned_start_leaves_nothing,
    removing_a_container_that_starts_ends_the_start,
    containers_of_others_are_left_alone_whatever_they_are_called,
    what_an_earlier_life_left_is_found_and_goes_when_it_is_discarded,
    what_an_earlier_life_left_serves_on_under_a_new_id_once_it_is_adopted,
    a_taken_name_fails_the_start_and_its_holder_stays,
    a_hanging_engine_is_told_and_what_runs_is_served_on,
    an_engine_that_was_gone_is_found_again_with_what_happened_meanwhile,
    an_engine_that_is_not_there_is_named_with_what_to_try,
    shutdown_ends_everything_and_refuses_more,
];

async fn a_container_starts_runs_pauses_resumes_and_is_removed(bench: &Bench) {
    let began = Instant::now();
    bench.start().await;
    println!("  started in {:?}", began.elapsed());
    let reply = bench.engine.init(&bench.id, Bytes::from_static(b"{}"), LONG).await.unwrap();
    assert_eq!((reply.status, reply.log_lines), (200, Some(2)));
    assert_eq!(bench.echo().await["pid"], 1);
    let began = Instant::now();
    bench.engine.pause(&bench.id).await.unwrap();
    println!("  paused in {:?}", began.elapsed());
    // One that is put off, while the engine does not answer, comes to be.
    until("it is paused", LONG, || bench.is_paused()).await;
    bench.engine.pause(&bench.id).await.unwrap();
    let began = Instant::now();
    bench.engine.resume(&bench.id).await.unwrap();
    bench.echo().await;
    println!("  resumed, with its first answer, in {:?}", began.elapsed());
    bench.engine.pause(&bench.id).await.unwrap();
    let began = Instant::now();
    bench.engine.remove(&bench.id).await.unwrap();
    println!("  removed while paused in {:?}", began.elapsed());
    assert!(bench.listed().await.is_empty() && !bench.container_folder().exists());
    bench.engine.remove(&bench.id).await.unwrap();
    assert!(matches!(bench.ask(json!({"do": "echo"}), LONG).await, Err(EngineError::Unknown(_))));
}

async fn a_container_of_ours_has_no_rights_no_network_and_its_limits(bench: &Bench) {
    bench.start().await;
    let inspected = bench.inspect().await;
    let host = inspected.host_config.unwrap();
    expect_limits(&host);
    assert_eq!((host.network_mode.as_deref(), host.readonly_rootfs), (Some("none"), Some(true)));
    // What is in it counts as the container's memory.
    assert!(host.tmpfs.unwrap()["/tmp"].split(',').any(|option| option == "size=128m"));
    let config = inspected.config.unwrap();
    assert_eq!(config.user.as_deref(), Some("65532:65532"));
    let labels = config.labels.unwrap();
    for (key, value) in [
        ("cluster", bench.config.cluster.as_str()),
        ("node", "n1"),
        ("instance", &bench.config.instance),
        ("action", "guest/test"),
        ("revision", "1@n1"),
        ("container", &bench.id),
    ] {
        assert_eq!(labels[&format!("embermesh.{key}")], value, "{key}");
    }
    assert_eq!(labels["embermesh.epoch"], bench.id.split('-').nth(1).unwrap());
    for (path, allowed) in [("/tmp/x", true), ("/x", false), ("/etc/passwd", false), ("/run/embermesh/x", true)] {
        assert_eq!(bench.run(json!({"do": "write", "path": path})).await["written"], allowed, "{path}");
    }
    let environment = bench.run(json!({"do": "environment"})).await;
    assert_eq!(environment["__EMBERMESH_CONTAINER"], bench.id);
    assert_eq!(environment["__OW_ALLOW_CONCURRENT"], "true");
    assert_eq!(bench.run(json!({"do": "connect", "to": "172.17.0.1:22"})).await["connected"], false);
}

/// Those of `bench.spec()`, whatever runs in it.
fn expect_limits(host: &HostConfig) {
    assert_eq!((host.memory, host.memory_swap, host.cpu_shares), (Some(128 << 20), Some(128 << 20), Some(512)));
    assert_eq!((host.pids_limit, &host.cap_drop), (Some(256), &Some(vec!["ALL".to_owned()])));
    assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    assert_eq!((host.privileged, &host.cap_add), (Some(false), &None));
}

async fn an_image_of_the_users_serves_on_a_bridge_and_reaches_no_neighbour(bench: &Bench) {
    let began = Instant::now();
    bench.engine.start(bench.stock("serves")).await.unwrap();
    println!("  started in {:?}", began.elapsed());
    expect_limits(&bench.inspect().await.host_config.unwrap());
    bench.engine.init(&bench.id, Bytes::from_static(b"{}"), LONG).await.unwrap();
    bench.echo().await;
    let other = format!("{}-other", bench.id);
    bench.engine.start(ContainerSpec { id: other.as_str().into(), ..bench.stock("serves") }).await.unwrap();
    let name = format!("embermesh-{}-{other}", bench.config.cluster);
    let address = bench.address(&name, &bench.config.network).await;
    // This host reaches it, its neighbour does not.
    tokio::net::TcpStream::connect(format!("{address}:8080")).await.unwrap();
    let asked = bench.run(json!({"do": "connect", "to": format!("{address}:8080")})).await;
    assert_eq!(asked["connected"], false);
    bench.engine.pause(&bench.id).await.unwrap();
    bench.engine.resume(&bench.id).await.unwrap();
    bench.echo().await;
    // The next one gets its address, and nobody waits for the neighbours to notice.
    let mut slowest = Duration::ZERO;
    for _ in 0..4 {
        bench.engine.remove(&bench.id).await.unwrap();
        let began = Instant::now();
        bench.engine.start(bench.stock("serves")).await.unwrap();
        bench.echo().await;
        slowest = slowest.max(began.elapsed());
    }
    println!("  slowest of four restarts in a row: {slowest:?}");
}

async fn who_calls_from_a_bridge_of_this_host_is_barred_by_every_agent(bench: &Bench) {
    bench.engine.start(bench.stock("serves")).await.unwrap();
    let own = IpAddr::V4(bench.address(&bench.docker_name(), &bench.config.network).await);
    assert!(bench.engine.bars(own) && !bench.engine.bars(Ipv4Addr::LOCALHOST.into()));
    let network = format!("{}-2", bench.config.network);
    let other = bench.other(|config| {
        config.network.clone_from(&network);
    });
    let other = other.await.unwrap();
    assert!(other.bars(own), "from its start on");
    let id = format!("{}-other", bench.id);
    other.start(ContainerSpec { id: id.as_str().into(), ..bench.stock("serves") }).await.unwrap();
    let name = format!("embermesh-{}-{id}", bench.config.cluster);
    let others = IpAddr::V4(bench.address(&name, &network).await);
    assert!(other.bars(others));
    until("the first one knows of it", LONG, || async { bench.engine.bars(others) }).await;
    other.shutdown().await;
}

async fn connections_to_a_container_are_closed_before_it_is_removed(bench: &Bench) {
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    engine.start(bench.stock("serves")).await.unwrap();
    let address = bench.address(&bench.docker_name(), &bench.config.network).await;
    let run = engine.run(&bench.id, Bytes::from_static(br#"{"do": "sleep", "ms": 60000}"#), LONG);
    let removal = async {
        until("the run is under way", LONG, || async { connections_to(address, 8080) == 1 }).await;
        relay.set(Mode::Hangs);
        let (removed, ()) = tokio::join!(engine.remove(&bench.id), async {
            until("it is closed", LONG, || async { connections_to(address, 8080) == 0 }).await;
            assert_eq!(bench.inspect().await.state.unwrap().running, Some(true), "the container went first");
            relay.set(Mode::Passes);
        });
        removed.unwrap();
    };
    let (outcome, ()) = tokio::join!(run, removal);
    assert!(matches!(&outcome, Err(EngineError::Died(why)) if why == "it was removed"), "{outcome:?}");
    engine.shutdown().await;
}

/// Open ones of this host.
fn connections_to(address: Ipv4Addr, port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    let to = format!("{:08X}:{port:04X}", u32::from_ne_bytes(address.octets()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[2] == to && fields[3] == ESTABLISHED).count()
}

async fn a_network_that_connects_its_containers_is_refused(bench: &Bench) {
    let name = format!("{}-open", bench.config.cluster);
    let request = NetworkCreateRequest { name: name.clone(), ..NetworkCreateRequest::default() };
    let id = bench.docker.create_network(request).await.unwrap().id;
    let engine = bench.other(|config| config.network.clone_from(&name)).await.unwrap();
    let outcome = engine.start(bench.stock("serves")).await;
    engine.shutdown().await;
    // Not made by an agent: it stays.
    bench.docker.remove_network(&id).await.unwrap();
    let Err(EngineError::Refused(why)) = outcome else { panic!("not refused: {outcome:?}") };
    assert!(why.contains(&name) && why.contains("docker network rm") && why.contains("enable_icc"), "{why}");
}

async fn a_container_that_somebody_kills_is_reported_soon(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    assert!(bench.engine.events().is_none());
    bench.start().await;
    let run = bench.ask(json!({"do": "sleep", "ms": 60_000}), LONG);
    let kill = async {
        // Not before the run has arrived: it is not told otherwise.
        bench.echo().await;
        bench.docker.kill_container(&bench.docker_name(), None::<KillContainerOptions>).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(run, kill);
    assert!(matches!(&outcome, Err(EngineError::Died(_) | EngineError::Indeterminate(_))), "{outcome:?}");
    let reason = death(&mut events, NOTICED).await;
    assert!(reason.contains("SIGKILL"), "{reason}");
    // What comes after its end certainly was not run.
    let later = bench.ask(json!({"do": "echo"}), LONG).await;
    assert!(matches!(&later, Err(EngineError::Refused(why)) if why.ends_with(&reason)), "{later:?}");
    bench.engine.remove(&bench.id).await.unwrap();
    assert!(events.try_recv().is_err(), "reported twice");
}

async fn a_container_that_somebody_removes_is_reported_soon(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    bench.docker.remove_container(&bench.docker_name(), Some(options)).await.unwrap();
    death(&mut events, NOTICED).await;
    bench.engine.remove(&bench.id).await.unwrap();
}

async fn a_container_that_somebody_pauses_goes_on(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    bench.docker.pause_container(&bench.docker_name()).await.unwrap();
    let took = until("it runs again", NOTICED, || async { !bench.is_paused().await }).await;
    println!("  changed back after {took:?}");
    bench.echo().await;
    assert!(events.try_recv().is_err());
}

async fn a_paused_container_that_somebody_resumes_is_paused_again(bench: &Bench) {
    bench.start().await;
    bench.engine.pause(&bench.id).await.unwrap();
    bench.docker.unpause_container(&bench.docker_name()).await.unwrap();
    until("it is paused again", NOTICED, || bench.is_paused()).await;
    bench.engine.resume(&bench.id).await.unwrap();
    bench.echo().await;
    assert!(!bench.is_paused().await);
}

async fn somebody_who_insists_ends_the_container(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    for _ in 0..6 {
        bench.docker.pause_container(&bench.docker_name()).await.unwrap();
        until("somebody gives in", NOTICED, || async {
            !bench.is_paused().await
                || bench.ask(json!({"do": "echo"}), SECOND / 20).await.is_err_and(|e| e.to_string().contains("ended"))
        })
        .await;
    }
    let reason = death(&mut events, NOTICED).await;
    assert!(reason.contains("again and again"), "{reason}");
    bench.engine.remove(&bench.id).await.unwrap();
}

async fn a_container_over_its_memory_is_reported_with_the_limit(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    bench.run(json!({"do": "swallow", "mb": 50})).await;
    assert!(bench.ask(json!({"do": "swallow", "mb": 200}), LONG).await.is_err());
    let reason = death(&mut events, NOTICED).await;
    assert!(reason.starts_with("out of memory: over the limit of 128 MB"), "{reason}");
}

async fn one_that_went_over_its_memory_while_the_engine_was_gone_is_told_as_that(bench: &Bench) {
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    let mut events = engine.events().unwrap();
    engine.start(bench.spec()).await.unwrap();
    let path = relay.stop().await;
    until("it is told", LONG, || async { engine.trouble().is_some() }).await;
    let run = engine.run(&bench.id, Bytes::from_static(br#"{"do": "swallow", "mb": 200}"#), LONG);
    assert!(run.await.is_err());
    until("it has ended", LONG, || async { bench.inspect().await.state.unwrap().running == Some(false) }).await;
    let ended = Instant::now();
    until("its events are too old to be told again", LONG, || async { ended.elapsed() > 7 * SECOND }).await;
    let _relay = Relay::start(&path);
    let reason = death(&mut events, LONG).await;
    assert!(reason.starts_with("out of memory: over the limit of 128 MB"), "{reason}");
    engine.shutdown().await;
}

async fn an_end_long_after_a_child_went_over_the_memory_is_not_told_as_that(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    let name = bench.docker_name();
    let filter = HashMap::from([("event", vec!["oom"]), ("container", vec![name.as_str()])]);
    let options = EventsOptionsBuilder::new().since("0").filters(&filter).build();
    let mut told = pin!(bench.docker.events(Some(options)));
    bench.run(json!({"do": "hogs", "count": 1, "mb": 200})).await;
    tokio::time::timeout(LONG, told.next()).await.expect("the child was not killed for it").unwrap().unwrap();
    let killed = Instant::now();
    bench.echo().await;
    until("that is long ago", LONG, || async { killed.elapsed() > 7 * SECOND }).await;
    assert!(bench.ask(json!({"do": "exit", "code": 7}), LONG).await.is_err());
    let reason = death(&mut events, LONG).await;
    assert!(reason.starts_with("exit status 7"), "{reason}");
}

async fn an_old_want_of_memory_that_is_told_again_after_a_break_is_not_taken_for_a_new_one(bench: &Bench) {
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    let mut events = engine.events().unwrap();
    engine.start(bench.spec()).await.unwrap();
    let run = |body: &'static [u8]| engine.run(&bench.id, Bytes::from_static(body), LONG);
    run(br#"{"do": "hogs", "count": 1, "mb": 200}"#).await.unwrap();
    let killed = Instant::now();
    until("that is a while ago", LONG, || async { killed.elapsed() > 3 * SECOND }).await;
    let path = relay.stop().await;
    until("it is told", LONG, || async { engine.trouble().is_some() }).await;
    let _relay = Relay::start(&path);
    until("it is well again", LONG, || async { engine.trouble().is_none() }).await;
    until("that is long ago", LONG, || async { killed.elapsed() > 7 * SECOND }).await;
    assert!(run(br#"{"do": "exit", "code": 7}"#).await.is_err());
    let reason = death(&mut events, LONG).await;
    assert!(reason.starts_with("exit status 7"), "{reason}");
    engine.shutdown().await;
}

async fn a_removed_container_is_not_reported(bench: &Bench) {
    let mut events = bench.engine.events().unwrap();
    bench.start().await;
    let (outcome, ()) = tokio::join!(bench.ask(json!({"do": "sleep", "ms": 60_000}), LONG), async {
        bench.echo().await;
        bench.engine.remove(&bench.id).await.unwrap();
    });
    assert!(matches!(&outcome, Err(EngineError::Died(why)) if why == "it was removed"), "{outcome:?}");
    assert!(tokio::time::timeout(Duration::from_millis(300), events.recv()).await.is_err());
}

async fn a_second_socket_is_used_only_inside_the_own_folder(bench: &Bench) {
    bench.start().await;
    let move_to = async |path: &str| {
        let body = Bytes::from(json!({"socket": path}).to_string());
        bench.engine.init(&bench.id, body, LONG).await.unwrap();
        bench.echo().await;
    };
    let first = bench.container_folder().join("socket");
    move_to("/tmp/second").await;
    move_to("/run/embermesh/second").await;
    // New connections go there: the first socket is no longer needed.
    std::fs::remove_file(&first).unwrap();
    let sleeps = (0..4).map(|_| bench.ask(json!({"do": "sleep", "ms": 50}), LONG));
    for outcome in futures::future::join_all(sleeps).await {
        outcome.unwrap();
    }
}

async fn lines_arrive_with_their_activation(bench: &Bench) {
    bench.start().await;
    let id = "0123456789abcdef0123456789abcdef";
    let lines = format!("plain\n\u{1e}{id}\u{1f}mine\n\u{1e}{id}\u{1f}XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n");
    bench.run(json!({"do": "print", "lines": lines})).await;
    let expected: Vec<String> = ["Stdout", "Stderr"]
        .iter()
        .flat_map(|s| [format!("{s} - plain"), format!("{s} {id} mine"), format!("{s} {id} ends")])
        .collect();
    until("all lines are there", LONG, || async {
        let lines = bench.lines.0.lock().unwrap();
        expected.iter().all(|line| lines.contains(line))
    })
    .await;
    assert_eq!(bench.lines.0.lock().unwrap().len(), expected.len());
}

async fn an_image_that_does_not_exist_is_named_with_what_to_try(bench: &Bench) {
    let image = "127.0.0.1:1/nobody/has-this:9".to_owned();
    let spec = || ContainerSpec { runtime: Runtime::Image, image: Some(image.clone()), ..bench.spec() };
    let why = bench.refusal(spec()).await;
    assert!(why.contains(&image) && why.contains("docker pull"), "{why}");
    let never = bench.other(|config| config.pull = Pull::Never).await.unwrap();
    let Err(EngineError::Refused(why)) = never.start(spec()).await else { panic!("not refused") };
    assert!(why.contains(&image) && why.contains("docker.pull is `never`"), "{why}");
    never.shutdown().await;
    // One that is there is used without asking anybody, unless that is wanted.
    let always = bench.other(|config| config.pull = Pull::Always).await.unwrap();
    let Err(EngineError::Refused(why)) = always.start(bench.stock("serves")).await else { panic!("not refused") };
    assert!(why.contains("can't be pulled"), "{why}");
    always.shutdown().await;
}

async fn a_missing_image_is_pulled_once_and_used_by_all_who_wait(bench: &Bench) {
    let registry = Registry::start(&["/embermesh", "__stock", "serves"]).await;
    let spec = |id: &str| ContainerSpec {
        id: id.into(),
        runtime: Runtime::Image,
        image: Some(registry.image()),
        ..bench.spec()
    };
    let (first, second) = tokio::join!(bench.engine.start(spec(&bench.id)), bench.engine.start(spec("n1-1-9")));
    first.and(second).unwrap();
    bench.echo().await;
    assert_eq!(registry.layers_served(), 1);
    bench.engine.remove("n1-1-9").await.unwrap();
    // It is here now: nobody is asked again, unless that is wanted.
    let asked = registry.manifests_served();
    bench.engine.start(spec("n1-1-9")).await.unwrap();
    assert_eq!(registry.manifests_served(), asked);
    let always = bench.other(|config| config.pull = Pull::Always).await.unwrap();
    always.start(spec("n1-1-8")).await.unwrap();
    always.shutdown().await;
    assert!(registry.manifests_served() > asked && registry.layers_served() == 1);
    bench.engine.shutdown().await;
    let options = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
    bench.docker.remove_image(&registry.image(), Some(options), None).await.unwrap();
}

async fn images_that_are_slow_to_come_leave_a_place_to_other_starts(bench: &Bench) {
    let registry = Registry::start(&["/embermesh", "__stock", "serves"]).await;
    registry.hold(true);
    let engine = bench.other(|config| config.parallel_starts = 2).await.unwrap();
    let spec = |id: &str, image: String| ContainerSpec {
        id: id.into(),
        runtime: Runtime::Image,
        image: Some(image),
        ..bench.spec()
    };
    let (slow, ()) = tokio::join!(engine.start(spec("n1-1-8", registry.image())), async {
        let asked = || async { registry.asked() > 0 };
        until("it is being pulled", LONG, asked).await;
        let outcome = engine.start(spec("n1-1-9", registry.other_image())).await;
        let Err(EngineError::Busy(why)) = outcome else { panic!("not put off: {outcome:?}") };
        assert!(why.contains(&registry.other_image()) && why.contains("wait for an image"), "{why}");
        engine.start(bench.spec()).await.unwrap();
        registry.hold(false);
    });
    slow.unwrap();
    engine.start(spec("n1-1-9", registry.other_image())).await.unwrap();
    engine.shutdown().await;
    for image in [registry.image(), registry.other_image()] {
        let options = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
        bench.docker.remove_image(&image, Some(options), None).await.unwrap();
    }
}

async fn a_removed_image_is_made_again_and_a_full_image_store_is_told(bench: &Bench) {
    bench.start().await;
    let image = bench.inspect().await.config.unwrap().image.unwrap();
    bench.engine.remove(&bench.id).await.unwrap();
    let options = bollard::query_parameters::RemoveImageOptionsBuilder::new().force(true).build();
    bench.docker.remove_image(&image, Some(options), None).await.unwrap();
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    relay.set(Mode::TakesNoImage);
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    let Err(EngineError::Refused(why)) = engine.start(bench.spec()).await else { panic!("not refused") };
    assert!(why.contains(&image) && why.contains("no space left on device"), "{why}");
    // One that has to be pulled is told as well.
    let missing =
        ContainerSpec { runtime: Runtime::Image, image: Some("nobody/has-this:9".to_owned()), ..bench.spec() };
    let Err(EngineError::Refused(why)) = engine.start(missing).await else { panic!("not refused") };
    assert!(why.contains("nobody/has-this:9") && why.contains("no space left on device"), "{why}");
    engine.shutdown().await;
    bench.start().await;
    bench.echo().await;
}

async fn an_image_without_a_runtime_is_told_as_that(bench: &Bench) {
    let engine = bench.other(|config| config.images.native = Some(bench.image("empty"))).await.unwrap();
    let Err(EngineError::Refused(why)) = engine.start(bench.spec()).await else { panic!("not refused") };
    engine.shutdown().await;
    assert!(why.contains(&bench.image("empty")) && why.contains("no Embermesh runtime"), "{why}");
    // Of an image that the action names, nothing is expected but a command.
    let why = bench.refusal(bench.stock("empty")).await;
    assert!(why.contains(&bench.image("empty")) && why.contains("ommand"), "{why}");
}

async fn a_container_that_ends_at_once_fails_its_start_with_its_last_words(bench: &Bench) {
    let began = Instant::now();
    let why = bench.refusal(bench.stock("exits")).await;
    assert!(why.contains("exit status 7") && why.contains("not today"), "{why}");
    let why = bench.refusal(ContainerSpec { runtime: Runtime::Python, ..bench.spec() }).await;
    assert!(why.contains("exit status 3") && why.contains("/usr/bin/python3"), "{why}");
    assert!(began.elapsed() < LONG / 2, "it was waited for");
    assert!(bench.listed().await.is_empty());
}

async fn a_container_that_never_opens_its_port_fails_its_start(bench: &Bench) {
    let engine = bench.other(|config| config.start_timeout = SECOND).await.unwrap();
    let Err(EngineError::Refused(why)) = engine.start(bench.stock("deaf")).await else { panic!("not refused") };
    engine.shutdown().await;
    assert!(why.contains("port 8080") && why.contains("docker.start_timeout"), "{why}");
}

async fn an_abandoned_start_leaves_nothing(bench: &Bench) {
    for delay in [0, 20, 100, 200] {
        let abandoned = tokio::time::timeout(Duration::from_millis(delay), bench.engine.start(bench.spec())).await;
        if abandoned.is_ok() {
            bench.engine.remove(&bench.id).await.unwrap();
        }
        until("nothing is left", LONG, || async {
            bench.listed().await.is_empty() && !bench.container_folder().exists()
        })
        .await;
        until("the engine has forgotten it", LONG, || async {
            matches!(bench.engine.resume(&bench.id).await, Err(EngineError::Unknown(_)))
        })
        .await;
    }
}

async fn removing_a_container_that_starts_ends_the_start(bench: &Bench) {
    let (started, removed) = tokio::join!(bench.engine.start(bench.stock("deaf")), async {
        until("it is created", LONG, || async { !bench.listed().await.is_empty() }).await;
        bench.engine.remove(&bench.id).await
    });
    removed.unwrap();
    assert!(matches!(&started, Err(EngineError::Refused(_))), "{started:?}");
    assert!(bench.listed().await.is_empty());
}

/// Somebody's container of that name and with those labels, which runs.
async fn foreign(bench: &Bench, name: &str, labels: &[(&str, &str)]) -> String {
    let body = ContainerCreateBody {
        image: Some(bench.image("deaf")),
        labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let id = bench.docker.create_container(Some(options), body).await.unwrap().id;
    bench.docker.start_container(&id, None::<StartContainerOptions>).await.unwrap();
    id
}

async fn remove_foreign(bench: &Bench, id: &str) {
    let state = bench.docker.inspect_container(id, None::<bollard::query_parameters::InspectContainerOptions>).await;
    let running = state.map(|inspected| inspected.state.unwrap().running == Some(true));
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    bench.docker.remove_container(id, Some(options)).await.ok();
    assert!(running.is_ok_and(|running| running), "somebody's container was touched");
}

async fn containers_of_others_are_left_alone_whatever_they_are_called(bench: &Bench) {
    let (cluster, instance) = (bench.config.cluster.clone(), bench.config.instance.clone());
    let mut all = Vec::new();
    // Another cluster, another instance, a copy of all labels under another name, our name without labels.
    let labelled = |cluster: &str, instance: &str, id: &str| {
        [("node", "n1"), ("container", id), ("cluster", cluster), ("instance", instance)]
            .map(|(key, value)| (format!("embermesh.{key}"), value.to_owned()))
            .to_vec()
    };
    for (name, labels) in [
        (format!("embermesh-{cluster}-a"), labelled("another", &instance, "a")),
        (format!("embermesh-{cluster}-b"), labelled(&cluster, "another", "b")),
        (format!("mine-{cluster}"), labelled(&cluster, &instance, "c")),
        (format!("embermesh-{cluster}-d"), Vec::new()),
    ] {
        let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        all.push(foreign(bench, &name, &labels).await);
    }
    let engine = bench.other(|config| config.instance.clone_from(&bench.config.instance)).await.unwrap();
    engine.start(bench.spec()).await.unwrap();
    // A container that a start left behind goes with the next listing: then all have been looked at.
    let name = format!("embermesh-{cluster}-n1-1-9");
    let labels = labelled(&cluster, &instance, "n1-1-9");
    let labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    foreign(bench, &name, &labels).await;
    until("what is left behind is removed", LONG, || async {
        !bench.listed().await.iter().any(|container| container.names.iter().flatten().any(|n| n.ends_with("n1-1-9")))
    })
    .await;
    engine.shutdown().await;
    for id in all {
        remove_foreign(bench, &id).await;
    }
}

/// As after a crash: nothing was removed, and a new agent comes on the same data folder.
async fn next_life(bench: &Bench) -> (DockerEngine, Found) {
    let next = bench.other(|config| {
        config.root.clone_from(&bench.config.root);
        config.instance.clone_from(&bench.config.instance);
    });
    let next = next.await.unwrap();
    let found = next.found().await.unwrap();
    assert_eq!(found.len(), 1);
    (next, found[0].clone())
}

async fn what_an_earlier_life_left_is_found_and_goes_when_it_is_discarded(bench: &Bench) {
    bench.start().await;
    bench.engine.pause(&bench.id).await.unwrap();
    let spec = bench.spec();
    let (next, found) = next_life(bench).await;
    assert_eq!((found.id.as_str(), found.paused), (bench.id.as_str(), true));
    assert_eq!((&found.namespace, &found.action, &found.revision), (&spec.namespace, &spec.action, &spec.revision));
    next.discard(&found).await.unwrap();
    assert!(bench.listed().await.is_empty() && !bench.container_folder().exists());
    assert!(matches!(next.discard(&found).await, Err(EngineError::Unknown(_))));
    next.shutdown().await;
}

async fn what_an_earlier_life_left_serves_on_under_a_new_id_once_it_is_adopted(bench: &Bench) {
    bench.start().await;
    let (next, found) = next_life(bench).await;
    let spec = ContainerSpec { id: format!("{}0", bench.id).into(), ..bench.spec() };
    assert_eq!(next.adopt(&found, spec.clone()).await.unwrap(), 0);
    let ask = || next.run(&spec.id, Bytes::from_static(br#"{"do": "echo"}"#), LONG);
    assert_eq!(ask().await.unwrap().status, 200);
    next.pause(&spec.id).await.unwrap();
    next.resume(&spec.id).await.unwrap();
    assert_eq!(ask().await.unwrap().status, 200);
    next.remove(&spec.id).await.unwrap();
    assert!(bench.listed().await.is_empty() && !bench.container_folder().exists());
    next.shutdown().await;
}

async fn a_taken_name_fails_the_start_and_its_holder_stays(bench: &Bench) {
    let holder = foreign(bench, &bench.docker_name(), &[]).await;
    let why = bench.refusal(bench.spec()).await;
    assert!(why.contains("already in use"), "{why}");
    remove_foreign(bench, &holder).await;
}

async fn a_hanging_engine_is_told_and_what_runs_is_served_on(bench: &Bench) {
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    engine.start(bench.spec()).await.unwrap();
    let ask = || engine.run(&bench.id, Bytes::from_static(br#"{"do": "echo"}"#), LONG);
    ask().await.unwrap();
    assert_eq!(engine.trouble(), None);
    relay.set(Mode::Hangs);
    let took = until("it is told", LONG, || async { engine.trouble().is_some() }).await;
    println!("  told after {took:?}: {}", engine.trouble().unwrap());
    ask().await.unwrap();
    // A pause is put off, and a resume has nothing to undo.
    engine.pause(&bench.id).await.unwrap();
    engine.resume(&bench.id).await.unwrap();
    ask().await.unwrap();
    engine.pause(&bench.id).await.unwrap();
    assert!(!bench.is_paused().await);
    let began = Instant::now();
    assert!(engine.start(ContainerSpec { id: "n1-1-9".into(), ..bench.spec() }).await.is_err());
    assert!(began.elapsed() < NOTICED, "a call waited {:?}", began.elapsed());
    relay.set(Mode::Passes);
    until("it is well again", LONG, || async { engine.trouble().is_none() }).await;
    until("the pause comes to be", LONG, || bench.is_paused()).await;
    engine.resume(&bench.id).await.unwrap();
    ask().await.unwrap();
    engine.shutdown().await;
}

async fn an_engine_that_was_gone_is_found_again_with_what_happened_meanwhile(bench: &Bench) {
    let relay = Relay::start(&bench.folder.path().join("relay.sock"));
    let engine = bench.other(|config| config.socket = bench.folder.path().join("relay.sock")).await.unwrap();
    let mut events = engine.events().unwrap();
    let other = format!("{}-other", bench.id);
    engine.start(bench.spec()).await.unwrap();
    engine.start(ContainerSpec { id: other.as_str().into(), ..bench.spec() }).await.unwrap();
    let path = relay.stop().await;
    until("it is told", LONG, || async { engine.trouble().is_some_and(|why| why.contains("can't be reached")) }).await;
    engine.run(&bench.id, Bytes::from_static(br#"{"do": "echo"}"#), LONG).await.unwrap();
    let why = engine.start(ContainerSpec { id: "n1-1-9".into(), ..bench.spec() }).await.unwrap_err().to_string();
    assert!(why.contains("relay.sock") && why.contains("can't be reached"), "{why}");
    bench.docker.kill_container(&bench.docker_name(), None::<KillContainerOptions>).await.unwrap();
    let _relay = Relay::start(&path);
    let reason = death(&mut events, LONG).await;
    assert!(reason.contains("SIGKILL"), "{reason}");
    until("it is well again", LONG, || async { engine.trouble().is_none() }).await;
    engine.run(&other, Bytes::from_static(br#"{"do": "echo"}"#), LONG).await.unwrap();
    engine.shutdown().await;
}

async fn an_engine_that_is_not_there_is_named_with_what_to_try(bench: &Bench) {
    let socket = bench.folder.path().join("none.sock");
    let gone = bench.other(|config| config.socket.clone_from(&socket)).await.unwrap_err().to_string();
    assert!(gone.contains("none.sock") && gone.contains("docker.socket"), "{gone}");
    // Nobody listens on it any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let refused = bench.other(|config| config.socket.clone_from(&socket)).await.unwrap_err().to_string();
    assert!(refused.contains("none.sock") && refused.contains("service docker start"), "{refused}");
}

async fn shutdown_ends_everything_and_refuses_more(bench: &Bench) {
    let engine = bench.other(|_| {}).await.unwrap();
    for n in 0..3 {
        engine.start(ContainerSpec { id: format!("{}-{n}", bench.id).into(), ..bench.spec() }).await.unwrap();
    }
    engine.pause(&format!("{}-0", bench.id)).await.unwrap();
    let began = Instant::now();
    engine.shutdown().await;
    println!("  three containers ended in {:?}", began.elapsed());
    assert!(bench.listed().await.is_empty());
    assert!(matches!(engine.start(bench.spec()).await, Err(EngineError::Refused(_))));
}
