//! The logical state of a machine: what it would tell anybody, without where it is kept. Two
//! machines that came to the same state by different ways have equal views and fingerprints.

use super::rng::Trace;
use crate::machine::Machine;
use crate::record::Kind;
use crate::slab::NIL;
use crate::{ConnId, Time};
use lockring_proto::{Claim, Digest, Fence, HoldId, SessionId};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
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
    pub clock: (u64, Duration, bool, Duration, Time, Time, Option<Time>),
    /// Epoch, counter, epoch wanted and owning version of every cell.
    pub cells: Vec<(u32, u64, bool, u64)>,
    /// Keys in use, by namespace and key.
    pub keys: BTreeMap<(String, Vec<u8>), KeyView>,
    /// Links.
    pub links: BTreeMap<LinkName, LinkView>,
    /// Hellos that wait for a longer TTL: TTL, connection, session.
    pub unconfirmed: Vec<(Duration, ConnId, SessionId)>,
}

/// A key in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyView {
    /// Capacity of a semaphore; `None` for a lock.
    pub capacity: Option<u32>,
    /// Who holds it, by fence.
    pub holders: Vec<HolderView>,
    /// Who is in line.
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

/// A claim in line.
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
    pub party: (String, String, String),
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
    /// Its claims in line.
    pub waiters: u32,
    /// No request of it has run yet.
    pub fresh: bool,
    /// It has held something, or waited for it.
    pub used: bool,
    /// A goodbye to answer.
    pub goodbye: Option<(ConnId, u64)>,
    /// Until when holds of a process before may be believed, entries to look at after a goodbye
    /// that spared them, and whether a process has taken the session up from another.
    pub spared: (Option<Time>, Option<u32>, bool),
}

impl Machine {
    /// The logical state.
    pub fn view(&self) -> View {
        let names = self.link_names();
        let cell = |cell: &crate::table::Cell| {
            (cell.epoch.0, cell.counter, cell.epoch_wanted, cell.since.0)
        };
        View {
            full: self.books.full,
            clock: (
                self.version.0,
                self.longest_ttl,
                self.draining,
                self.lag,
                self.last_seen,
                self.no_expiry_before,
                self.config.opens_at,
            ),
            cells: self.cells.iter().map(cell).collect(),
            keys: self.key_views(&names),
            links: names.iter().map(|(&link, &name)| (name, self.link_view(link))).collect(),
            unconfirmed: self
                .unconfirmed
                .iter()
                .map(|&(ttl, conn, link)| (ttl, conn, self.links.get(link).session))
                .collect(),
        }
    }

    /// The logical state in 64 bits.
    pub fn fingerprint(&self) -> u64 {
        let mut trace = Trace::default();
        self.view().hash(&mut trace);
        trace.finish()
    }

    fn link_names(&self) -> BTreeMap<u32, LinkName> {
        let live = self.sessions.iter().map(|(&session, &link)| (link, (session, None)));
        let dying = self
            .dying
            .iter()
            .chain(&self.dying_thin)
            .enumerate()
            .map(|(turn, &link)| (link, (self.links.get(link).session, Some(turn))));
        let armed =
            self.leases.iter().map(|&(_, link)| (link, (self.links.get(link).session, None)));
        armed.chain(live).chain(dying).collect()
    }

    fn link_view(&self, link: u32) -> LinkView {
        let link = self.links.get(link);
        let namespace = self.namespace_name(link.namespace).to_owned();
        let Digest { count, xor } = link.digest;
        LinkView {
            party: (namespace, link.name.to_string(), link.label.to_string()),
            conn: (link.incarnation, link.conn),
            ttl: link.ttl,
            deadline: link.deadline,
            digest: (count, xor),
            comparing: link.comparison.as_ref().map(|comparison| comparison.left()),
            waiters: link.waiters,
            fresh: link.fresh,
            used: link.used,
            goodbye: link.goodbye,
            spared: (link.spared_until, link.leaving, link.taken_up),
        }
    }

    fn key_views(&self, names: &BTreeMap<u32, LinkName>) -> BTreeMap<(String, Vec<u8>), KeyView> {
        let records = self.cells.iter().flat_map(|cell| cell.table.iter());
        records
            .map(|index| {
                let record = self.records.get(index);
                let namespace = self.namespace_name(self.namespace(record)).to_owned();
                let key = self.key(record).to_vec();
                ((namespace, key), self.key_view(index, names))
            })
            .collect()
    }

    fn key_view(&self, index: u32, names: &BTreeMap<u32, LinkName>) -> KeyView {
        let record = self.records.get(index);
        if !record.is_rich() {
            let holder = HolderView {
                link: names[&record.link()],
                request: record.request(),
                claim: Claim::Exclusive,
                fence: record.fence,
                since: record.since(self.last_seen),
            };
            return KeyView { capacity: None, holders: vec![holder], waiters: Vec::new() };
        }
        let rich = self.riches.get(record.rich());
        let mut view = KeyView {
            capacity: match rich.kind {
                Kind::Modes => None,
                Kind::Permits { capacity } => Some(capacity),
            },
            holders: Vec::new(),
            waiters: Vec::new(),
        };
        let mut at = rich.holders.head;
        while at != NIL {
            let entry = self.entries.get(at);
            view.holders.push(HolderView {
                link: names[&entry.link],
                request: entry.request,
                claim: entry.claim,
                fence: entry.fence.expect("a holder has a fence"),
                since: entry.since,
            });
            at = entry.queue_next;
        }
        let mut at = rich.waiters.head;
        while at != NIL {
            let entry = self.entries.get(at);
            view.waiters.push(WaiterView {
                link: names[&entry.link],
                request: (entry.request, entry.asked_on),
                claim: entry.claim,
                since: entry.since,
                deadline: entry.deadline,
            });
            at = entry.queue_next;
        }
        view
    }
}
