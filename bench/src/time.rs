//! Time as the groups see it: nanoseconds since the run began.

use std::ops::Add;
use std::time::{Duration, Instant};

/// A moment of the run, in nanoseconds since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// Nanoseconds since `earlier`; zero if it is not earlier.
    #[inline]
    pub fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    #[inline]
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

/// A duration in nanoseconds; those above 584 years are cut.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The clock of one run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Begins to count.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// The present moment.
    #[inline]
    pub fn now(&self) -> Time {
        Time(nanos(self.origin.elapsed()))
    }
}
