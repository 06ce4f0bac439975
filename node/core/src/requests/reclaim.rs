//! Holds that their clients tell a cell of that was taken over without a copy. While it recovers,
//! what they say is all that anybody knows of it.

use super::RequestContext;
use super::answer::{answer_waiter, refuse, reply_confirmed, reply_not_held};
use super::end::end_hold;
use super::leave::drop_waiter;
use crate::locks::{
    Change, Ending, Entry, HOLDERS_LOOKED_AT, Kind, Leaving, Op, Place, RecordIndex, Source, Spot,
    THIN_MAX,
};
use crate::mutant::mutant;
use crate::turn::{PER_FORCED, Progress, Turn};
use crate::worker::Worker;
use lockring_proto::{Claim, Fence, LostReason, Refusal, RefusalKind, Reply, limits};

/// Holders that cost as much to look at as one operation.
const LOOKS_PER_PRICE: u32 = 4;

/// A hold as its client tells of it.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) context: RequestContext,
    pub(super) place: Place,
    pub(super) key: &'a [u8],
    pub(super) fence: Fence,
    /// The request that made it.
    pub(super) request: u64,
    pub(super) claim: Claim,
}

/// Whether a hold can be let in beside what there is of its key.
enum Way {
    Clear,
    /// Something is in it that goes before.
    Barred,
    /// A step was done, and there may be more to do.
    Clearing,
}

/// Lets a hold of an earlier epoch in, or confirms it where it is known.
pub(super) fn reclaim(worker: &mut Worker, turn: &mut Turn<'_>, told: &Told<'_>) -> Progress {
    let &Told { context, place, .. } = told;
    if let Some(claim) = held_so(worker, told) {
        reply_confirmed(turn, context, place, claim);
        return Progress::Done;
    }
    if worker.cells.grace_left(place.cell, turn.now).is_none() {
        reply_not_held(turn, context, place);
        return Progress::Done;
    }
    if let Some((kind, message)) = refusal(worker, told) {
        refuse(worker, turn, context, kind, message);
        return Progress::Done;
    }
    loop {
        if turn.is_over() {
            return Progress::More;
        }
        match clear_way(worker, turn, told) {
            Way::Clear => break,
            Way::Clearing => {}
            Way::Barred => {
                reply_not_held(turn, context, place);
                return Progress::Done;
            }
        }
    }
    let &Told { key, fence, request, claim, .. } = told;
    let spot = find(worker, told).map_or(Spot::free(place), |record| Spot::used(place, record));
    let (link, since) = (context.link, turn.at);
    let source = Source::Reclaimed { key, claim, fence };
    let change = Change::Granted { link, request, source, since };
    let number = worker.locks.next_number(place.cell);
    worker.emit_rare(turn, spot, Op { number, change });
    reply_confirmed(turn, context, place, claim);
    Progress::Done
}

fn find(worker: &Worker, told: &Told<'_>) -> Option<RecordIndex> {
    let namespace = worker.locks.namespace_of(told.context.link);
    worker.locks.find(told.place, namespace, told.key)
}

/// What the link holds of the key under this fence, if it does.
fn held_so(worker: &Worker, told: &Told<'_>) -> Option<Claim> {
    let (link, claim, _) = worker.locks.held(find(worker, told)?, told.fence)?;
    (link == told.context.link).then_some(claim)
}

/// Why a hold cannot be let in, whatever else is held, if so.
///
/// No quota is looked at. What is reclaimed was within the quotas where it was granted, and to
/// refuse it would take a lock from somebody who holds it, only because the cells of several
/// workers have come to one. It counts all the same, so that nothing is granted beside it that they
/// do not allow for. What protects the node itself does count: a client that is refused tries
/// again for as long as it believes in its hold.
fn refusal(worker: &Worker, told: &Told<'_>) -> Option<(RefusalKind, String)> {
    let &Told { context, place, fence, request, claim, .. } = told;
    let (its, epoch) = (fence.epoch().0, worker.locks.standing(place.cell).epoch().0);
    if its >= epoch && !mutant!(worker, ReclaimsOwnEpoch) {
        let message = format!("the cell is in epoch {epoch}, and the hold of {its}, not before");
        return Some((RefusalKind::Malformed, message));
    }
    if request > limits::REQUEST_ID_MAX || !claim.is_lawful() {
        let message = "no worker has granted such a claim".to_owned();
        return Some((RefusalKind::Malformed, message));
    }
    if worker.locks.entry_by_request(context.link, request).is_some() {
        let message = format!("request id {request} is in use for another claim");
        return Some((RefusalKind::Malformed, message));
    }
    let full = worker.links.books().is_full();
    if full || worker.locks.hold_count(context.link) >= u64::from(THIN_MAX) {
        let message = "the node has no memory left for more locks".to_owned();
        return Some((RefusalKind::Quota, message));
    }
    None
}

/// Takes a step towards a key beside whose holders a hold goes: of those that do not go beside each
/// other, the one under the higher fence was granted when the other had ended.
fn clear_way(worker: &mut Worker, turn: &mut Turn<'_>, told: &Told<'_>) -> Way {
    let &Told { place, fence, claim, .. } = told;
    let Some(record) = find(worker, told) else { return Way::Clear };
    // Another's: two holds of a key never had one fence.
    let same = worker.locks.held(record, fence).map(|(link, ..)| (link, fence));
    if same.is_none() && worker.locks.takes(record, claim) {
        return Way::Clear;
    }
    let looked = worker.locks.holder_count(record).min(HOLDERS_LOOKED_AT);
    turn.charge(PER_FORCED + looked / LOOKS_PER_PRICE);
    let Some((link, its)) = same.or_else(|| worker.locks.rival(record, (claim, fence))) else {
        return turn_waiter_away(worker, turn, told, record);
    };
    if worker.locks.is_dead(link) {
        end_hold(worker, turn, Spot::used(place, record), its, Ending::Expired);
        return Way::Clearing;
    }
    let is_higher = if mutant!(worker, LowerFenceWins) { fence < its } else { fence > its };
    if !is_higher {
        return Way::Barred;
    }
    if let Some(conn) = worker.links.conn(link) {
        let hold = worker.locks.hold_id(place.cell, its);
        turn.push_lost((conn, place.cell), LostReason::Outranked, hold);
    }
    end_hold(worker, turn, Spot::used(place, record), its, Ending::Outranked);
    Way::Clearing
}

/// Nobody holds the key, but somebody may be queued for it as another kind than it is.
fn turn_waiter_away(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    told: &Told<'_>,
    record: RecordIndex,
) -> Way {
    let waiter = worker.locks.first_waiter(record);
    let is_other = worker.locks.kind(record) != Kind::of(told.claim);
    let Some(waiter) = waiter.filter(|_| is_other) else { return Way::Barred };
    let &Entry { link, request: id, asked_on, .. } = worker.locks.entry(waiter);
    drop_waiter(worker, turn, Spot::used(told.place, record), waiter, Leaving::Refused);
    let (kind, message) = (RefusalKind::KindConflict, "the key is held as another kind".to_owned());
    let refusal = Box::new(Refusal { kind, message });
    let refused = Reply::Refused { id, refusal };
    answer_waiter(worker, turn, (link, asked_on), told.place.cell, refused);
    Way::Clearing
}
