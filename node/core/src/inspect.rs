//! Looking at keys: one, or pages of them. Advisory: nothing here changes or promises anything.

use crate::batch::{Asker, Named};
use crate::event::{Action, Role};
use crate::machine::Machine;
use crate::mutant::mutant;
use crate::record::Kind;
use crate::slab::NIL;
use crate::table::Place;
use crate::turn::{ANSWER_BYTES, LOOKS_PER_PRICE, PER_TOLD};
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

/// A page that is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) cursor: ListCursor,
    pub(crate) rows: u32,
    pub(crate) prefix: &'a [u8],
}

/// Holders and waiters told one by one.
const TOLD: usize = 16;

/// What may be looked at for one page, so that a listing never holds up the living for longer than
/// a slice of an expiry. A free record costs one look; a key, with its link or side record
/// somewhere in memory, more.
const LOOKS_PER_PAGE: usize = 1024;
const LOOKS_PER_KEY: usize = 4;

/// What a row of a listing has beside key and label, about.
const ROW_BYTES: usize = 40;

impl Machine {
    pub(crate) fn inspect(
        &mut self,
        now: Time,
        asker: Asker,
        place: Place,
        named: &Named<'_>,
        out: &mut Vec<Action>,
    ) {
        let grace_left = self.grace_left(now);
        let may_know = self.links.get(asker.link).role >= Role::Operator;
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
            grace_left_ms: grace_left.map_or(0, |left| left.as_millis() as u64),
            grace_for: grace_left
                .filter(|_| may_know)
                .map_or_else(String::new, |_| self.config.grace_for.clone()),
        };
        if let Some(index) = self.find_named(asker.link, place, named) {
            (inspection.holders, inspection.holder_count) = self.tell_holders(now, index, TOLD);
            (inspection.waiters, inspection.waiter_count) = self.tell_waiters(now, index);
            let record = self.records.get(index);
            if record.is_rich()
                && let Kind::Permits { capacity } = self.riches.get(record.rich()).kind
            {
                inspection.capacity = Some(capacity);
            }
        }
        let told = inspection.holders.len() + inspection.waiters.len();
        self.charge(PER_TOLD * told as u32);
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
            let only = self.tell_holder(now, record.link(), record.fence, Claim::Exclusive, since);
            return (vec![only], 1);
        }
        let list = self.riches.get(record.rich()).holders;
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
        let list = self.riches.get(record.rich()).waiters;
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

    /// A page of the keys in use of a namespace.
    pub(crate) fn list(
        &mut self,
        now: Time,
        asker: Asker,
        namespace: &str,
        wanted: &Wanted<'_>,
        out: &mut Vec<Action>,
    ) {
        let mut listing = Box::new(Listing { rows: Vec::new(), next: None });
        if let Some(namespace) = self.namespace_named(asker.link, namespace) {
            let (rows, next, price) = self.page(now, Some(namespace), wanted);
            self.charge(price);
            listing.rows.extend(rows.into_iter().map(|(_, row)| row));
            listing.next = next;
        }
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
        let (rows, next, _) = self.page(now, None, &Wanted { cursor: *cursor, rows, prefix });
        let named =
            |(namespace, row): (u16, ListedLock)| (self.namespace_name(namespace).to_owned(), row);
        (rows.into_iter().map(named).collect(), next)
    }

    /// A page of the sessions of this worker, and where the next page begins: a position, not an
    /// id, as ids are secrets. A session keeps its position.
    pub fn list_sessions(&self, now: Time, from: u32, rows: usize) -> (Vec<Seen>, Option<u32>) {
        let lease_now = self.lease_now(now);
        let mut seen = Vec::new();
        let (mut next, mut looks) = (from, 0);
        while let Some(at) = self.links.next_resident(next) {
            if seen.len() == rows || looks == LOOKS_PER_PAGE / LOOKS_PER_KEY {
                return (seen, Some(at));
            }
            (next, looks) = (at + 1, looks + 1);
            let link = self.links.get(at);
            // A link that is free, or ends, is nobody's session.
            if self.sessions.get(&link.session) == Some(&at) {
                seen.push(Seen {
                    namespace: self.namespace_name(link.namespace).to_owned(),
                    name: link.name.to_string(),
                    label: link.label.to_string(),
                    connected: link.conn.is_some(),
                    ttl: link.ttl,
                    lease_left: link.deadline.since(lease_now),
                    holds: link.digest.count,
                    waiters: link.waiters,
                });
            }
        }
        (seen, None)
    }

    /// A page of keys in use, and what it costs. They come as their records lie in memory: a record
    /// stays where it is while its key is in use, so that such a key is in one page and no other.
    fn page(
        &self,
        now: Time,
        namespace: Option<u16>,
        wanted: &Wanted<'_>,
    ) -> (Vec<(u16, ListedLock)>, Option<ListCursor>, u32) {
        let most = wanted.rows.clamp(1, limits::LIST_ROWS_MAX) as usize;
        let mut listed = Vec::new();
        let (mut looks, mut bytes) = (0, 0);
        let price = |looks, bytes| (looks / LOOKS_PER_PRICE + bytes / ANSWER_BYTES) as u32;
        let mut from = wanted.cursor.from;
        while let Some(index) = self.records.next_resident(from) {
            from = index + 1;
            if listed.len() == most || looks >= LOOKS_PER_PAGE {
                let from = index + u32::from(mutant!(self, ListingSkips));
                return (listed, Some(ListCursor { from }), price(looks, bytes));
            }
            looks += 1;
            let record = self.records.get(index);
            if record.is_free() {
                continue;
            }
            looks += LOOKS_PER_KEY;
            let (its, key) = (self.namespace(record), self.key(record));
            if namespace.is_none_or(|wanted| its == wanted) && key.starts_with(wanted.prefix) {
                let row = self.list_row(now, key, index);
                bytes += ROW_BYTES + row.key.len();
                bytes += row.holder.as_ref().map_or(0, |holder| holder.label.len());
                listed.push((its, row));
            }
        }
        (listed, None, price(looks, bytes))
    }

    fn list_row(&self, now: Time, key: &[u8], index: u32) -> ListedLock {
        let (mut told, holders) = self.tell_holders(now, index, 1);
        let record = self.records.get(index);
        let waiters = if record.is_rich() { self.riches.get(record.rich()).waiters.len } else { 0 };
        ListedLock { key: key.to_vec(), holder: told.pop(), holders, waiters }
    }
}
