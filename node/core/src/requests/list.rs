//! Pages of keys and of sessions. Advisory: nothing here changes or promises anything.

use super::{RequestContext, namespace_named};
use crate::cells::Shows;
use crate::locks::{Holder, RecordIndex};
use crate::mutant::mutant;
use crate::turn::{ANSWER_BYTES, LOOKS_PER_PRICE, Turn};
use crate::worker::Worker;
use lockring_proto::{Holder as Told, ListCursor, ListedLock, Listing, Reply, Time, limits};
use std::time::Duration;

/// A session, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
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

/// A page of keys, and what it costs.
pub(crate) struct Page {
    pub(crate) rows: Vec<(u16, ListedLock)>,
    pub(crate) next: Option<ListCursor>,
    price: u32,
}

/// What may be looked at for one page, so that a listing never holds up the living for longer than
/// a slice of an expiry. A free record costs one look; a key, with its link or side record
/// somewhere in memory, more.
const LOOKS_PER_PAGE: usize = 1024;
const LOOKS_PER_KEY: usize = 4;

/// What a row of a listing has beside key and label, about.
const ROW_BYTES: usize = 40;

pub(super) fn tell_holder(worker: &Worker, now: Time, holder: &Holder) -> Told {
    Told {
        fence: holder.fence,
        claim: holder.claim,
        held_ms: now.since(holder.since).as_millis() as u64,
        lease_left_ms: worker.links.lease_left(now, holder.link).as_millis() as u64,
        label: worker.links.who(holder.link).label.to_string(),
    }
}

/// A page of the keys in use of a namespace.
pub(super) fn list(
    worker: &Worker,
    turn: &mut Turn<'_>,
    context: RequestContext,
    namespace: &str,
    wanted: &Wanted<'_>,
) {
    let mut listing = Box::new(Listing { rows: Vec::new(), next: None });
    if let Some(namespace) = namespace_named(worker, context.link, namespace) {
        let page = page(worker, turn.now, Some(namespace), wanted);
        turn.charge(page.price);
        listing.rows.extend(page.rows.into_iter().map(|(_, row)| row));
        listing.next = page.next;
    }
    turn.answer(context.conn, Shows::Nothing, || Reply::Listed { id: context.id, listing });
}

/// A page of the sessions of this worker, and where the next page begins. A session keeps its
/// position.
pub(crate) fn sessions(
    worker: &Worker,
    now: Time,
    from: u32,
    rows: usize,
) -> (Vec<SessionRow>, Option<u32>) {
    let mut seen = Vec::new();
    let (mut next, mut looks) = (from, 0);
    while let Some(link) = worker.links.next_position(next) {
        if seen.len() == rows || looks == LOOKS_PER_PAGE / LOOKS_PER_KEY {
            return (seen, Some(link.0));
        }
        (next, looks) = (link.0 + 1, looks + 1);
        if worker.links.is_session(link) {
            let (who, books) = (worker.links.who(link), worker.links.books());
            seen.push(SessionRow {
                namespace: books.namespace_name(worker.locks.namespace_of(link)).to_owned(),
                name: who.name.to_string(),
                label: who.label.to_string(),
                connected: worker.links.conn(link).is_some(),
                ttl: worker.links.ttl(link),
                lease_left: worker.links.lease_left(now, link),
                holds: worker.locks.hold_count(link),
                waiters: worker.locks.waiter_count(link),
            });
        }
    }
    (seen, None)
}

/// A page of keys in use. They come as their records lie in memory: a record stays where it is
/// while its key is in use, so that such a key is in one page and no other.
pub(crate) fn page(
    worker: &Worker,
    now: Time,
    namespace: Option<u16>,
    wanted: &Wanted<'_>,
) -> Page {
    let most = wanted.rows.clamp(1, limits::LIST_ROWS_MAX) as usize;
    let mut listed = Vec::new();
    let (mut looks, mut bytes) = (0, 0);
    let price = |looks, bytes| (looks / LOOKS_PER_PRICE + bytes / ANSWER_BYTES) as u32;
    let mut from = wanted.cursor.from;
    while let Some(record) = worker.locks.next_resident(from) {
        from = record.0 + 1;
        if listed.len() == most || looks >= LOOKS_PER_PAGE {
            let from = record.0 + u32::from(mutant!(worker, ListingSkips));
            let (next, price) = (Some(ListCursor { from }), price(looks, bytes));
            return Page { rows: listed, next, price };
        }
        looks += 1;
        if worker.locks.is_free(record) {
            continue;
        }
        looks += LOOKS_PER_KEY;
        let (its, key) = (worker.locks.namespace(record), worker.locks.key(record));
        if namespace.is_none_or(|wanted| its == wanted) && key.starts_with(wanted.prefix) {
            let row = list_row(worker, now, record);
            bytes += ROW_BYTES + row.key.len();
            bytes += row.holder.as_ref().map_or(0, |holder| holder.label.len());
            listed.push((its, row));
        }
    }
    Page { rows: listed, next: None, price: price(looks, bytes) }
}

fn list_row(worker: &Worker, now: Time, record: RecordIndex) -> ListedLock {
    let last = worker.locks.holders(record, now).next();
    ListedLock {
        key: worker.locks.key(record).to_vec(),
        holder: last.map(|holder| tell_holder(worker, now, &holder)),
        holders: worker.locks.holder_count(record),
        waiters: worker.locks.queue_len(record),
    }
}
