//! An allowance that fills up at a rate.

use lockring_proto::Time;

/// How fast an allowance fills up, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Pieces a second.
    pub per_second: u32,
    /// Pieces that may come at once.
    pub burst: u32,
}

/// What may still come. Counted in millionths, so that it never loses a fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    level: u64,
    at: Time,
}

const ONE: u64 = 1_000_000;

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Time) -> Self {
        Self { level: Self::most(rate), at: now }
    }

    fn most(rate: Rate) -> u64 {
        u64::from(rate.burst) * ONE
    }

    pub(crate) fn fill(&mut self, rate: Rate, now: Time) {
        let gained = now.since(self.at).as_micros() as u64;
        let gained = gained.saturating_mul(u64::from(rate.per_second));
        self.level = self.level.saturating_add(gained).min(Self::most(rate));
        self.at = self.at.max(now);
    }

    pub(crate) fn has_one(&self) -> bool {
        self.level >= ONE
    }

    /// Takes one that is there.
    pub(crate) fn take_one(&mut self) {
        self.level -= ONE;
    }

    pub(crate) fn is_over_half(&self, rate: Rate) -> bool {
        self.level > Self::most(rate) / 2
    }

    pub(crate) fn is_full(&self, rate: Rate) -> bool {
        self.level >= Self::most(rate)
    }
}
