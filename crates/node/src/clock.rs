//! The node's clocks: the monotonic one that the core lives on, and the wall clock for people.

use std::time::{SystemTime, UNIX_EPOCH};

use embermesh_core::Time;
use tokio::time::Instant;

/// Monotonic microseconds since the node started, with a rate that tests may set: tokio's clock, so that paused
/// and simulated time work.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    /// Parts per million that this clock runs fast (or slow).
    drift_ppm: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::with_drift(0)
    }
}

impl Clock {
    pub fn with_drift(drift_ppm: i64) -> Self {
        Self { start: Instant::now(), drift_ppm }
    }

    pub fn now(&self) -> Time {
        let real = i128::try_from(self.start.elapsed().as_micros()).unwrap_or(i128::MAX);
        let drifted = real + real * i128::from(self.drift_ppm) / 1_000_000;
        // One second ahead of zero: `now - something small` never meets the floor.
        Time(u64::try_from(drifted).unwrap_or(0) + 1_000_000)
    }

    /// When that moment comes, on tokio's clock: never earlier, or the one who sleeps until then would find that it
    /// has not come yet.
    pub fn instant(&self, at: Time) -> Instant {
        // As good as never, and does not overflow an Instant.
        const YEAR_US: i128 = 365 * 86_400 * 1_000_000;
        let drifted = i128::from(at.0.saturating_sub(1_000_000));
        let rate_ppm = 1_000_000 + i128::from(self.drift_ppm);
        let real = (drifted * 1_000_000 + rate_ppm - 1) / rate_ppm;
        let micros = u64::try_from(real.clamp(0, YEAR_US)).unwrap_or(0);
        self.start + std::time::Duration::from_micros(micros)
    }
}

/// Unix time in milliseconds.
pub fn wall_ms() -> u64 {
    wall_us() / 1000
}

/// Unix time in microseconds.
pub fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// `2026-11-21T20:37:24.123Z` padded to 30, as log lines in activation records begin.
pub fn log_stamp(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{:<30}", format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000))
}

/// Days since 1970-01-01 to a date (Howard Hinnant, chrono-compatible low-level date algorithms).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stamp_is_a_date_padded_to_thirty() {
        assert_eq!(log_stamp(1_763_757_444_123), "2025-11-21T20:37:24.123Z      ");
        assert_eq!(log_stamp(951_782_400_000), "2000-02-29T00:00:00.000Z      ");
    }

    #[tokio::test(start_paused = true)]
    async fn who_wakes_at_a_moment_never_wakes_before_it_however_the_clock_drifts() {
        for drift in [-10_000, -4_000, 0, 4_000, 10_000] {
            let clock = Clock::with_drift(drift);
            let base = clock.now();
            for us in 5_000_000..5_003_000 {
                let at = base + us;
                let real = clock.instant(at).duration_since(clock.start).as_micros() as i128;
                let shown = real + real * i128::from(drift) / 1_000_000 + 1_000_000;
                assert!(shown >= i128::from(at.0), "{drift}: shows {shown} at {at:?}");
            }
            assert!(clock.instant(Time::FAR) > Instant::now() + std::time::Duration::from_secs(86_400), "{drift}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_on_a_drifting_clock_comes_when_the_clock_shows_it() {
        for drift in [-10_000, 0, 10_000] {
            let clock = Clock::with_drift(drift);
            let at = clock.now() + 5_000_000;
            tokio::time::sleep_until(clock.instant(at)).await;
            let error = clock.now().0.abs_diff(at.0);
            assert!(error <= 2_000, "{drift}: off by {error} µs");
        }
    }
}
