//! Where work that waits for the disk is done: the seam between a node and its threads.

use std::io;
use std::thread::{self, JoinHandle};

use tokio::runtime::Builder;
use tokio::task::{JoinError, spawn_blocking};

/// Threads bring an order of their own, different each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Blocking {
    /// Away from the tasks that serve: production.
    #[default]
    Threads,
    /// By the task that has it to do, for a simulation whose store never waits: all that happens has one order.
    Inline,
}

impl Blocking {
    /// Does one piece of work.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match self {
            Self::Threads => spawn_blocking(work).await,
            Self::Inline => Ok(work()),
        }
    }

    /// Starts a loop whose steps may wait for the disk, on a thread of its own or as a task.
    pub(crate) fn start(
        self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Option<JoinHandle<()>>> {
        match self {
            Self::Threads => {
                let runtime = Builder::new_current_thread().enable_time().build()?;
                thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work)).map(Some)
            }
            Self::Inline => {
                tokio::spawn(work);
                Ok(None)
            }
        }
    }
}
