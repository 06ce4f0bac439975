//! The longest TTL that a worker had of late: what clients may believe in outlives what it has.

use lockring_proto::Time;
use lockring_proto::limits::{TTL_MAX, inherited};
use std::collections::VecDeque;
use std::time::Duration;

/// The longest TTL, in whole seconds, so that there are few.
#[derive(Debug, Default)]
pub struct Ttls {
    /// What it is now, and so in seconds.
    now: (Duration, u64),
    /// What it was before, each with the time when that ended: the later the shorter.
    before: VecDeque<(u64, Time)>,
}

impl Ttls {
    /// It is this from now on.
    #[inline]
    pub fn has(&mut self, now: Time, ttl: Duration) {
        if ttl != self.now.0 {
            self.changes(now, ttl);
        }
    }

    #[cold]
    fn changes(&mut self, now: Time, ttl: Duration) {
        let (_, was) = self.now;
        // What was no longer than what followed it says nothing more.
        while self.before.back().is_some_and(|&(before, _)| before <= was) {
            self.before.pop_back();
        }
        self.before.push_back((was, now));
        // No question goes further back.
        while self.before.front().is_some_and(|&(_, ended)| now.since(ended) > inherited(TTL_MAX)) {
            self.before.pop_front();
        }
        self.now = (ttl, ttl.as_millis().div_ceil(1000) as u64);
    }

    /// The longest at any time within the window before now, at whose end it is this.
    pub fn longest(&mut self, now: Time, window: Duration, ttl: Duration) -> Duration {
        self.has(now, ttl);
        let within = self.before.iter().filter(|(_, ended)| now.since(*ended) < window);
        Duration::from_secs(within.map(|&(ttl, _)| ttl).fold(self.now.1, u64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_longer_is_remembered_for_its_time() {
        let mut ttls = Ttls::default();
        for (time, ttl) in [(1, 10), (2, 60), (3, 20), (4, 30), (9, 0)] {
            ttls.has(at(time), secs(ttl));
        }
        let mut longest = |window| ttls.longest(at(10), secs(window), Duration::from_millis(1));
        assert_eq!(longest(0), secs(1), "in whole seconds");
        assert_eq!(longest(2), secs(30));
        assert_eq!(longest(7), secs(30));
        assert_eq!(longest(8), secs(60));
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let mut ttls = Ttls::default();
        for second in 0..20_000 {
            ttls.has(at(second), Duration::from_millis(3_600_000 - second));
        }
        assert!(ttls.before.len() < 30, "{}", ttls.before.len());
        ttls.has(at(30_000), secs(1));
        assert_eq!(ttls.before.len(), 1, "{:?}", ttls.before);
    }
}
