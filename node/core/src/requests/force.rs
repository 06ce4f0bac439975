//! Ending every hold of a key, whoever has it.

use super::answer::refuse_moved;
use super::end::end_hold;
use super::{Named, RequestContext};
use crate::cells::Shows;
use crate::links::Forcing;
use crate::locks::{Ending, Place, Spot};
use crate::turn::{PER_FORCED, Progress, Turn};
use crate::worker::Worker;
use lockring_proto::{LostReason, Refusal, RefusalKind, Reply};

/// Ends every hold of a key that there was when it was asked for, and tells the holders. The next
/// fence is higher than all of them, as every operation takes the next number.
pub(super) fn force(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    named: &Named<'_>,
) -> Progress {
    let mut forcing = match worker.links.forcing(context.link).take() {
        Some(before) if before.id == context.id => before,
        _ => Forcing { id: context.id, last: worker.locks.number(place.cell), ended: 0 },
    };
    // The holders stand in the order in which they came.
    while let Some(record) = named.find(worker, context.link, place)
        && let Some((link, fence)) = worker.locks.first_holder(record)
        && fence <= forcing.last
    {
        if turn.is_over() {
            *worker.links.forcing(context.link) = Some(forcing);
            return Progress::More;
        }
        turn.charge(PER_FORCED);
        forcing.ended += 1;
        if let Some(conn) = worker.links.conn(link) {
            let hold = worker.locks.hold_id(place.cell, fence);
            turn.push_lost((conn, place.cell), LostReason::Forced, hold);
        }
        // Those who wait are granted only when the last is gone, or as far as they fit.
        end_hold(worker, turn, Spot::used(place, record), fence, Ending::Forced);
    }
    let (id, version, ended) = (context.id, turn.version, forcing.ended);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Forced { id, version, ended });
    Progress::Done
}

/// The key went to another node before the order was taken, or when some holds were ended already.
pub(super) fn moved(worker: &mut Worker, turn: &mut Turn<'_>, context: RequestContext) {
    let id = context.id;
    match worker.links.forcing(context.link).take() {
        Some(before) if before.id == id => {
            turn.answer(context.conn, Shows::Nothing, || may_be_forced(id));
        }
        _ => refuse_moved(worker, turn, context),
    }
}

/// What a client hears of an order that may have been carried out, and may not. It names no hold:
/// given to the new owner too, it could end what came after the hold that was meant.
pub(super) fn may_be_forced(id: u64) -> Reply {
    let message = "the key went to another node before the order was safe there: it may have been \
                   carried out; look with `inspect`, and repeat it if needed";
    let kind = RefusalKind::Unavailable;
    Reply::Refused { id, refusal: Box::new(Refusal { kind, message: message.to_owned() }) }
}
