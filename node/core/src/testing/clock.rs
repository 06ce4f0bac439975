//! Clocks that run too fast or too slow.

use crate::Time;

/// How one machine of the simulation sees time: from a start of its own, and at a rate that is
/// wrong by some parts of a million.
#[derive(Clone, Copy, Debug)]
pub struct RateClock {
    start: u64,
    ppm: i64,
}

impl RateClock {
    /// A clock that shows `start` at the beginning and runs `ppm` too fast.
    pub fn new(start: u64, ppm: i64) -> Self {
        assert!((-500_000..=500_000).contains(&ppm), "a clock with {ppm} ppm");
        Self { start, ppm }
    }

    /// What it shows at `real`.
    pub fn shows(self, real: Time) -> Time {
        let scaled = i128::from(real.0) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Time(self.start + scaled as u64)
    }

    /// The first instant at which it shows `local`.
    pub fn real(self, local: Time) -> Time {
        if local == Time::NEVER {
            return local;
        }
        let since = i128::from(local.0.saturating_sub(self.start)) * 1_000_000;
        let rate = i128::from(1_000_000 + self.ppm);
        Time(((since + rate - 1) / rate) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_is_the_first_instant_that_shows_it() {
        for ppm in [-10_000, -1, 0, 7, 10_000] {
            let clock = RateClock::new(5_000, ppm);
            for local in [5_000, 5_001, 77_777, 9_999_999_999] {
                let real = clock.real(Time(local));
                assert!(clock.shows(real) >= Time(local), "{ppm} {local}");
                assert!(real.0 == 0 || clock.shows(Time(real.0 - 1)) < Time(local));
            }
        }
    }
}
