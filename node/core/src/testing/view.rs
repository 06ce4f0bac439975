//! The logical state of a machine: what it would tell anybody, without where it is kept. Two
//! machines that came to the same state by different ways have equal views and fingerprints.

use crate::locks::{CellIndex, Kind, RecordIndex};
use crate::worker::Worker;
use crate::{ConnId, LinkIndex, Time};
use lockring_proto::{Claim, Fence, HoldId, SessionId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Names a link: its session, and for one that is dying its turn to be freed.
pub type LinkName = (SessionId, Option<usize>);

/// The logical state of a machine. Not in it: counters for people, and the order in which things
/// that are due at the same instant are done, which follows from where they are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The node has no memory left.
    pub full: bool,
    /// Ring version, longest TTL, draining, lease clock's lag, last and next times of note.
    pub clock: (u64, Duration, bool, Duration, Time, Time),
    /// Every cell.
    pub cells: Vec<CellView>,
    /// Keys in use, by namespace and key.
    pub keys: BTreeMap<(String, Vec<u8>), KeyView>,
    /// Links.
    pub links: BTreeMap<LinkName, LinkView>,
    /// Hellos that wait for a longer TTL: TTL, connection, session.
    pub unconfirmed: Vec<(Duration, ConnId, SessionId)>,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CellView {
    /// Epoch and counter.
    pub number: Fence,
    /// Its next epoch is asked for.
    pub wanted: bool,
    /// The ring version that made its epoch.
    pub since: u64,
    /// How long it grants nothing yet.
    pub grace_left: Option<Duration>,
}

/// A key in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyView {
    /// Capacity of a semaphore; `None` for a lock.
    pub capacity: Option<u32>,
    /// Who holds it, by fence.
    pub holders: Vec<HolderView>,
    /// Who is queued.
    pub waiters: Vec<WaiterView>,
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HolderView {
    /// Its link.
    pub link: LinkName,
    /// The request that made it.
    pub request: u64,
    /// What is held.
    pub claim: Claim,
    /// Its fence.
    pub fence: Fence,
    /// Since when, to the second if it is a plain exclusive hold.
    pub since: Time,
}

/// A queued claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WaiterView {
    /// Its link.
    pub link: LinkName,
    /// Its request, and where it is answered.
    pub request: (u64, ConnId),
    /// What is claimed.
    pub claim: Claim,
    /// Since when.
    pub since: Time,
    /// Until when.
    pub deadline: Time,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkView {
    /// Namespace, name and label.
    pub identity: (String, String, String),
    /// Incarnation and connection in force.
    pub conn: (u64, Option<ConnId>),
    /// TTL.
    pub ttl: Duration,
    /// End of the lease, on the lease clock.
    pub deadline: Time,
    /// Count and xor of its holds.
    pub digest: (u64, u64),
    /// A compare of which more is to come: how far it looks, where it goes on, what is left.
    pub comparing: Option<(u64, Option<HoldId>, Vec<HoldId>)>,
    /// Its queued claims.
    pub waiters: u32,
    /// No request of it has run yet.
    pub fresh: bool,
    /// It has held something, or waited for it.
    pub used: bool,
    /// A goodbye to answer.
    pub goodbye: Option<(ConnId, u64)>,
    /// Until when holds of a process before may be believed, and whether a process has taken the
    /// session up from another.
    pub spared: (Option<Time>, bool),
    /// From where on its process numbers its requests.
    pub ids_after: u64,
    /// Entries to look at for waiters without an owner, and whether all of them are.
    pub leaving: Option<(u32, bool)>,
}

pub(super) fn view(worker: &Worker) -> View {
    let links = &worker.links;
    let name = |(link, turn)| (link, (links.who(link).session, turn));
    let names: BTreeMap<LinkIndex, LinkName> = links.named().map(name).collect();
    let (lag, last_seen, no_expiry_before) = links.clock();
    let (version, longest_ttl) = (worker.version.0, links.longest_ttl());
    View {
        full: links.books().is_full(),
        clock: (version, longest_ttl, worker.draining, lag, last_seen, no_expiry_before),
        cells: (0..worker.locks.layout().cells()).map(|at| cell(worker, CellIndex(at))).collect(),
        keys: keys(worker, &names),
        links: names.iter().map(|(&link, &name)| (name, links.view(link, &worker.locks))).collect(),
        unconfirmed: links.unconfirmed(),
    }
}

fn cell(worker: &Worker, cell: CellIndex) -> CellView {
    CellView {
        number: worker.locks.number(cell),
        wanted: worker.cells.is_wanted(cell),
        since: worker.cells.since(cell, worker.locks.standing(cell)).0,
        grace_left: worker.cells.grace_left(cell, worker.links.last_seen()),
    }
}

fn keys(
    worker: &Worker,
    names: &BTreeMap<LinkIndex, LinkName>,
) -> BTreeMap<(String, Vec<u8>), KeyView> {
    let locks = &worker.locks;
    let in_use = locks.keys().map(|(_, record)| {
        let namespace = worker.links.books().namespace_name(locks.namespace(record));
        let name = (namespace.to_owned(), locks.key(record).to_vec());
        (name, key(worker, record, names))
    });
    in_use.collect()
}

fn key(worker: &Worker, record: RecordIndex, names: &BTreeMap<LinkIndex, LinkName>) -> KeyView {
    let locks = &worker.locks;
    let mut holders: Vec<HolderView> = locks
        .holders(record, worker.links.last_seen())
        .map(|holder| HolderView {
            link: names[&holder.link],
            request: locks.request_of(record, holder.fence),
            claim: holder.claim,
            fence: holder.fence,
            since: holder.since,
        })
        .collect();
    holders.reverse();
    let waiters = locks.waiters(record).map(|entry| WaiterView {
        link: names[&entry.link],
        request: (entry.request, entry.asked_on),
        claim: entry.claim,
        since: entry.since,
        deadline: Time(entry.since.0.saturating_add(entry.patience)),
    });
    KeyView {
        capacity: match locks.kind(record) {
            Kind::Modes => None,
            Kind::Permits { capacity } => Some(capacity),
        },
        waiters: waiters.collect(),
        holders,
    }
}
