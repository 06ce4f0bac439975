//! Links: sessions at this worker, their connections and leases, what they may have, and how they
//! end. What they have is in the locks.

mod accounts;
#[cfg(any(test, feature = "testing"))]
mod audit;
mod awaiting;
mod compare;
mod dying;
mod hello;
mod inherit;
mod lease;

pub(crate) use accounts::Books;
pub(crate) use awaiting::{Awaiting, Wait};
pub(crate) use compare::{Comparison, Gather, Held, Part, Step};
pub(crate) use dying::Dying;
pub(crate) use hello::{Arrival, refusal};
pub(crate) use lease::Due;

use crate::amounts::Amounts;
use crate::cells::{LinkNews, Process};
use crate::config::{Config, Limits};
use crate::event::{Access, ConnId, LinkIndex};
use crate::locks::slab::{Slab, SlabValue};
use crate::locks::{Holdings, Turned, Used};
use accounts::Holder;
use lease::{Lease, LeaseClock};
use lockring_proto::{Fence, HoldId, SessionId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A session, with its places in the maps of sessions and leases, its name and label.
const SESSION_BYTES: u64 = (size_of::<Link>() + size_of::<Holdings>()) as u64 + 288;

/// What a session has that has this in the locks.
fn amounts(used: Used) -> Amounts {
    let Used { holds, waiters, bytes } = used;
    Amounts { sessions: 1, holds, waiters, bytes: SESSION_BYTES + bytes }
}

/// Whose link it is.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) session: SessionId,
    /// Its accounts.
    holder: Holder,
    /// Of the connection in force.
    pub(crate) access: Access,
    pub(crate) name: Box<str>,
    pub(crate) label: Box<str>,
}

/// What processes before the one in force have left.
#[derive(Clone)]
struct Before {
    /// Another process has taken the session up: the one before it may believe in its holds until
    /// then, on the lease clock, so that they end by an explicit release alone.
    spared_until: Option<Time>,
    /// Whose it is.
    process: Process,
    /// Waiters without an owner are looked for.
    leaving: Option<Leaving>,
}

/// Waiters that have no owner any more.
#[derive(Clone, Copy)]
struct Leaving {
    /// They are all that there are, and not only those of processes before the one in force.
    all: bool,
    /// Entries that are still to be looked at.
    entries: u32,
}

/// A release by force of more holders than a turn ends.
#[derive(Clone, Copy)]
pub(crate) struct Forcing {
    /// The request.
    pub(crate) id: u64,
    /// Later holds do not concern it.
    pub(crate) last: Fence,
    pub(crate) ended: u32,
}

/// A session at this worker. It outlives its connections and ends with its lease.
#[derive(Clone)]
struct Link {
    who: Who,
    incarnation: u64,
    /// The connection in force.
    conn: Option<ConnId>,
    lease: Lease,
    before: Before,
    /// What the next frame of a compare goes on with.
    comparison: Option<Box<Comparison>>,
    /// A release by force that goes on with the next turn.
    forcing: Option<Forcing>,
    /// No request of it has run yet: its client may not know that it began anew, as the welcome
    /// that said so may be lost. Until then every welcome says so.
    fresh: bool,
    /// A renewal was answered while this worker did not have all of its cells. Its client may count
    /// on the lease for a hold in one of these, which is lost until it is taken over: the worker
    /// knows of no such hold, and all the same the link may not be forgotten.
    counts: bool,
    /// A goodbye to answer when all is freed.
    goodbye: Option<(ConnId, u64)>,
    /// What it used when that was last carried over to its identity and namespace.
    accounted: Amounts,
    next_free: u32,
}

impl SlabValue for Link {
    type Index = LinkIndex;
    fn set_free(&mut self, next: u32) {
        self.conn = None;
        self.comparison = None;
        self.who.name = Box::default();
        self.who.label = Box::default();
        self.next_free = next;
    }
    fn next_free(&self) -> u32 {
        self.next_free
    }
}

/// The links of a worker. They are numbered as what they have is: both slabs are filled and emptied
/// together.
#[derive(Clone)]
pub(crate) struct Links {
    links: Slab<Link>,
    sessions: BTreeMap<SessionId, LinkIndex>,
    /// Links that ever began.
    begun: u64,
    clock: LeaseClock,
    /// Links by a time no later than their deadline, on the lease clock.
    leases: BTreeSet<(Time, LinkIndex)>,
    dying: Dying,
    /// Links whose process said goodbye or was replaced, until its waiters are gone.
    leaving: BTreeSet<LinkIndex>,
    /// Hellos that wait for a longer TTL to be durable.
    unconfirmed: Vec<(Duration, ConnId, LinkIndex)>,
    longest_ttl: Duration,
    /// How many sessions have which TTL.
    ttls: BTreeMap<Duration, u32>,
    books: Books,
    /// How many holds the link that is served may have.
    cap: u64,
    #[cfg(any(test, feature = "testing"))]
    pub(crate) mutant: Option<crate::Mutant>,
}

impl Links {
    pub(crate) fn new(config: &Config, now: Time) -> Self {
        Self {
            links: Slab::new(),
            sessions: BTreeMap::new(),
            begun: 0,
            clock: LeaseClock::new(now),
            leases: BTreeSet::new(),
            dying: Dying::new(now),
            leaving: BTreeSet::new(),
            unconfirmed: Vec::new(),
            longest_ttl: config.longest_ttl,
            ttls: BTreeMap::new(),
            books: Books::default(),
            cap: 0,
            #[cfg(any(test, feature = "testing"))]
            mutant: None,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.links.len()
    }

    /// Who a link is, for a copy.
    pub(crate) fn news(&self, link: LinkIndex, number: u64) -> LinkNews<'_> {
        let Link { who, lease, before, .. } = self.links.get(link);
        LinkNews {
            number,
            session: who.session,
            ttl: lease.ttl,
            namespace: self.books.namespace_name(who.holder.namespace),
            name: &who.name,
            label: &who.label,
            process: before.process,
        }
    }

    pub(crate) fn who(&self, link: LinkIndex) -> &Who {
        &self.links.get(link).who
    }

    /// The connection in force.
    pub(crate) fn conn(&self, link: LinkIndex) -> Option<ConnId> {
        self.links.get(link).conn
    }

    pub(crate) fn take_conn(&mut self, link: LinkIndex) -> Option<ConnId> {
        self.links.get_mut(link).conn.take()
    }

    /// Whether the connection of a link that an event names is still the one in force: the second
    /// fence against stale copies of a request.
    pub(crate) fn is_in_force(&self, conn: ConnId, link: LinkIndex) -> bool {
        self.links.find(link).is_some_and(|found| found.conn == Some(conn))
    }

    pub(crate) fn exists(&self, link: LinkIndex) -> bool {
        self.links.find(link).is_some()
    }

    /// A connection is gone: nothing goes on with its next turn.
    pub(crate) fn close(&mut self, link: LinkIndex) {
        let link = self.links.get_mut(link);
        link.conn = None;
        link.comparison = None;
        link.forcing = None;
    }

    /// A request of it runs.
    pub(crate) fn ran(&mut self, link: LinkIndex) {
        self.links.get_mut(link).fresh = false;
    }

    /// A renewal of it is answered while cells are away.
    pub(crate) fn counts_for_others(&mut self, link: LinkIndex) {
        self.links.get_mut(link).counts = true;
    }

    /// Whether its client may count on its lease for what this worker knows nothing of.
    pub(crate) fn may_count(&self, link: LinkIndex) -> bool {
        self.links.get(link).counts
    }

    /// The session ends by its own wish; the answer leaves when all is freed.
    pub(crate) fn say_goodbye(&mut self, link: LinkIndex, conn: ConnId, id: u64) {
        let link = self.links.get_mut(link);
        link.goodbye = Some((conn, id));
        link.conn = None;
    }

    pub(crate) fn forcing(&mut self, link: LinkIndex) -> &mut Option<Forcing> {
        &mut self.links.get_mut(link).forcing
    }

    pub(crate) fn comparison(&mut self, link: LinkIndex) -> &mut Option<Box<Comparison>> {
        &mut self.links.get_mut(link).comparison
    }

    /// A hold turns from thin to rich or back. If the holds of its link are being gathered it may
    /// be where the gathering has been already.
    pub(crate) fn gather_turned(&mut self, id: HoldId, turned: &Turned) {
        let comparison = &mut self.links.get_mut(turned.link).comparison;
        if let Some(comparison) = comparison.as_mut().filter(|it| it.is_gathering()) {
            let Turned { record, request, .. } = *turned;
            comparison.add(Held { id, record, request });
        }
    }

    pub(crate) fn dying(&mut self) -> &mut Dying {
        &mut self.dying
    }

    /// The first position from here on where a link may be.
    pub(crate) fn next_position(&self, from: u32) -> Option<LinkIndex> {
        self.links.next_resident(from)
    }

    /// Whether a session is at a position: it is not free, nor is its link dying.
    pub(crate) fn is_session(&self, link: LinkIndex) -> bool {
        self.sessions.get(&self.links.get(link).who.session) == Some(&link)
    }

    pub(crate) fn ttl(&self, link: LinkIndex) -> Duration {
        self.links.get(link).lease.ttl
    }

    /// The longest TTL of any session that can still be believed here; zero without any.
    pub(crate) fn longest_ttl_in_use(&self) -> Duration {
        self.ttls.last_key_value().map_or(Duration::ZERO, |(&ttl, _)| ttl)
    }

    pub(crate) fn books(&self) -> &Books {
        &self.books
    }

    pub(crate) fn set_memory_full(&mut self, full: bool) {
        self.books.set_full(full);
    }

    /// How many holds the link that is served may have at the end of this turn, if all are thin.
    #[inline(always)]
    pub(crate) fn cap(&self) -> u64 {
        self.cap
    }

    pub(crate) fn set_cap(&mut self, link: LinkIndex, limits: &Limits) {
        let known = self.links.get(link);
        self.cap = self.books.holds_cap(known.who.holder, &known.accounted, limits);
    }

    /// Why a link, which now has this, may not use more, if so.
    pub(crate) fn over_quota(
        &mut self,
        link: LinkIndex,
        used: Used,
        more: Amounts,
        limits: &Limits,
    ) -> Option<String> {
        self.settle_account(link, used);
        self.set_cap(link, limits);
        let known = self.links.get(link);
        self.books.refuses(known.who.holder, &known.accounted, more, limits)
    }

    /// What a link has changed.
    pub(crate) fn settle_account(&mut self, link: LinkIndex, used: Used) {
        let known = self.links.get_mut(link);
        let now = amounts(used);
        let before = std::mem::replace(&mut known.accounted, now);
        self.books.change(known.who.holder, before, now);
    }

    fn close_account(&mut self, link: LinkIndex) {
        let known = self.links.get(link);
        self.books.change(known.who.holder, known.accounted, Amounts::default());
    }
}
