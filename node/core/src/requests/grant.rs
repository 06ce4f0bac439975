//! Granting to those in a queue.

use super::answer::answer_waiter;
use super::leave::drop_waiter;
use crate::locks::{CellIndex, Change, Entry, EntryIndex, Leaving, Op, RecordIndex, Source, Spot};
use crate::mutant::mutant;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{BlockedReason, Claim, Reply};

/// What a look at the head of a queue has come to.
enum Head {
    Granted,
    /// Its link was dead, or nobody would hear of the grant.
    Dropped,
}

/// Grants from the head of the queue of a key, if it has one, for as long as the head fits. Every
/// change of a rich key ends here. A slice of the queue at most: the next ticks go on.
pub(super) fn grant_waiters(worker: &mut Worker, turn: &mut Turn<'_>, spot: Spot) {
    if turn.is_in_part() && has_just_come(worker, spot.cell()) {
        // A grant would name the ring before: the queue goes on when all has come.
        if worker.locks.first_waiter(spot.record()).is_some() {
            worker.queues.go_on(spot.record());
        }
        return;
    }
    if worker.cells.grace_left(spot.cell(), turn.now).is_some() {
        // Whoever was queued before it began to recover is served as it opens, too.
        if worker.locks.first_waiter(spot.record()).is_some() {
            worker.queues.park(spot.cell(), spot.record());
        }
        return;
    }
    let mut left = turn.slice();
    while let Some(head) = grant_one(worker, turn, spot) {
        if matches!(head, Head::Dropped) && mutant!(worker, LostWakeup) {
            break;
        }
        turn.charge(1);
        left -= 1;
        if left == 0 {
            if worker.locks.first_waiter(spot.record()).is_some() {
                worker.queues.go_on(spot.record());
            }
            break;
        }
    }
}

/// Whether a cell is this worker's by a newer ring than it is of.
fn has_just_come(worker: &Worker, cell: CellIndex) -> bool {
    worker.cells.since(cell, worker.locks.standing(cell)) > worker.version
}

/// One step: `None` when the head does not fit or nobody is queued.
fn grant_one(worker: &mut Worker, turn: &mut Turn<'_>, spot: Spot) -> Option<Head> {
    let head = worker.locks.first_waiter(spot.record())?;
    let &Entry { link, claim, asked_on, request, .. } = worker.locks.entry(head);
    // Looked at again now: its lease may have ended while it waited.
    let dead = !worker.is_alive(turn, link) && !mutant!(worker, GrantWithoutSessionCheck);
    if dead {
        worker.expire_link(turn, link);
    }
    if dead || worker.links.is_nobodys(link, request, asked_on) {
        drop_waiter(worker, turn, spot, head, Leaving::Dead);
        if mutant!(worker, SlipPastExpired) {
            slip_in(worker, turn, spot);
        }
        return Some(Head::Dropped);
    }
    if !worker.locks.fits(spot.record(), claim) {
        return None;
    }
    grant_head(worker, turn, spot, head).then_some(Head::Granted)
}

pub(super) fn slip_in(worker: &mut Worker, turn: &mut Turn<'_>, spot: Spot) {
    let Some(head) = worker.locks.first_waiter(spot.record()) else { return };
    let &Entry { link, claim, .. } = worker.locks.entry(head);
    if claim == Claim::SHARED && worker.is_alive(turn, link) {
        grant_head(worker, turn, spot, head);
    }
}

fn grant_head(worker: &mut Worker, turn: &mut Turn<'_>, spot: Spot, head: EntryIndex) -> bool {
    let Some(fence) = worker.locks.next_fence(spot.cell()) else {
        worker.queues.park(spot.cell(), spot.record());
        return false;
    };
    let &Entry { link, request, asked_on, .. } = worker.locks.entry(head);
    worker.queues.stop_waiting(worker.locks.deadline(head), head);
    let change = Change::Granted { link, request, source: Source::Queue, since: turn.at };
    worker.emit_rare(turn, spot.entry(head), Op { number: fence, change });
    let reply = Reply::Granted { id: request, version: turn.version, fence };
    answer_waiter(worker, turn, (link, asked_on), spot.cell(), reply);
    true
}

/// Why a claim on this key would have to wait.
pub(super) fn blocked(
    worker: &Worker,
    turn: &Turn<'_>,
    cell: CellIndex,
    record: RecordIndex,
) -> BlockedReason {
    let waiters = worker.locks.queue_len(record);
    if let Some(fence) = worker.locks.last_fence(record) {
        return BlockedReason::Held { fence, waiters };
    }
    match worker.cells.grace_left(cell, turn.now) {
        Some(left) => BlockedReason::Grace { left_ms: left.as_millis() as u64 },
        None => BlockedReason::Queue { waiters },
    }
}
