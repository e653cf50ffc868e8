//! Time as the core sees it: microseconds since some moment of the driver's choice, never going back.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Add, Sub};

/// A duration in microseconds.
pub type Micros = u64;

/// One millisecond.
pub const MS: Micros = 1_000;
/// One second.
pub const SECOND: Micros = 1_000_000;

/// A moment on the driver's monotonic clock.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

/// As the one thing here that is written as `i128`: a model checker's hasher can so tell moments from other numbers,
/// and take them relative to now.
impl Hash for Time {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_i128(i128::from(self.0));
    }
}

impl Time {
    pub const FAR: Time = Time(u64::MAX);

    /// How long ago `earlier` was, zero if it is still to come.
    pub fn since(self, earlier: Time) -> Micros {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Micros> for Time {
    type Output = Time;
    fn add(self, by: Micros) -> Time {
        Time(self.0.saturating_add(by))
    }
}

impl Sub<Micros> for Time {
    type Output = Time;
    fn sub(self, by: Micros) -> Time {
        Time(self.0.saturating_sub(by))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / SECOND, self.0 % SECOND)
    }
}
