//! Looking at keys: one, or pages of them. Advisory: nothing here changes or promises anything.

use crate::batch::Asker;
use crate::event::Action;
use crate::machine::Machine;
use crate::mutant::mutant;
use crate::record::Kind;
use crate::slab::NIL;
use crate::table::Place;
use lockring_proto::Time;
use lockring_proto::{
    Claim, Fence, Holder, Inspection, ListCursor, ListedLock, Listing, Reply, WaiterInfo, limits,
};
use std::time::Duration;

/// A session, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where its keys live.
    pub namespace: String,
    /// The name in its certificate.
    pub name: String,
    /// Its label.
    pub label: String,
    /// Whether it has a connection now.
    pub connected: bool,
    /// Its TTL.
    pub ttl: Duration,
    /// What is left of its lease.
    pub lease_left: Duration,
    /// Holds at this worker.
    pub holds: u64,
    /// Waiters at this worker.
    pub waiters: u32,
}

/// Holders and waiters told one by one.
const TOLD: usize = 16;

/// What may be looked at for one page, so that a listing never holds up the living for longer than
/// a slice of an expiry. A cell costs one look; a key, with its record somewhere in memory, more.
const LOOKS_PER_PAGE: usize = 2048;
const LOOKS_PER_KEY: usize = 4;

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

    /// A page of the keys in use of the asker's namespace.
    pub(crate) fn list(
        &mut self,
        now: Time,
        asker: Asker,
        cursor: &ListCursor,
        rows: u32,
        prefix: &[u8],
        out: &mut Vec<Action>,
    ) {
        let namespace = self.links.get(asker.link).namespace;
        let (rows, next) = self.page(now, Some(namespace), cursor, rows, prefix);
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        let listing = Box::new(Listing { rows, next });
        out.push(Action::Reply {
            conn: asker.conn,
            reply: Reply::Listed { id: asker.id, listing },
        });
    }

    /// A page of the keys in use of every namespace, each with its namespace, for an operator's
    /// eyes. The cursor is that of the page before.
    pub fn list_all(
        &self,
        now: Time,
        cursor: &ListCursor,
        rows: u32,
        prefix: &[u8],
    ) -> (Vec<(String, ListedLock)>, Option<ListCursor>) {
        let (rows, next) = self.page(now, None, cursor, rows, prefix);
        let named = |(namespace, row): (u16, ListedLock)| {
            (self.namespaces[namespace as usize].name.clone(), row)
        };
        (rows.into_iter().map(named).collect(), next)
    }

    /// A page of the sessions of this worker, and where the next page begins: a position, not an
    /// id, as ids are secrets. A session keeps its position.
    pub fn list_sessions(&self, now: Time, from: u32, rows: usize) -> (Vec<Seen>, Option<u32>) {
        let lease_now = self.lease_now(now);
        let mut seen = Vec::new();
        let mut at = from;
        while at < self.links.slots() {
            if seen.len() == rows || (at - from) as usize == LOOKS_PER_PAGE / LOOKS_PER_KEY {
                return (seen, Some(at));
            }
            let link = self.links.get(at);
            // A link that is free, or ends, is nobody's session.
            if self.sessions.get(&link.session) == Some(&at) {
                seen.push(Seen {
                    namespace: self.namespaces[link.namespace as usize].name.clone(),
                    name: link.name.to_string(),
                    label: link.label.to_string(),
                    connected: link.conn.is_some(),
                    ttl: link.ttl,
                    lease_left: link.deadline.since(lease_now),
                    holds: link.digest.count,
                    waiters: link.waiters,
                });
            }
            at += 1;
        }
        (seen, None)
    }

    /// A page of keys in use, cell by cell and then by key. A cell is sorted anew for each page:
    /// the table itself has no order that could be relied on.
    fn page(
        &self,
        now: Time,
        namespace: Option<u16>,
        cursor: &ListCursor,
        rows: u32,
        prefix: &[u8],
    ) -> (Vec<(u16, ListedLock)>, Option<ListCursor>) {
        let most = rows.clamp(1, limits::LIST_ROWS_MAX) as usize;
        let mut listed = Vec::new();
        let mut looks = 0;
        let first = cursor.cell >> self.worker_shift;
        for at in u32::from(first)..self.cells.len() as u32 {
            let cell = self.cell_id(at).0;
            let after: &[u8] = if cell == cursor.cell { &cursor.key } else { &[] };
            let mut found = self.keys_of_cell(at, namespace, prefix, after);
            found.sort_unstable();
            looks += 1 + LOOKS_PER_KEY * self.cells[at as usize].table.len();
            let mut room = (most - listed.len()).min(found.len());
            // Of several namespaces: a cursor names no namespace, so a key is in one page whole.
            while (1..found.len()).contains(&room) && found[room].0 == found[room - 1].0 {
                room += 1;
            }
            for &(key, index) in &found[..room] {
                let namespace = self.namespace(self.records.get(index));
                listed.push((namespace, self.list_row(now, key, index)));
            }
            if found.len() > room {
                let mut key = listed.last().map_or_else(Vec::new, |(_, row)| row.key.clone());
                if mutant!(self, ListingSkips) {
                    key = found[room].0.to_vec();
                }
                return (listed, Some(ListCursor { cell, key }));
            }
            let more = at + 1 < self.cells.len() as u32;
            if (listed.len() >= most || looks >= LOOKS_PER_PAGE) && more {
                let cell = self.cell_id(at + 1).0;
                return (listed, Some(ListCursor { cell, key: Vec::new() }));
            }
        }
        (listed, None)
    }

    fn keys_of_cell(
        &self,
        at: u32,
        namespace: Option<u16>,
        prefix: &[u8],
        after: &[u8],
    ) -> Vec<(&[u8], u32)> {
        self.cells[at as usize]
            .table
            .iter()
            .filter_map(|slot| {
                let record = self.records.get(slot.record);
                let key = self.key(record);
                let wanted = namespace.is_none_or(|wanted| self.namespace(record) == wanted)
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
