//! The cells of a worker: per cell a small hash table of its keys in use, the number of its last
//! op, and its standing.

use super::record::{EntryIndex, RecordIndex};
use super::slab::{Index, index};
use super::tags::CellTable;
use crate::cells::standing::Standing;
use crate::config::Config;
use lockring_proto::Fence;
use lockring_ring::{CellBits, CellId};

index!(
    /// A cell of this worker.
    CellIndex
);

/// One cache line, so that looking at a cell is one miss.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Cell {
    /// Its keys in use: tags and records.
    pub(super) table: CellTable,
    /// The number of the last op.
    pub(super) last: Fence,
    pub(super) standing: Standing,
}

const _: () = assert!(size_of::<Cell>() == 64);

impl Cell {
    pub(super) fn new(standing: Standing) -> Self {
        Self { table: CellTable::default(), last: Fence(0), standing }
    }
}

/// Which cells are this worker's, and where.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(super) bits: CellBits,
    worker: u16,
    workers: u16,
    shift: u32,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        let Config { cell_bits: bits, worker, workers, .. } = *config;
        Self { bits, worker, workers, shift: workers.trailing_zeros() }
    }

    /// How many they are.
    pub(crate) fn cells(&self) -> u32 {
        self.bits.cells() >> self.shift
    }

    /// Where a cell is, unless it is another worker's.
    #[inline(always)]
    pub(crate) fn find(&self, cell: CellId) -> Option<CellIndex> {
        let ours = cell.0 & (self.workers - 1) == self.worker;
        ours.then_some(CellIndex(u32::from(cell.0 >> self.shift)))
    }

    /// The same for a cell that others name: there may be none of that number.
    pub(crate) fn find_named(&self, cell: CellId) -> Option<CellIndex> {
        (u32::from(cell.0) < self.bits.cells()).then(|| self.find(cell))?
    }

    #[inline(always)]
    pub(crate) fn id(&self, cell: CellIndex) -> CellId {
        CellId(((cell.0 as u16) << self.shift) | self.worker)
    }
}

/// Where a key lives: its cell, and its tag there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) cell: CellIndex,
    pub(crate) tag: u32,
    /// A record that may be the key's, found ahead by its tag alone, or none. Whoever uses it looks
    /// at its key first: it may be another key's, or not in use any more.
    pub(crate) guess: RecordIndex,
}

/// Where an op finds what it changes. Nothing of it is in the op: each worker looks it up among its
/// own, and one that has done so to decide need not do it again.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    pub(super) cell: CellIndex,
    pub(super) tag: u32,
    /// The key's record; none if the key is free.
    pub(super) record: RecordIndex,
    /// The hold or waiter, if the key is rich; none: it is to be looked up.
    pub(super) entry: EntryIndex,
}

impl Spot {
    /// A free key.
    #[inline(always)]
    pub(crate) fn free(place: Place) -> Self {
        Self::used(place, RecordIndex::NIL)
    }

    #[inline(always)]
    pub(crate) fn used(place: Place, record: RecordIndex) -> Self {
        Self { cell: place.cell, tag: place.tag, record, entry: EntryIndex::NIL }
    }

    #[inline(always)]
    pub(crate) fn cell(self) -> CellIndex {
        self.cell
    }

    #[inline(always)]
    pub(crate) fn tag(self) -> u32 {
        self.tag
    }

    #[inline(always)]
    pub(crate) fn record(self) -> RecordIndex {
        self.record
    }

    #[inline(always)]
    pub(crate) fn entry(self, entry: EntryIndex) -> Self {
        Self { entry, ..self }
    }
}
