//! The locks of a worker's cells: who holds what, and who waits for it.
//!
//! [`Locks::apply`] alone changes them, op by op, and [`Locks::apply_link`] says whose they are.
//! Neither decides anything: they know no limits, no leases and no clock, and do the same wherever
//! the op comes from. Everybody else looks.

mod apply;
#[cfg(any(test, feature = "testing"))]
mod audit;
mod cell;
mod holds;
mod look;
mod op;
mod record;
mod relink;
mod replay;
mod secret;
pub(crate) mod slab;
mod stream;
mod tags;
mod touch;

pub(crate) use apply::Turned;
pub(crate) use cell::{CellIndex, Layout, Place, Spot};
pub(crate) use look::{HOLDERS_LOOKED_AT, Holder};
pub(crate) use op::{Change, Definition, LinkRecord, Op, Source};
pub use op::{Death, Ending, Leaving};
pub(crate) use record::{
    Entry, EntryIndex, INLINE_KEY, Kind, LINKS_MAX, RecordIndex, Shape, THIN_MAX, Thin,
};
pub(crate) use replay::Unfit;
#[cfg(any(test, feature = "testing"))]
pub use stream::{Note, Noted, NotedSource};
pub(crate) use touch::Planned;

use crate::cells::standing::Standing;
use crate::config::Config;
use crate::event::LinkIndex;
use crate::mutant::mutant;
use cell::Cell;
use holds::Holds;
use lockring_proto::{Digest, Fence, HoldId};
use lockring_ring::{CellId, KeyHash, NamespaceSeed, hash_key};
use record::{Record, Rich};
use secret::Secret;
use slab::{Index as _, List, Slab, SlabValue};
use stream::Stream;
use tags::Index;

/// What a link has here.
#[derive(Clone)]
pub(crate) struct Holdings {
    /// Thin holds.
    thin: Holds,
    /// Rich holds and waiters.
    entries: List<EntryIndex>,
    waiters: u32,
    namespace: u16,
    /// Its holds and waiters are being freed.
    dead: bool,
    /// It has held something, or waited for it.
    used: bool,
    /// What it has may be other than when that was last asked for.
    changed: bool,
    /// All holds.
    digest: Digest,
    /// Bytes of its rich holds and waiters.
    rich_bytes: u64,
    /// Its definition's.
    number: u64,
    next_free: u32,
}

impl SlabValue for Holdings {
    type Index = LinkIndex;
    fn set_free(&mut self, next: u32) {
        self.thin = Holds::default();
        (self.dead, self.changed) = (true, false);
        self.next_free = next;
    }
    fn next_free(&self) -> u32 {
        self.next_free
    }
}

impl Holdings {
    #[inline(always)]
    fn note_change(&mut self, link: LinkIndex, changed: &mut Vec<LinkIndex>) {
        if !self.changed {
            self.changed = true;
            changed.push(link);
        }
    }
}

/// How much a link has: holds, queued claims, and bytes for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) holds: u64,
    pub(crate) waiters: u64,
    pub(crate) bytes: u64,
}

/// A hold of a thin record: the record, its slot in the cell's table, and its place among the holds
/// of its link. Tables are seven eighths full at most, and half full when they have just grown.
pub(crate) const THIN_BYTES: u64 = size_of::<Record>() as u64 + 20;

/// Any other claim: its entry with its places in the indexes, and record and side record, as if
/// nobody else used the key.
const ENTRY_BYTES: u64 = (size_of::<Entry>() + size_of::<Rich>()) as u64 + 80 + THIN_BYTES;

/// What a claim that is not thin costs.
pub(crate) fn claim_bytes(key: &[u8]) -> u64 {
    ENTRY_BYTES + key.len() as u64
}

/// The locks of a worker.
#[derive(Clone)]
pub(crate) struct Locks {
    layout: Layout,
    secret: Secret,
    cells: Vec<Cell>,
    records: Slab<Record>,
    riches: Slab<Rich>,
    entries: Slab<Entry>,
    /// Entries by (link, request).
    by_request: Index,
    /// Entries that hold, by (record, fence).
    by_fence: Index,
    holdings: Slab<Holdings>,
    /// Of each namespace.
    seeds: Vec<NamespaceSeed>,
    /// Links that have changed since they were last asked for.
    changed: Vec<LinkIndex>,
    stream: Stream,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
}

impl Locks {
    pub(crate) fn new(config: &Config, standing: &Standing) -> Self {
        let layout = Layout::new(config);
        Self {
            layout,
            secret: Secret::new(config.tag_secret),
            cells: vec![Cell::new(standing.clone()); layout.cells() as usize],
            records: Slab::new(),
            riches: Slab::new(),
            entries: Slab::new(),
            by_request: Index::new(),
            by_fence: Index::new(),
            holdings: Slab::new(),
            seeds: Vec::new(),
            changed: Vec::new(),
            stream: Stream::new(),
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// How many keys of a cell are in use.
    pub(crate) fn keys_in(&self, cell: CellIndex) -> usize {
        self.cells[cell.0 as usize].table.len()
    }

    /// What the requests of a cell are measured by.
    #[inline(always)]
    pub(crate) fn standing(&self, cell: CellIndex) -> &Standing {
        &self.cells[cell.0 as usize].standing
    }

    pub(crate) fn standing_mut(&mut self, cell: CellIndex) -> &mut Standing {
        &mut self.cells[cell.0 as usize].standing
    }

    /// The number of the last op of a cell, or the one before its epoch's first.
    pub(crate) fn number(&self, cell: CellIndex) -> Fence {
        let cell = &self.cells[cell.0 as usize];
        cell.standing.number(cell.last)
    }

    /// The number of the next op of a cell; at the end of an epoch the last again, as nothing is
    /// granted there any more.
    #[inline(always)]
    pub(crate) fn next_number(&self, cell: CellIndex) -> Fence {
        if mutant!(self, Uncounted) {
            return self.number(cell);
        }
        let cell = &self.cells[cell.0 as usize];
        cell.standing.next(cell.last).unwrap_or_else(|last| last)
    }

    /// The number of the next op if it is a grant: there may be none.
    #[inline(always)]
    pub(crate) fn next_fence(&self, cell: CellIndex) -> Option<Fence> {
        let cell = &self.cells[cell.0 as usize];
        cell.standing.next(cell.last).ok()
    }

    /// The place of a key, or `None` when its cell belongs to another worker.
    #[inline(always)]
    pub(crate) fn place(&self, seed: NamespaceSeed, key: &[u8]) -> Option<Place> {
        let hash = hash_key(seed, key);
        let cell = self.layout.find(self.layout.bits.cell(hash.position))?;
        Some(Place { cell, tag: self.tag(hash, key), guess: RecordIndex::NIL })
    }

    #[inline(always)]
    fn tag(&self, hash: KeyHash, key: &[u8]) -> u32 {
        if mutant!(self, PublicTags) {
            return hash.low as u32;
        }
        self.secret.tag(hash, key)
    }

    /// The place of a record's key, hashed again.
    pub(crate) fn place_of(&self, record: RecordIndex) -> Place {
        let seed = self.seeds[usize::from(self.namespace(record))];
        self.place(seed, self.key(record)).expect("a key in use belongs to this worker")
    }

    pub(crate) fn cell_id(&self, cell: CellIndex) -> CellId {
        self.layout.id(cell)
    }

    #[inline(always)]
    pub(crate) fn hold_id(&self, cell: CellIndex, fence: Fence) -> HoldId {
        HoldId { cell: self.layout.id(cell).0, fence }
    }

    /// The record of a key of a namespace, if it is in use.
    #[inline(always)]
    pub(crate) fn find(&self, place: Place, namespace: u16, key: &[u8]) -> Option<RecordIndex> {
        // A key has one record, so that a guess with its key needs no look at the table. What was
        // found ahead may have been freed since, and its memory given back.
        if place.guess != RecordIndex::NIL
            && let Some(record) = self.records.find(place.guess)
            && self.has_key(record, namespace, key)
        {
            return Some(place.guess);
        }
        let is_it = |index| self.is_key(RecordIndex(index), namespace, key);
        self.cells[place.cell.0 as usize].table.find(place.tag, is_it).map(RecordIndex)
    }

    #[inline]
    fn is_key(&self, index: RecordIndex, namespace: u16, key: &[u8]) -> bool {
        self.has_key(self.records.get(index), namespace, key)
    }

    #[inline(always)]
    fn has_key(&self, record: &Record, namespace: u16, key: &[u8]) -> bool {
        self.stream.probed();
        // The key first: a free record has an empty one, which no request names.
        self.key_of(record) == key
            && (self.namespace_in(record) == namespace || mutant!(self, NamespaceIgnored))
    }

    /// The key of a record.
    pub(crate) fn key(&self, index: RecordIndex) -> &[u8] {
        self.key_of(self.records.get(index))
    }

    #[inline(always)]
    fn key_of<'a>(&'a self, record: &'a Record) -> &'a [u8] {
        record.inline_key().unwrap_or_else(|| {
            let Shape::Rich(rich) = record.shape() else { panic!("a long key is in no record") };
            let rich = self.riches.get(rich);
            rich.long_key.as_deref().expect("a long key lives in its side record")
        })
    }

    /// The namespace of a record's key.
    pub(crate) fn namespace(&self, index: RecordIndex) -> u16 {
        self.namespace_in(self.records.get(index))
    }

    #[inline(always)]
    fn namespace_in(&self, record: &Record) -> u16 {
        match record.shape() {
            Shape::Thin(Thin { link, .. }) => self.holdings.get(link).namespace,
            Shape::Rich(rich) => self.riches.get(rich).namespace,
        }
    }

    /// The tables of these cells keep no more memory than they need.
    pub(crate) fn give_back(&mut self, from: u32, count: u32) {
        for cell in self.cells.iter_mut().skip(from as usize).take(count as usize) {
            cell.table.give_back();
        }
    }
}
