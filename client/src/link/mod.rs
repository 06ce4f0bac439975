//! One link of a session, without I/O: its lease, its requests that are unanswered, and what to
//! send again when a connection breaks. The claims are the session's; the link is told of them.
//!
//! Rules it keeps (see the design, section 6):
//! - the lease counts from the *send* of the last answered request, less drift;
//! - a hold that lapsed here is lost for good, and released there;
//! - a request is sent again only on a newer connection, under the same id, unless the worker says
//!   that it has no such link: then under a new id;
//! - a claim given up while unanswered is cancelled, and stays here until the worker confirms.

mod claims;
mod compare;
mod fetch;
mod holds;
mod lease;
mod outcome;
mod parked;
mod pending;
mod put_off;
mod query;
mod replies;
mod resend;
mod travel;
mod watch;

pub use claims::Ask;
pub(crate) use lease::Ending;
pub use outcome::{Loss, NotGranted, Outcome};
pub use query::{Place, Query};
pub use replies::ReceiveError;
pub(crate) use watch::Stuck;

use crate::claims::{Claims, LinkId, RequestIds};
use crate::router::{Ring, WorkerId};
use compare::Compares;
use fetch::Fetch;
use holds::{Credits, Holdings};
use lockring_proto::{
    Digest, Hello, HoldId, PROTOCOL, Refusal, SessionId, Time, Welcome, codec, limits,
};
use lockring_ring::{CellId, Epoch};
use parked::Parked;
use pending::Unanswered;
use put_off::PutOffs;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;
use watch::Watch;

/// A seeded bug of the client's side.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientMutant {
    /// A release that was under way when the connection broke is forgotten and told as done.
    ReleaseForgotten,
    /// Giving up a claim does not tell the worker.
    CancelForgotten,
    /// Never finds a digest wrong.
    NoDigestCompare,
    /// Compares only when nothing is unanswered.
    CompareAtRest,
    /// Has what was granted to its claims under way compared too.
    CompareAll,
    /// Believes a token without asking the worker.
    AdoptUnasked,
    /// Counts an answer of a newer ring for what that may have given to others.
    CreditUnknownRing,
    /// Counts a renewal for a cell that may still be on its way to the worker.
    CreditSyncing,
    /// A fresh welcome ends what has come from another link too.
    FreshDropsMovedIn,
    /// What was released is reclaimed, if the owner had not answered yet that it is.
    ReclaimsReleased,
}

/// What a session is made with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The session.
    pub session: SessionId,
    /// Its request ids.
    pub ids: RequestIds,
    /// Another process has begun the session: its workers know a later incarnation than ours.
    pub taken_up: bool,
    /// Who this is, for people.
    pub label: String,
    /// The TTL to ask for.
    pub ttl: Duration,
    /// Claims fail after this long without contact.
    pub unreachable_after: Duration,
}

/// What the links of a session share.
pub(crate) struct Shared {
    pub(crate) config: SessionConfig,
    pub(crate) ids: RequestIds,
    pub(crate) claims: Claims,
    /// Claims with a deadline of their own.
    pub(crate) deadlines: BTreeSet<(Time, u32)>,
    /// The ring by which claims are at their links, and its version.
    pub(crate) ring: Option<Arc<Ring>>,
    pub(crate) version: u64,
    /// Cells whose epoch was raised and whose owner has stayed: since when it has had them.
    pub(crate) kept_since: BTreeMap<CellId, u64>,
    pub(crate) fetch: Fetch,
    /// Told as lost, to be looked for on all links: when, and on which.
    pub(crate) told_lost: Vec<ToldLost>,
    /// Told as lost before they were told as granted: the two come on different streams. Each is
    /// one that its worker had and tells once, in a cell of which a claim is unanswered, and is
    /// forgotten with the answer to the next renewal of that link, or with its connection: there
    /// are no more than the worker ends between two renewals.
    pub(crate) lost_early: BTreeMap<HoldId, (LinkId, Time)>,
    pub(crate) outcomes: Vec<Outcome>,
    holds_per_frame: usize,
    #[cfg(feature = "testing")]
    pub(crate) needless_compares: bool,
    #[cfg(feature = "testing")]
    pub(crate) mutant: Option<ClientMutant>,
}

impl Shared {
    pub(crate) fn new(config: SessionConfig) -> Self {
        Self {
            ids: config.ids.clone(),
            config,
            claims: Claims::default(),
            deadlines: BTreeSet::new(),
            ring: None,
            version: 0,
            kept_since: BTreeMap::new(),
            fetch: Fetch::default(),
            told_lost: Vec::new(),
            lost_early: BTreeMap::new(),
            outcomes: Vec::new(),
            holds_per_frame: limits::HOLDS_PER_FRAME,
            #[cfg(feature = "testing")]
            needless_compares: false,
            #[cfg(feature = "testing")]
            mutant: None,
        }
    }

    /// The version in which the epoch of a cell began.
    pub(crate) fn since(&self, cell: u16) -> u64 {
        self.ring.as_ref().and_then(|ring| ring.since(CellId(cell))).map_or(0, |since| since.0)
    }

    /// Whether an answer of this ring version is of before its owner has had a cell. No cell was
    /// had since a newer version than the ring's, which saves most answers the look at the cell.
    #[inline]
    pub(crate) fn is_before(&self, version: u64, cell: u16) -> bool {
        version < self.version && version < self.owned_since(cell)
    }

    /// The version since which its owner has had a cell: that of its epoch, or an earlier one if
    /// the owner has only raised it since.
    pub(crate) fn owned_since(&self, cell: u16) -> u64 {
        let kept = self.kept_since.get(&CellId(cell));
        kept.copied().unwrap_or_else(|| self.since(cell))
    }

    /// The last epoch of a cell that began without a copy.
    #[inline]
    pub(crate) fn takeover(&self, cell: u16) -> Epoch {
        self.ring.as_ref().and_then(|ring| ring.takeover(CellId(cell))).unwrap_or_default()
    }

    /// The epoch of a cell.
    pub(crate) fn epoch(&self, cell: u16) -> Epoch {
        self.ring.as_ref().and_then(|ring| ring.epoch(CellId(cell))).unwrap_or_default()
    }

    /// The process that has a cell, by its boot id.
    pub(crate) fn process_of(&self, cell: u16) -> Option<u64> {
        let ring = self.ring.as_ref()?;
        let node = ring.node(ring.worker_of(CellId(cell))?.node)?;
        Some(node.boot.0)
    }

    /// From now on a frame of a compare has this many holds.
    #[cfg(feature = "testing")]
    pub(crate) fn set_holds_per_frame(&mut self, holds: usize) {
        self.holds_per_frame = holds;
    }
}

/// A hold that a worker has told as lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToldLost {
    pub(crate) hold: HoldId,
    pub(crate) reason: Loss,
    pub(crate) by: LinkId,
}

/// Whether there is a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Down,
    /// Hello is sent.
    Greeting,
    Up,
}

/// For our own numbers, which nobody can choose so as to collide: multiplying spreads them well
/// enough.
#[derive(Clone, Copy, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed");
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }
    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }
}

/// Whom a link is to.
struct Peer {
    /// The node and worker; `None`: whoever answers.
    dialled: Option<WorkerId>,
    /// What it said last.
    welcome: Option<Welcome>,
    incarnation: u64,
    /// Hellos without an incarnation that were not answered. One may still arrive, and raise the
    /// incarnation in force above that of a later welcome.
    blind_hellos: u64,
    /// Why it took no session when it was asked last.
    refused: Option<Refusal>,
    goodbye: Goodbye,
}

/// When what was said and heard, and what follows for the lease.
struct Times {
    /// The real TTL, from the last welcome.
    ttl: Duration,
    /// How long an answer is believed in by it.
    believed: Duration,
    /// Holds are believed until then; no later than any hold's own.
    valid_until: Time,
    /// Send time of the hello.
    greeted: Time,
    /// Send time of the newest answered request.
    credited: Time,
    /// Send time of the newest answered renewal.
    renewed: Time,
    /// Send time of a renewal that is unanswered.
    renewing: Option<Time>,
    /// When another asks whether what has come here has arrived.
    settle_at: Option<Time>,
    /// The last time anything was heard.
    heard: Time,
    /// When the last connection ended.
    fell: Time,
    /// When something came from another link last: the worker has had it no longer.
    gained: Option<Time>,
    /// How long an answer took, the slowest of late.
    round_trip: Duration,
}

/// Whether the worker knows that the session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    /// Or said on a connection that broke.
    Unsaid,
    Said,
    Heard,
}

/// The client's side of one link.
pub(crate) struct Link {
    id: LinkId,
    peer: Peer,
    phase: Phase,
    pending: Unanswered,
    /// Requests that wait for a newer ring.
    parked: Parked,
    /// Requests that the worker refused for now.
    put_off: PutOffs,
    holds: Holdings,
    credits: Credits,
    /// While there is no connection: when the first caller's patience for an answer is over.
    answer_by: Option<Time>,
    compares: Compares,
    times: Times,
    /// Whether answers are overdue is looked at then.
    watch: Option<Watch>,
    stuck: Option<Stuck>,
    /// What a worker said that no worker says: the connection is to be closed.
    unexpected: Option<String>,
    out: Vec<u8>,
}

impl Link {
    /// A link that is down, to this worker or to whoever answers.
    pub(crate) fn new(
        id: LinkId,
        dialled: Option<WorkerId>,
        config: &SessionConfig,
        now: Time,
    ) -> Self {
        Self {
            id,
            peer: Peer {
                dialled,
                welcome: None,
                incarnation: 0,
                blind_hellos: 0,
                refused: None,
                goodbye: Goodbye::Unsaid,
            },
            phase: Phase::Down,
            pending: Unanswered::default(),
            parked: Parked::default(),
            put_off: PutOffs::default(),
            holds: Holdings::default(),
            credits: Credits::default(),
            answer_by: None,
            compares: Compares::new(now),
            times: Times {
                ttl: config.ttl,
                believed: limits::believed(config.ttl),
                valid_until: now,
                greeted: now,
                credited: now,
                renewed: now,
                renewing: None,
                settle_at: None,
                heard: now,
                fell: now,
                gained: None,
                round_trip: Duration::ZERO,
            },
            watch: None,
            stuck: None,
            unexpected: None,
            out: Vec::new(),
        }
    }

    /// The worker that it is to, once it is known.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        self.peer.dialled
    }

    /// Whether anything came from the worker of late.
    pub(crate) fn was_heard_within(&self, now: Time, span: Duration) -> bool {
        self.peer.incarnation > 0 && now < self.times.heard.after(span)
    }

    /// Whether a connection stands, welcomed or not.
    pub(crate) fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Whether a connection stands, and the worker has welcomed it.
    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// The real TTL of the session.
    pub(crate) fn ttl(&self) -> Duration {
        self.times.ttl
    }

    /// Until when holds are believed.
    pub(crate) fn valid_until(&self) -> Time {
        self.times.valid_until
    }

    /// Count and xor of what is held here.
    pub(crate) fn digest(&self) -> Digest {
        self.compares.digest
    }

    /// What is to be sent, to be taken.
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// The highest incarnation that our hellos have brought into force, or still may. 0: not known,
    /// as no hello with an incarnation was sent and none without one answered.
    pub(crate) fn incarnation(&self) -> u64 {
        let Peer { incarnation, blind_hellos, .. } = self.peer;
        if incarnation == 0 { 0 } else { incarnation.saturating_add(blind_hellos) }
    }

    /// Why the worker took no session when it was asked last, if it did not.
    pub(crate) fn turned_away(&self) -> Option<&Refusal> {
        self.peer.refused.as_ref()
    }

    /// What the worker said when it welcomed the session last.
    pub(crate) fn welcome(&self) -> Option<&Welcome> {
        self.peer.welcome.as_ref()
    }

    /// Whether the worker knows that the session is over.
    pub(crate) fn heard_goodbye(&self) -> bool {
        self.peer.goodbye == Goodbye::Heard
    }

    /// Opens a new connection: the hello is the first thing to send on it. `incarnation` is higher
    /// than that of any earlier connection of the session, or 0 to have the worker choose.
    pub(crate) fn greet(&mut self, shared: &mut Shared, now: Time, incarnation: u64) {
        assert!(self.phase == Phase::Down, "a link greets once a connection");
        self.phase = Phase::Greeting;
        self.peer.incarnation = incarnation;
        self.peer.blind_hellos += u64::from(incarnation == 0);
        self.out.clear();
        let hello = Hello {
            protocol: PROTOCOL,
            session: shared.config.session,
            incarnation,
            ttl_ms: shared.config.ttl.as_millis() as u64,
            ring_version: shared.version,
            ids_after: shared.ids.after(),
            label: &shared.config.label,
        };
        codec::encode_frame(&hello, &mut self.out);
        self.times.greeted = now;
    }
}

#[cfg(test)]
mod tests;
