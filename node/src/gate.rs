//! Which connection attempts are let in, and when: established links come first.
//!
//! A handshake costs the worker about as much as a thousand lock operations, and whoever asks for
//! one has proved nothing yet. So they are rated, in all and by the network they come from, and
//! those under way are capped. An address that has not been proved to be real may use up half of
//! an allowance only: the rest is for those who have proved theirs, which costs the node nothing.

use crate::bucket::{Bucket, Rate};
use lockring_proto::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Networks that are counted each by itself; the rest share one allowance.
const SOURCES_MAX: usize = 4096;

/// Those with nothing to remember are looked for at most this often.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// How many handshakes a worker takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// A second, in all. Twice as many may come at once.
    pub per_second: u32,
    /// A second, from one network: 24 bits of an IPv4 address, 56 of an IPv6 one. Twice as many may
    /// come at once.
    pub per_second_and_source: u32,
    /// Under way at a time, in all.
    pub pending: u32,
    /// Under way at a time, from one network.
    pub pending_per_source: u32,
}

impl HandshakeLimits {
    fn rate(self) -> Rate {
        Rate { per_second: self.per_second, burst: self.per_second.saturating_mul(2) }
    }

    fn rate_of_source(self) -> Rate {
        let per_second = self.per_second_and_source;
        Rate { per_second, burst: per_second.saturating_mul(2) }
    }
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { per_second: 200, per_second_and_source: 100, pending: 256, pending_per_source: 64 }
    }
}

/// What is done with a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Begin the handshake, and tell [`Gate::done`] when it is over.
    Accept,
    /// Have it prove its address first.
    Retry,
    /// Say nothing: an honest peer sends its packet again by itself, later and later.
    Ignore,
}

/// A network, as far as it is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

impl Source {
    /// The network of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(address.to_bits() >> 8)),
            // The top bit keeps the two kinds apart.
            IpAddr::V6(address) => Self(1 << 63 | (address.to_bits() >> 72) as u64),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    bucket: Bucket,
    pending: u32,
}

/// The gate of one worker.
#[derive(Debug)]
pub struct Gate {
    limits: HandshakeLimits,
    all: Bucket,
    pending: u32,
    sources: BTreeMap<Source, Known>,
    /// For those that are too many to be counted each by itself.
    others: Known,
    pruned_at: Time,
}

impl Gate {
    /// An open gate.
    pub fn new(limits: HandshakeLimits, now: Time) -> Self {
        let of_source = Bucket::full(limits.rate_of_source(), now);
        Self {
            all: Bucket::full(limits.rate(), now),
            pending: 0,
            sources: BTreeMap::new(),
            others: Known { bucket: of_source, pending: 0 },
            pruned_at: now,
            limits,
        }
    }

    /// What to do with an attempt from a network whose address is proved to be real, or not.
    pub fn judge(&mut self, now: Time, source: Source, proved: bool) -> Verdict {
        let limits = self.limits;
        self.all.fill(limits.rate(), now);
        self.make_known(source, now);
        let known = self.sources.get_mut(&source).unwrap_or(&mut self.others);
        known.bucket.fill(limits.rate_of_source(), now);
        let calm = self.all.is_over_half(limits.rate())
            && known.bucket.is_over_half(limits.rate_of_source())
            && self.pending < limits.pending / 2
            && known.pending < limits.pending_per_source / 2;
        if !calm && !proved {
            return Verdict::Retry;
        }
        let room = self.pending < limits.pending && known.pending < limits.pending_per_source;
        if !room || !self.all.has_one() || !known.bucket.has_one() {
            return Verdict::Ignore;
        }
        self.all.take_one();
        known.bucket.take_one();
        known.pending += 1;
        self.pending += 1;
        Verdict::Accept
    }

    /// A handshake that was let in is over, well or not.
    pub fn done(&mut self, source: Source) {
        self.pending -= 1;
        // One that was counted among the others may be known by itself now.
        let known = match self.sources.get_mut(&source) {
            Some(known) if known.pending > 0 => known,
            _ => &mut self.others,
        };
        known.pending = known.pending.saturating_sub(1);
    }

    fn make_known(&mut self, source: Source, now: Time) {
        if self.sources.contains_key(&source) {
            return;
        }
        if self.sources.len() >= SOURCES_MAX && now.since(self.pruned_at) >= PRUNE_EVERY {
            self.pruned_at = now;
            let rate = self.limits.rate_of_source();
            self.sources.retain(|_, known| {
                known.bucket.fill(rate, now);
                known.pending > 0 || !known.bucket.is_full(rate)
            });
        }
        if self.sources.len() < SOURCES_MAX {
            let bucket = Bucket::full(self.limits.rate_of_source(), now);
            self.sources.insert(source, Known { bucket, pending: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn source(number: u32) -> Source {
        Source::of(IpAddr::from((number << 8).to_be_bytes()))
    }

    /// How many of these attempts at one moment, each over at once, are accepted.
    fn accepted(gate: &mut Gate, now: Time, source: Source, proved: bool, attempts: u32) -> u32 {
        let mut count = 0;
        for _ in 0..attempts {
            if gate.judge(now, source, proved) == Verdict::Accept {
                gate.done(source);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn one_network_gets_its_rate_and_no_more() {
        let mut gate = Gate::new(HandshakeLimits::default(), Time(0));
        assert_eq!(accepted(&mut gate, Time(0), source(1), true, 1000), 200, "a burst");
        let mut later = 0;
        for second in 1..=10 {
            for tenth in 0..10 {
                let now = Time(second * SECOND + tenth * SECOND / 10);
                later += accepted(&mut gate, now, source(1), true, 100);
            }
        }
        assert!((990..=1100).contains(&later), "{later}");
        // A long silence saves up no more than a burst.
        assert_eq!(accepted(&mut gate, Time(900 * SECOND), source(1), true, 1000), 200);
    }

    #[test]
    fn many_networks_together_get_the_rate_of_all() {
        let mut gate = Gate::new(HandshakeLimits::default(), Time(0));
        let mut count = 0;
        for number in 0..1000 {
            count += accepted(&mut gate, Time(0), source(number), true, 10);
        }
        assert_eq!(count, 400);
    }

    /// Somebody who makes up source addresses cannot use up what those who own them need.
    #[test]
    fn who_proves_nothing_gets_half_at_most() {
        let mut gate = Gate::new(HandshakeLimits::default(), Time(0));
        assert_eq!(accepted(&mut gate, Time(0), source(1), false, 10_000), 100);
        assert_eq!(gate.judge(Time(0), source(1), false), Verdict::Retry);
        assert_eq!(accepted(&mut gate, Time(0), source(1), true, 10_000), 100);
        assert_eq!(gate.judge(Time(0), source(1), true), Verdict::Ignore);
        assert_eq!(gate.judge(Time(0), source(2), true), Verdict::Accept, "others are let in");
    }

    #[test]
    fn handshakes_under_way_are_capped_for_one_and_for_all() {
        let limits = HandshakeLimits::default();
        let mut gate = Gate::new(limits, Time(0));
        let begun = |gate: &mut Gate, from| {
            (0..1000).filter(|_| gate.judge(Time(0), from, true) == Verdict::Accept).count()
        };
        let first = begun(&mut gate, source(1));
        assert_eq!(first, limits.pending_per_source as usize);
        let more: usize = (2..50).map(|number| begun(&mut gate, source(number))).sum();
        assert_eq!(first + more, limits.pending as usize);
        gate.done(source(1));
        assert_eq!(begun(&mut gate, source(1)), 1);
    }

    #[test]
    fn what_it_remembers_is_bounded_and_the_rest_share() {
        let mut gate = Gate::new(HandshakeLimits::default(), Time(0));
        for number in 0..100_000 {
            gate.judge(Time(u64::from(number) * 10_000), source(number), true);
        }
        assert!(gate.sources.len() <= SOURCES_MAX, "{}", gate.sources.len());
        // All at one moment: nothing to forget, and still bounded.
        let mut gate = Gate::new(HandshakeLimits::default(), Time(0));
        for number in 0..10_000 {
            gate.judge(Time(0), source(number), true);
        }
        assert_eq!(gate.sources.len(), SOURCES_MAX);
        for number in 0..10_000 {
            gate.done(source(number));
            if gate.pending == 0 {
                break;
            }
        }
    }

    #[test]
    fn networks_are_told_apart_by_their_prefix() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("10.1.2.3"), of("10.1.2.250"));
        assert_ne!(of("10.1.2.3"), of("10.1.3.3"));
        assert_eq!(of("::ffff:10.1.2.3"), of("10.1.2.9"), "the same, over an IPv6 socket");
        assert_eq!(of("2001:db8:0:12::1"), of("2001:db8:0:34::1"));
        assert_ne!(of("2001:db8:0:100::1"), of("2001:db8:0:200::1"));
        assert_ne!(of("::"), of("0.0.0.0"));
    }
}
