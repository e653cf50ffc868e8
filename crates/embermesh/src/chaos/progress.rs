//! What is going on, live on standard error: a line that changes where that is a terminal, and a line for each fault.

use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::traffic::Caller;
use crate::output::human_duration;

const TICK: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    began: Instant,
}

impl Progress {
    /// Moments are told from `began` on.
    pub(super) fn new(began: Instant) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self { bar, began }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        let line = format!("{:>7}  {line}", format!("{:.1}s", self.began.elapsed().as_secs_f64()));
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    pub(super) fn doing(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    /// Shows what the calls come to, for ever.
    pub(super) async fn follow(self, caller: Caller, duration: Duration) {
        loop {
            let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            let counts = caller.counts();
            self.bar.set_message(format!(
                "{} of {}: {} calls, {} well, {} refused, {} unknown or failed",
                human_duration(Duration::from_secs(self.began.elapsed().as_secs())),
                human_duration(duration),
                count(&counts.made),
                count(&counts.well),
                count(&counts.refused),
                count(&counts.unknown),
            ));
            sleep(TICK).await;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
