//! How a container comes to serve, or what its start leaves behind: nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::lines::read_lines;
use super::{Container, ended_with};
use crate::containers::docker::api::Failure;
use crate::containers::docker::engine::Shared;
use crate::containers::docker::images::Image;
use crate::containers::docker::{network, spec};
use crate::containers::{ContainerSpec, EngineError};

/// Where images that actions name serve.
pub(super) const PORT: u16 = 8080;
const READY_POLL: Duration = Duration::from_millis(2);

/// A container's start, to its end: `caller` learns whether it serves. Without a caller it is removed.
pub(in crate::containers::docker) async fn begin(
    engine: Arc<Shared>,
    container: Arc<Container>,
    spec: ContainerSpec,
    mut caller: oneshot::Sender<Result<(), EngineError>>,
) {
    let starting = container.starting.lock().await;
    let outcome = match make(&engine, &container, &spec).await {
        Ok(()) => tokio::select! {
            biased;
            outcome = ready(&engine, &container) => outcome,
            () = container.removal.cancelled() => Err(EngineError::Refused("it was removed while it started".into())),
            () = caller.closed() => Err(EngineError::Refused("nobody waits for it any more".into())),
        },
        Err(error) => Err(error),
    };
    let outcome = match outcome {
        Ok(()) => {
            container.serving.store(true, Ordering::Release);
            // Nobody was told of an end before this moment.
            let ended = container.ended.borrow().clone();
            match ended {
                Some(reason) => {
                    let error = format!("the container ended while it started: {reason}");
                    Some((caller, EngineError::Refused(error)))
                }
                None => match caller.send(Ok(())) {
                    Ok(()) => return,
                    Err(_) => None,
                },
            }
        }
        Err(error) => Some((caller, error)),
    };
    container.removal.cancel();
    if let Err(error) = container.clear(&engine).await {
        // It stays in the table: the core asks for its removal until that succeeds.
        tracing::warn!(container = %container.id, %error, "what was left of a start could not be removed yet");
    }
    drop(starting);
    if let Some((caller, error)) = outcome {
        caller.send(Err(error)).ok();
    }
}

async fn unless_removed<T>(
    container: &Container,
    step: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    tokio::select! {
        biased;
        () = container.removal.cancelled() => Err(EngineError::Refused("it was removed while it started".into())),
        outcome = step => outcome,
    }
}

/// Creates and starts it. Each call has its own deadline and is not cut short: what was made is known.
async fn make(engine: &Arc<Shared>, container: &Arc<Container>, spec: &ContainerSpec) -> Result<(), EngineError> {
    // An image may take minutes to come: that step alone is cut short.
    let image = unless_removed(container, engine.images.choose(spec)).await?;
    if !container.stock {
        let folder = container.folder.clone();
        let made = tokio::task::spawn_blocking(move || folder.create_for_socket(spec::user())).await;
        let failed = |why: String| {
            let path = container.folder.path().display();
            EngineError::Refused(format!("cannot make the folder {path}: {why}"))
        };
        made.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    }
    let id = match create(engine, container, spec, &image).await {
        Err(Failure::Missing(_)) => {
            unless_removed(container, engine.images.obtain(&image)).await?;
            create(engine, container, spec, &image).await
        }
        outcome => outcome,
    };
    let id = id.map_err(|failure| explained(failure, container, &image))?;
    let id = container.docker_id.get_or_init(|| id).clone();
    let output = engine.api.attach(&id).await?.output;
    tokio::spawn(read_lines(engine.api.clone(), container.clone(), output));
    unless_removed(container, async { Ok(()) }).await?;
    engine.api.start(&id).await.map_err(|failure| explained(failure, container, &image))?;
    container.connect(engine, &id).await
}

async fn create(
    engine: &Shared,
    container: &Container,
    spec: &ContainerSpec,
    image: &Image,
) -> Result<String, Failure> {
    let network = match container.stock {
        true => {
            let network = network::ensure(&engine.api, &engine.config.network).await.map_err(|error| match error {
                EngineError::Indeterminate(text) => Failure::Unknown(text),
                other => Failure::Refused(other.to_string()),
            })?;
            engine.bar_containers().await?;
            Some(network)
        }
        false => None,
    };
    let body = spec::body(&engine.config, &engine.owner, spec, image.name(), &container.folder, network);
    engine.api.create(&engine.owner.name(&spec.id), body).await
}

/// The usual reason why a container of ours does not start is an image that isn't meant for it.
fn explained(failure: Failure, container: &Container, image: &Image) -> EngineError {
    let text = failure.to_string();
    let no_program = ["no such file or directory", "executable file not found", "permission denied"];
    if !container.stock && text.contains(spec::PROGRAM) && no_program.iter().any(|words| text.contains(words)) {
        return EngineError::Refused(format!(
            "image `{}` has no Embermesh runtime in it: it needs one as {}; deploy/images makes such images ({text})",
            image.name(),
            spec::PROGRAM
        ));
    }
    if matches!(failure, Failure::Unknown(_)) {
        return failure.into();
    }
    EngineError::Refused(format!("a container of image `{}` can't be started: {text}", image.name()))
}

pub(super) async fn own_address(engine: &Shared, container: &Container, id: &str) -> Result<IpAddr, EngineError> {
    let inspected = engine.api.inspect(id).await?;
    let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut addresses = networks.into_values().filter_map(|network| network.ip_address?.parse().ok());
    match addresses.next() {
        Some(address) => Ok(address),
        // The engine takes the address back as soon as it ends.
        None => {
            let state = inspected.state.unwrap_or_default();
            match state.running {
                Some(true) => Err(EngineError::Refused("the engine gave it no address".into())),
                _ => Err(ended_early(container, ended_with(state.exit_code)).await),
            }
        }
    }
}

async fn ended_early(container: &Container, how: String) -> EngineError {
    container.last_lines.settle().await;
    EngineError::Refused(format!("the container ended while it started: {how}{}", container.last_lines.said()))
}

/// Until it accepts connections.
async fn ready(engine: &Shared, container: &Container) -> Result<(), EngineError> {
    let Some(client) = container.client.get() else { return Err(EngineError::Unknown(container.id.to_string())) };
    let limit = engine.config.start_timeout;
    let mut ended = container.ended.subscribe();
    let accepts = async {
        // A connect may take a second on a bridge where the address was somebody else's a moment ago.
        while client.warm_up().await.is_err() {
            sleep(READY_POLL).await;
        }
    };
    tokio::select! {
        biased;
        ended = ended.wait_for(Option::is_some) => {
            let reason = ended.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            Err(EngineError::Refused(format!("the container ended while it started: {reason}")))
        }
        () = sleep(limit) => {
            let at = if container.stock { format!("port {PORT}") } else { "its socket".to_owned() };
            let said = container.last_lines.said();
            Err(EngineError::Refused(format!(
                "the container did not accept connections on {at} within {limit:?} (docker.start_timeout){said}"
            )))
        }
        () = accepts => Ok(()),
    }
}
