//! What may happen to the locks of a cell, as owner, copy and snapshot all read it.
//!
//! An op is a decision that was taken where the cell is served. It carries everything that carrying
//! it out needs, so that this can be done anywhere: who is named by a link, times are durations,
//! and nothing of where things lie in memory is in it.

use crate::event::LinkIndex;
use lockring_proto::{Claim, Fence, SessionId};
use lockring_ring::NamespaceSeed;
use std::time::Duration;

/// One numbered change of a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op<'a> {
    /// The epoch and the cell's counter with this op; of a grant it is the fence, but for what is
    /// reclaimed.
    pub(crate) number: Fence,
    pub(crate) change: Change<'a>,
}

/// What changes. `since` is the time on the owner's clock, from its zero on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    /// A claim is granted.
    Granted { link: LinkIndex, request: u64, source: Source<'a>, since: Duration },
    /// The hold with this fence ends.
    Ended { fence: Fence, cause: Ending },
    /// A claim is queued, for ever or for a while.
    Queued {
        link: LinkIndex,
        request: u64,
        key: &'a [u8],
        claim: Claim,
        since: Duration,
        patience: Option<Duration>,
    },
    /// A queued claim goes without a grant.
    Left { link: LinkIndex, request: u64, cause: Leaving },
}

impl Change<'_> {
    /// The same of another link.
    pub(crate) fn with_link(mut self, of: LinkIndex) -> Self {
        match &mut self {
            Self::Granted { link, .. } | Self::Queued { link, .. } | Self::Left { link, .. } => {
                *link = of;
            }
            Self::Ended { .. } => {}
        }
        self
    }
}

/// Where a grant comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// A claim that did not wait.
    Asked { key: &'a [u8], claim: Claim },
    /// The queue, which knows key and claim.
    Queue,
    /// A client that held it in an earlier epoch, of which its cell has no copy: the hold keeps the
    /// fence that it had, as its client has given that to others.
    Reclaimed { key: &'a [u8], claim: Claim, fence: Fence },
}

/// Why a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// Its client gave it back, by a release or a cancel.
    Released,
    /// Its link died.
    Expired,
    /// An operator forced it.
    Forced,
    /// A compare has found that no client knows it.
    Orphan,
    /// It is still held, but its cell is not this worker's any more.
    CellLeft,
    /// It was reclaimed, and so was another that it does not go beside and whose fence is higher.
    Outranked,
}

impl Ending {
    /// The one with this number, as peers send it.
    pub(crate) fn of_code(code: u8) -> Option<Self> {
        const ALL: [Ending; 6] = [
            Ending::Released,
            Ending::Expired,
            Ending::Forced,
            Ending::Orphan,
            Ending::CellLeft,
            Ending::Outranked,
        ];
        ALL.into_iter().find(|&ending| ending as u8 == code)
    }
}

/// Why a queued claim goes without a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaving {
    /// Its client cancelled it.
    Cancelled,
    /// It has waited for as long as it wanted to.
    TimedOut,
    /// Its link died, or nobody would hear of its grant.
    Dead,
    /// It still waits, but its cell is not this worker's any more.
    CellLeft,
    /// The key turns out to be held as another kind.
    Refused,
}

impl Leaving {
    /// The one with this number, as peers send it.
    pub(crate) fn of_code(code: u8) -> Option<Self> {
        const ALL: [Leaving; 5] = [
            Leaving::Cancelled,
            Leaving::TimedOut,
            Leaving::Dead,
            Leaving::CellLeft,
            Leaving::Refused,
        ];
        ALL.into_iter().find(|&leaving| leaving as u8 == code)
    }
}

/// Why a link dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Death {
    /// Its lease has ended.
    Expired,
    /// Its session wants it so, or has never used it.
    Left,
}

/// What the stream says of links. It has no number, and to say it twice says nothing new.
#[cfg_attr(
    not(any(test, feature = "testing")),
    expect(dead_code, reason = "nobody hears the stream of a normal build")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkRecord {
    Defined(Definition),
    /// Its holds and waiters are about to be freed, op by op.
    Dead(Death),
}

/// Who a link is.
#[cfg_attr(
    not(any(test, feature = "testing")),
    expect(dead_code, reason = "nobody hears the stream of a normal build")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Definition {
    /// Counts the links of a worker's life: no other link has ever had it.
    pub(crate) number: u64,
    pub(crate) session: SessionId,
    pub(crate) ttl: Duration,
    pub(crate) namespace: u16,
    pub(crate) seed: NamespaceSeed,
}
