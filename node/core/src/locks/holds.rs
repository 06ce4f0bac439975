//! The thin holds of a link: the indexes of their records, dense and in no order.
//!
//! Each record keeps its position here, so that one is taken out by putting the last into its
//! place. That touches less memory than a list through the records would, whose neighbours lie
//! anywhere: a position is four bytes of a dense run, and the last hold is mostly the newest.

use super::record::{Record, RecordIndex};
use super::slab::Slab;

/// A chunk is 16 KiB: it grows by doubling, and growing never copies more than that.
const CHUNK_BITS: u32 = 12;
const CHUNK_LEN: u32 = 1 << CHUNK_BITS;

#[derive(Clone, Default)]
pub(crate) struct Holds {
    chunks: Vec<Vec<RecordIndex>>,
    len: u32,
}

impl Holds {
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The record at a position.
    #[inline]
    pub(crate) fn get(&self, at: u32) -> RecordIndex {
        self.chunks[(at >> CHUNK_BITS) as usize][(at & (CHUNK_LEN - 1)) as usize]
    }

    /// The record that is `back` before the last; `None` before the first.
    #[inline]
    pub(crate) fn nth_last(&self, back: u32) -> Option<RecordIndex> {
        (back < self.len).then(|| self.get(self.len - 1 - back))
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = RecordIndex> + '_ {
        self.chunks.iter().flatten().copied()
    }

    #[inline]
    pub(crate) fn push(&mut self, records: &mut Slab<Record>, record: RecordIndex) {
        let chunk = (self.len >> CHUNK_BITS) as usize;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::new());
        }
        self.chunks[chunk].push(record);
        records.get_mut(record).set_position(self.len);
        self.len += 1;
    }

    #[inline]
    pub(crate) fn remove(&mut self, records: &mut Slab<Record>, record: RecordIndex) {
        let at = records.get(record).position();
        assert!(at < self.len && self.get(at) == record, "record {record:?} is not held at {at}");
        self.len -= 1;
        let chunk = (self.len >> CHUNK_BITS) as usize;
        let last = self.chunks[chunk].pop().expect("a chunk ends where the holds do");
        if last != record {
            self.chunks[(at >> CHUNK_BITS) as usize][(at & (CHUNK_LEN - 1)) as usize] = last;
            records.get_mut(last).set_position(at);
        }
        if self.chunks[chunk].is_empty() {
            // One empty chunk is kept, for a link that goes back and forth over its edge.
            self.chunks.truncate(chunk + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(records: &mut Slab<Record>, count: u32) -> Holds {
        let mut holds = Holds::default();
        for _ in 0..count {
            let record = records.claim();
            holds.push(records, record);
        }
        holds
    }

    fn assert_sound(holds: &Holds, records: &Slab<Record>) {
        let positions = holds.iter().map(|record| records.get(record).position());
        assert!(positions.eq(0..holds.len()), "a record knows another position");
    }

    #[test]
    fn taking_one_out_moves_the_last_into_its_place() {
        let mut records = Slab::new();
        let mut holds = held(&mut records, 5);
        for gone in [1, 4, 0] {
            holds.remove(&mut records, RecordIndex(gone));
            assert_sound(&holds, &records);
        }
        assert_eq!(holds.iter().collect::<Vec<_>>(), [RecordIndex(2), RecordIndex(3)]);
        assert_eq!(
            (holds.nth_last(0), holds.nth_last(1)),
            (Some(RecordIndex(3)), Some(RecordIndex(2)))
        );
        assert_eq!(holds.nth_last(2), None);
    }

    #[test]
    fn chunks_come_and_go() {
        let mut records = Slab::new();
        let count = 2 * CHUNK_LEN + 7;
        let mut holds = held(&mut records, count);
        assert_eq!(holds.chunks.len(), 3);
        // The first ones first, so that each takes the last into its place.
        for record in 0..count {
            holds.remove(&mut records, RecordIndex(record));
        }
        assert_eq!((holds.len(), holds.chunks.len()), (0, 1));
        let record = records.claim();
        holds.push(&mut records, record);
        assert_sound(&holds, &records);
    }

    #[test]
    #[should_panic(expected = "is not held")]
    fn a_record_is_taken_out_once() {
        let mut records = Slab::new();
        let mut holds = held(&mut records, 2);
        holds.remove(&mut records, RecordIndex(1));
        holds.remove(&mut records, RecordIndex(1));
    }
}
