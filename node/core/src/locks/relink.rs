//! A cell's locks under other links: those of its new owner, who calls the same sessions' links by
//! other names.

use super::record::{Entry, EntryIndex, LinkChain, RecordIndex, Shape, Thin};
use super::slab::Index as _;
use super::{CellIndex, Locks, claim_bytes};
use crate::event::LinkIndex;
use lockring_proto::Fence;
use std::collections::BTreeMap;

impl Locks {
    /// Gives all that a cell has of a link to another, by this map. `false`: it has something of a
    /// link that is not in it, and nothing is changed.
    pub(crate) fn relink(
        &mut self,
        cell: CellIndex,
        renamed: &BTreeMap<LinkIndex, LinkIndex>,
    ) -> bool {
        let records: Vec<RecordIndex> =
            self.cells[cell.0 as usize].table.iter().map(|(_, index)| RecordIndex(index)).collect();
        let mut links = records.iter().flat_map(|&record| self.links_of(record));
        if !links.all(|link| renamed.contains_key(&link)) {
            return false;
        }
        for record in records {
            match self.shape(record) {
                Shape::Thin(thin) => self.relink_thin(cell, record, thin, renamed[&thin.link]),
                Shape::Rich(_) => {
                    for entry in self.entries_of(record) {
                        let link = renamed[&self.entries.get(entry).link];
                        self.relink_entry(cell, entry, link);
                    }
                }
            }
        }
        true
    }

    fn links_of(&self, record: RecordIndex) -> Vec<LinkIndex> {
        match self.shape(record) {
            Shape::Thin(thin) => vec![thin.link],
            Shape::Rich(_) => {
                let entries = self.entries_of(record).into_iter();
                entries.map(|entry| self.entries.get(entry).link).collect()
            }
        }
    }

    /// Holders, then waiters, of a rich key.
    fn entries_of(&self, record: RecordIndex) -> Vec<EntryIndex> {
        let Some(rich) = self.rich_of(record) else { return Vec::new() };
        let mut entries = Vec::new();
        for head in [rich.holders.head, rich.waiters.head] {
            let mut next = head;
            while next != EntryIndex::NIL {
                entries.push(next);
                next = self.entries.get(next).queue_next;
            }
        }
        entries
    }

    fn relink_thin(&mut self, cell: CellIndex, at: RecordIndex, thin: Thin, link: LinkIndex) {
        if thin.link == link {
            return;
        }
        let before = self.holdings.get_mut(thin.link);
        before.thin.remove(&mut self.records, at);
        self.records.get_mut(at).make_others(Thin { link, ..thin });
        let after = self.holdings.get_mut(link);
        after.thin.push(&mut self.records, at);
        after.used = true;
        self.move_digest(cell, thin.fence, (thin.link, link));
    }

    fn relink_entry(&mut self, cell: CellIndex, at: EntryIndex, link: LinkIndex) {
        let Entry { record, link: before, request, fence, .. } = *self.entries.get(at);
        if before == link {
            return;
        }
        let bytes = claim_bytes(self.key(record));
        self.by_request.remove(self.secret.pair(before.0, request), at.0);
        self.by_request.insert(self.secret.pair(link.0, request), at.0);
        let waits = u32::from(fence.is_none());
        let holdings = self.holdings.get_mut(before);
        holdings.entries.remove::<Entry, LinkChain>(&mut self.entries, at);
        holdings.rich_bytes -= bytes;
        holdings.waiters -= waits;
        self.entries.get_mut(at).link = link;
        let holdings = self.holdings.get_mut(link);
        holdings.entries.push_back::<Entry, LinkChain>(&mut self.entries, at);
        holdings.rich_bytes += bytes;
        holdings.waiters += waits;
        holdings.used = true;
        match fence {
            Some(fence) => self.move_digest(cell, fence, (before, link)),
            None => {
                self.mark_changed(before);
                self.mark_changed(link);
            }
        }
    }

    fn move_digest(&mut self, cell: CellIndex, fence: Fence, (from, to): (LinkIndex, LinkIndex)) {
        let id = self.hold_id(cell, fence);
        self.holdings.get_mut(from).digest.remove(id);
        self.holdings.get_mut(to).digest.add(id);
        self.mark_changed(from);
        self.mark_changed(to);
    }
}
