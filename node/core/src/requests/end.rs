//! Ending holds.

use super::grant::grant_waiters;
use super::leave::emit_end;
use crate::locks::{Change, Ending, Op, Shape, Spot};
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Fence;

/// Ends the hold of a key with this fence, which exists, and grants to whoever is next.
#[inline(always)]
pub(super) fn end_hold(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    spot: Spot,
    fence: Fence,
    cause: Ending,
) {
    if let Shape::Rich(_) = worker.locks.shape(spot.record()) {
        return end_rich_hold(worker, turn, spot, fence, cause);
    }
    let number = worker.locks.next_number(spot.cell());
    worker.emit(turn, spot, Op { number, change: Change::Ended { fence, cause } });
    worker.queues.freed(spot.cell(), spot.record());
}

#[inline(never)]
fn end_rich_hold(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    spot: Spot,
    fence: Fence,
    cause: Ending,
) {
    emit_end(worker, turn, spot, Change::Ended { fence, cause });
    grant_waiters(worker, turn, spot);
}
