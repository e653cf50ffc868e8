//! Where images come from: the engine has them, a registry does, or they are made here.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::CreateImageInfo;
use bollard::query_parameters::{CreateImageOptionsBuilder, PruneImagesOptionsBuilder};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OnceCell, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::api::{Api, Failure, LOOK};
use super::bundle::Bundle;
use super::labels::RUNTIME;
use super::{DockerEngineConfig, Pull};
use crate::containers::{ContainerSpec, EngineError, Runtime};
use crate::data_dir::lock_on_host;

/// The repository of images that are made here.
const REPOSITORY: &str = "embermesh-runtime";
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);
const PRUNE: Duration = Duration::from_secs(30);
/// For a start that has to wait until another has its image.
const PULL_TURN: Duration = Duration::from_secs(2);
/// Between two lines of progress in the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Of the archive on its way to the engine.
const PIECE_BYTES: usize = 1 << 20;
const PIECES: usize = 4;
/// Images whose pulls are remembered as under way.
const MOST_PULLS: usize = 1000;

/// Knows what image a container needs and how to get it.
pub(super) struct ImageStore {
    api: Api,
    config: DockerEngineConfig,
    own: OnceCell<Arc<Bundle>>,
    /// Starts that may wait for an image at a time: each holds a place among those that the node makes at once.
    waiting: Semaphore,
    /// One pull of an image at a time.
    pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The image of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Image {
    /// Made of this program: its digest.
    Own(String),
    Named(String),
}

impl Image {
    pub(super) fn name(&self) -> String {
        match self {
            Image::Own(digest) => own_image(digest),
            Image::Named(name) => name.clone(),
        }
    }
}

impl ImageStore {
    pub(super) fn new(api: Api, config: DockerEngineConfig) -> Self {
        let waiting = Semaphore::new(config.parallel_starts.saturating_sub(1).max(1));
        Self { api, config, own: OnceCell::new(), waiting, pulls: Mutex::default() }
    }

    /// What to create the container from. It may turn out that the engine does not have it: `obtain` then.
    pub(super) async fn choose(&self, spec: &ContainerSpec) -> Result<Image, EngineError> {
        let images = &self.config.images;
        let named = match spec.runtime {
            Runtime::Builtin | Runtime::Native | Runtime::ActionLoop => images.native.clone(),
            Runtime::Python => Some(images.python.clone()),
            Runtime::NodeJs => Some(images.nodejs.clone()),
            Runtime::Image => {
                let missing = || EngineError::Refused("the action names no image".to_owned());
                Some(spec.image.clone().ok_or_else(missing)?)
            }
        };
        let Some(name) = named else { return Ok(Image::Own(self.own().await?.digest().to_owned())) };
        let image = Image::Named(name);
        if self.config.pull == Pull::Always {
            self.obtain(&image).await?;
        }
        Ok(image)
    }

    /// Makes or pulls an image that the engine does not have.
    pub(super) async fn obtain(&self, image: &Image) -> Result<(), EngineError> {
        match image {
            Image::Own(_) => self.import().await,
            // What the engine missed may have been something else.
            Image::Named(name) if self.config.pull == Pull::Never && self.has(name).await => Ok(()),
            Image::Named(name) if self.config.pull == Pull::Never => Err(EngineError::Refused(format!(
                "image `{name}` is not on this engine, and docker.pull is `never`: bring it with `docker pull {name}` or \
                 `docker load`, or set docker.pull to `missing`"
            ))),
            Image::Named(name) => self.pull(name).await,
        }
    }

    async fn own(&self) -> Result<Arc<Bundle>, EngineError> {
        let binary = self.config.binary.clone();
        let read = || async move {
            let read = tokio::task::spawn_blocking(move || Bundle::of(&binary).map(Arc::new)).await;
            read.map_err(|error| EngineError::Refused(error.to_string()))?.map_err(|error| {
                EngineError::Refused(format!(
                    "the runtime's image can't be made of this program ({error}): name one with docker.images.native"
                ))
            })
        };
        self.own.get_or_try_init(read).await.cloned()
    }

    async fn import(&self) -> Result<(), EngineError> {
        let bundle = self.own().await?;
        // Other agents of this host are about to make the same.
        let _alone = lock_on_host(REPOSITORY).await;
        let name = own_image(bundle.digest());
        if self.has(&name).await {
            return Ok(());
        }
        let began = Instant::now();
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(REPOSITORY)
            .tag(bundle.digest())
            .changes(vec![format!("LABEL {RUNTIME}={}", bundle.digest())])
            .build();
        let (pieces, archive) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let failed = pieces.clone();
            let mut pieces = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
            if let Err(error) = bundle.write(&mut pieces).and_then(|()| pieces.flush()) {
                // The engine must not take half an archive for a whole one.
                failed.blocking_send(Err(error)).ok();
            }
        });
        let body = bollard::body_try_stream(ReceiverStream::new(archive));
        let import = async {
            let mut answers = self.api.docker.create_image(Some(options), Some(body), None);
            while let Some(answer) = answers.next().await {
                answer.map_err(|error| self.api.failure(&error))?;
            }
            Ok::<_, Failure>(())
        };
        let refused = |why: String| {
            EngineError::Refused(format!(
                "the runtime's image `{name}` can't be made: {why}; name one of your own with docker.images.native"
            ))
        };
        match timeout(IMPORT_TIMEOUT, import).await {
            Ok(outcome) => outcome.map_err(|failure| refused(failure.to_string()))?,
            Err(_) => return Err(refused(format!("it took longer than {IMPORT_TIMEOUT:?}"))),
        }
        tracing::info!(image = %name, took = ?began.elapsed(), "the runtime's image was made of this program");
        self.prune().await;
        Ok(())
    }

    /// Each version of the program makes an image: those of days ago go, unless a container is made of them. An
    /// agent that still wants one makes it again.
    async fn prune(&self) {
        let filter = |value: &str| vec![value.to_owned()];
        let filters =
            HashMap::from([("dangling", filter("false")), ("label", filter(RUNTIME)), ("until", filter("72h"))]);
        let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
        if let Err(error) = self.api.within(PRUNE, self.api.docker.prune_images(Some(options))).await {
            tracing::debug!(%error, "images of older versions stay");
        }
    }

    async fn has(&self, name: &str) -> bool {
        self.api.within(LOOK, self.api.docker.inspect_image(name)).await.is_ok()
    }

    async fn pull(&self, name: &str) -> Result<(), EngineError> {
        // What the engine missed may have been something else.
        if self.config.pull == Pull::Missing && self.has(name).await {
            return Ok(());
        }
        // Else a few images that are slow to come would stop all starts of the node.
        let Ok(_waits) = timeout(PULL_TURN, self.waiting.acquire()).await else {
            return Err(EngineError::Busy(format!(
                "image `{name}` can't be pulled yet: as many starts as may wait for an image do so already"
            )));
        };
        let alone = self.pull_lock(name);
        let _alone = alone.lock().await;
        // Somebody else pulled it while this one waited.
        if self.config.pull == Pull::Missing && self.has(name).await {
            return Ok(());
        }
        let began = Instant::now();
        tracing::info!(image = name, "pulling an image");
        let limit = self.config.pull_timeout;
        match timeout(limit, self.pull_now(name)).await {
            Ok(Ok(())) => {
                tracing::info!(image = name, took = ?began.elapsed(), "an image was pulled");
                Ok(())
            }
            Ok(Err(failure)) => Err(not_pulled(name, &failure.to_string())),
            Err(_) => Err(not_pulled(name, &format!("it took longer than {limit:?} (docker.pull_timeout)"))),
        }
    }

    async fn pull_now(&self, name: &str) -> Result<(), Failure> {
        let options = CreateImageOptionsBuilder::new().from_image(&with_tag(name)).build();
        let mut answers = self.api.docker.create_image(Some(options), None, None);
        let mut told = Instant::now();
        while let Some(answer) = answers.next().await {
            let progress = answer.map_err(|error| self.api.failure(&error))?;
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                tracing::info!(image = name, progress = %shown(&progress), "pulling an image");
            }
        }
        Ok(())
    }

    fn pull_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if pulls.len() >= MOST_PULLS {
            pulls.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        pulls.entry(name.to_owned()).or_default().clone()
    }
}

/// The name of the image that is made of a program.
pub(super) fn own_image(digest: &str) -> String {
    format!("{REPOSITORY}:{digest}")
}

/// The writing end of an archive that goes to the engine piece by piece.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn not_pulled(name: &str, why: &str) -> EngineError {
    EngineError::Refused(format!(
        "image `{name}` is not on this engine and can't be pulled: {why}; check its name, pull it by hand with `docker \
         pull {name}`, or bring it with `docker load`"
    ))
}

fn shown(progress: &CreateImageInfo) -> String {
    let detail = progress.progress_detail.as_ref();
    let status = progress.status.as_deref().unwrap_or_default();
    match detail.and_then(|detail| Some((detail.current?, detail.total?))) {
        Some((current, total)) => format!("{status} {} of {} KB", current >> 10, total >> 10),
        None => status.to_owned(),
    }
}

/// Without a tag the engine would pull all of them.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        for (name, pulled) in [
            ("openwhisk/action", "openwhisk/action:latest"),
            ("host:5000/a", "host:5000/a:latest"),
            ("a:1", "a:1"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(name), pulled);
        }
    }
}
