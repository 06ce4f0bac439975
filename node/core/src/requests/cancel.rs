//! Undoing a claim by the request that made it: it leaves the queue, or its hold ends.

use super::RequestContext;
use super::answer::reply_not_held;
use super::end::end_hold;
use super::grant::grant_waiters;
use super::leave::drop_waiter;
use crate::cells::Shows;
use crate::event::LinkIndex;
use crate::locks::{Ending, Leaving, Place, RecordIndex, Shape, Spot};
use crate::mutant::mutant;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::Reply;

pub(super) fn cancel(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    key: &[u8],
    target: u64,
) {
    let namespace = worker.locks.namespace_of(context.link);
    let found = worker.locks.find(place, namespace, key);
    let undone =
        found.is_some_and(|record| undo(worker, turn, context.link, (place, record), target));
    if !undone {
        return reply_not_held(turn, context, place);
    }
    let (id, version) = (context.id, turn.version);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Cancelled { id, version });
}

fn undo(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    link: LinkIndex,
    (place, record): (Place, RecordIndex),
    target: u64,
) -> bool {
    let spot = Spot::used(place, record);
    if let Shape::Thin(thin) = worker.locks.shape(record) {
        let its = thin.link == link && thin.request == target;
        if its {
            end_hold(worker, turn, spot, thin.fence, Ending::Released);
        }
        return its;
    }
    let entry = worker.locks.entry_by_request(link, target);
    let Some(entry) = entry.filter(|_| !mutant!(worker, NoRequestId)) else { return false };
    let found = worker.locks.entry(entry);
    if found.record != record {
        return false;
    }
    match found.fence {
        Some(fence) => end_hold(worker, turn, spot.entry(entry), fence, Ending::Released),
        None => {
            drop_waiter(worker, turn, spot, entry, Leaving::Cancelled);
            grant_waiters(worker, turn, spot);
        }
    }
    true
}
