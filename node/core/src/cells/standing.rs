//! What a cell's requests and ops are measured by. It lies in the cell's cache line, as every
//! request looks at it.

use lockring_proto::Fence;
use lockring_ring::{Epoch, RingVersion};

/// No ring version is above it: whoever compares only this lets no request through, whatever
/// version its client claims.
const NOT_SERVED: u64 = u64::MAX;

#[derive(Clone)]
pub(crate) struct Standing {
    /// Only requests that were routed by a ring version above this are carried out as they are: the
    /// one before the version that made the epoch, or the last there is while the cell is not
    /// served.
    routed_after: u64,
    /// The epoch, and a counter that no op of it reaches.
    floor: Fence,
}

/// The numbers of an epoch begin above this.
fn floor(epoch: Epoch) -> Fence {
    // Also for the last epoch, in which nothing is numbered.
    Fence(Fence::new(Epoch(1), 0).0 * u64::from(epoch.0))
}

/// The ring version before one.
fn before(version: RingVersion) -> u64 {
    version.0.checked_sub(1).expect("ring versions begin with 1")
}

impl Standing {
    pub(crate) fn new(epoch: Epoch, since: RingVersion) -> Self {
        Self { routed_after: before(since), floor: floor(epoch) }
    }

    /// Whether a request that was routed by this version is to be carried out.
    #[inline(always)]
    pub(crate) fn serves(&self, version: u64) -> bool {
        version > self.routed_after
    }

    /// The version that made the epoch of a cell that is served.
    pub(crate) fn since(&self) -> RingVersion {
        RingVersion(self.routed_after + 1)
    }

    pub(crate) fn serve(&mut self, since: RingVersion) {
        self.routed_after = before(since);
    }

    /// Nothing is served until [`Standing::serve`]; the version since which it was.
    pub(crate) fn withhold(&mut self) -> RingVersion {
        let since = self.since();
        self.routed_after = NOT_SERVED;
        since
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.floor.epoch()
    }

    pub(crate) fn raise(&mut self, epoch: Epoch) {
        assert!(epoch > self.epoch(), "epoch {epoch:?} after {:?}", self.epoch());
        self.floor = floor(epoch);
    }

    /// The highest number so far, after an op with the number `last`.
    #[inline(always)]
    pub(crate) fn number(&self, last: Fence) -> Fence {
        self.floor.max(last)
    }

    /// The next number; the last one if there is no other: the epoch is used up, or the one past
    /// the last.
    #[inline(always)]
    pub(crate) fn next(&self, last: Fence) -> Result<Fence, Fence> {
        let number = self.number(last);
        let has_more = number.counter() < Fence::COUNTER_LAST && number.epoch() < Epoch::LAST;
        if has_more { Ok(Fence(number.0 + 1)) } else { Err(number) }
    }

    /// Skips numbers, to see them run out.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn wind(&mut self, to: u64) {
        self.floor = Fence(floor(self.epoch()).0 + to);
    }
}
