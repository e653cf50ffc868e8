//! The node's clocks: the monotonic one that the core lives on, and the wall clock for people.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use embermesh_core::Time;
use tokio::time::Instant;

/// Monotonic microseconds since the node started: tokio's clock, so that paused and simulated time work.
///
/// A clock made by [`Clock::with_drift`] or [`Clock::adjustable`] runs at a rate of its own, for tests; a change of
/// rate bends it and never makes it jump.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    bent: Option<Arc<RwLock<Bend>>>,
    /// How far its wall clock is off.
    wall_off_us: i64,
}

/// Since when a clock has run at which rate, and what it showed then.
#[derive(Debug, Clone, Copy)]
struct Bend {
    since: Instant,
    shown_us: u64,
    /// Parts per million that it runs fast (or slow).
    drift_ppm: i64,
    /// It shows nothing new.
    still: bool,
}

/// What a clock shows at first: `now - something small` never meets the floor.
const FIRST_SHOWN_US: u64 = 1_000_000;

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now(), bent: None, wall_off_us: 0 }
    }
}

impl Clock {
    pub fn with_drift(drift_ppm: i64) -> Self {
        let start = Instant::now();
        let bend = Bend { since: start, shown_us: FIRST_SHOWN_US, drift_ppm, still: false };
        Self { start, bent: Some(Arc::new(RwLock::new(bend))), wall_off_us: 0 }
    }

    /// One whose rate can be set.
    pub fn adjustable() -> Self {
        Self::with_drift(0)
    }

    /// The same with a wall clock that is off by so much.
    #[must_use]
    pub fn with_wall_off(self, wall_off_us: i64) -> Self {
        Self { wall_off_us, ..self }
    }

    /// Unix time in microseconds, as this node's host has it.
    pub fn wall_us(&self) -> u64 {
        wall_us().saturating_add_signed(self.wall_off_us)
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.wall_us() / 1000
    }

    pub fn now(&self) -> Time {
        Time(self.bend().shown_at(Instant::now()))
    }

    /// When that moment comes, on tokio's clock: never earlier, or the one who sleeps until then would find that it
    /// has not come yet.
    pub fn instant(&self, at: Time) -> Instant {
        self.bend().comes_at(at.0)
    }

    /// From now on it runs fast by so many parts per million; clones are the same clock. Nothing changes for a
    /// clock that has no rate of its own.
    pub(crate) fn set_drift(&self, drift_ppm: i64) {
        if let Some(bent) = &self.bent {
            let mut bend = bent.write().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *bend = Bend { since: now, shown_us: bend.shown_at(now), drift_ppm, still: bend.still };
        }
    }

    /// Stands still, as for a process that is stopped; going on, it shows at once what has passed meanwhile. Nothing
    /// changes for a clock that has no rate of its own.
    pub fn stand_still(&self, still: bool) {
        if let Some(bent) = &self.bent {
            let mut bend = bent.write().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if still && !bend.still {
                *bend = Bend { since: now, shown_us: bend.shown_at(now), still, ..*bend };
            } else {
                bend.still = still;
            }
        }
    }

    pub(crate) fn drift_ppm(&self) -> i64 {
        self.bend().drift_ppm
    }

    fn bend(&self) -> Bend {
        match &self.bent {
            None => Bend { since: self.start, shown_us: FIRST_SHOWN_US, drift_ppm: 0, still: false },
            Some(bent) => *bent.read().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Bend {
    fn shown_at(&self, moment: Instant) -> u64 {
        if self.still {
            return self.shown_us;
        }
        let real = i128::try_from(moment.duration_since(self.since).as_micros()).unwrap_or(i128::MAX);
        let drifted = real + real * i128::from(self.drift_ppm) / 1_000_000;
        self.shown_us.saturating_add(u64::try_from(drifted).unwrap_or(0))
    }

    fn comes_at(&self, shown_us: u64) -> Instant {
        // As good as never, and does not overflow an Instant.
        const YEAR_US: i128 = 365 * 86_400 * 1_000_000;
        if self.still && shown_us > self.shown_us {
            return self.since + Duration::from_micros(YEAR_US as u64);
        }
        let drifted = i128::from(shown_us.saturating_sub(self.shown_us));
        let rate_ppm = 1_000_000 + i128::from(self.drift_ppm);
        let real = (drifted * 1_000_000 + rate_ppm - 1) / rate_ppm.max(1);
        let micros = u64::try_from(real.clamp(0, YEAR_US)).unwrap_or(0);
        self.since + Duration::from_micros(micros)
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

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_stood_still_shows_what_passed_meanwhile_when_it_goes_on() {
        let clock = Clock::with_drift(10_000);
        let shown = clock.now();
        clock.stand_still(true);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(clock.now(), shown);
        assert!(clock.instant(shown + 1) > Instant::now() + Duration::from_secs(86_400));
        clock.stand_still(false);
        assert_eq!(clock.now().since(shown), 10_100_000);
        assert_eq!(clock.instant(shown + 10_100_000), Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_whose_rate_changes_neither_jumps_nor_stops() {
        let clock = Clock::adjustable();
        let mut shown = clock.now();
        for ppm in [10_000, -10_000, 0, 500_000] {
            clock.set_drift(ppm);
            assert_eq!(clock.now(), shown, "it goes on from what it showed");
            tokio::time::sleep(std::time::Duration::from_secs(10)).await;
            let passed = clock.now().since(shown);
            assert_eq!(passed, (10_000_000 + 10 * ppm) as u64, "{ppm}");
            shown = clock.now();
        }
    }
}
