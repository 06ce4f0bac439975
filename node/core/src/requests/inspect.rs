//! Looking at a key. Advisory: nothing here changes or promises anything.

use super::list::tell_holder;
use super::{Named, RequestContext};
use crate::cells::Shows;
use crate::event::Access;
use crate::locks::{Kind, Place, RecordIndex};
use crate::turn::{PER_TOLD, Turn};
use crate::worker::Worker;
use lockring_proto::{Inspection, Reply, WaiterInfo};

/// Holders and waiters told one by one.
const TOLD: usize = 16;

pub(super) fn inspect(
    worker: &Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    place: Place,
    named: &Named<'_>,
) {
    let grace_left = worker.cells.grace_left(place.cell, turn.now);
    let may_know = worker.links.who(context.link).access >= Access::Operator;
    let mut inspection = Inspection {
        version: turn.version,
        node: worker.config.node,
        cell: worker.locks.cell_id(place.cell).0,
        epoch: worker.locks.standing(place.cell).epoch().0,
        holders: Vec::new(),
        holder_count: 0,
        waiters: Vec::new(),
        waiter_count: 0,
        capacity: None,
        grace_left_ms: grace_left.map_or(0, |left| left.as_millis() as u64),
        grace_for: grace_left
            .filter(|_| may_know)
            .map_or_else(String::new, |_| worker.config.grace_for.clone()),
    };
    if let Some(record) = named.find(worker, context.link, place) {
        tell_key(worker, turn, record, &mut inspection);
    }
    let told = inspection.holders.len() + inspection.waiters.len();
    turn.charge(PER_TOLD * told as u32);
    let (id, inspection) = (context.id, Box::new(inspection));
    turn.answer(context.conn, Shows::Nothing, || Reply::Inspected { id, inspection });
}

fn tell_key(worker: &Worker, turn: &Turn<'_>, record: RecordIndex, inspection: &mut Inspection) {
    let now = turn.now;
    let holders = worker.locks.holders(record, now).take(TOLD);
    inspection.holders = holders.map(|holder| tell_holder(worker, now, &holder)).collect();
    inspection.holder_count = worker.locks.holder_count(record);
    let waiters = worker.locks.waiters(record).take(TOLD);
    inspection.waiters = waiters
        .map(|entry| WaiterInfo {
            claim: entry.claim,
            waited_ms: now.since(entry.since).as_millis() as u64,
            label: worker.links.who(entry.link).label.to_string(),
        })
        .collect();
    inspection.waiter_count = worker.locks.queue_len(record);
    if let Kind::Permits { capacity } = worker.locks.kind(record) {
        inspection.capacity = Some(capacity);
    }
}
