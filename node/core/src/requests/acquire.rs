//! Claiming a key.

use super::RequestContext;
use super::answer::{refuse, refuse_draining, reply_busy, reply_granted, reply_queued};
use super::end::end_hold;
use super::grant::blocked;
use crate::amounts::Amounts;
use crate::locks::{
    Change, Ending, EntryIndex, INLINE_KEY, Kind, Op, Place, RecordIndex, Shape, Source, Spot,
    THIN_BYTES, Thin, claim_bytes,
};
use crate::mutant::mutant;
use crate::turn::Turn;
use crate::worker::Worker;
use lockring_proto::{BlockedReason, Claim, RefusalKind, Wait};
use std::time::Duration;

const EPOCH_USED_UP: &str =
    "the cell's operation counter is used up and its epoch is not raised yet: retry";

/// A request for a key: who asks, for what, and how patiently.
#[derive(Clone, Copy)]
pub(super) struct AcquireRequest<'a> {
    pub(super) context: RequestContext,
    pub(super) place: Place,
    pub(super) key: &'a [u8],
    pub(super) claim: Claim,
    pub(super) wait: Wait,
    /// How long nothing is granted in the cell yet.
    pub(super) grace: Option<Duration>,
}

#[inline(always)]
pub(super) fn acquire(worker: &mut Worker, turn: &mut Turn<'_>, request: &AcquireRequest<'_>) {
    let AcquireRequest { context, place, key, claim, wait, .. } = *request;
    let namespace = worker.locks.namespace_of(context.link);
    let Some(record) = worker.locks.find(place, namespace, key) else {
        return acquire_free(worker, turn, request);
    };
    if let Shape::Thin(thin) = worker.locks.shape(record) {
        if worker.locks.is_dead(thin.link) {
            // Its turn to be freed has not come yet; for this key it has now.
            let spot = Spot::used(place, record);
            end_hold(worker, turn, spot, thin.fence, Ending::Expired);
            return acquire_free(worker, turn, request);
        }
        if is_retry(worker, thin, context) {
            worker.stats.retries += 1;
            return reply_granted(turn, context, place, thin.fence);
        }
        if wait == Wait::No && Kind::of(claim) == Kind::Modes {
            let reason = BlockedReason::Held { fence: thin.fence, waiters: 0 };
            return reply_busy(worker, turn, context, place, reason);
        }
    }
    acquire_used(worker, turn, request, record);
}

/// Whether a thin hold was made by this very request.
#[inline(always)]
fn is_retry(worker: &Worker, thin: Thin, context: RequestContext) -> bool {
    if mutant!(worker, NamesakeHold) {
        return worker.links.who(thin.link).name == worker.links.who(context.link).name;
    }
    thin.link == context.link && thin.request == context.id && !mutant!(worker, NoRequestId)
}

/// The key is free.
#[inline]
fn acquire_free(worker: &mut Worker, turn: &mut Turn<'_>, request: &AcquireRequest<'_>) {
    let AcquireRequest { context, place, key, claim, grace, .. } = *request;
    if claim != Claim::EXCLUSIVE || key.len() > INLINE_KEY || grace.is_some() {
        return acquire_free_rich(worker, turn, request);
    }
    if worker.locks.hold_count(context.link) >= worker.links.cap()
        && let Some(refused) = over_quota(worker, context, Amounts::hold(THIN_BYTES))
    {
        return refuse(worker, turn, context, RefusalKind::Quota, refused);
    }
    if worker.draining {
        return refuse_draining(worker, turn, context);
    }
    let Some(fence) = worker.locks.next_fence(place.cell) else {
        return refuse(worker, turn, context, RefusalKind::Unavailable, EPOCH_USED_UP);
    };
    let (link, request, since) = (context.link, context.id, turn.at);
    let source = Source::Asked { key, claim: Claim::EXCLUSIVE };
    let change = Change::Granted { link, request, source, since };
    worker.emit(turn, Spot::free(place), Op { number: fence, change });
    reply_granted(turn, context, place, fence);
}

/// The key is free, and more than a thin record is needed.
#[inline(never)]
fn acquire_free_rich(worker: &mut Worker, turn: &mut Turn<'_>, request: &AcquireRequest<'_>) {
    let AcquireRequest { context, place, claim, wait, grace, .. } = *request;
    if let (Some(left), Wait::No) = (grace, wait) {
        let reason = BlockedReason::Grace { left_ms: left.as_millis() as u64 };
        return reply_busy(worker, turn, context, place, reason);
    }
    if let (Claim::Permits { permits, capacity }, false) = (claim, claim.is_lawful()) {
        let message = format!("{permits} permits of {capacity}: claim 1 to all, of at most 2^30");
        return refuse(worker, turn, context, RefusalKind::Malformed, message);
    }
    if worker.draining {
        return refuse_draining(worker, turn, context);
    }
    if is_in_use(worker, turn, context, None) {
        return;
    }
    match grace {
        None => grant_now(worker, turn, request, Spot::free(place)),
        Some(_) => enqueue(worker, turn, request, None),
    }
}

/// A copy of a request finds what the first one made.
fn is_in_use(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    used: Option<(Place, RecordIndex)>,
) -> bool {
    if mutant!(worker, NoRequestId) {
        return false;
    }
    let Some(entry) = worker.locks.entry_by_request(context.link, context.id) else { return false };
    match used {
        Some((place, record)) if worker.locks.entry(entry).record == record => {
            acquire_again(worker, turn, context, place, entry);
        }
        _ => {
            let message = format!("request id {} is in use for another key", context.id);
            refuse(worker, turn, context, RefusalKind::Malformed, message);
        }
    }
    true
}

/// The key has a record.
#[inline(never)]
fn acquire_used(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    request: &AcquireRequest<'_>,
    record: RecordIndex,
) {
    let AcquireRequest { context, place, claim, wait, grace, .. } = *request;
    if is_in_use(worker, turn, context, Some((place, record))) {
        return;
    }
    if let Some(conflict) = kind_conflict(worker.locks.kind(record), claim) {
        return refuse(worker, turn, context, RefusalKind::KindConflict, conflict);
    }
    if worker.draining {
        return refuse_draining(worker, turn, context);
    }
    let nobody_waits = worker.locks.queue_len(record) == 0;
    if nobody_waits && grace.is_none() && worker.locks.fits(record, claim) {
        return grant_now(worker, turn, request, Spot::used(place, record));
    }
    if wait == Wait::No {
        let reason = blocked(worker, turn, place.cell, record);
        return reply_busy(worker, turn, context, place, reason);
    }
    enqueue(worker, turn, request, Some(record));
}

/// Grants what needs more than a thin record.
fn grant_now(worker: &mut Worker, turn: &mut Turn<'_>, request: &AcquireRequest<'_>, spot: Spot) {
    let AcquireRequest { context, place, key, claim, .. } = *request;
    if let Some(refused) = over_quota(worker, context, Amounts::hold(claim_bytes(key))) {
        return refuse(worker, turn, context, RefusalKind::Quota, refused);
    }
    let Some(fence) = worker.locks.next_fence(place.cell) else {
        return refuse(worker, turn, context, RefusalKind::Unavailable, EPOCH_USED_UP);
    };
    let (link, request, since) = (context.link, context.id, turn.at);
    let source = Source::Asked { key, claim };
    let change = Change::Granted { link, request, source, since };
    worker.emit_rare(turn, spot, Op { number: fence, change });
    let entry = worker.locks.last_entry(link).expect("a hold was made");
    worker.locks.answer_on(entry, context.conn);
    reply_granted(turn, context, place, fence);
}

fn acquire_again(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    entry: EntryIndex,
) {
    let found = worker.locks.entry(entry);
    let (record, fence) = (found.record, found.fence);
    worker.stats.retries += 1;
    worker.locks.answer_on(entry, context.conn);
    #[cfg(any(test, feature = "testing"))]
    worker.locks.seeded_change(entry, turn.now);
    match fence {
        Some(fence) => reply_granted(turn, context, place, fence),
        None => {
            let ahead = worker.locks.queue_len(record).saturating_sub(1);
            reply_queued(turn, context, place, ahead);
        }
    }
}

fn enqueue(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    request: &AcquireRequest<'_>,
    record: Option<RecordIndex>,
) {
    let AcquireRequest { context, place, key, claim, wait, grace } = *request;
    if let Some(refused) = over_quota(worker, context, Amounts::waiter(claim_bytes(key))) {
        return refuse(worker, turn, context, RefusalKind::Quota, refused);
    }
    let ahead = record.map_or(0, |record| worker.locks.queue_len(record));
    if ahead >= worker.config.limits.waiters_per_key {
        let message = format!("{ahead} claims wait for this key, and no more may");
        return refuse(worker, turn, context, RefusalKind::Quota, message);
    }
    let patience = match wait {
        Wait::No | Wait::Forever => None,
        Wait::Millis(ms) => Some(Duration::from_millis(ms)),
    };
    let (link, request, since) = (context.link, context.id, turn.at);
    let spot = record.map_or(Spot::free(place), |record| Spot::used(place, record));
    let number = worker.locks.next_number(place.cell);
    let change = Change::Queued { link, request, key, claim, since, patience };
    worker.emit_rare(turn, spot, Op { number, change });
    let entry = worker.locks.last_entry(link).expect("a waiter was made");
    worker.locks.answer_on(entry, context.conn);
    worker.queues.wait(worker.locks.deadline(entry), entry);
    if grace.is_some() {
        worker.queues.park(place.cell, worker.locks.entry(entry).record);
    }
    reply_queued(turn, context, place, ahead);
}

/// Why the context may not have more, if so.
fn over_quota(worker: &mut Worker, context: RequestContext, more: Amounts) -> Option<String> {
    let used = worker.locks.used_by(context.link);
    worker.links.over_quota(context.link, used, more, &worker.config.limits)
}

/// Why the claim cannot go with what the key is used as, if so.
fn kind_conflict(in_force: Kind, claim: Claim) -> Option<String> {
    if let Claim::Permits { permits, capacity } = claim
        && (permits == 0 || permits > capacity)
    {
        return Some(format!("{permits} permits of {capacity} cannot be claimed"));
    }
    if Kind::of(claim) == in_force {
        return None;
    }
    Some(match in_force {
        Kind::Modes => "the key is in use as a lock, not as a semaphore".to_owned(),
        Kind::Permits { capacity } => match claim {
            Claim::Permits { capacity: asked, .. } => {
                format!("the key is a semaphore of capacity {capacity}, not {asked}")
            }
            _ => format!("the key is in use as a semaphore of capacity {capacity}"),
        },
    })
}
