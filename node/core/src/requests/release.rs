//! Giving a hold back by its fence.

use super::RequestContext;
use super::answer::reply_not_held;
use super::end::end_hold;
use crate::cells::Shows;
use crate::locks::{Ending, Place, RecordIndex, Spot};
use crate::mutant::mutant;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{Fence, Reply};

#[inline(always)]
pub(super) fn release(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    key: &[u8],
    fence: Fence,
) {
    let namespace = worker.locks.namespace_of(context.link);
    let found = worker.locks.find(place, namespace, key);
    let held = found.and_then(|record| Some((record, worker.locks.held(record, fence)?)));
    let released = match held {
        Some((record, (link, _, entry))) if link == context.link => {
            let spot = Spot::used(place, record).entry(entry);
            end_hold(worker, turn, spot, fence, Ending::Released);
            true
        }
        _ if mutant!(worker, ReleaseWithoutFence) => end_any(worker, turn, place, found),
        _ => false,
    };
    let (id, version) = (context.id, turn.version);
    if released {
        turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Released { id, version });
    } else {
        reply_not_held(turn, context, place);
    }
}

fn end_any(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    place: Place,
    found: Option<RecordIndex>,
) -> bool {
    let Some(record) = found else { return false };
    let Some((_, fence)) = worker.locks.first_holder(record) else { return false };
    end_hold(worker, turn, Spot::used(place, record), fence, Ending::Released);
    true
}
