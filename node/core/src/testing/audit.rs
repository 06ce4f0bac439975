//! The machine's inner invariants: what is counted is what is there, every index names what it
//! should, and every key is in its simplest form.

use crate::locks::{CellIndex, RecordIndex};
use crate::worker::Worker;

pub(crate) fn same<T: Copy + PartialEq + std::fmt::Debug>(
    what: &str,
    counted: T,
    kept: T,
) -> Result<(), String> {
    if counted == kept {
        return Ok(());
    }
    Err(format!("{what}: counted {counted:?}, kept {kept:?}"))
}

/// Looks at everything.
pub(super) fn audit(worker: &Worker) -> Result<(), String> {
    let counted = worker.locks.audit()?;
    same("timed waits", counted.timed, worker.queues.wait_count())?;
    same("holds", u64::from(counted.thin + counted.holders), worker.stats.holds)?;
    same("waiters", u64::from(counted.waiters), worker.stats.waiters)?;
    worker.links.audit(&worker.locks)?;
    worker.copies.locks().audit().map_err(|what| format!("copies: {what}"))?;
    if let Some(shadow) = worker.copies.leftover() {
        return Err(format!("nothing is left of a link of a copy, and it stays: {shadow:?}"));
    }
    worker.locks.keys().try_for_each(|(cell, record)| audit_queue(worker, cell, record))
}

/// The head of a queue never fits, unless it waits for something else than its turn.
fn audit_queue(worker: &Worker, cell: CellIndex, record: RecordIndex) -> Result<(), String> {
    let waits_for_time = worker.queues.unserved().any(|unserved| unserved == record)
        || worker.cells.grace_left(cell, worker.links.last_seen()).is_some()
        || worker.queues.parked().any(|parked| parked == (cell, record));
    let Some(head) = worker.locks.first_waiter(record).filter(|_| !waits_for_time) else {
        return Ok(());
    };
    let head = worker.locks.entry(head);
    if worker.locks.fits(record, head.claim) {
        return Err(format!("the head of the queue fits and waits: {head:?}"));
    }
    Ok(())
}
