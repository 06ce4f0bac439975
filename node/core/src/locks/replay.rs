//! Ops that were decided elsewhere, and the ops that would make a cell what it is.

use super::cell::Spot;
use super::op::{Change, Op, Source};
use super::record::{Entry, EntryIndex, Kind, RecordIndex, Shape, Thin};
use super::slab::Index as _;
use super::{CellIndex, Locks, Place};
use crate::event::LinkIndex;
use lockring_proto::{Claim, Fence, Time};
use std::time::Duration;

/// An op that names what there is not. Who has sent it does not have what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit(pub(crate) &'static str);

impl Locks {
    /// Carries out an op that others decided: what it changes is looked up by what it names, under
    /// the tag by which its key is known here.
    pub(crate) fn replay(&mut self, cell: CellIndex, tag: u32, op: &Op<'_>) -> Result<(), Unfit> {
        let spot = match op.change {
            Change::Granted { link, source: Source::Asked { key, claim }, .. } => {
                let spot = self.spot_of_key(link, (cell, tag), (key, claim))?;
                if spot.record != RecordIndex::NIL && !self.fits(spot.record, claim) {
                    return Err(Unfit("a grant does not fit beside the holders"));
                }
                spot
            }
            Change::Granted { link, source: Source::Reclaimed { key, claim, fence }, .. } => {
                let spot = self.spot_of_key(link, (cell, tag), (key, claim))?;
                if spot.record != RecordIndex::NIL
                    && (!self.fits(spot.record, claim) || self.held(spot.record, fence).is_some())
                {
                    return Err(Unfit("a hold that is reclaimed does not fit beside the holders"));
                }
                spot
            }
            Change::Queued { link, key, claim, .. } => {
                self.spot_of_key(link, (cell, tag), (key, claim))?
            }
            Change::Granted { link, request, source: Source::Queue, .. } => {
                let spot = self.spot_of_waiter(link, request, (cell, tag))?;
                let claim = self.entries.get(spot.entry).claim;
                if !self.fits(spot.record, claim) {
                    return Err(Unfit("a waiter does not fit beside the holders"));
                }
                spot
            }
            Change::Left { link, request, .. } => {
                self.spot_of_waiter(link, request, (cell, tag))?
            }
            Change::Ended { fence, .. } => {
                self.find_fence(cell, tag, fence).ok_or(Unfit("nobody holds a fence that ended"))?
            }
        };
        self.apply(spot, op);
        Ok(())
    }

    fn spot_of_key(
        &self,
        link: LinkIndex,
        (cell, tag): (CellIndex, u32),
        (key, claim): (&[u8], Claim),
    ) -> Result<Spot, Unfit> {
        let place = Place { cell, tag, guess: RecordIndex::NIL };
        let Some(record) = self.find(place, self.namespace_of(link), key) else {
            return Ok(Spot::free(place));
        };
        if self.kind(record) != Kind::of(claim) {
            return Err(Unfit("a key of another kind is claimed"));
        }
        Ok(Spot::used(place, record))
    }

    fn spot_of_waiter(
        &self,
        link: LinkIndex,
        request: u64,
        (cell, tag): (CellIndex, u32),
    ) -> Result<Spot, Unfit> {
        let found = self.entry_by_request(link, request);
        let found = found.filter(|&entry| self.entries.get(entry).fence.is_none());
        let entry = found.ok_or(Unfit("a claim that left waits nowhere"))?;
        let record = self.entries.get(entry).record;
        let is_there = |index| RecordIndex(index) == record;
        if self.cells[cell.0 as usize].table.find(tag, is_there).is_none() {
            return Err(Unfit("a claim that left waits in another cell"));
        }
        Ok(Spot { cell, tag, record, entry })
    }

    /// The hold of a cell with this fence, by the tag of its key.
    pub(crate) fn find_fence(&self, cell: CellIndex, tag: u32, fence: Fence) -> Option<Spot> {
        let is_it = |index| self.held(RecordIndex(index), fence).is_some();
        let record = RecordIndex(self.cells[cell.0 as usize].table.find(tag, is_it)?);
        let (_, _, entry) = self.held(record, fence)?;
        Some(Spot { cell, tag, record, entry })
    }

    /// Gives the ops, each with the tag of its key, that make the locks of a cell out of none: a
    /// grant under its fence for each hold, and the queues in their order. `now` is that of the
    /// clock that times are told by.
    pub(crate) fn rebuild(&self, cell: CellIndex, now: Time, mut give: impl FnMut(u32, Op<'_>)) {
        for (tag, index) in self.cells[cell.0 as usize].table.iter() {
            let record = RecordIndex(index);
            let key = self.key(record);
            match self.shape(record) {
                Shape::Thin(Thin { link, request, fence }) => {
                    let since = self.records.get(record).since(now).since(Time(0));
                    let source = Source::Asked { key, claim: Claim::EXCLUSIVE };
                    let change = Change::Granted { link, request, source, since };
                    give(tag, Op { number: fence, change });
                }
                Shape::Rich(rich) => {
                    let rich = self.riches.get(rich);
                    self.chain(rich.holders.head).for_each(|entry| {
                        let &Entry { link, request, claim, fence, since, .. } = entry;
                        let (source, since) = (Source::Asked { key, claim }, since.since(Time(0)));
                        let change = Change::Granted { link, request, source, since };
                        give(tag, Op { number: fence.expect("a holder has a fence"), change });
                    });
                    self.chain(rich.waiters.head).for_each(|entry| {
                        let &Entry { link, request, claim, since, patience, .. } = entry;
                        let patience =
                            (patience != Time::NEVER.0).then(|| Duration::from_micros(patience));
                        let since = since.since(Time(0));
                        let change = Change::Queued { link, request, key, claim, since, patience };
                        give(tag, Op { number: Fence(0), change });
                    });
                }
            }
        }
    }

    /// Holders or waiters, in their order.
    pub(super) fn chain(&self, head: EntryIndex) -> impl Iterator<Item = &Entry> {
        let mut next = head;
        std::iter::from_fn(move || {
            let entry = (next != EntryIndex::NIL).then(|| self.entries.get(next))?;
            next = entry.queue_next;
            Some(entry)
        })
    }

    /// The number of the last op of a cell, of whichever epoch; 0 if it never had one here.
    pub(crate) fn last(&self, cell: CellIndex) -> Fence {
        self.cells[cell.0 as usize].last
    }

    /// What was made out of other ops stands for the last of those.
    pub(crate) fn set_last(&mut self, cell: CellIndex, last: Fence) {
        self.cells[cell.0 as usize].last = last;
    }

    /// The cell is none of this worker's any more: its locks go, one by one.
    pub(crate) fn clear(
        &mut self,
        cell: CellIndex,
        mut goes: impl FnMut(&Self, (RecordIndex, Option<EntryIndex>), &Change<'_>),
    ) {
        loop {
            let next = self.cells[cell.0 as usize].table.iter().next();
            let Some((tag, index)) = next else { break };
            let record = RecordIndex(index);
            let spot = Spot { cell, tag, record, entry: EntryIndex::NIL };
            let waiter = self.first_waiter(record);
            let change = match waiter {
                Some(waiter) => {
                    let &Entry { link, request, .. } = self.entries.get(waiter);
                    Change::Left { link, request, cause: super::Leaving::CellLeft }
                }
                None => {
                    let (_, fence) = self.first_holder(record).expect("a key in use is used");
                    Change::Ended { fence, cause: super::Ending::CellLeft }
                }
            };
            goes(self, (record, waiter), &change);
            self.apply(spot, &Op { number: Fence(0), change });
        }
        self.set_last(cell, Fence(0));
    }
}
