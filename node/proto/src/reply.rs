//! What nodes answer, and what they push unasked.

use crate::{Claim, Digest, Fence, HoldId, ListCursor, Refusal, RingChunk};
use bincode::{Decode, Encode};

/// The answer to a request, on the same stream. `version` is the ring version of the node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// The claim is held under this fence.
    Granted {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// The fence.
        fence: Fence,
    },
    /// The hold ended; it was held until then.
    Released {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
    },
    /// The claim waits in the queue; `Granted` or `TimedOut` follows under the same id.
    Queued {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// Waiters ahead of it.
        ahead: u32,
    },
    /// The key is not free and the request did not want to wait.
    Busy {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// Why.
        reason: BlockedReason,
    },
    /// The wait's deadline passed; the claim is out of the queue.
    TimedOut {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// Why it was still waiting.
        reason: BlockedReason,
    },
    /// The target of a cancel is gone: out of the queue, or its hold given back.
    Cancelled {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
    },
    /// No hold with that fence, or nothing made by that request, belongs to this session.
    NotHeld {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
    },
    /// This node does not own the key's cell, or owned it anew after the sender's ring version.
    /// Nothing was executed, unless the cell has left it since the request came: what it had done
    /// and not answered yet may then be with the next owner or not. It can be asked again there.
    Moved {
        /// Request id.
        id: u64,
        /// Ring version of the node: route again by at least this one.
        version: u64,
    },
    /// Refused; nothing was changed. A release by force that is refused as `Unavailable` may have
    /// been executed: its cell has left the node since.
    Refused {
        /// Request id.
        id: u64,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The link lives on.
    Renewed {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// Every cell that the worker has gained up to the ring of this version is served, recovers
        /// or is lost again: none of them is still on its way.
        settled: u64,
        /// What the link held when the renewal was taken in: after every request before it, and
        /// before every one after it.
        digest: Digest,
    },
    /// The part of a compare is done: orphans were released.
    Compared {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// The holds in it that the worker does not know: lost.
        lost: Vec<HoldId>,
    },
    /// A part of the ring; the last part says so.
    Ring {
        /// Request id.
        id: u64,
        /// The part.
        chunk: Box<RingChunk>,
    },
    /// What was seen of a key.
    Inspected {
        /// Request id.
        id: u64,
        /// What was seen.
        inspection: Box<Inspection>,
    },
    /// A page of locks.
    Listed {
        /// Request id.
        id: u64,
        /// The page.
        listing: Box<Listing>,
    },
    /// The holds of a key were ended by force.
    Forced {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// How many holds.
        ended: u32,
    },
    /// The session has ended at this worker.
    Goodbye {
        /// Request id.
        id: u64,
    },
    /// The session holds the key under that fence, or does again as it has reclaimed it.
    Confirmed {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
        /// What is held.
        claim: Claim,
    },
    /// The node has no newer ring than the client.
    NoNewerRing {
        /// Request id.
        id: u64,
        /// Ring version.
        version: u64,
    },
}

impl Reply {
    /// The id of the request that it answers.
    pub fn id(&self) -> u64 {
        match *self {
            Self::Granted { id, .. }
            | Self::Released { id, .. }
            | Self::Queued { id, .. }
            | Self::Busy { id, .. }
            | Self::TimedOut { id, .. }
            | Self::Cancelled { id, .. }
            | Self::NotHeld { id, .. }
            | Self::Moved { id, .. }
            | Self::Refused { id, .. }
            | Self::Renewed { id, .. }
            | Self::Compared { id, .. }
            | Self::Ring { id, .. }
            | Self::Inspected { id, .. }
            | Self::Listed { id, .. }
            | Self::Forced { id, .. }
            | Self::Goodbye { id }
            | Self::Confirmed { id, .. }
            | Self::NoNewerRing { id, .. } => id,
        }
    }
}

/// Why a claim could not be granted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BlockedReason {
    /// Somebody holds the key.
    Held {
        /// The fence of the last holder: the highest, but among holds that were reclaimed.
        fence: Fence,
        /// Claims waiting in the queue.
        waiters: u32,
    },
    /// Nobody holds it, but earlier claims are queued.
    Queue {
        /// Claims waiting in the queue.
        waiters: u32,
    },
    /// The node waits until the leases of its earlier life have surely ended.
    Grace {
        /// For this many milliseconds more.
        left_ms: u64,
    },
}

/// Told to a client unasked, on the push stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Push {
    /// These holds are gone.
    Lost {
        /// Why.
        reason: LostReason,
        /// The holds.
        holds: Vec<HoldId>,
    },
    /// The ring has a new version.
    RingChanged {
        /// The version.
        version: u64,
    },
    /// The node stops: holds stay valid for their lease, new claims are refused.
    Draining,
}

/// Why a hold was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LostReason {
    /// An operator released it by force.
    Forced,
    /// The link's lease ended.
    Expired,
    /// Its cell has lost all that it knew, and what was reclaimed of the key includes a hold under
    /// a higher fence, beside which this one cannot have been.
    Outranked,
}

/// One holder of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    /// Its fence.
    pub fence: Fence,
    /// What it holds.
    pub claim: Claim,
    /// Held for, in milliseconds; whole seconds for the common exclusive hold.
    pub held_ms: u64,
    /// Milliseconds left of its lease.
    pub lease_left_ms: u64,
    /// The label of its session.
    pub label: String,
}

/// One queued claim.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WaiterInfo {
    /// What it waits for.
    pub claim: Claim,
    /// Waited for, in milliseconds.
    pub waited_ms: u64,
    /// The label of its session.
    pub label: String,
}

/// What was seen of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Inspection {
    /// Ring version.
    pub version: u64,
    /// Node that owns it.
    pub node: u32,
    /// Its cell.
    pub cell: u16,
    /// The cell's epoch.
    pub epoch: u32,
    /// Holders, at most 16 of them.
    pub holders: Vec<Holder>,
    /// Number of holders in all.
    pub holder_count: u32,
    /// The head of the queue, at most 16.
    pub waiters: Vec<WaiterInfo>,
    /// Number of waiters in all.
    pub waiter_count: u32,
    /// Capacity if it is a semaphore in use.
    pub capacity: Option<u32>,
    /// Milliseconds until the node grants at all, after a restart.
    pub grace_left_ms: u64,
    /// Whose session of an earlier life it waits for, for people; empty if for nobody's in
    /// particular, or if whoever asks may not know.
    pub grace_for: String,
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ListedLock {
    /// The key.
    pub key: Vec<u8>,
    /// One holder (of several, the last one); none while a key is only waited for.
    pub holder: Option<Holder>,
    /// Number of holders.
    pub holders: u32,
    /// Number of waiters.
    pub waiters: u32,
}

/// A page of locks, in no order. A key that is in use during the whole listing is in one page.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Listing {
    /// The rows; a page may be empty and yet not the last.
    pub rows: Vec<ListedLock>,
    /// Where the next page begins; none after the last.
    pub next: Option<ListCursor>,
}
