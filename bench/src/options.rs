//! What a run is asked to do, with the defaults of the command line.

use crate::choices::{Driver, KeyDist, OptionError};
use crate::target::Target;
use std::path::PathBuf;
use std::time::Duration;

/// Most keys of a run: the safety check keeps 16 bytes for each.
const KEYS_MAX: u32 = 200_000_000;
/// Most callers of a run.
const CALLERS_MAX: u32 = 1_000_000;
/// Longest hold: Redis locks have a lease of 10 s that nobody renews.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// Fewest measured rounds.
const ROUNDS_MIN: u64 = 5;
/// About how long a round is; more time makes more rounds.
const ROUND_LENGTH: Duration = Duration::from_secs(2);
/// Shortest measured time: below it a round has too few batches to mean anything.
const DURATION_MIN: Duration = Duration::from_millis(100);

/// `bench pairs`: acquire and release pairs by many callers on few connections.
#[derive(Clone, Debug, PartialEq)]
pub struct PairsOptions {
    /// Measured in turns; ratios are to the first.
    pub targets: Vec<Target>,
    /// Callers over all connections: the number of requests in flight.
    pub callers: u32,
    /// Connections, each a client of its own with its share of the callers.
    pub connections: u32,
    /// Distinct keys.
    pub keys: u32,
    /// How keys are drawn.
    pub dist: KeyDist,
    /// How long a caller keeps a key.
    pub hold: Duration,
    /// Measured time per target, over all rounds.
    pub duration: Duration,
    /// Pairs started per second over all callers (open loop); as fast as answered if none.
    pub rate: Option<f64>,
    /// How callers are driven.
    pub driver: Driver,
}

impl Default for PairsOptions {
    fn default() -> Self {
        Self {
            targets: vec![Target::own()],
            callers: 512,
            connections: 4,
            keys: 1_000_000,
            dist: KeyDist::Uniform,
            hold: Duration::ZERO,
            duration: Duration::from_secs(10),
            rate: None,
            driver: Driver::Lean,
        }
    }
}

impl PairsOptions {
    /// Says what is impossible.
    ///
    /// # Errors
    /// Names the first option that is.
    pub fn check(&self) -> Result<(), OptionError> {
        check_targets(&self.targets)?;
        check_count("callers", self.callers, CALLERS_MAX, "use 1 to 1000000")?;
        let need = "use 1 to the number of callers";
        check_count("connections", self.connections, self.callers, need)?;
        check_count("keys", self.keys, KEYS_MAX, "use 1 to 200000000")?;
        check_duration(self.duration)?;
        let refuse = |option, given, need| Err(OptionError { option, given, need });
        if self.hold > HOLD_MAX {
            let need = "use at most 5s: locks on Redis expire after 10 s";
            return refuse("hold", format!("{:?}", self.hold), need);
        }
        match self.rate {
            Some(rate) if !(0.001..=1e9).contains(&rate) => {
                refuse("rate", rate.to_string(), "use 0.001 to 1000000000 pairs per second")
            }
            _ => Ok(()),
        }
    }

    /// Measured rounds per target, and the length of each.
    pub fn rounds(&self) -> (u32, Duration) {
        let rounds = (self.duration.as_nanos() / ROUND_LENGTH.as_nanos()) as u64;
        let rounds = rounds.clamp(ROUNDS_MIN, 1000) as u32;
        (rounds, self.duration / rounds)
    }
}

/// `bench latency`: one caller on one connection, nothing to batch.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyOptions {
    /// Measured in turns; ratios are to the first.
    pub targets: Vec<Target>,
    /// Measured time per target, over all rounds.
    pub duration: Duration,
}

impl Default for LatencyOptions {
    fn default() -> Self {
        let PairsOptions { targets, duration, .. } = PairsOptions::default();
        Self { targets, duration }
    }
}

impl From<LatencyOptions> for PairsOptions {
    fn from(options: LatencyOptions) -> Self {
        let LatencyOptions { targets, duration } = options;
        Self { targets, duration, callers: 1, connections: 1, ..Self::default() }
    }
}

/// `bench memory`: the resident size of a server that holds many locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Measured one after the other.
    pub targets: Vec<Target>,
    /// Locks held.
    pub locks: u32,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { targets: vec![Target::own()], locks: 10_000_000 }
    }
}

impl MemoryOptions {
    /// Says what is impossible.
    ///
    /// # Errors
    /// Names the first option that is.
    pub fn check(&self) -> Result<(), OptionError> {
        check_targets(&self.targets)?;
        check_count("locks", self.locks, KEYS_MAX, "use 1 to 200000000")
    }
}

/// `bench expiry`: one session dies holding many locks while another works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiryOptions {
    /// Measured one after the other.
    pub targets: Vec<Target>,
    /// Locks held by the session that dies.
    pub locks: u32,
}

impl Default for ExpiryOptions {
    fn default() -> Self {
        Self { targets: vec![Target::own()], locks: 1_000_000 }
    }
}

impl ExpiryOptions {
    /// Says what is impossible.
    ///
    /// # Errors
    /// Names the first option that is.
    pub fn check(&self) -> Result<(), OptionError> {
        check_targets(&self.targets)?;
        check_count("locks", self.locks, KEYS_MAX, "use 1 to 200000000")
    }
}

/// `bench abuse`: one bad peer beside a well-behaved one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbuseOptions {
    /// The binary to attack; `None`: this one.
    pub binary: Option<PathBuf>,
    /// Names of the attacks; none: all.
    pub attacks: Vec<String>,
    /// How often each attack is measured, each time on a node of its own.
    pub rounds: u32,
    /// Measured time per attack and round.
    pub duration: Duration,
    /// How many bytes the node's memory may grow by.
    pub memory_bound: u64,
}

impl Default for AbuseOptions {
    fn default() -> Self {
        let duration = Duration::from_secs(3);
        Self { binary: None, attacks: Vec::new(), rounds: 3, duration, memory_bound: 64 << 20 }
    }
}

impl AbuseOptions {
    /// Says what is impossible.
    ///
    /// # Errors
    /// Names the first option that is.
    pub fn check(&self) -> Result<(), OptionError> {
        check_count("rounds", self.rounds, 1000, "measure 1 to 1000 rounds")?;
        check_duration(self.duration)
    }
}

fn check_targets(targets: &[Target]) -> Result<(), OptionError> {
    if targets.is_empty() {
        let need = "name at least one, as in redis+spawn:";
        return Err(OptionError { option: "target", given: "(none)".to_owned(), need });
    }
    Ok(())
}

fn check_count(
    option: &'static str,
    count: u32,
    most: u32,
    need: &'static str,
) -> Result<(), OptionError> {
    if (1..=most).contains(&count) {
        Ok(())
    } else {
        Err(OptionError { option, given: count.to_string(), need })
    }
}

fn check_duration(duration: Duration) -> Result<(), OptionError> {
    if (DURATION_MIN..=Duration::from_secs(24 * 3600)).contains(&duration) {
        Ok(())
    } else {
        let need = "use 100ms to 24h";
        Err(OptionError { option: "duration", given: format!("{duration:?}"), need })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_options_are_named() {
        type Spoil = fn(&mut PairsOptions);
        let cases: [(Spoil, &str); 10] = [
            (|o| o.targets.clear(), "--target"),
            (|o| o.callers = 0, "--callers 0"),
            (|o| o.callers = 2_000_000, "--callers 2000000"),
            (|o| o.connections = 0, "--connections 0"),
            (|o| o.connections = 513, "--connections 513"),
            (|o| o.keys = 0, "--keys 0"),
            (|o| o.duration = Duration::ZERO, "--duration 0ns"),
            (|o| o.hold = Duration::from_secs(6), "--hold 6s"),
            (|o| o.rate = Some(0.0), "--rate 0"),
            (|o| o.rate = Some(f64::NAN), "--rate NaN"),
        ];
        assert_eq!(PairsOptions::default().check(), Ok(()));
        for (spoil, named) in cases {
            let mut options = PairsOptions::default();
            spoil(&mut options);
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(named) && error.contains(": "), "{error}");
        }
        let none = MemoryOptions { locks: 0, ..MemoryOptions::default() };
        assert!(none.check().is_err());
    }

    #[test]
    fn there_are_at_least_five_rounds() {
        let rounds = |seconds| {
            let duration = Duration::from_secs(seconds);
            PairsOptions { duration, ..PairsOptions::default() }.rounds()
        };
        assert_eq!(rounds(1), (5, Duration::from_millis(200)));
        assert_eq!(rounds(10), (5, Duration::from_secs(2)));
        assert_eq!(rounds(60), (30, Duration::from_secs(2)));
    }
}
