//! What a link tells its owner.

use crate::claims::{ClaimRef, LinkId};
use crate::router::{Ring, RingError};
use lockring_proto::{BlockedReason, Fence, Refusal, Reply, Time, Welcome};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
        /// Whose lease it is under.
        link: LinkId,
        /// Its fence.
        fence: Fence,
        /// Until [`Outcome::Settled`] it is believed by itself, until then; `None`: it is under the
        /// lease.
        until: Option<Time>,
    },
    /// The claim is queued.
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
        /// Where it was asked for last.
        link: LinkId,
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
        /// An earlier copy of this release may have ended the hold: it was sent again, after the
        /// connection broke or to another owner of the cell.
        maybe_released: bool,
    },
    /// Nobody has answered the release, and the lease is over or the patience for an answer is. It
    /// goes on: when contact returns the hold is ended.
    Unconfirmed {
        /// The caller's.
        token: u64,
        /// How long the worker may still take the hold for held, if it is there at all.
        held_for: Duration,
    },
    /// The release of a hold, or the cancel of a claim, was refused. What the worker has of it ends
    /// when both sides are compared next, or with the lease.
    NotEnded {
        /// The caller's.
        token: u64,
        /// Why.
        refusal: Refusal,
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
        /// Whose lease it was under.
        link: LinkId,
        /// Why.
        reason: Loss,
    },
    /// No contact for so long that holds of a link will be lost soon, unless it returns: those that
    /// are valid until then.
    Jeopardy {
        /// The link.
        link: LinkId,
        /// The end of their validity.
        until: Time,
    },
    /// The cell of a hold is another's by a newer ring, or has begun anew, and the hold goes with
    /// it. Until [`Outcome::Settled`] it is believed by itself, no longer than where it was.
    Follows {
        /// The hold.
        claim: ClaimRef,
        /// Where it has gone.
        link: LinkId,
        /// It is valid until then.
        until: Time,
    },
    /// Such a hold is under the lease of its link from now on.
    Settled {
        /// The hold.
        claim: ClaimRef,
        /// Whose lease that is.
        link: LinkId,
    },
    /// The ring has no worker at the end of a link any more, and nothing is on it. Its connection
    /// is to be closed; then [`crate::session::Session::forget`] lets another link have its number.
    LinkOver {
        /// The link.
        link: LinkId,
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
        /// Where it was asked last.
        link: LinkId,
    },
    /// A query was not carried out: its worker says that the key is another's, and no ring says
    /// whose; or there is no such worker any more.
    Moved {
        /// The caller's.
        token: u64,
    },
    /// A newer ring is known.
    Ring(Arc<Ring>),
    /// A worker has sent a ring that is none.
    BadRing(RingError),
    /// The node is stopping.
    Draining,
    /// A connection stands. When the welcome is fresh, earlier holds there are lost.
    Up {
        /// Its link.
        link: LinkId,
        /// What the worker said.
        welcome: Welcome,
    },
    /// The worker does not answer on a connection that stands: that one is over.
    Silent {
        /// Its link.
        link: LinkId,
    },
    /// The worker takes no session now; the connection is over. It is dialled again.
    TurnedAway {
        /// Its link.
        link: LinkId,
        /// Why.
        refusal: Refusal,
    },
    /// The session is over, at every worker: everybody who held, waited or asked is told.
    Ended {
        /// Why.
        loss: Loss,
        /// The node's word, if it refuses the session, as when another identity has it.
        refusal: Option<Refusal>,
    },
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
    /// For too long the key's worker said that it is another's, and no ring said whose. Nothing
    /// was done.
    Moved,
    /// The hold to take up is not held any more.
    NotHeld,
    /// The grant came when its lease was over already: the path to the worker is too slow for the
    /// TTL. It is being given back.
    TooLate,
    /// The session ended meanwhile.
    Ended(Loss),
}

/// Why a hold was lost.
///
/// ```no_run
/// # async fn example(client: lockring_client::Client) -> Result<(), lockring_client::Error> {
/// use lockring_client::Loss;
/// let guard = client.lock("job").await?;
/// guard.lost().await;
/// match guard.lost_reason() {
///     Some(Loss::Forced) => println!("an operator took it"),
///     Some(reason) => println!("lost: {reason}"),
///     None => unreachable!("it was lost"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Loss {
    /// No contact for a whole lease, by this side's clock.
    Lapsed,
    /// The node does not know the session any more: it restarted, or the lease ended there.
    SessionEnded,
    /// An operator released it by force.
    Forced,
    /// The node does not know this hold.
    Unknown,
    /// The client was closed, or its last clone dropped.
    Closed,
    /// Another process took the session up.
    Superseded,
    /// The node refuses the session.
    Refused,
    /// The hold was turned into a token, for another process.
    HandedOver,
    /// The runtime that the client was made on has been shut down.
    RuntimeEnded,
}

impl Loss {
    /// Every reason, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Lapsed,
        Self::SessionEnded,
        Self::Forced,
        Self::Unknown,
        Self::Closed,
        Self::Superseded,
        Self::Refused,
        Self::HandedOver,
        Self::RuntimeEnded,
    ];
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lapsed => "no contact with the node for a whole lease",
            Self::SessionEnded => "the node does not know the session any more",
            Self::Forced => "an operator released it by force",
            Self::Unknown => "the node does not know this hold",
            Self::Closed => "the client was closed",
            Self::Superseded => "another process took the session up",
            Self::Refused => "the node refuses the session",
            Self::HandedOver => "it was handed over as a token",
            Self::RuntimeEnded => "the client's runtime was shut down",
        })
    }
}
