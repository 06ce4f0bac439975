//! Hash tables of (tag, index): eight bytes a slot, so that growing one moves little and looks at
//! nothing else.

use crate::slab::NIL;
use hashbrown::HashTable;

#[derive(Clone, Copy)]
pub(crate) struct Slot {
    tag: u32,
    pub(crate) index: u32,
}

/// Spreads the stored tag over the table's 64-bit hash; growth needs no key.
#[inline]
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[derive(Clone, Default)]
pub(crate) struct Tags(HashTable<Slot>);

impl Tags {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|slot| slot.index)
    }

    /// The index that `is_it` recognises.
    #[inline(always)]
    pub(crate) fn find(&self, tag: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.0.find(spread(tag), |slot| slot.tag == tag && is_it(slot.index)).map(|slot| slot.index)
    }

    /// Whether a part of the tag matches, by the table's control bytes alone.
    #[inline(always)]
    pub(crate) fn may_have(&self, tag: u32) -> bool {
        let mut any = false;
        let _none = self.0.find(spread(tag), |_| {
            any = true;
            false
        });
        any
    }

    /// An index whose tag matches: for touching memory early.
    #[inline(always)]
    pub(crate) fn guess(&self, tag: u32) -> u32 {
        self.0.find(spread(tag), |slot| slot.tag == tag).map_or(NIL, |slot| slot.index)
    }

    #[inline(always)]
    pub(crate) fn insert(&mut self, tag: u32, index: u32) {
        self.0.insert_unique(spread(tag), Slot { tag, index }, |slot| spread(slot.tag));
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, tag: u32, index: u32) {
        match self.0.find_entry(spread(tag), |slot| slot.index == index) {
            Ok(slot) => {
                slot.remove();
            }
            Err(_) => panic!("{index} is not in its table"),
        }
        // A table that was full once must not keep its memory for ever.
        if self.0.capacity() > 64 && self.0.len() * 8 < self.0.capacity() {
            self.shrink();
        }
    }

    /// Keeps no more memory than it needs, if that is quickly done: a large table has shrunk by
    /// itself. One that has few entries, or none, keeps its memory while it is in use, as it would
    /// else be given back and taken again with every other claim.
    pub(crate) fn give_back(&mut self) {
        if self.0.len() <= 64 {
            self.0.shrink_to_fit(|slot| spread(slot.tag));
        }
    }

    #[cold]
    fn shrink(&mut self) {
        self.0.shrink_to(self.0.len() * 2, |slot| spread(slot.tag));
    }
}

/// A large table in parts, each of which grows and shrinks by itself and so never for long.
#[derive(Clone)]
pub(crate) struct Index(Vec<Tags>);

/// The part that a hash is in, and its tag there.
fn part(hash: u64) -> (usize, u32) {
    ((hash >> 56) as usize, hash as u32)
}

impl Index {
    pub(crate) fn new() -> Self {
        Self(vec![Tags::default(); 256])
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Tags::len).sum()
    }

    pub(crate) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (part, tag) = part(hash);
        self.0[part].find(tag, is_it)
    }

    pub(crate) fn insert(&mut self, hash: u64, index: u32) {
        let (part, tag) = part(hash);
        self.0[part].insert(tag, index);
    }

    pub(crate) fn remove(&mut self, hash: u64, index: u32) {
        let (part, tag) = part(hash);
        self.0[part].remove(tag, index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_table_gives_its_memory_back_when_told() {
        let mut tags = Tags::default();
        for number in 0..20 {
            tags.insert(number, number);
        }
        for number in 1..20 {
            tags.remove(number, number);
        }
        assert!(tags.0.capacity() >= 20, "kept while it is in use");
        tags.give_back();
        assert!(tags.0.capacity() < 8 && tags.find(0, |found| found == 0) == Some(0));
        tags.remove(0, 0);
        tags.give_back();
        assert_eq!(tags.0.capacity(), 0);
    }

    #[test]
    fn memory_of_a_past_peak_is_given_back() {
        let mut index = Index::new();
        let hash = |number: u32| u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let capacity = |index: &Index| index.0.iter().map(|tags| tags.0.capacity()).sum::<usize>();
        for number in 0..100_000 {
            index.insert(hash(number), number);
        }
        let largest = index.0.iter().map(|tags| tags.0.capacity()).max().unwrap();
        assert!(largest <= 1024, "a part of {largest} moves at once");
        let peak = capacity(&index);
        for number in 100..100_000 {
            index.remove(hash(number), number);
        }
        assert!(capacity(&index) * 4 < peak, "{} of {peak} slots for 100", capacity(&index));
        assert_eq!(index.find(hash(7), |found| found == 7), Some(7));
        assert_eq!((index.len(), index.find(hash(700), |_| true)), (100, None));
    }
}
