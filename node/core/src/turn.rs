//! What a turn may cost. Nobody is served for longer than a slice before everybody else had a turn:
//! requests are charged by what they make the worker do, in units of about what an acquire or a
//! release costs.

use crate::machine::Machine;
use lockring_proto::{Request, limits};

/// Whether a request is done, or goes on with the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    More,
    /// Nothing is run after it.
    Last,
}

/// A turn has room for what any request costs before it is looked at, so that each turn goes
/// further with one that takes several.
pub(crate) const TURN_PRICE_MIN: u32 = 40;
const _: () = assert!(TURN_PRICE_MIN as usize > 1 + limits::HOLDS_PER_FRAME / KEY_BYTES);

/// Bytes of a key, and of an answer, that cost as much as an operation.
const KEY_BYTES: usize = 128;
pub(crate) const ANSWER_BYTES: usize = 64;

/// A hold that is gathered for a compare: its record lies anywhere, and it is sorted among others.
pub(crate) const PER_GATHERED: u32 = 2;
pub(crate) const PER_ORPHAN: u32 = 2;
/// A hold that is ended by force, and its holder told.
pub(crate) const PER_FORCED: u32 = 2;
/// A holder or waiter that is told: its entry and its link lie anywhere.
pub(crate) const PER_TOLD: u32 = 2;
/// Slots of memory that a listing looks at.
pub(crate) const LOOKS_PER_PRICE: usize = 4;
/// The ring has up to some hundred kilobytes: more than a turn, so it is the last of one.
const RING: u32 = 512;

/// What a look at a key costs.
#[inline(always)]
pub(crate) fn keyed_price(key: &[u8]) -> u32 {
    1 + (key.len() / KEY_BYTES) as u32
}

/// What a request costs at least. What it costs beyond, for the holds, waiters and keys that it
/// turns out to touch, is charged where they are touched.
pub(crate) fn price(request: &Request<'_>) -> u32 {
    match *request {
        Request::Acquire { key, .. }
        | Request::Release { key, .. }
        | Request::Cancel { key, .. }
        | Request::Confirm { key, .. }
        | Request::Inspect { key, .. }
        | Request::Force { key, .. } => keyed_price(key),
        Request::Renew { .. } | Request::Goodbye { .. } => 1,
        // Each frame again, as it may be given many times until all is gathered.
        Request::Compare { ref holds, .. } => 1 + (holds.len() / KEY_BYTES) as u32,
        Request::GetRing { .. } => RING,
        Request::List { .. } => 1,
    }
}

impl Machine {
    /// Adds to what the turn has cost.
    #[inline]
    pub(crate) fn charge(&mut self, price: u32) {
        self.spent += price;
    }

    #[inline]
    pub(crate) fn turn_is_over(&self) -> bool {
        self.spent >= self.config.limits.turn_price
    }

    /// Whether a part of a tick has cost what it may.
    pub(crate) fn slice_is_over(&self) -> bool {
        self.spent >= self.config.limits.expiry_slice
    }
}
