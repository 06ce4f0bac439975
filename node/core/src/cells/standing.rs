//! What a cell's requests and ops are measured by. It lies in the cell's cache line, as every
//! request looks at it.

use lockring_proto::Fence;
use lockring_ring::{Epoch, RingVersion};

/// Later than every ring version: whoever compares only this lets no request through.
const NOT_SERVED: RingVersion = RingVersion(u64::MAX);

#[derive(Clone)]
pub(crate) struct Standing {
    /// Requests that were routed by an older ring version are not carried out as they are: the
    /// version that made the epoch, or one above all while the cell is not served.
    since: RingVersion,
    /// The epoch, and a counter that no op of it reaches.
    floor: Fence,
}

/// The numbers of an epoch begin above this.
fn floor(epoch: Epoch) -> Fence {
    // Also for the last epoch, in which nothing is numbered.
    Fence(Fence::new(Epoch(1), 0).0 * u64::from(epoch.0))
}

impl Standing {
    pub(crate) fn new(epoch: Epoch, since: RingVersion) -> Self {
        Self { since, floor: floor(epoch) }
    }

    /// Whether a request that was routed by this version is to be carried out.
    #[inline(always)]
    pub(crate) fn serves(&self, version: u64) -> bool {
        version >= self.since.0
    }

    pub(crate) fn since(&self) -> RingVersion {
        self.since
    }

    pub(crate) fn serve(&mut self, since: RingVersion) {
        self.since = since;
    }

    /// Nothing is served until [`Standing::serve`]; the version since which it was.
    pub(crate) fn withhold(&mut self) -> RingVersion {
        std::mem::replace(&mut self.since, NOT_SERVED)
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

    /// Leaves numbers out, to see them run out.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn wind(&mut self, to: u64) {
        self.floor = Fence(floor(self.epoch()).0 + to);
    }
}
