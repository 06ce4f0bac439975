//! What a link tells its owner.

use super::ClaimRef;
use lockring_proto::{BlockedReason, Fence, Refusal, Reply, RingChunk, Welcome};

/// Something that happened to a claim or a query. `token` is the caller's own, given with the
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim is held.
    Granted {
        /// The caller's.
        token: u64,
        /// Names the hold from now on.
        claim: ClaimRef,
        /// Its fence.
        fence: Fence,
    },
    /// The claim is in line.
    Queued {
        /// The caller's.
        token: u64,
        /// How many are ahead of it.
        ahead: u32,
    },
    /// The claim is settled without a hold.
    NotGranted {
        /// The caller's.
        token: u64,
        /// Why.
        reason: NotGranted,
    },
    /// The hold ended, and was held until then.
    Released {
        /// The caller's.
        token: u64,
    },
    /// The release found nothing to end.
    NotHeld {
        /// The caller's.
        token: u64,
        /// An earlier copy of this release may have ended the hold: it was sent again after the
        /// connection broke.
        maybe_released: bool,
    },
    /// A cancelled claim is gone at the worker too.
    Cancelled {
        /// The caller's.
        token: u64,
    },
    /// A hold is lost; what is left of it at the worker is being released.
    Lost {
        /// The caller's.
        token: u64,
        /// The hold. It is not valid any more.
        claim: ClaimRef,
        /// Why.
        reason: Loss,
    },
    /// A query is answered.
    Answer {
        /// The caller's.
        token: u64,
        /// The answer.
        reply: Reply,
    },
    /// A query got no answer: no contact for too long, or the connection broke under an order by
    /// force, which may have been carried out and is not sent again.
    NoAnswer {
        /// The caller's.
        token: u64,
    },
    /// A part of a newer ring. When all of it is in, say [`super::Link::ring_is`].
    Ring(Box<RingChunk>),
    /// The node is stopping.
    Draining,
    /// A connection stands. When the welcome is fresh, earlier holds there are lost.
    Up(Welcome),
    /// The worker refuses this session for good, as when another identity has it.
    Rejected(Refusal),
}

/// Why a claim was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotGranted {
    /// The key is busy, and the claim did not want to wait.
    Busy(BlockedReason),
    /// The wait's deadline passed. `None`: the worker did not answer in time.
    TimedOut(Option<BlockedReason>),
    /// The worker refused it.
    Refused(Refusal),
    /// No contact for too long. The claim may have been granted; it is being cancelled.
    Unreachable,
}

/// Why a hold was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No contact for a whole lease, by this side's clock.
    Lapsed,
    /// The worker does not know the session any more: it restarted, or the lease ended there.
    SessionEnded,
    /// An operator released it by force.
    Forced,
    /// The worker does not know this hold.
    Unknown,
}
