//! A slab in pages: an index stays valid for the life of its value, growth never moves a value,
//! untouched memory is never resident, and a page without a value is given back.

/// "No index" where a slot keeps a bare one.
pub(crate) const NIL: u32 = u32::MAX;

/// What a slab's values are named by: each kind of value by a type of its own.
pub(crate) trait Index: Copy + PartialEq {
    /// No value.
    const NIL: Self;
    fn new(index: u32) -> Self;
    fn get(self) -> u32;
}

/// The index of one kind of value.
macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(pub(crate) u32);
        crate::locks::slab::index!(of $name);
    };
    (of $name:path) => {
        impl crate::locks::slab::Index for $name {
            const NIL: Self = Self(crate::locks::slab::NIL);
            #[inline(always)]
            fn new(index: u32) -> Self {
                Self(index)
            }
            #[inline(always)]
            fn get(self) -> u32 {
                self.0
            }
        }
    };
}
pub(crate) use index;

index!(of crate::event::LinkIndex);

/// A value that can keep the free list's link while it is free.
pub(crate) trait SlabValue {
    /// What it is named by.
    type Index: Index;
    /// Drops what the value owns and keeps `next`.
    fn set_free(&mut self, next: u32);
    /// What [`SlabValue::set_free`] kept.
    fn next_free(&self) -> u32;
}

const PAGE_BITS: u32 = 14;
const PAGE_LEN: usize = 1 << PAGE_BITS;

#[derive(Clone)]
struct Page<T> {
    /// None at all when its memory is given back.
    slots: Vec<T>,
    /// The first of its free slots.
    free: u32,
    used: u32,
}

impl<T> Page<T> {
    #[inline]
    fn has_room(&self) -> bool {
        self.free != NIL || self.slots.len() < PAGE_LEN
    }
}

/// A slot that was freed just now, and is in the nearest caches, is used first. When many are free,
/// one of the lowest page with room is, so that other pages become free as values come and go.
#[derive(Clone)]
pub(crate) struct Slab<T> {
    pages: Vec<Page<T>>,
    /// Where the next slot is taken, if there is room.
    current: u32,
    len: u32,
    /// With fewer values than this many slots are free.
    sparse_below: u32,
    /// A bit for each page that has memory and room.
    open: Vec<u64>,
    /// No word of `open` before this one has a bit.
    first_open: usize,
    /// Pages without memory.
    vacant: Vec<u32>,
}

impl<T: SlabValue> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            pages: Vec::new(),
            current: NIL,
            len: 0,
            sparse_below: 0,
            open: Vec::new(),
            first_open: 0,
            vacant: Vec::new(),
        }
    }

    /// Values in use.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Every index is below it.
    pub(crate) fn slots(&self) -> u32 {
        (self.pages.len() * PAGE_LEN) as u32
    }

    /// Slots that have memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.pages.iter().map(|page| page.slots.len()).sum()
    }

    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> T::Index {
        let at = self.take_page();
        let page = &mut self.pages[at];
        let index = page.free;
        if index == NIL {
            page.slots.push(value);
            return T::Index::new(((at << PAGE_BITS) + page.slots.len() - 1) as u32);
        }
        let slot = &mut page.slots[index as usize & (PAGE_LEN - 1)];
        page.free = slot.next_free();
        *slot = value;
        T::Index::new(index)
    }

    /// A slot in use from now on, to be filled in place: it holds a default or a freed value.
    #[inline]
    pub(crate) fn claim(&mut self) -> T::Index
    where
        T: Default,
    {
        let at = self.take_page();
        let page = &mut self.pages[at];
        let index = page.free;
        if index == NIL {
            page.slots.push(T::default());
            return T::Index::new(((at << PAGE_BITS) + page.slots.len() - 1) as u32);
        }
        page.free = page.slots[index as usize & (PAGE_LEN - 1)].next_free();
        T::Index::new(index)
    }

    /// Counts a value in a page that has room for it.
    #[inline]
    fn take_page(&mut self) -> usize {
        self.len += 1;
        let current = self.current as usize;
        let at = match self.pages.get(current) {
            Some(page) if page.has_room() => current,
            _ => self.find_page(),
        };
        self.pages[at].used += 1;
        at
    }

    #[cold]
    fn find_page(&mut self) -> usize {
        // A page is only found to be full when it is asked for a slot.
        while let Some(word) = self.open.get_mut(self.first_open) {
            if *word == 0 {
                self.first_open += 1;
                continue;
            }
            let at = self.first_open * 64 + word.trailing_zeros() as usize;
            if self.pages[at].has_room() {
                self.current = at as u32;
                return at;
            }
            *word &= *word - 1;
        }
        let at = self.vacant.pop().map_or(self.pages.len(), |at| at as usize);
        if at == self.pages.len() {
            assert!((at + 1) << PAGE_BITS <= NIL as usize, "slab is full");
            self.pages.push(Page { slots: Vec::new(), free: NIL, used: 0 });
            self.open.resize(self.pages.len().div_ceil(64), 0);
        }
        self.pages[at].slots.reserve_exact(PAGE_LEN);
        self.resident_changed();
        self.set_open(at);
        self.current = at as u32;
        at
    }

    #[inline]
    fn set_open(&mut self, at: usize) {
        self.open[at / 64] |= 1 << (at % 64);
        self.first_open = self.first_open.min(at / 64);
    }

    /// Frees a value in use. Freeing twice would hand one slot to two owners, so callers remove
    /// the index from wherever it is known first.
    #[inline]
    pub(crate) fn remove(&mut self, index: T::Index) {
        let index = index.get();
        assert!(self.len > 0, "slab freed more than it held: {index}");
        self.len -= 1;
        let at = (index >> PAGE_BITS) as usize;
        let page = &mut self.pages[at];
        page.slots[index as usize & (PAGE_LEN - 1)].set_free(page.free);
        page.free = index;
        page.used -= 1;
        let is_empty = page.used == 0;
        self.current = if self.len < self.sparse_below { NIL } else { at as u32 };
        self.set_open(at);
        if is_empty {
            self.give_back(at);
        }
    }

    /// Gives the memory of a page without a value back, unless as much is as good as in use.
    #[cold]
    fn give_back(&mut self, at: usize) {
        let resident = self.pages.len() - self.vacant.len();
        if resident * PAGE_LEN < self.len as usize + 2 * PAGE_LEN {
            return;
        }
        let page = &mut self.pages[at];
        (page.slots, page.free) = (Vec::new(), NIL);
        self.open[at / 64] &= !(1 << (at % 64));
        self.vacant.push(at as u32);
        self.resident_changed();
        self.current = NIL;
    }

    fn resident_changed(&mut self) {
        let resident = (self.pages.len() - self.vacant.len()) as u32;
        self.sparse_below = (resident / 4 * 3).saturating_sub(2) << PAGE_BITS;
    }

    #[inline]
    pub(crate) fn get(&self, index: T::Index) -> &T {
        let index = index.get();
        &self.pages[(index >> PAGE_BITS) as usize].slots[index as usize & (PAGE_LEN - 1)]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: T::Index) -> &mut T {
        let index = index.get();
        &mut self.pages[(index >> PAGE_BITS) as usize].slots[index as usize & (PAGE_LEN - 1)]
    }

    /// The value or free slot of an index that may be out of date: its memory may be given back.
    #[inline]
    pub(crate) fn find(&self, index: T::Index) -> Option<&T> {
        let index = index.get();
        let page = self.pages.get((index >> PAGE_BITS) as usize)?;
        page.slots.get(index as usize & (PAGE_LEN - 1))
    }

    /// As [`Slab::find`], to be changed.
    pub(crate) fn find_mut(&mut self, index: T::Index) -> Option<&mut T> {
        let index = index.get();
        let page = self.pages.get_mut((index >> PAGE_BITS) as usize)?;
        page.slots.get_mut(index as usize & (PAGE_LEN - 1))
    }

    /// The first index from here on that has memory.
    pub(crate) fn next_resident(&self, mut from: u32) -> Option<T::Index> {
        while from < self.slots() {
            if self.find(T::Index::new(from)).is_some() {
                return Some(T::Index::new(from));
            }
            from = ((from >> PAGE_BITS) + 1) << PAGE_BITS;
        }
        None
    }
}

/// Which pair of fields of a value a list runs through.
pub(crate) trait Chain<T: SlabValue> {
    fn prev(value: &mut T) -> &mut T::Index;
    fn next(value: &mut T) -> &mut T::Index;
}

/// An intrusive doubly linked list over the values of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct List<I> {
    pub(crate) head: I,
    pub(crate) tail: I,
    pub(crate) len: u32,
}

impl<I: Index> Default for List<I> {
    fn default() -> Self {
        Self { head: I::NIL, tail: I::NIL, len: 0 }
    }
}

impl<I: Index + std::fmt::Debug> List<I> {
    #[inline]
    pub(crate) fn push_back<T: SlabValue<Index = I>, C: Chain<T>>(
        &mut self,
        slab: &mut Slab<T>,
        index: I,
    ) {
        let value = slab.get_mut(index);
        *C::prev(value) = self.tail;
        *C::next(value) = I::NIL;
        if self.tail == I::NIL {
            self.head = index;
        } else {
            *C::next(slab.get_mut(self.tail)) = index;
        }
        self.tail = index;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn remove<T: SlabValue<Index = I>, C: Chain<T>>(
        &mut self,
        slab: &mut Slab<T>,
        index: I,
    ) {
        let value = slab.get_mut(index);
        let (prev, next) = (*C::prev(value), *C::next(value));
        if prev == I::NIL {
            self.head = next;
        } else {
            *C::next(slab.get_mut(prev)) = next;
        }
        if next == I::NIL {
            self.tail = prev;
        } else {
            *C::prev(slab.get_mut(next)) = prev;
        }
        assert!(self.len > 0, "list shorter than its values: {index:?}");
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    index!(At);

    #[derive(Clone)]
    struct Node {
        prev: At,
        next: At,
    }
    impl Default for Node {
        fn default() -> Self {
            Self { prev: At(0), next: At(0) }
        }
    }
    impl SlabValue for Node {
        type Index = At;
        fn set_free(&mut self, next: u32) {
            self.next = At(next);
        }
        fn next_free(&self) -> u32 {
            self.next.0
        }
    }
    struct Only;
    impl Chain<Node> for Only {
        fn prev(value: &mut Node) -> &mut At {
            &mut value.prev
        }
        fn next(value: &mut Node) -> &mut At {
            &mut value.next
        }
    }

    fn order(slab: &Slab<Node>, list: List<At>) -> Vec<At> {
        let mut seen = Vec::new();
        let mut at = list.head;
        while at != At::NIL {
            seen.push(at);
            at = slab.get(at).next;
        }
        seen
    }

    #[test]
    fn list_keeps_order_through_removals_at_both_ends_and_between() {
        let mut slab = Slab::new();
        let mut list = List::default();
        let nodes: Vec<At> = (0..5).map(|_| slab.insert(Node::default())).collect();
        for &node in &nodes {
            list.push_back::<Node, Only>(&mut slab, node);
        }
        for gone in [2, 0, 4] {
            list.remove::<Node, Only>(&mut slab, nodes[gone]);
            slab.remove(nodes[gone]);
        }
        assert_eq!(order(&slab, list), [nodes[1], nodes[3]]);
        assert_eq!((list.len, slab.len()), (2, 2));
        // The last freed slot is the first reused.
        assert_eq!(slab.insert(Node::default()), nodes[4]);
    }

    #[test]
    fn indexes_survive_growth_over_pages() {
        let mut slab = Slab::new();
        for i in 0..PAGE_LEN as u32 + 3 {
            assert_eq!(slab.insert(Node { prev: At(i), next: At::NIL }), At(i));
        }
        assert_eq!(slab.get(At(PAGE_LEN as u32 + 2)).prev, At(PAGE_LEN as u32 + 2));
    }

    #[test]
    fn memory_of_a_past_peak_is_given_back() {
        let mut slab = Slab::new();
        let count = 10 * PAGE_LEN as u32;
        for _ in 0..count {
            slab.insert(Node::default());
        }
        // Those that stay lie anywhere.
        let stays = |index: u32| index % 4096 == 7;
        (0..count).filter(|&index| !stays(index)).for_each(|index| slab.remove(At(index)));
        assert_eq!(slab.resident(), count as usize, "in each page is one that stays");
        // They move to the lowest pages, as they come and go.
        for index in (0..count).rev().filter(|&index| stays(index)) {
            slab.remove(At(index));
            slab.insert(Node::default());
        }
        assert_eq!(slab.len(), 40);
        assert!(slab.resident() <= 4 * PAGE_LEN, "{} slots for 40 values", slab.resident());
    }

    #[test]
    fn an_empty_slab_keeps_next_to_nothing() {
        let mut slab = Slab::new();
        for round in 0..3 {
            let count = (8 + round) * PAGE_LEN as u32;
            let indexes: Vec<At> = (0..count).map(|_| slab.insert(Node::default())).collect();
            assert_eq!(slab.resident(), count as usize);
            assert_eq!(slab.next_resident(5), Some(At(5)));
            indexes.into_iter().for_each(|index| slab.remove(index));
            assert!(slab.resident() <= PAGE_LEN, "{} slots for none", slab.resident());
            assert!(slab.find(At(7 * PAGE_LEN as u32)).is_none() || slab.find(At(0)).is_none());
        }
    }
}
