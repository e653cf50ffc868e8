//! What a container writes, on its way to records.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use futures::StreamExt;
use tokio::time::sleep;

use super::Container;
use crate::containers::docker::api::Api;
use crate::containers::last_lines::LastLines;
use crate::containers::logs::{LineParser, Stream};

/// Between two attempts to read on after the connection broke.
const ATTACH_AGAIN: Duration = Duration::from_secs(1);

type Output = Pin<Box<dyn futures::Stream<Item = Result<LogOutput, Error>> + Send>>;

/// Hands on what it writes, until its end. A connection that breaks before is made again; what was written
/// meanwhile is lost to records, not to the engine's own log.
pub(super) async fn read_lines(api: Api, container: Arc<Container>, output: Output) {
    let Some(id) = container.docker_id() else { return };
    let mut output = Some(output);
    let mut ended = container.ended.subscribe();
    loop {
        if let Some(output) = output.take() {
            read_output(container.last_lines.clone(), output).await;
        }
        tokio::select! {
            _ = ended.wait_for(Option::is_some) => return,
            () = container.removal.cancelled() => return,
            () = sleep(ATTACH_AGAIN) => {}
        }
        output = api.attach(id).await.ok().map(|attached| attached.output);
    }
}

async fn read_output(lines: Arc<LastLines>, mut output: Output) {
    let (mut stdout, mut stderr) = (LineParser::new(Stream::Stdout), LineParser::new(Stream::Stderr));
    while let Some(Ok(piece)) = output.next().await {
        match piece {
            LogOutput::StdErr { message } => stderr.feed(&message, &*lines),
            LogOutput::StdOut { message } | LogOutput::Console { message } => stdout.feed(&message, &*lines),
            LogOutput::StdIn { .. } => {}
        }
    }
    stdout.finish(&*lines);
    stderr.finish(&*lines);
}
