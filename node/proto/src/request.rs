//! What clients ask. One request is one frame on the request stream.

use crate::{Fence, Mode, limits};
use bincode::{BorrowDecode, Decode, Encode};

/// What is claimed of a key.
///
/// A key in use has one kind, modes or permits; another kind is refused with the one in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Claim {
    /// A lock, in a mode.
    Mode(Mode),
    /// `permits` of a semaphore with `capacity`; the first holder or waiter sets the capacity.
    Permits {
        /// How many, 1..=capacity.
        permits: u32,
        /// Of how many in all.
        capacity: u32,
    },
}

impl Claim {
    /// [`Mode::Exclusive`].
    pub const EXCLUSIVE: Self = Self::Mode(Mode::Exclusive);
    /// [`Mode::Shared`].
    pub const SHARED: Self = Self::Mode(Mode::Shared);

    /// Whether it can be granted at all.
    pub fn is_lawful(self) -> bool {
        match self {
            Self::Mode(_) => true,
            Self::Permits { permits, capacity } => {
                capacity <= limits::CAPACITY_MAX && (1..=capacity).contains(&permits)
            }
        }
    }
}

/// How long an acquire may wait in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Wait {
    /// Not at all: a busy key is answered at once.
    No,
    /// Until granted or cancelled.
    Forever,
    /// At most this many milliseconds from receipt.
    Millis(u64),
}

/// A hold as client and worker both know it: fences are unique within a cell only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct HoldId {
    /// The key's cell.
    pub cell: u16,
    /// The fence.
    pub fence: Fence,
}

impl HoldId {
    /// Spreads cell and fence over 64 bits, so that holds of different cells with equal fences do
    /// not cancel out in a digest.
    fn mixed(self) -> u64 {
        let cell = u64::from(self.cell).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.fence.0 ^ cell).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 32)
    }
}

/// Count and xor of the (mixed) holds a client has at one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Digest {
    /// How many.
    pub count: u64,
    /// All of them mixed and xored.
    pub xor: u64,
}

impl Digest {
    /// Adds a hold.
    #[inline]
    pub fn add(&mut self, hold: HoldId) {
        self.count += 1;
        self.xor ^= hold.mixed();
    }

    /// Both together, of holds that are in one of them only.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, xor: self.xor ^ other.xor }
    }

    /// Takes a hold away.
    #[inline]
    pub fn remove(&mut self, hold: HoldId) {
        assert!(self.count > 0, "digest underflow at {hold:?}");
        self.count -= 1;
        self.xor ^= hold.mixed();
    }
}

/// Where a paged listing goes on: a place in the worker's memory, which is meaningless elsewhere.
/// A key keeps its place while it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ListCursor {
    /// The first place that the page looks at; 0: from the first.
    pub from: u32,
}

/// A request. `id` numbers the requests of a session, is never used twice and is at most
/// [`crate::limits::REQUEST_ID_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Request<'a> {
    /// Do something with a key.
    Keyed {
        /// Request id.
        id: u64,
        /// The ring version the sender routed by.
        version: u64,
        /// What.
        operation: Operation<'a>,
        /// The key.
        key: &'a [u8],
    },
    /// Keep the link alive. The answer tells what the worker holds for it.
    Renew {
        /// Request id.
        id: u64,
    },
    /// The full list of what the client holds here or is giving back, in frames of at most
    /// [`crate::limits::HOLDS_PER_FRAME`] in ascending order; sent when digests differ and keep
    /// differing. A hold made by a request after `upto` is no orphan; nor is one of a cell that
    /// the worker has gained, or given a new epoch, since the ring of `version`.
    Compare {
        /// Request id.
        id: u64,
        /// The ring version by which the client has these holds here; the same in all frames.
        version: u64,
        /// Every claim up to this request id is settled at the client; the same in all frames.
        upto: u64,
        /// Every hold above this one (none: from the first)...
        after: Option<HoldId>,
        /// ...and up to this one (none: to the last) is in this frame.
        through: Option<HoldId>,
        /// The holds.
        holds: Vec<HoldId>,
    },
    /// Ask for a newer ring.
    GetRing {
        /// Request id.
        id: u64,
        /// The version of the one that is known; 0: none.
        known: u64,
    },
    /// A page of the locks in use at this worker whose keys begin with `prefix`.
    List {
        /// Request id.
        id: u64,
        /// The namespace of the keys; empty: the client's own. Another one needs the role of an
        /// operator.
        namespace: &'a str,
        /// Where to go on.
        cursor: ListCursor,
        /// Rows wanted, at most [`crate::limits::LIST_ROWS_MAX`].
        rows: u32,
        /// The prefix.
        prefix: &'a [u8],
    },
    /// End the session at this worker: every hold and waiter of it is gone before the answer, but
    /// for holds that a process before this one may still believe in.
    Goodbye {
        /// Request id.
        id: u64,
    },
}

/// What is to be done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Operation<'a> {
    /// Claim it. A copy with the same id finds the hold or waiter of the first.
    Acquire {
        /// What is claimed.
        claim: Claim,
        /// How long to wait.
        wait: Wait,
    },
    /// Give back the hold with this fence, and no other.
    Release {
        /// The hold.
        fence: Fence,
    },
    /// Leave the queue, or give back the hold, that request `target` made.
    Cancel {
        /// The acquire to undo.
        target: u64,
    },
    /// Look at it. Advisory.
    Inspect {
        /// The key's namespace; empty: the client's own. Another one needs the role of an operator.
        namespace: &'a str,
    },
    /// End every hold of it, whoever has it. The next fence is higher. Needs the role of an
    /// operator.
    Force {
        /// The key's namespace; empty: the client's own.
        namespace: &'a str,
    },
    /// Ask whether this session holds it under this fence.
    Confirm {
        /// The hold.
        fence: Fence,
    },
    /// Tell a cell that was taken over without a copy of what the session holds, by the clock of
    /// its client, and has not begun to give back.
    Reclaim {
        /// The hold.
        fence: Fence,
        /// The request that made it.
        request: u64,
        /// What is held.
        claim: Claim,
    },
}

impl<'a> Operation<'a> {
    /// The namespace that it names for its key; empty: the client's own.
    #[inline(always)]
    pub fn namespace(&self) -> &'a str {
        match *self {
            Self::Acquire { .. }
            | Self::Release { .. }
            | Self::Cancel { .. }
            | Self::Confirm { .. }
            | Self::Reclaim { .. } => "",
            Self::Inspect { namespace } | Self::Force { namespace } => namespace,
        }
    }
}

impl Request<'_> {
    /// The request id.
    #[inline]
    pub fn id(&self) -> u64 {
        match *self {
            Self::Keyed { id, .. }
            | Self::Renew { id, .. }
            | Self::Compare { id, .. }
            | Self::GetRing { id, .. }
            | Self::List { id, .. }
            | Self::Goodbye { id } => id,
        }
    }
}
