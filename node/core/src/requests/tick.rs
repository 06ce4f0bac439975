//! What happens by itself: waits that time out, leases that end, cells that open. All of it in
//! bounded slices, so that a session's death never delays the living for longer than a slice.

use super::answer::answer_waiter;
use super::end::end_hold;
use super::grant::{blocked, grant_waiters, slip_in};
use super::leave::drop_waiter;
use crate::cells::Recovery;
use crate::event::{Action, LinkIndex};
use crate::links::Due;
use crate::locks::{Ending, Entry, EntryIndex, Leaving, Place, Planned, Shape, Spot, Thin};
use crate::mutant::mutant;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Reply;

/// Leases that end, or turn out to be renewed, in one go.
const LEASE_SLICE: usize = 256;

/// Cells without anybody who waits that open in one go.
const OPEN_SLICE: usize = 512;

/// Thin holds whose memory is touched ahead in one go: what fits in the nearest caches.
const TOUCHED: u32 = 64;

pub(crate) fn tick(worker: &mut Worker, turn: &mut Turn<'_>, plan: &mut Vec<Planned>) {
    turn.begin_slice();
    time_out_waits(worker, turn);
    expire_leases(worker, turn);
    turn.begin_slice();
    go_on(worker, turn);
    free_leaving(worker, turn);
    // Of their own: who is taken up again and again keeps nobody from what the dead have left.
    turn.begin_slice();
    free_dying(worker, turn, plan);
    turn.begin_slice();
    serve_queues(worker, turn);
    turn.look_for_silence();
}

fn time_out_waits(worker: &mut Worker, turn: &mut Turn<'_>) {
    while !turn.slice_is_over() {
        turn.charge(1);
        let due = worker.queues.first_wait().filter(|&(deadline, _)| deadline <= turn.now);
        let Some((_, waiter)) = due else { return };
        let &Entry { record, link, request: id, asked_on, .. } = worker.locks.entry(waiter);
        let place = worker.locks.place_of(record);
        let reason = blocked(worker, turn, place.cell, record);
        let spot = Spot::used(place, record);
        drop_waiter(worker, turn, spot, waiter, Leaving::TimedOut);
        let reply = Reply::TimedOut { id, version: turn.version, reason };
        answer_waiter(worker, turn, (link, asked_on), place.cell, reply);
        grant_waiters(worker, turn, spot);
    }
}

fn expire_leases(worker: &mut Worker, turn: &mut Turn<'_>) {
    for _ in 0..LEASE_SLICE {
        match worker.links.next_due(turn.now) {
            Some(Due::Ended(link)) => worker.expire_link(turn, link),
            Some(Due::Renewed) => {}
            None => return,
        }
    }
}

/// Has a slice of the connections go on that have waited for a newer ring.
fn go_on(worker: &mut Worker, turn: &mut Turn<'_>) {
    while !turn.slice_is_over()
        && let Some(conn) = worker.awaiting.next_due(turn.now, worker.version.0)
    {
        turn.charge(1);
        turn.act(Action::Resume(conn));
    }
}

/// Frees a slice of the waiters of links that left.
fn free_leaving(worker: &mut Worker, turn: &mut Turn<'_>) {
    while !turn.slice_is_over()
        && let Some(link) = worker.links.first_leaving()
    {
        turn.charge(1);
        free_one_leaving(worker, turn, link);
    }
}

/// Looks at one entry of a link that left, and at most once at each: it is freed if it is a waiter
/// without an owner.
pub(super) fn free_one_leaving(worker: &mut Worker, turn: &mut Turn<'_>, link: LinkIndex) {
    let head = worker.locks.first_entry(link);
    let goes = head.is_some_and(|head| {
        let entry = worker.locks.entry(head);
        entry.fence.is_none() && worker.links.is_nobodys(link, entry.request, entry.asked_on)
    });
    if !worker.links.look_at_leaving(link, head.is_some()) {
        return;
    }
    match head.filter(|_| goes) {
        Some(head) => free_waiter(worker, turn, head),
        // Every entry comes to the head once.
        None => worker.locks.turn_entries(link),
    }
}

/// Frees a slice of what dead links have left, what others may wait for before all the rest.
fn free_dying(worker: &mut Worker, turn: &mut Turn<'_>, plan: &mut Vec<Planned>) {
    let unbounded = worker.links.frees_without_bound();
    worker.links.dying().allow(turn.now, unbounded);
    while (!turn.slice_is_over() || unbounded)
        && let Some(link) = worker.links.dying().first()
    {
        if free_entry(worker, turn, link) {
            turn.charge(1);
            continue;
        }
        worker.links.dying().pop_first();
        if worker.locks.thin_count(link) > 0 {
            worker.links.dying().keep_thin(link);
        } else {
            // It does not wait behind those who have more.
            turn.charge(1);
            remove_link(worker, turn, link);
        }
    }
    worker.links.dying().give_back();
    while (!turn.slice_is_over() || unbounded)
        && let Some(link) = worker.links.dying().first_thin()
    {
        let allowance = worker.links.dying().allowance();
        if worker.locks.thin_count(link) == 0 {
            worker.links.dying().pop_first_thin();
            remove_link(worker, turn, link);
        } else if allowance == 0 {
            return;
        } else {
            let most = if unbounded { TOUCHED } else { turn.slice_left().min(allowance) };
            let freed = free_thin(worker, turn, plan, link, most);
            turn.charge(freed);
            worker.links.dying().freed_thin(freed);
        }
    }
}

/// Drops a link that has nothing left.
fn remove_link(worker: &mut Worker, turn: &mut Turn<'_>, link: LinkIndex) {
    worker.links.settle_account(link, worker.locks.used_by(link));
    turn.link_gone(link, worker.locks.number_of(link));
    worker.locks.drop_link(link);
    if let Some((conn, id)) = worker.links.remove(link) {
        turn.answer_goodbye(conn, id);
    }
}

/// Frees one rich hold or waiter of a dead link; `false` when there is none left.
fn free_entry(worker: &mut Worker, turn: &mut Turn<'_>, link: LinkIndex) -> bool {
    let Some(index) = worker.locks.first_entry(link) else { return false };
    let &Entry { record, fence, .. } = worker.locks.entry(index);
    match fence {
        Some(fence) => {
            let spot = Spot::used(worker.locks.place_of(record), record).entry(index);
            end_hold(worker, turn, spot, fence, Ending::Expired);
        }
        None => free_waiter(worker, turn, index),
    }
    true
}

/// Drops a waiter of a dead link, or of one that left.
fn free_waiter(worker: &mut Worker, turn: &mut Turn<'_>, waiter: EntryIndex) {
    let record = worker.locks.entry(waiter).record;
    let spot = Spot::used(worker.locks.place_of(record), record);
    let first = worker.locks.first_waiter(record) == Some(waiter);
    drop_waiter(worker, turn, spot, waiter, Leaving::Dead);
    if first && mutant!(worker, SlipPastExpired) {
        slip_in(worker, turn, spot);
    }
    grant_waiters(worker, turn, spot);
}

/// Frees up to `most` thin holds of a dead link, the latest first, as one batch whose memory is
/// touched ahead; says how many.
fn free_thin(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    plan: &mut Vec<Planned>,
    link: LinkIndex,
    most: u32,
) -> u32 {
    plan.clear();
    plan.extend((0..most.min(TOUCHED)).map_while(|back| {
        let guess = worker.locks.nth_last_thin(link, back)?;
        Some(Planned::at(Some(Place { guess, ..worker.locks.place_of(guess) })))
    }));
    worker.locks.touch(link, plan);
    for place in plan.iter().filter_map(|planned| planned.place) {
        if let Shape::Thin(Thin { fence, .. }) = worker.locks.shape(place.guess) {
            let spot = Spot::used(place, place.guess);
            end_hold(worker, turn, spot, fence, Ending::Expired);
        }
    }
    plan.len() as u32
}

/// Serves a slice of the queues that are not worked off, each in its turn.
fn serve_queues(worker: &mut Worker, turn: &mut Turn<'_>) {
    open_cells(worker, turn);
    while !turn.slice_is_over()
        && let Some(cell) = worker.queues.first_raised()
    {
        turn.charge(1);
        worker.queues.unpark(cell);
    }
    while !turn.slice_is_over()
        && let Some(record) = worker.queues.next()
    {
        turn.charge(1);
        // Somebody left since, and the next one's hold made the record thin.
        if worker.locks.first_waiter(record).is_some() {
            let spot = Spot::used(worker.locks.place_of(record), record);
            grant_waiters(worker, turn, spot);
        }
    }
}

/// Cells that have recovered are served, and so are their queues.
fn open_cells(worker: &mut Worker, turn: &mut Turn<'_>) {
    for _ in 0..OPEN_SLICE {
        let Some(cell) = worker.cells.due(turn.now).filter(|_| !turn.slice_is_over()) else {
            return;
        };
        if worker.queues.unpark(cell) {
            turn.charge(1);
        } else {
            let from = worker.cells.serve(cell, worker.locks.standing_mut(cell));
            if from == Recovery::Takeover {
                let epoch = worker.locks.standing(cell).epoch();
                turn.act(Action::Recovered { cell: worker.locks.cell_id(cell), epoch });
            }
        }
    }
}
