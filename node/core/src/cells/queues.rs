//! Which queues have to be looked at, and when. Only the owner needs it: a copy just keeps the
//! queues.

use crate::locks::slab::Index as _;
use crate::locks::{CellIndex, EntryIndex, RecordIndex};
use lockring_proto::Time;
use std::collections::BTreeSet;

#[derive(Clone)]
pub(crate) struct Queues {
    /// Waiters with a deadline.
    waits: BTreeSet<(Time, EntryIndex)>,
    /// Records whose queue is not worked off, as it was too long for one turn: ticks serve them,
    /// slice by slice, one after the other.
    unserved: BTreeSet<RecordIndex>,
    /// The next of them is the first from here on.
    next: RecordIndex,
    /// Records whose queue cannot be served: the cell recovers, or its epoch is used up.
    parked: BTreeSet<(CellIndex, RecordIndex)>,
    /// Cells that have a new epoch since, and may have parked records.
    raised: BTreeSet<CellIndex>,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            waits: BTreeSet::new(),
            unserved: BTreeSet::new(),
            next: RecordIndex(0),
            parked: BTreeSet::new(),
            raised: BTreeSet::new(),
        }
    }
}

impl Queues {
    pub(crate) fn wait(&mut self, deadline: Time, waiter: EntryIndex) {
        if deadline != Time::NEVER {
            self.waits.insert((deadline, waiter));
        }
    }

    pub(crate) fn stop_waiting(&mut self, deadline: Time, waiter: EntryIndex) {
        if deadline != Time::NEVER {
            self.waits.remove(&(deadline, waiter));
        }
    }

    /// The waiter whose deadline is the first.
    pub(crate) fn first_wait(&self) -> Option<(Time, EntryIndex)> {
        self.waits.first().copied()
    }

    /// A queue is to be served by the next ticks.
    pub(crate) fn go_on(&mut self, record: RecordIndex) {
        self.unserved.insert(record);
    }

    /// A queue is to be served when its cell can.
    pub(crate) fn park(&mut self, cell: CellIndex, record: RecordIndex) {
        self.parked.insert((cell, record));
    }

    /// A cell has a new epoch: what is parked there is served by the next ticks.
    pub(crate) fn raised(&mut self, cell: CellIndex) {
        self.raised.insert(cell);
    }

    /// A cell that has a new epoch, and may have parked records.
    pub(crate) fn first_raised(&self) -> Option<CellIndex> {
        self.raised.first().copied()
    }

    /// Takes up one of the parked records of a cell; `false` if there is none.
    pub(crate) fn unpark(&mut self, cell: CellIndex) -> bool {
        let all = (cell, RecordIndex(0))..=(cell, RecordIndex::NIL);
        let Some(&parked) = self.parked.range(all).next() else {
            self.raised.remove(&cell);
            return false;
        };
        self.parked.remove(&parked);
        self.unserved.insert(parked.1);
        true
    }

    /// The next queue to be served, each in its turn.
    pub(crate) fn next(&mut self) -> Option<RecordIndex> {
        let next = self.unserved.range(self.next..).next();
        let record = *next.or_else(|| self.unserved.first())?;
        self.unserved.remove(&record);
        self.next = RecordIndex(record.0.wrapping_add(1));
        Some(record)
    }

    /// A record is free again.
    #[inline(always)]
    pub(crate) fn freed(&mut self, cell: CellIndex, record: RecordIndex) {
        if !self.unserved.is_empty() {
            self.unserved.remove(&record);
        }
        if !self.parked.is_empty() {
            self.parked.remove(&(cell, record));
        }
    }

    /// Whether a tick has something to serve.
    pub(crate) fn are_due(&self) -> bool {
        !self.unserved.is_empty() || !self.raised.is_empty()
    }

    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }
}

#[cfg(any(test, feature = "testing"))]
impl Queues {
    pub(crate) fn wait_count(&self) -> usize {
        self.waits.len()
    }

    pub(crate) fn unserved(&self) -> impl Iterator<Item = RecordIndex> + '_ {
        self.unserved.iter().copied()
    }

    pub(crate) fn parked(&self) -> impl Iterator<Item = (CellIndex, RecordIndex)> + '_ {
        self.parked.iter().copied()
    }
}
