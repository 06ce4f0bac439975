//! What a client holds against what its link holds here, hold by hold, in slices.
//!
//! A list comes in frames, in ascending order. At the first of them the link's own holds are
//! gathered, sorted piece by piece; both lists are then walked as one merges them, frame by frame.
//! What exceeds a turn waits for the next: the frame is not taken, and given again. Meanwhile holds
//! begin and end:
//! - one that is there all the time is gathered, for thin holds are walked from the last to the
//!   first, and one that is taken out has the last put into its place; a hold that turns from thin
//!   to rich or back is gathered as it does. One that is gathered twice does no harm;
//! - one that ended is looked for before it is ended as an orphan;
//! - one that began since was made by a request after those that the client has settled.

use super::answer::refuse;
use super::end::end_hold;
use super::{RequestContext, tick};
use crate::cells::{Role, Shows};
use crate::event::LinkIndex;
use crate::links::{Comparison, Gather, Held, Part, Step};
use crate::locks::{Ending, EntryIndex, RecordIndex, Shape, Spot};
use crate::mutant::mutant;
use crate::turn::{PER_GATHERED, PER_ORPHAN, Progress, Turn};
use crate::worker::Worker;
use lockring_proto::{HoldId, RefusalKind, Reply, limits};
use lockring_ring::CellId;

/// Steps of a walk that cost as much as one operation.
const STEPS_PER_PRICE: u32 = 4;

/// Ends holds of the link that the client does not know, and finds those the worker does not.
pub(super) fn compare(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    part: &Part<'_>,
) -> Progress {
    if part.holds.len() > limits::HOLDS_PER_FRAME || !part.holds.is_sorted() {
        let message = "the holds of a compare come in ascending order, at most 4096 a frame";
        refuse(worker, turn, context, RefusalKind::Malformed, message);
        return Progress::Done;
    }
    // Both turn the list of the link's entries, each to see all of them once.
    while worker.links.is_leaving(context.link) {
        if turn.is_over() {
            return Progress::More;
        }
        turn.charge(PER_GATHERED);
        tick::free_one_leaving(worker, turn, context.link);
    }
    let mut comparison = comparison_for(worker, context, part);
    let progress = match gather(worker, turn, context.link, &mut comparison) {
        Progress::Done => walk(worker, turn, context, part, &mut comparison),
        other => other,
    };
    if progress == Progress::More || part.through.is_some() {
        *worker.links.comparison(context.link) = Some(comparison);
    }
    progress
}

/// What the link holds, up to where a frame begins: as it was gathered for the frame before, if
/// this one goes on where that one ended, or is that one; else it is to be gathered.
fn comparison_for(
    worker: &mut Worker,
    context: RequestContext,
    part: &Part<'_>,
) -> Box<Comparison> {
    let before = worker.links.comparison(context.link).take();
    before.filter(|before| before.goes_on(part, context.id)).unwrap_or_else(|| {
        let thin = worker.locks.thin_count(context.link);
        let entries = worker.locks.entry_count(context.link);
        Box::new(Comparison::new(part, context.id, thin, entries))
    })
}

/// Gathers for as long as the turn lasts.
fn gather(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    link: LinkIndex,
    comparison: &mut Comparison,
) -> Progress {
    while comparison.is_gathering() {
        if turn.is_over() {
            return Progress::More;
        }
        let head = worker.locks.first_entry(link);
        match (comparison.next_to_gather(worker.locks.thin_count(link), head.is_some()), head) {
            (Some(Gather::Thin(position)), _) => {
                turn.charge(PER_GATHERED);
                comparison.add(held_thin(worker, worker.locks.thin_at(link, position)));
            }
            (Some(Gather::Entry), Some(head)) => {
                // Every entry comes to the head once.
                worker.locks.turn_entries(link);
                turn.charge(PER_GATHERED);
                if let Some(held) = held_rich(worker, head) {
                    comparison.add(held);
                }
            }
            (Some(Gather::Entry), None) | (None, _) => {}
        }
    }
    Progress::Done
}

fn held_thin(worker: &Worker, record: RecordIndex) -> Held {
    let Shape::Thin(thin) = worker.locks.shape(record) else {
        panic!("{record:?} is among the thin holds")
    };
    let id = worker.locks.hold_id(worker.locks.place_of(record).cell, thin.fence);
    Held { id, record, request: thin.request }
}

fn held_rich(worker: &Worker, entry: EntryIndex) -> Option<Held> {
    let entry = worker.locks.entry(entry);
    let id = worker.locks.hold_id(worker.locks.place_of(entry.record).cell, entry.fence?);
    Some(Held { id, record: entry.record, request: entry.request })
}

/// Walks both lists for as long as the turn lasts, and answers at the end of the frame.
fn walk(
    worker: &mut Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    part: &Part<'_>,
    comparison: &mut Comparison,
) -> Progress {
    let spared = worker.links.is_spared(turn.now, context.link);
    let mut steps = 0;
    loop {
        steps += 1;
        if steps % STEPS_PER_PRICE == 0 {
            turn.charge(1);
            if turn.is_over() {
                return Progress::More;
            }
        }
        match comparison.step(part, context.id) {
            Step::Orphan(held) if !spared && is_compared(worker, held.id, part.version) => {
                end_orphan(worker, turn, context.link, &held);
            }
            Step::Orphan(_) | Step::Nothing => {}
            Step::End => break,
        }
    }
    let mut lost = comparison.finish(part);
    lost.retain(|&id| is_compared(worker, id, part.version));
    worker.stats.lost += lost.len() as u64;
    turn.charge(lost.len() as u32 / STEPS_PER_PRICE);
    let version = turn.version;
    turn.answer(context.conn, Shows::Link, || Reply::Compared { id: context.id, version, lost });
    Progress::Done
}

/// Whether both sides speak of the same when they speak of a cell: by the ring of `version`, which
/// the client's list is made by, this worker has it, and in the epoch of now. Of one that recovers
/// the worker knows what it was told so far, and nobody can say what is missing.
fn is_compared(worker: &Worker, id: HoldId, version: u64) -> bool {
    let Some(cell) = worker.locks.layout().find_named(CellId(id.cell)) else { return false };
    let since = worker.cells.since(cell, worker.locks.standing(cell));
    let is_known = match worker.cells.role(cell) {
        Role::Serving => true,
        Role::Recovering { .. } => mutant!(worker, CompareRecovering),
        Role::None => false,
    };
    is_known && (since.0 <= version || mutant!(worker, CompareAcrossVersions))
}

/// Ends what was gathered, if it is still so: the hold may have ended since, and its record be free
/// or another key's by now.
fn end_orphan(worker: &mut Worker, turn: &mut Turn<'_>, link: LinkIndex, held: &Held) {
    let Held { id, record, .. } = *held;
    if worker.locks.is_free(record) {
        return;
    }
    let Some((holder, _, entry)) = worker.locks.held(record, id.fence) else { return };
    let place = worker.locks.place_of(record);
    if holder == link && worker.locks.hold_id(place.cell, id.fence) == id {
        turn.charge(PER_ORPHAN);
        let spot = Spot::used(place, record).entry(entry);
        end_hold(worker, turn, spot, id.fence, Ending::Orphan);
    }
}
