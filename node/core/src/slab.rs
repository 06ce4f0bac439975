//! A slab in pages: an index stays valid for the life of its value, growth never moves a value,
//! and untouched memory is never resident.

/// "No index" in the u32 links of the slab's values.
pub(crate) const NIL: u32 = u32::MAX;

/// A value that can keep the free list's link while it is free.
pub(crate) trait Slot {
    /// Drops what the value owns and keeps `next`.
    fn set_free(&mut self, next: u32);
    /// What [`Slot::set_free`] kept.
    fn next_free(&self) -> u32;
}

const PAGE_BITS: u32 = 14;
const PAGE_LEN: usize = 1 << PAGE_BITS;

#[derive(Clone)]
pub(crate) struct Slab<T> {
    pages: Vec<Vec<T>>,
    free: u32,
    len: u32,
}

impl<T: Slot> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { pages: Vec::new(), free: NIL, len: 0 }
    }

    /// Values in use.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Values in use and free slots: every index is below it.
    pub(crate) fn slots(&self) -> u32 {
        let last = self.pages.last().map_or(0, Vec::len);
        (self.pages.len().saturating_sub(1) * PAGE_LEN + last) as u32
    }

    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if self.free != NIL {
            let index = self.free;
            let slot = self.get_mut(index);
            let next = slot.next_free();
            *slot = value;
            self.free = next;
            return index;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE_LEN) {
            self.pages.push(Vec::with_capacity(PAGE_LEN));
        }
        let page = self.pages.len() - 1;
        self.pages[page].push(value);
        let index = (page << PAGE_BITS) + self.pages[page].len() - 1;
        assert!(index < NIL as usize, "slab is full");
        index as u32
    }

    /// A slot in use from now on, to be filled in place: it holds a default or a freed value.
    #[inline]
    pub(crate) fn claim(&mut self) -> u32
    where
        T: Default,
    {
        if self.free == NIL {
            return self.insert(T::default());
        }
        self.len += 1;
        let index = self.free;
        self.free = self.get(index).next_free();
        index
    }

    /// Frees a value in use. Freeing twice would hand one slot to two owners, so callers remove
    /// the index from wherever it is known first.
    #[inline]
    pub(crate) fn remove(&mut self, index: u32) {
        let free = self.free;
        self.get_mut(index).set_free(free);
        self.free = index;
        assert!(self.len > 0, "slab freed more than it held: {index}");
        self.len -= 1;
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> &T {
        &self.pages[(index >> PAGE_BITS) as usize][index as usize & (PAGE_LEN - 1)]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut T {
        &mut self.pages[(index >> PAGE_BITS) as usize][index as usize & (PAGE_LEN - 1)]
    }
}

/// Which pair of fields of a value a list runs through.
pub(crate) trait Chain<T> {
    fn prev(value: &mut T) -> &mut u32;
    fn next(value: &mut T) -> &mut u32;
}

/// An intrusive doubly linked list over the values of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NIL, tail: NIL, len: 0 }
    }
}

impl List {
    #[inline]
    pub(crate) fn push_back<T: Slot, C: Chain<T>>(&mut self, slab: &mut Slab<T>, index: u32) {
        let value = slab.get_mut(index);
        *C::prev(value) = self.tail;
        *C::next(value) = NIL;
        if self.tail == NIL {
            self.head = index;
        } else {
            *C::next(slab.get_mut(self.tail)) = index;
        }
        self.tail = index;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn remove<T: Slot, C: Chain<T>>(&mut self, slab: &mut Slab<T>, index: u32) {
        let value = slab.get_mut(index);
        let (prev, next) = (*C::prev(value), *C::next(value));
        if prev == NIL {
            self.head = next;
        } else {
            *C::next(slab.get_mut(prev)) = next;
        }
        if next == NIL {
            self.tail = prev;
        } else {
            *C::prev(slab.get_mut(next)) = prev;
        }
        assert!(self.len > 0, "list shorter than its values: {index}");
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Node {
        prev: u32,
        next: u32,
    }
    impl Slot for Node {
        fn set_free(&mut self, next: u32) {
            self.next = next;
        }
        fn next_free(&self) -> u32 {
            self.next
        }
    }
    struct Only;
    impl Chain<Node> for Only {
        fn prev(value: &mut Node) -> &mut u32 {
            &mut value.prev
        }
        fn next(value: &mut Node) -> &mut u32 {
            &mut value.next
        }
    }

    fn order(slab: &Slab<Node>, list: List) -> Vec<u32> {
        let mut seen = Vec::new();
        let mut at = list.head;
        while at != NIL {
            seen.push(at);
            at = slab.get(at).next;
        }
        seen
    }

    #[test]
    fn list_keeps_order_through_removals_at_both_ends_and_between() {
        let mut slab = Slab::new();
        let mut list = List::default();
        let nodes: Vec<u32> = (0..5).map(|_| slab.insert(Node::default())).collect();
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
            assert_eq!(slab.insert(Node { prev: i, next: NIL }), i);
        }
        assert_eq!(slab.get(PAGE_LEN as u32 + 2).prev, PAGE_LEN as u32 + 2);
    }
}
