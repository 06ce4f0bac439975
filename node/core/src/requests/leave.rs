//! Letting waiters go, and whatever else may leave a key free.

use crate::locks::{Change, Entry, EntryIndex, Leaving, Op, Spot};
use crate::turn::Turn;
use crate::worker::Worker;

/// A waiter goes without a grant. The caller grants to those behind it.
pub(super) fn drop_waiter(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    spot: Spot,
    waiter: EntryIndex,
    cause: Leaving,
) {
    let &Entry { link, request, .. } = worker.locks.entry(waiter);
    worker.queues.stop_waiting(worker.locks.deadline(waiter), waiter);
    emit_end(worker, turn, spot.entry(waiter), Change::Left { link, request, cause });
}

/// Emits what may leave a key free.
pub(super) fn emit_end(worker: &mut Worker, turn: &mut Turn<'_>, spot: Spot, change: Change<'_>) {
    let number = worker.locks.next_number(spot.cell());
    worker.emit_rare(turn, spot, Op { number, change });
    if worker.locks.is_free(spot.record()) {
        worker.queues.freed(spot.cell(), spot.record());
    }
}
