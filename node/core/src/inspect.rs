//! Looking at keys: one, or pages of them. Advisory: nothing here changes or promises anything.

use crate::batch::Asker;
use crate::event::Action;
use crate::machine::Machine;
use crate::record::Kind;
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Time;
use lockring_proto::{
    Claim, Fence, Holder, Inspection, ListCursor, ListedLock, Listing, Reply, WaiterInfo, limits,
};

/// Holders and waiters told one by one.
const TOLD: usize = 16;

/// Keys looked at for one page, so that a listing is never a long stop.
const SCANNED_PER_PAGE: usize = 8192;

impl Machine {
    pub(crate) fn inspect(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        key: &[u8],
        out: &mut Vec<Action>,
    ) {
        let namespace = self.links.get(asker.link).namespace;
        let mut inspection = Inspection {
            version: self.version.0,
            node: self.config.node,
            cell: self.cell_id(place.at).0,
            epoch: self.cell(place).epoch.0,
            holders: Vec::new(),
            holder_count: 0,
            waiters: Vec::new(),
            waiter_count: 0,
            capacity: None,
            grace_left_ms: self.grace_left(now).map_or(0, |left| left.as_millis() as u64),
        };
        if let Some(index) = self.find(place, namespace, key) {
            (inspection.holders, inspection.holder_count) = self.tell_holders(now, index, TOLD);
            (inspection.waiters, inspection.waiter_count) = self.tell_waiters(now, index);
            let record = self.records.get(index);
            if record.is_rich()
                && let Kind::Permits { capacity } = self.riches.get(record.link).kind
            {
                inspection.capacity = Some(capacity);
            }
        }
        let reply = Reply::Inspected { id: asker.id, inspection: Box::new(inspection) };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    fn tell_holder(&self, now: Time, link: u32, fence: Fence, claim: Claim, since: Time) -> Holder {
        let link = self.links.get(link);
        Holder {
            fence,
            claim,
            held_ms: now.since(since).as_millis() as u64,
            lease_left_ms: link.deadline.since(self.lease_now(now)).as_millis() as u64,
            label: link.label.to_string(),
        }
    }

    /// The last `most` holders, newest first, and their number in all.
    fn tell_holders(&self, now: Time, index: u32, most: usize) -> (Vec<Holder>, u32) {
        let record = self.records.get(index);
        if !record.is_rich() {
            let since = record.since(now);
            let only = self.tell_holder(now, record.link, record.fence, Claim::Exclusive, since);
            return (vec![only], 1);
        }
        let list = self.riches.get(record.link).holders;
        let mut told = Vec::new();
        let mut at = list.tail;
        while at != NIL && told.len() < most {
            let entry = self.entries.get(at);
            let fence = entry.fence.expect("a holder has a fence");
            told.push(self.tell_holder(now, entry.link, fence, entry.claim, entry.since));
            at = entry.queue_prev;
        }
        (told, list.len)
    }

    fn tell_waiters(&self, now: Time, index: u32) -> (Vec<WaiterInfo>, u32) {
        let record = self.records.get(index);
        if !record.is_rich() {
            return (Vec::new(), 0);
        }
        let list = self.riches.get(record.link).waiters;
        let mut told = Vec::new();
        let mut at = list.head;
        while at != NIL && told.len() < TOLD {
            let entry = self.entries.get(at);
            told.push(WaiterInfo {
                claim: entry.claim,
                waited_ms: now.since(entry.since).as_millis() as u64,
                label: self.links.get(entry.link).label.to_string(),
            });
            at = entry.queue_next;
        }
        (told, list.len)
    }

    /// A page of the keys in use of the asker's namespace, cell by cell and then by key. A cell is
    /// sorted anew for each page: the table itself has no order that could be relied on.
    pub(crate) fn list(
        &mut self,
        now: Time,
        asker: Asker,
        cursor: &ListCursor,
        rows: u32,
        prefix: &[u8],
        out: &mut Vec<Action>,
    ) {
        let most = rows.clamp(1, limits::LIST_ROWS_MAX) as usize;
        let namespace = self.links.get(asker.link).namespace;
        let mut listing = Listing { rows: Vec::new(), next: None };
        let mut scanned = 0;
        let first = cursor.cell >> self.worker_shift;
        for at in u32::from(first)..self.cells.len() as u32 {
            let cell = self.cell_id(at).0;
            let after: &[u8] = if cell == cursor.cell { &cursor.key } else { &[] };
            let mut found = self.keys_of_cell(at, namespace, prefix, after);
            found.sort_unstable();
            scanned += self.cells[at as usize].table.len();
            let room = most - listing.rows.len();
            let full = found.len() > room;
            for &(key, index) in found.iter().take(room) {
                listing.rows.push(self.list_row(now, key, index));
            }
            let more = at + 1 < self.cells.len() as u32;
            if full {
                let key = listing.rows.last().map_or_else(Vec::new, |row| row.key.clone());
                listing.next = Some(ListCursor { cell, key });
                break;
            }
            if (listing.rows.len() == most || scanned >= SCANNED_PER_PAGE) && more {
                let cell = self.cell_id(at + 1).0;
                listing.next = Some(ListCursor { cell, key: Vec::new() });
                break;
            }
        }
        let reply = Reply::Listed { id: asker.id, listing: Box::new(listing) };
        out.push(Action::Reply { conn: asker.conn, reply });
    }

    fn keys_of_cell(
        &self,
        at: u32,
        namespace: u16,
        prefix: &[u8],
        after: &[u8],
    ) -> Vec<(&[u8], u32)> {
        self.cells[at as usize]
            .table
            .iter()
            .filter_map(|slot| {
                let record = self.records.get(slot.record);
                let key = self.key(record);
                let wanted = self.namespace(record) == namespace
                    && key.starts_with(prefix)
                    && (after.is_empty() || key > after);
                wanted.then_some((key, slot.record))
            })
            .collect()
    }

    fn list_row(&self, now: Time, key: &[u8], index: u32) -> ListedLock {
        let (mut told, holders) = self.tell_holders(now, index, 1);
        let record = self.records.get(index);
        let waiters = if record.is_rich() { self.riches.get(record.link).waiters.len } else { 0 };
        ListedLock { key: key.to_vec(), holder: told.pop(), holders, waiters }
    }
}
