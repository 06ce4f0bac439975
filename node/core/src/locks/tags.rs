//! Hash tables of (tag, index): eight bytes a slot, so that growing one moves little and looks at
//! nothing else.

use super::slab::NIL;
use hashbrown::HashTable;

#[derive(Clone, Copy)]
pub(crate) struct TagEntry {
    tag: u32,
    pub(crate) index: u32,
}

/// Spreads the stored tag over the table's 64-bit hash; growth needs no key.
#[inline]
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[derive(Clone, Default)]
pub(crate) struct Tags(HashTable<TagEntry>);

impl Tags {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().map(|slot| (slot.tag, slot.index))
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
        self.0.insert_unique(spread(tag), TagEntry { tag, index }, |slot| spread(slot.tag));
    }

    fn remove(&mut self, tag: u32, index: u32) {
        assert!(self.take(tag, index), "{index} is not in its table");
    }

    /// Removes it; `false`: it is not here.
    #[inline(always)]
    fn take(&mut self, tag: u32, index: u32) -> bool {
        match self.0.find_entry(spread(tag), |slot| slot.index == index) {
            Ok(slot) => {
                slot.remove();
            }
            Err(_) => return false,
        }
        // A table that was full once must not keep its memory for ever.
        if self.0.capacity() > 64 && self.0.len() * 8 < self.0.capacity() {
            self.shrink();
        }
        true
    }

    /// Keeps no more memory than it needs, if that is quickly done: a large table shrinks by
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

    fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().flat_map(Tags::iter)
    }

    fn of_tag(&self, tag: u32) -> &Tags {
        &self.0[part(whole(tag)).0]
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

/// How many entries a cell's table takes before it goes on in parts: what the last growth moves
/// takes about as long as a slice. Seven eighths of a power of two is as full as hashbrown's get.
const SPLIT: usize = if cfg!(any(test, feature = "testing")) { 7 } else { 14_336 };

/// A hash that has the tag's upper bits for the part, and all of it for the tag there.
fn whole(tag: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(tag)
}

/// The table of a cell. Which cell a key is in is public: somebody may choose keys that are all of
/// one, so a table that has grown large goes on in parts, and what is in it stays where it is.
#[derive(Clone, Default)]
pub(crate) struct CellTable {
    first: Tags,
    rest: Option<Box<Rest>>,
}

#[derive(Clone)]
struct Rest {
    parts: Index,
    len: usize,
}

impl CellTable {
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.rest.as_ref().map_or(0, |rest| rest.len)
    }

    /// Every tag with its index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.first.iter().chain(self.rest.iter().flat_map(|rest| rest.parts.iter()))
    }

    /// The index that `is_it` recognises.
    #[inline(always)]
    pub(crate) fn find(&self, tag: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        match (self.first.find(tag, &mut is_it), &self.rest) {
            (None, Some(rest)) => rest.parts.of_tag(tag).find(tag, is_it),
            (found, _) => found,
        }
    }

    /// Whether a part of the tag matches, by the tables' control bytes alone.
    #[inline(always)]
    pub(crate) fn may_have(&self, tag: u32) -> bool {
        self.first.may_have(tag)
            || self.rest.as_ref().is_some_and(|rest| rest.parts.of_tag(tag).may_have(tag))
    }

    /// An index whose tag matches: for touching memory early.
    #[inline(always)]
    pub(crate) fn guess(&self, tag: u32) -> u32 {
        match (self.first.guess(tag), &self.rest) {
            (NIL, Some(rest)) => rest.parts.of_tag(tag).guess(tag),
            (guess, _) => guess,
        }
    }

    #[inline(always)]
    pub(crate) fn insert(&mut self, tag: u32, index: u32) {
        if self.first.len() < SPLIT {
            self.first.insert(tag, index);
        } else {
            self.insert_in_rest(tag, index);
        }
    }

    #[cold]
    fn insert_in_rest(&mut self, tag: u32, index: u32) {
        let empty = || Box::new(Rest { parts: Index::new(), len: 0 });
        let rest = self.rest.get_or_insert_with(empty);
        rest.parts.insert(whole(tag), index);
        rest.len += 1;
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, tag: u32, index: u32) {
        if !self.first.take(tag, index) {
            self.remove_from_rest(tag, index);
        }
    }

    #[cold]
    fn remove_from_rest(&mut self, tag: u32, index: u32) {
        let Some(rest) = &mut self.rest else { panic!("{index} is not in its table") };
        rest.parts.remove(whole(tag), index);
        rest.len -= 1;
        if rest.len == 0 {
            self.rest = None;
        }
    }

    /// As [`Tags::give_back`].
    pub(crate) fn give_back(&mut self) {
        self.first.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever comes and goes, a table in parts has what one table would have.
    #[test]
    fn a_table_in_parts_is_one_table() {
        let mut table = CellTable::default();
        let mut model = std::collections::BTreeMap::new();
        let mut random = 1_u64;
        let mut split = 0;
        for round in 0..20_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (number, growing) = ((random >> 40) as u32 % 300, round / 2000 % 2 == 0);
            // Tags that collide, and over all parts.
            let tag = (number / 2).wrapping_mul(0x0301_0001);
            let is_in = model.contains_key(&number);
            assert_eq!(table.find(tag, |found| found == number), is_in.then_some(number));
            assert!(!is_in || (table.may_have(tag) && table.guess(tag) != NIL));
            if !is_in && growing {
                table.insert(tag, number);
                model.insert(number, tag);
            } else if is_in && !growing {
                table.remove(tag, number);
                model.remove(&number);
            }
            split += u32::from(table.rest.is_some());
            assert_eq!(table.len(), model.len());
            assert_eq!(table.rest.is_some(), table.rest.as_ref().is_some_and(|rest| rest.len > 0));
        }
        let mut all: Vec<u32> = table.iter().map(|(_, number)| number).collect();
        all.sort_unstable();
        assert!(table.iter().all(|(tag, number)| model[&number] == tag));
        assert_eq!(all, model.into_keys().collect::<Vec<_>>());
        assert!(split > 1000 && table.first.0.capacity() <= 2 * SPLIT);
    }

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
