//! What the groups of one target share: the safety check, the latencies and the counters.

use crate::safety::SafetyCheck;
use crate::stats::LatencyHistogram;

/// What the groups should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Start nothing; finish what is under way.
    Paused,
    /// Work.
    Running,
}

/// The counters of one target. Latencies and pairs count only while it records; the safety check
/// and the errors count always.
#[derive(Debug)]
pub struct Board {
    /// Holders and fences.
    pub safety: SafetyCheck,
    /// From the (intended) start of an acquire to its grant.
    pub acquire: LatencyHistogram,
    /// From sending a release to its answer.
    pub release: LatencyHistogram,
    /// Whether a measured round is under way.
    pub recording: bool,
    /// Pairs completed in the measured round.
    pub pairs: u64,
    /// Grants since the beginning.
    pub grants: u64,
    /// Failed operations since the beginning.
    pub errors: u64,
    /// What a server said of the first of them.
    pub first_error: Option<String>,
    /// Callers that are not idle, over all groups.
    pub outstanding: u32,
}

impl Board {
    /// An empty one that does not record.
    pub fn new(safety: SafetyCheck) -> Self {
        Self {
            safety,
            acquire: LatencyHistogram::new(),
            release: LatencyHistogram::new(),
            recording: false,
            pairs: 0,
            grants: 0,
            errors: 0,
            first_error: None,
            outstanding: 0,
        }
    }

    /// Begins a measured round.
    pub fn begin_round(&mut self) {
        self.acquire.clear();
        self.release.clear();
        self.pairs = 0;
        self.recording = true;
    }

    #[inline]
    pub(crate) fn granted(&mut self, key: u32, caller: u32, fence: Option<u64>, nanos: u64) {
        self.grants += 1;
        self.safety.granted(key, caller, fence);
        if self.recording {
            self.acquire.record(nanos);
        }
    }

    #[inline]
    pub(crate) fn released(&mut self, nanos: u64) {
        if self.recording {
            self.pairs += 1;
            self.release.record(nanos);
        }
    }

    #[cold]
    pub(crate) fn failed(&mut self, said: Option<&str>) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = said.map(str::to_owned);
        }
    }
}
