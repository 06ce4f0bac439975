//! Answers that several requests give.

use super::RequestContext;
use crate::cells::Shows;
use crate::event::{ConnId, LinkIndex};
use crate::locks::{CellIndex, Place};
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{BlockedReason, Claim, Fence, Refusal, RefusalKind, Reply};

pub(super) fn refuse(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    kind: RefusalKind,
    message: impl Into<String>,
) {
    worker.stats.refused += 1;
    worker.stats.over_quota += u64::from(kind == RefusalKind::Quota);
    let refusal = Box::new(Refusal { kind, message: message.into() });
    turn.answer(context.conn, Shows::Nothing, || Reply::Refused { id: context.id, refusal });
}

pub(super) fn refuse_draining(worker: &mut Worker, turn: &mut Turn<'_>, context: RequestContext) {
    let message = "this node is stopping: ask another";
    refuse(worker, turn, context, RefusalKind::Draining, message);
}

/// The key is to be asked for elsewhere, or by a newer ring.
pub(super) fn refuse_moved(worker: &mut Worker, turn: &mut Turn<'_>, context: RequestContext) {
    worker.stats.moved += 1;
    let version = turn.newest();
    turn.answer(context.conn, Shows::Nothing, || Reply::Moved { id: context.id, version });
}

#[inline(always)]
pub(super) fn reply_granted(
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    fence: Fence,
) {
    let (id, version) = (context.id, turn.version);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Granted { id, version, fence });
}

pub(super) fn reply_queued(turn: &mut Turn<'_>, context: RequestContext, place: Place, ahead: u32) {
    let (id, version) = (context.id, turn.version);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Queued { id, version, ahead });
}

pub(super) fn reply_busy(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    reason: BlockedReason,
) {
    worker.stats.busy += 1;
    let (id, version) = (context.id, turn.version);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::Busy { id, version, reason });
}

pub(super) fn reply_not_held(turn: &mut Turn<'_>, context: RequestContext, place: Place) {
    let (id, version) = (context.id, turn.version);
    turn.answer(context.conn, Shows::Cell(place.cell), || Reply::NotHeld { id, version });
}

/// The link holds what it asks for, or does again.
pub(super) fn reply_confirmed(
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    claim: Claim,
) {
    let (id, version) = (context.id, turn.version);
    let confirmed = || Reply::Confirmed { id, version, claim };
    turn.answer(context.conn, Shows::Cell(place.cell), confirmed);
}

/// Answers a claim that was queued, unless its connection has been replaced since.
pub(super) fn answer_waiter(
    worker: &Worker,
    turn: &mut Turn<'_>,
    (link, asked_on): (LinkIndex, ConnId),
    cell: CellIndex,
    reply: Reply,
) {
    if worker.links.conn(link) == Some(asked_on) {
        turn.answer(asked_on, Shows::Cell(cell), || reply);
    }
}
