//! The cells of a worker: per cell an epoch, a counter and a small hash table of its keys in use.

use crate::batch::Named;
use crate::machine::Machine;
use crate::mutant::{mutant, note};
use crate::record::{Record, Rich};
use crate::slab::NIL;
use crate::tags::CellTable;
use lockring_proto::{Fence, HoldId};
use lockring_ring::{CellId, Epoch, NamespaceSeed, RingVersion, hash_key};

/// One cache line, so that looking at a cell is one miss.
#[derive(Clone)]
#[repr(align(64))]
pub(crate) struct Cell {
    /// Its keys in use: tags and records.
    pub(crate) table: CellTable,
    /// Numbers every replicated operation of the cell.
    pub(crate) counter: u64,
    pub(crate) epoch: Epoch,
    /// The cell's epoch was asked to be raised.
    pub(crate) epoch_wanted: bool,
    /// The ring version that made this epoch: requests routed by an older one are stale.
    pub(crate) since: RingVersion,
}

const _: () = assert!(size_of::<Cell>() == 64);

impl Cell {
    pub(crate) fn new(epoch: Epoch, since: RingVersion) -> Self {
        Self { table: CellTable::default(), counter: 0, epoch, epoch_wanted: false, since }
    }

    /// Whether its epoch is not used up, and not the one past the last.
    #[inline]
    pub(crate) fn has_numbers(&self) -> bool {
        self.counter < Fence::COUNTER_LAST && self.epoch < Epoch::LAST
    }
}

/// Where a key lives: its cell at this worker, and its tag there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Index in the machine's cells.
    pub(crate) at: u32,
    pub(crate) tag: u32,
    /// A record that may be the key's, found ahead by its tag alone, or [`NIL`]. Whoever uses it
    /// looks at its key first: it may be another key's, or not in use any more.
    pub(crate) guess: u32,
}

impl Machine {
    /// The place of a key, or `None` when its cell belongs to another worker.
    #[inline(always)]
    pub(crate) fn place(&self, seed: NamespaceSeed, key: &[u8]) -> Option<Place> {
        let hash = hash_key(seed, key);
        let cell = self.config.cell_bits.cell(hash.position).0;
        if cell & (self.config.workers - 1) != self.config.worker {
            return None;
        }
        let mut tag = self.secret.tag(hash, key);
        if mutant!(self, PublicTags) {
            tag = hash.low as u32;
        }
        Some(Place { at: u32::from(cell >> self.worker_shift), tag, guess: NIL })
    }

    pub(crate) fn place_of_key(&self, seed: NamespaceSeed, key: &[u8]) -> Place {
        self.place(seed, key).expect("a key in use belongs to this worker")
    }

    /// The id of a cell of this worker.
    #[inline]
    pub(crate) fn cell_id(&self, at: u32) -> CellId {
        CellId(((at as u16) << self.worker_shift) | self.config.worker)
    }

    #[inline]
    pub(crate) fn cell(&self, place: Place) -> &Cell {
        &self.cells[place.at as usize]
    }

    #[inline]
    pub(crate) fn cell_mut(&mut self, place: Place) -> &mut Cell {
        &mut self.cells[place.at as usize]
    }

    /// The next number of a cell's counter, as a fence. `None` when the epoch is used up.
    #[inline]
    pub(crate) fn number(&mut self, place: Place) -> Option<Fence> {
        let cell = self.cell_mut(place);
        if !cell.has_numbers() {
            return None;
        }
        cell.counter += 1;
        let fence = Fence::new(cell.epoch, cell.counter);
        if cell.counter >= Fence::COUNTER_BUMP && !cell.epoch_wanted {
            cell.epoch_wanted = true;
            let cell = self.cell_id(place.at);
            self.wanted_epochs.push(cell);
        }
        Some(fence)
    }

    /// Numbers an operation that hands out no fence; at the end of an epoch it stays unnumbered,
    /// as nothing is granted there any more.
    #[inline]
    pub(crate) fn count(&mut self, place: Place) {
        if mutant!(self, Uncounted) {
            return;
        }
        let _unnumbered_at_the_end = self.number(place);
    }

    pub(crate) fn hold_id(&self, place: Place, fence: Fence) -> HoldId {
        HoldId { cell: self.cell_id(place.at).0, fence }
    }

    /// The record of a key of a namespace, if it is in use.
    #[inline]
    pub(crate) fn find(&self, place: Place, namespace: u16, key: &[u8]) -> Option<u32> {
        // A key has one record, so that a guess with its key needs no look at the table.
        if place.guess != NIL && self.is_key(place.guess, namespace, key) {
            return Some(place.guess);
        }
        self.cell(place).table.find(place.tag, |index| self.is_key(index, namespace, key))
    }

    /// The index of a namespace by its name; an empty one is that of the link.
    pub(crate) fn namespace_named(&self, link: u32, name: &str) -> Option<u16> {
        if name.is_empty() {
            return Some(self.links.get(link).namespace);
        }
        self.namespace_of(name)
    }

    /// The record of a key of any namespace, if it is in use.
    pub(crate) fn find_named(&self, link: u32, place: Place, named: &Named<'_>) -> Option<u32> {
        let namespace = self.namespace_named(link, named.namespace)?;
        self.find(place, namespace, named.key)
    }

    #[inline]
    fn is_key(&self, index: u32, namespace: u16, key: &[u8]) -> bool {
        note!(self, note_probed());
        let record = self.records.get(index);
        // The key first: a free record has an empty one, which no request names.
        self.key(record) == key
            && (self.namespace(record) == namespace || mutant!(self, NamespaceIgnored))
    }

    /// The key of a record.
    #[inline]
    pub(crate) fn key<'a>(&'a self, record: &'a Record) -> &'a [u8] {
        record.inline_key().unwrap_or_else(|| {
            let rich = self.riches.get(record.rich());
            rich.long_key.as_deref().expect("a long key lives in its side record")
        })
    }

    /// The namespace of a record.
    pub(crate) fn namespace(&self, record: &Record) -> u16 {
        if record.is_rich() {
            self.riches.get(record.rich()).namespace
        } else {
            self.links.get(record.link()).namespace
        }
    }

    /// The place of a record's key, hashed again.
    pub(crate) fn place_of(&self, index: u32) -> Place {
        let record = self.records.get(index);
        let seed = self.books.seed(self.namespace(record));
        self.place_of_key(seed, self.key(record))
    }

    #[inline]
    pub(crate) fn rich_of(&self, index: u32) -> &Rich {
        let record = self.records.get(index);
        assert!(record.is_rich(), "record {index} is thin");
        self.riches.get(record.rich())
    }

    /// Takes a record that nobody holds or waits for out of its cell. The caller knows its place.
    #[inline]
    pub(crate) fn free_record(&mut self, place: Place, index: u32) {
        self.cell_mut(place).table.remove(place.tag, index);
        if !self.unserved.is_empty() {
            self.unserved.remove(&index);
        }
        if !self.starved.is_empty() {
            self.starved.remove(&(place.at, index));
        }
        self.records.remove(index);
    }
}
