//! The inner invariants of the locks, each looked at from the outside in, and their state in a few
//! bits.

use super::record::{EntryIndex, RecordIndex, Shape, Thin};
use super::slab::Index as _;
use super::{CellIndex, Locks, claim_bytes};
use crate::event::LinkIndex;
use crate::testing::same;
use lockring_proto::{Digest, Fence, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// A hash that is quick, as there is one for every turn of every simulated run.
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// What one pass over the keys in use has counted.
#[derive(Default)]
pub(crate) struct Counted {
    /// Digest, waiters, thin holds, and bytes of all others, of each link.
    links: BTreeMap<LinkIndex, (Digest, u32, u32, u64)>,
    keys: u32,
    riches: u32,
    pub(crate) holders: u32,
    pub(crate) waiters: u32,
    pub(crate) timed: usize,
    pub(crate) thin: u32,
}

impl Locks {
    /// All keys in use.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (CellIndex, RecordIndex)> + '_ {
        let cells = (0..).map(CellIndex).zip(&self.cells);
        cells.flat_map(|(at, cell)| {
            cell.table.iter().map(move |(_, index)| (at, RecordIndex(index)))
        })
    }

    /// Looks at everything.
    pub(crate) fn audit(&self) -> Result<Counted, String> {
        let mut counted = Counted::default();
        for (cell, record) in self.keys() {
            counted.keys += 1;
            self.audit_key(cell, record, &mut counted)?;
        }
        for (&link, &(digest, waiters, thin, bytes)) in &counted.links {
            let kept = self.holdings.get(link);
            same("digest of a link", digest, kept.digest)?;
            same("waiters of a link", waiters, kept.waiters)?;
            same("thin holds of a link", thin, kept.thin.len())?;
            same("bytes of a link", bytes, kept.rich_bytes)?;
        }
        same("records", counted.keys, self.records.len())?;
        same("side records", counted.riches, self.riches.len())?;
        same("entries", counted.holders + counted.waiters, self.entries.len())?;
        same("entries by request", self.entries.len() as usize, self.by_request.len())?;
        same("entries by fence", counted.holders as usize, self.by_fence.len())?;
        Ok(counted)
    }

    fn audit_key(
        &self,
        cell: CellIndex,
        record: RecordIndex,
        counted: &mut Counted,
    ) -> Result<(), String> {
        same("cell of a key", self.place_of(record).cell, cell)?;
        let rich = match self.shape(record) {
            Shape::Thin(Thin { link, fence, .. }) => {
                counted.thin += 1;
                let its = counted.links.entry(link).or_default();
                its.0.add(self.hold_id(cell, fence));
                its.2 += 1;
                let position = self.records.get(record).position();
                return same("record at a position", self.thin_at(link, position), record);
            }
            Shape::Rich(rich) => self.riches.get(rich),
        };
        counted.riches += 1;
        let bytes = claim_bytes(self.key(record));
        let (mut holders, mut waiters, mut fences) = (0, 0, BTreeSet::new());
        for entry in self.indexes(rich.holders.head) {
            let fence = self.entries.get(entry).fence.ok_or("a holder without a fence")?;
            // What is reclaimed comes in any order.
            if !fences.insert(fence) {
                return Err(format!("two holders of one key have the fence {fence}"));
            }
            holders += 1;
            let its = counted.links.entry(self.entries.get(entry).link).or_default();
            its.0.add(self.hold_id(cell, fence));
            its.3 += bytes;
        }
        for entry in self.indexes(rich.waiters.head) {
            waiters += 1;
            counted.timed += usize::from(self.deadline(entry) != Time::NEVER);
            let its = counted.links.entry(self.entries.get(entry).link).or_default();
            its.1 += 1;
            its.3 += bytes;
        }
        same("holders of a key", holders, rich.holders.len)?;
        same("waiters of a key", waiters, rich.waiters.len)?;
        counted.holders += holders;
        counted.waiters += waiters;
        if waiters == 0 && (holders == 0 || rich.is_simple()) {
            return Err(format!("a rich record that need not be: {:?}", rich.held));
        }
        Ok(())
    }

    fn indexes(&self, head: EntryIndex) -> impl Iterator<Item = EntryIndex> + '_ {
        let exists = |index: &EntryIndex| *index != EntryIndex::NIL;
        std::iter::successors(Some(head).filter(exists), move |&index| {
            Some(self.entries.get(index).queue_next).filter(exists)
        })
    }

    /// What the ops have made, in 64 bits: blind to where it is kept, and to what a copy has not.
    /// The parts are summed up, so that they need no order.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut sum = 0_u64;
        let mut add = |part: &dyn Fn(&mut Mix)| {
            let mut mix = Mix(0);
            part(&mut mix);
            sum = sum.wrapping_add(mix.finish());
        };
        for (at, cell) in (0..).map(CellIndex).zip(&self.cells) {
            if cell.last != Fence(0) {
                add(&|mix| (at, cell.last).hash(mix));
            }
        }
        let mut next = self.records.next_resident(0);
        while let Some(record) = next {
            next = self.records.next_resident(record.0 + 1);
            if !self.is_free(record) {
                add(&|mix| self.hash_key_in_use(record, mix));
            }
        }
        let mut next = self.holdings.next_resident(0);
        while let Some(link) = next {
            next = self.holdings.next_resident(link.0 + 1);
            let its = self.holdings.get(link);
            if !its.dead || its.digest.count > 0 || its.waiters > 0 {
                let (digest, bytes) = ((its.digest.count, its.digest.xor), its.rich_bytes);
                let what = (its.number, its.namespace, its.dead, its.used, its.waiters);
                add(&|mix| (what, digest, its.thin.len(), its.entries.len, bytes).hash(mix));
            }
        }
        sum
    }

    fn hash_key_in_use(&self, record: RecordIndex, mix: &mut Mix) {
        (self.namespace(record), self.key(record)).hash(mix);
        let number = |link| self.holdings.get(link).number;
        match self.shape(record) {
            Shape::Thin(Thin { link, request, fence }) => {
                // In seconds, as from the end of the clock that tells them.
                let since = self.records.get(record).since(Time::NEVER);
                (number(link), request, fence, since).hash(mix);
            }
            Shape::Rich(rich) => {
                let rich = self.riches.get(rich);
                rich.held.hash(mix);
                let holders = self.indexes(rich.holders.head);
                for index in holders.chain(self.indexes(rich.waiters.head)) {
                    let entry = self.entries.get(index);
                    let by = (number(entry.link), entry.request, entry.claim);
                    (by, entry.fence, entry.since, entry.patience).hash(mix);
                }
            }
        }
    }

    /// The request that made the hold of a key with this fence.
    pub(crate) fn request_of(&self, record: RecordIndex, fence: Fence) -> u64 {
        match self.shape(record) {
            Shape::Thin(thin) => thin.request,
            Shape::Rich(_) => {
                let entry = self.entry_by_fence(record, fence).expect("a hold that was found");
                self.entries.get(entry).request
            }
        }
    }

    /// Slots of all slabs that have memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.records.resident()
            + self.riches.resident()
            + self.entries.resident()
            + self.holdings.resident()
    }
}
