//! Claiming a key.

use super::Asker;
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
use lockring_proto::{BlockedReason, Claim, RefusalKind, Wait, limits};
use std::time::Duration;

const EPOCH_USED_UP: &str =
    "the cell's operation counter is used up and its epoch is not raised yet: retry";

/// A request for a key: who asks, for what, and how patiently.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) asker: Asker,
    pub(super) place: Place,
    pub(super) key: &'a [u8],
    pub(super) claim: Claim,
    pub(super) wait: Wait,
    /// How long nothing is granted in the cell yet.
    pub(super) grace: Option<Duration>,
}

#[inline(always)]
pub(super) fn acquire(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>) {
    let Ask { asker, place, key, claim, wait, .. } = *ask;
    let namespace = worker.locks.namespace_of(asker.link);
    let Some(record) = worker.locks.find(place, namespace, key) else {
        return acquire_free(worker, turn, ask);
    };
    if let Shape::Thin(thin) = worker.locks.shape(record) {
        if worker.locks.is_dead(thin.link) {
            // Its turn to be freed has not come yet; for this key it has now.
            let spot = Spot::used(place, record);
            end_hold(worker, turn, spot, thin.fence, Ending::Expired);
            return acquire_free(worker, turn, ask);
        }
        if is_retry(worker, thin, asker) {
            worker.stats.retries += 1;
            return reply_granted(turn, asker, place, thin.fence);
        }
        if wait == Wait::No && Kind::of(claim) == Kind::Modes {
            let reason = BlockedReason::Held { fence: thin.fence, waiters: 0 };
            return reply_busy(worker, turn, asker, place, reason);
        }
    }
    acquire_used(worker, turn, ask, record);
}

/// Whether a thin hold was made by this very request.
#[inline(always)]
fn is_retry(worker: &Worker, thin: Thin, asker: Asker) -> bool {
    if mutant!(worker, NamesakeHold) {
        return worker.links.who(thin.link).name == worker.links.who(asker.link).name;
    }
    thin.link == asker.link && thin.request == asker.id && !mutant!(worker, NoRequestId)
}

/// The key is free.
#[inline]
fn acquire_free(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>) {
    let Ask { asker, place, key, claim, grace, .. } = *ask;
    if claim != Claim::EXCLUSIVE || key.len() > INLINE_KEY || grace.is_some() {
        return acquire_free_rich(worker, turn, ask);
    }
    if worker.locks.hold_count(asker.link) >= worker.links.cap()
        && let Some(refused) = over_quota(worker, asker, Amounts::hold(THIN_BYTES))
    {
        return refuse(worker, turn, asker, RefusalKind::Quota, refused);
    }
    if worker.draining {
        return refuse_draining(worker, turn, asker);
    }
    let Some(fence) = worker.locks.next_fence(place.cell) else {
        return refuse(worker, turn, asker, RefusalKind::Unavailable, EPOCH_USED_UP);
    };
    let (link, request, since) = (asker.link, asker.id, turn.at);
    let source = Source::Asked { key, claim: Claim::EXCLUSIVE };
    let change = Change::Granted { link, request, source, since };
    worker.emit(Spot::free(place), Op { number: fence, change });
    reply_granted(turn, asker, place, fence);
}

/// The key is free, and more than a thin record is needed.
#[inline(never)]
fn acquire_free_rich(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>) {
    let Ask { asker, place, claim, wait, grace, .. } = *ask;
    if let (Some(left), Wait::No) = (grace, wait) {
        let reason = BlockedReason::Grace { left_ms: left.as_millis() as u64 };
        return reply_busy(worker, turn, asker, place, reason);
    }
    if let Claim::Permits { permits, capacity } = claim
        && (capacity > limits::CAPACITY_MAX || !(1..=capacity).contains(&permits))
    {
        let message = format!("{permits} permits of {capacity}: claim 1 to all, of at most 2^30");
        return refuse(worker, turn, asker, RefusalKind::Malformed, message);
    }
    if worker.draining {
        return refuse_draining(worker, turn, asker);
    }
    if is_in_use(worker, turn, asker, None) {
        return;
    }
    match grace {
        None => grant_now(worker, turn, ask, Spot::free(place)),
        Some(_) => enqueue(worker, turn, ask, None),
    }
}

/// A copy of a request finds what the first one made.
fn is_in_use(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    asker: Asker,
    used: Option<(Place, RecordIndex)>,
) -> bool {
    if mutant!(worker, NoRequestId) {
        return false;
    }
    let Some(entry) = worker.locks.entry_by_request(asker.link, asker.id) else { return false };
    match used {
        Some((place, record)) if worker.locks.entry(entry).record == record => {
            acquire_again(worker, turn, asker, place, entry);
        }
        _ => {
            let message = format!("request id {} is in use for another key", asker.id);
            refuse(worker, turn, asker, RefusalKind::Malformed, message);
        }
    }
    true
}

/// The key has a record.
#[inline(never)]
fn acquire_used(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>, record: RecordIndex) {
    let Ask { asker, place, claim, wait, grace, .. } = *ask;
    if is_in_use(worker, turn, asker, Some((place, record))) {
        return;
    }
    if let Some(conflict) = kind_conflict(worker.locks.kind(record), claim) {
        return refuse(worker, turn, asker, RefusalKind::KindConflict, conflict);
    }
    if worker.draining {
        return refuse_draining(worker, turn, asker);
    }
    let nobody_waits = worker.locks.queue_len(record) == 0;
    if nobody_waits && grace.is_none() && worker.locks.fits(record, claim) {
        return grant_now(worker, turn, ask, Spot::used(place, record));
    }
    if wait == Wait::No {
        let reason = blocked(worker, turn, place.cell, record);
        return reply_busy(worker, turn, asker, place, reason);
    }
    enqueue(worker, turn, ask, Some(record));
}

/// Grants what needs more than a thin record.
fn grant_now(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>, spot: Spot) {
    let Ask { asker, place, key, claim, .. } = *ask;
    if let Some(refused) = over_quota(worker, asker, Amounts::hold(claim_bytes(key))) {
        return refuse(worker, turn, asker, RefusalKind::Quota, refused);
    }
    let Some(fence) = worker.locks.next_fence(place.cell) else {
        return refuse(worker, turn, asker, RefusalKind::Unavailable, EPOCH_USED_UP);
    };
    let (link, request, since) = (asker.link, asker.id, turn.at);
    let source = Source::Asked { key, claim };
    let change = Change::Granted { link, request, source, since };
    worker.emit_rare(spot, Op { number: fence, change });
    let entry = worker.locks.last_entry(link).expect("a hold was made");
    worker.locks.answer_on(entry, asker.conn);
    reply_granted(turn, asker, place, fence);
}

fn acquire_again(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    asker: Asker,
    place: Place,
    entry: EntryIndex,
) {
    let found = worker.locks.entry(entry);
    let (record, fence) = (found.record, found.fence);
    worker.stats.retries += 1;
    worker.locks.answer_on(entry, asker.conn);
    #[cfg(any(test, feature = "testing"))]
    worker.locks.seeded_change(entry, turn.now);
    match fence {
        Some(fence) => reply_granted(turn, asker, place, fence),
        None => {
            let ahead = worker.locks.queue_len(record).saturating_sub(1);
            reply_queued(turn, asker, place, ahead);
        }
    }
}

fn enqueue(worker: &mut Worker, turn: &mut Turn<'_>, ask: &Ask<'_>, record: Option<RecordIndex>) {
    let Ask { asker, place, key, claim, wait, grace } = *ask;
    if let Some(refused) = over_quota(worker, asker, Amounts::waiter(claim_bytes(key))) {
        return refuse(worker, turn, asker, RefusalKind::Quota, refused);
    }
    let ahead = record.map_or(0, |record| worker.locks.queue_len(record));
    if ahead >= worker.config.limits.waiters_per_key {
        let message = format!("{ahead} claims wait for this key, and no more may");
        return refuse(worker, turn, asker, RefusalKind::Quota, message);
    }
    let patience = match wait {
        Wait::No | Wait::Forever => None,
        Wait::Millis(ms) => Some(Duration::from_millis(ms)),
    };
    let (link, request, since) = (asker.link, asker.id, turn.at);
    let spot = record.map_or(Spot::free(place), |record| Spot::used(place, record));
    let number = worker.locks.next_number(place.cell);
    let change = Change::Queued { link, request, key, claim, since, patience };
    worker.emit_rare(spot, Op { number, change });
    let entry = worker.locks.last_entry(link).expect("a waiter was made");
    worker.locks.answer_on(entry, asker.conn);
    worker.queues.wait(worker.locks.deadline(entry), entry);
    if grace.is_some() {
        worker.queues.park(place.cell, worker.locks.entry(entry).record);
    }
    reply_queued(turn, asker, place, ahead);
}

/// Why the asker may not have more, if so.
fn over_quota(worker: &mut Worker, asker: Asker, more: Amounts) -> Option<String> {
    let used = worker.locks.used_by(asker.link);
    worker.links.over_quota(asker.link, used, more, &worker.config.limits)
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
