//! `chaos inject`: faults made on purpose, at agents that were started for it.

use std::time::Duration;

use embermesh_node::faults::Direction;
use embermesh_node::views::{FaultsRequest, FaultsView, LinkFaultView};
use hyper::{Method, StatusCode};

use super::error::HintOn;
use super::intent::confirm;
use super::{CommandError, Exit};
use crate::cli::{ChaosCommand, Fault, InjectArgs, Way};
use crate::client::{Answer, Client};
use crate::output::{Output, human_duration, table};

const PATH: &str = "/mesh/v1/faults";

pub(super) async fn run(client: &Client, command: ChaosCommand, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    match command {
        ChaosCommand::Inject(args) => inject(client, args, output).await,
        ChaosCommand::Run(args) => crate::chaos::run(args, output).await,
        ChaosCommand::Check(args) => super::check::run(&args, output),
    }
}

async fn inject(client: &Client, args: InjectArgs, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let request = match args.fault {
        Fault::Show => return show(&client.get(PATH).await.hint_on(StatusCode::FORBIDDEN, hint)?, output),
        Fault::Heal => return heal(client, output).await,
        Fault::Partition { peers, way } => {
            let cut = Direction { cut: true, ..Direction::default() };
            FaultsRequest { links: peers.into_iter().map(|peer| link(peer, cut, way)).collect(), ..Default::default() }
        }
        Fault::Link { peer, delay, loss, duplicate, way } => {
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            let worse = Direction { delay_ms, loss, duplicate, ..Direction::default() };
            let mut link = link(peer, worse, way);
            // What comes late or twice is its sender's doing.
            link.receive = Direction { delay_ms: 0, duplicate: 0.0, ..link.receive };
            FaultsRequest { links: vec![link], ..Default::default() }
        }
        Fault::Stall => FaultsRequest { engine_stalled: Some(true), ..Default::default() },
        Fault::Drift { ppm } => FaultsRequest { clock_drift_ppm: Some(ppm), ..Default::default() },
    };
    let answer = client.post(PATH, &request).await.hint_on(StatusCode::FORBIDDEN, hint)?;
    let shown = show(&answer, output)?;
    let Some(duration) = args.duration else { return Ok(shown) };
    output.remark(&format!("healed in {}; Ctrl-C leaves the faults as they are", human_duration(duration)));
    tokio::time::sleep(duration).await;
    heal(client, output).await
}

fn link(peer: String, direction: Direction, way: Way) -> LinkFaultView {
    let on = |this: Way| if way == Way::Both || way == this { direction } else { Direction::default() };
    LinkFaultView { peer, send: on(Way::Send), receive: on(Way::Receive) }
}

async fn heal(client: &Client, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let answer = client.send(Method::DELETE, PATH, None::<&()>, client.deadline()).await?.ok();
    let answer = answer.hint_on(StatusCode::FORBIDDEN, hint)?;
    confirm(&answer, output, || "everything is whole again".to_owned())
}

fn show(answer: &Answer, output: &mut Output<'_>) -> Result<Exit, CommandError> {
    let view: FaultsView = answer.parse()?;
    output.answer(&answer.body, || faults_table(&view))?;
    Ok(Exit::Ok)
}

fn hint() -> String {
    "a mesh for experiments is one whose agents were started with --enable-fault-injection".to_owned()
}

fn faults_table(view: &FaultsView) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for link in &view.links {
        for (way, direction) in [("to", link.send), ("from", link.receive)] {
            if direction != Direction::default() {
                rows.push(vec![format!("{way} {}", link.peer), direction_words(direction)]);
            }
        }
    }
    if view.engine_stalled {
        rows.push(vec!["engine".to_owned(), "stands still".to_owned()]);
    }
    if view.clock_drift_ppm != 0 {
        rows.push(vec!["clock".to_owned(), format!("{:+} ppm", view.clock_drift_ppm)]);
    }
    if rows.is_empty() { "nothing was made to go wrong".to_owned() } else { table(&["WHERE", "FAULT"], rows) }
}

fn direction_words(direction: Direction) -> String {
    let Direction { cut, delay_ms, loss, duplicate } = direction;
    let share = |name: &str, share: f64| (share > 0.0).then(|| format!("{name} {}%", (share * 100.0).round()));
    let delay = (delay_ms > 0).then(|| format!("delay {}", human_duration(Duration::from_millis(delay_ms))));
    let words = [cut.then(|| "cut".to_owned()), delay, share("loss", loss), share("twice", duplicate)];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
