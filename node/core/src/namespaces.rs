//! The namespaces that links of this worker have, and nobody else's: one that is only asked about
//! is not entered, and one that its last link has left makes room for another.

use lockring_ring::NamespaceSeed;
use std::collections::BTreeMap;

/// A namespace that some link uses.
#[derive(Clone)]
pub(crate) struct Namespace {
    pub(crate) name: Box<str>,
    pub(crate) seed: NamespaceSeed,
    links: u32,
}

/// Every namespace in use. An index stays valid while a link of it lives.
#[derive(Clone, Default)]
pub(crate) struct Namespaces {
    entries: Vec<Namespace>,
    /// Entries without a link.
    free: Vec<u16>,
    by_name: BTreeMap<Box<str>, u16>,
}

impl Namespaces {
    /// How many are in use.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn get(&self, index: u16) -> &Namespace {
        &self.entries[index as usize]
    }

    /// The index of a namespace in use.
    pub(crate) fn find(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// Enters a link of a namespace.
    pub(crate) fn join(&mut self, name: &str) -> u16 {
        let index = self.find(name).unwrap_or_else(|| self.enter(name));
        self.entries[index as usize].links += 1;
        index
    }

    fn enter(&mut self, name: &str) -> u16 {
        let entry = Namespace { name: name.into(), seed: NamespaceSeed::of(name), links: 0 };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u16
            }
        };
        self.by_name.insert(name.into(), index);
        index
    }

    /// A link of it is no more, nor anything that it held.
    pub(crate) fn leave(&mut self, index: u16) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.links > 0, "namespace {index} is left more often than joined");
        entry.links -= 1;
        if entry.links == 0 {
            self.by_name.remove(&entry.name);
            entry.name = Box::default();
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_used_again_when_its_last_link_has_left() {
        let mut namespaces = Namespaces::default();
        let (a, b) = (namespaces.join("a"), namespaces.join("b"));
        assert_eq!(namespaces.join("a"), a);
        namespaces.leave(a);
        assert_eq!(namespaces.find("a"), Some(a));
        namespaces.leave(a);
        assert_eq!((namespaces.find("a"), namespaces.len()), (None, 1));
        assert_eq!(namespaces.join("c"), a);
        assert_eq!((&*namespaces.get(a).name, &*namespaces.get(b).name), ("c", "b"));
        assert_eq!(namespaces.get(a).seed, NamespaceSeed::of("c"));
    }
}
