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
mod lease;
mod outcome;
mod replies;
mod resend;
mod travel;

pub use claims::{Ask, Place, Query};
pub(crate) use lease::Ending;
pub use outcome::{Loss, NotGranted, Outcome};
pub use replies::ReceiveError;

use crate::claims::{Claims, LinkId, RequestIds};
use crate::router::{Ring, RingError, RingUnderWay, WorkerId};
use claims::Pending;
use compare::Compares;
use hashbrown::HashMap;
use lease::PutOff;
use lockring_proto::{
    Digest, Hello, HoldId, PROTOCOL, Refusal, SessionId, Time, Welcome, codec, limits,
};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

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
    /// The version of the ring by which claims are at their links.
    pub(crate) version: u64,
    pub(crate) outcomes: Vec<Outcome>,
    holds_per_frame: usize,
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
            version: 0,
            outcomes: Vec::new(),
            holds_per_frame: limits::HOLDS_PER_FRAME,
            #[cfg(feature = "testing")]
            mutant: None,
        }
    }

    /// From now on a frame of a compare has so many holds.
    #[cfg(feature = "testing")]
    pub(crate) fn set_holds_per_frame(&mut self, holds: usize) {
        self.holds_per_frame = holds;
    }
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
    /// The last time anything was heard.
    heard: Time,
    /// When the last connection ended.
    fell: Time,
    /// How long an answer took, the slowest of late.
    round_trip: Duration,
}

/// The ring that the worker sends.
#[derive(Default)]
struct RingFrom {
    /// A ring of this version was asked for.
    wanted: u64,
    /// That is still unanswered.
    asked: bool,
    under_way: RingUnderWay,
    /// What has come of it, once that is known.
    come: Option<Result<Ring, RingError>>,
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
    pending: HashMap<u64, Pending, BuildHasherDefault<IdHasher>>,
    /// Requests that wait for a newer ring.
    parked: BTreeSet<u64>,
    /// Claims, by slot, that the worker refused for now.
    put_off: BTreeMap<u32, PutOff>,
    /// While there is no connection: when the first caller's patience for an answer is over.
    answer_by: Option<Time>,
    ring: RingFrom,
    compares: Compares,
    /// Told as lost before they were told as granted, and when: the two come on different streams.
    lost_early: BTreeMap<HoldId, Time>,
    times: Times,
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
            pending: HashMap::default(),
            parked: BTreeSet::new(),
            put_off: BTreeMap::new(),
            answer_by: None,
            ring: RingFrom::default(),
            compares: Compares::new(now),
            lost_early: BTreeMap::new(),
            times: Times {
                ttl: config.ttl,
                believed: limits::believed(config.ttl),
                valid_until: now,
                greeted: now,
                credited: now,
                renewed: now,
                renewing: None,
                heard: now,
                fell: now,
                round_trip: Duration::ZERO,
            },
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

    /// A ring that has come, or what has come instead.
    pub(crate) fn take_ring(&mut self) -> Option<Result<Ring, RingError>> {
        self.ring.come.take()
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
            label: &shared.config.label,
        };
        codec::encode_frame(&hello, &mut self.out);
        self.times.greeted = now;
    }
}

#[cfg(test)]
mod tests;
