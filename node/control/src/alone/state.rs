//! The state that the log's entries make, and the rules by which they do.

use lockring_proto::limits;
use lockring_ring::{BootId, CellId, Epoch, RingVersion};
use std::fmt;
use std::time::Duration;

/// Beyond the longest lease a restarted node waits this much more, for what no clock counts:
/// scheduling between a client's send and its reading of the clock.
const GRACE_MARGIN: Duration = Duration::from_millis(50);

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A life of the node begins.
    NodeBoot,
    /// A cell has the next epoch.
    RaiseEpoch(CellId),
    /// Sessions of this TTL may be confirmed, and no intent to lower it stands any more.
    RaiseLongestTtl {
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people.
        by: String,
    },
    /// The longest TTL shall be lowered to this: from now on no worker confirms above it.
    IntendLongestTtl(Duration),
    /// It is lowered, as every worker has stated since the intent that no lease above it can be
    /// believed in. Void unless that intent still stands.
    LowerLongestTtl {
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people; empty if nobody's in particular.
        by: String,
    },
    /// A life has ended with nothing held, and no earlier life's lease to be believed in. Void for
    /// any other life than the last.
    CleanStop(BootId),
    /// Nothing: shows whether the log takes entries.
    Blank,
}

/// What the entries up to some one make together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The last life of the node, counted from 1; 0: it never started.
    pub boot: BootId,
    /// No epoch at or below this will be given again.
    pub epoch_floor: Epoch,
    /// The longest session TTL that may still be alive somewhere.
    pub longest_ttl: Duration,
    /// Whose session it is, for people; empty if nobody's in particular.
    pub longest_by: String,
    /// To what the longest TTL shall be lowered.
    pub intent: Option<Duration>,
    /// The last life ended by [`Entry::CleanStop`].
    pub clean: bool,
}

/// What a life owes to those before it: until their leases have surely ended nothing is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grace {
    /// For this long from the start.
    pub span: Duration,
    /// For the sake of this TTL.
    pub longest_ttl: Duration,
    /// Whose session has it, for people; empty if nobody's in particular.
    pub whose: String,
}

/// There is no epoch above the floor, which is this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochsUsedUp(pub Epoch);

impl fmt::Display for EpochsUsedUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the epochs are used up: the floor is {}", self.0.0)
    }
}

impl std::error::Error for EpochsUsedUp {}

/// The epoch after the floor. The last one of all is never given.
///
/// # Errors
/// When there is none.
pub fn next_epoch(floor: Epoch) -> Result<Epoch, EpochsUsedUp> {
    let next = Epoch(floor.0.saturating_add(1));
    if next < Epoch::LAST { Ok(next) } else { Err(EpochsUsedUp(floor)) }
}

impl State {
    /// That of a node which never started. Every restart waits for at least a lease of `least`.
    pub fn new(least: Duration) -> Self {
        Self {
            boot: BootId(0),
            epoch_floor: Epoch(0),
            longest_ttl: least,
            longest_by: String::new(),
            intent: None,
            clean: false,
        }
    }

    /// The state after one more entry.
    ///
    /// # Errors
    /// When it needs an epoch and there is none. Nothing has changed then.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), EpochsUsedUp> {
        match entry {
            Entry::NodeBoot => {
                self.epoch_floor = next_epoch(self.epoch_floor)?;
                self.boot.0 += 1;
                self.clean = false;
                // It was told to workers that are gone.
                self.intent = None;
            }
            Entry::RaiseEpoch(_) => self.epoch_floor = next_epoch(self.epoch_floor)?,
            Entry::RaiseLongestTtl { ttl, by } => {
                self.intent = None;
                if *ttl > self.longest_ttl {
                    self.set_longest(*ttl, by);
                }
            }
            Entry::IntendLongestTtl(ttl) => {
                self.intent = Some(*ttl).filter(|ttl| *ttl < self.longest_ttl);
            }
            Entry::LowerLongestTtl { ttl, by } => {
                if self.intent == Some(*ttl) {
                    self.intent = None;
                    self.set_longest(*ttl, by);
                }
            }
            Entry::CleanStop(boot) => self.clean |= *boot == self.boot,
            Entry::Blank => {}
        }
        Ok(())
    }

    fn set_longest(&mut self, ttl: Duration, by: &str) {
        self.longest_ttl = ttl;
        by.clone_into(&mut self.longest_by);
    }

    /// What the next life owes to those before it, by the state before its [`Entry::NodeBoot`].
    /// Nothing, if there was none, or the last one ended clean.
    pub fn grace(&self) -> Option<Grace> {
        let owes = self.boot != BootId(0) && !self.clean;
        owes.then(|| Grace {
            span: limits::honoured(self.longest_ttl) + GRACE_MARGIN,
            longest_ttl: self.longest_ttl,
            whose: self.longest_by.clone(),
        })
    }

    /// The version of the ring. In a cluster of one each epoch is a version of the ring: both only
    /// grow, and by one with each life and each cell's next epoch.
    pub fn ring_version(&self) -> RingVersion {
        RingVersion(u64::from(self.epoch_floor.0))
    }
}

/// How a worker was at its very end, after which it grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerEnd {
    /// Holds that were left.
    pub held: u64,
    /// It still waited for the leases of earlier lives.
    pub in_grace: bool,
}

/// Whether a stop was clean: every worker has said how it ended (`None`: it has not), nothing was
/// held, and no lease of an earlier life could be believed in any more.
pub fn is_clean(ends: &[Option<WorkerEnd>]) -> bool {
    ends.iter().all(|end| end.is_some_and(|end| end.held == 0 && !end.in_grace))
}
