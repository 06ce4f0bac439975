//! The client's side of a link, without I/O: claims and holds of one session at one worker, their
//! lease, and what to send again when a connection breaks. The shell feeds it bytes and the time;
//! the simulator drives the very same code.
//!
//! Rules it keeps (see the design, section 6):
//! - the lease counts from the *send* of the last answered request, less drift;
//! - a hold that lapsed here is lost for good, and released there;
//! - a request is sent again only on a newer connection, under the same id, unless the worker says
//!   that it has no such link: then under a new id;
//! - a claim given up while unanswered is cancelled, and stays here until the worker confirms.
//!
//! A claim from its hello to its loss, with the worker's bytes made by hand:
//!
//! ```
//! use lockring_client::link::{
//!     Ask, ClaimRef, Link, LinkConfig, Loss, NotGranted, Outcome, Query, ReceiveError, RequestIds,
//! };
//! use lockring_client::proto::{Claim, Fence, HelloReply, Reply, SessionId, Time, Welcome, codec};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), ReceiveError> {
//! let config = LinkConfig {
//!     session: SessionId([7; 16]),
//!     ids: RequestIds::default(),
//!     label: "example".to_owned(),
//!     ttl: Duration::from_secs(10),
//!     unreachable_after: Duration::from_secs(30),
//! };
//! let mut link = Link::new(config, Time(0));
//! link.greet(Time(0), 1); // its bytes are in `link.outgoing()` now
//! let mut bytes = Vec::new();
//! let welcome = Welcome {
//!     protocol: 1, fresh: true, incarnation: 1, ttl_ms: 10_000, ring_version: 1, node: 1, boot: 1,
//!     worker: 0, namespace: "default".to_owned(),
//! };
//! codec::encode_frame(&HelloReply::Welcome(welcome), &mut bytes);
//! link.receive(Time(100), &bytes)?;
//! assert!(link.is_up());
//!
//! let ask = Ask { token: 1, cell: 0, key: b"job", wanted: Claim::EXCLUSIVE, wait: None };
//! let asked: ClaimRef = link.acquire(Time(200), &ask);
//! let id = 1; // the session's first request
//! bytes.clear();
//! codec::encode_frame(&Reply::Granted { id, version: 1, fence: Fence(5) }, &mut bytes);
//! link.receive(Time(300), &bytes)?;
//! link.query(Time(400), 2, Query::Inspect(b"job".to_vec().into()));
//!
//! // The node falls silent: the lease ends by this side's clock, and the query has no answer.
//! link.down(Time(500));
//! link.tick(Time(60_000_000));
//! for outcome in link.outcomes().drain(..) {
//!     match outcome {
//!         Outcome::Up(welcome) => assert!(welcome.fresh),
//!         Outcome::Granted { token, claim, fence } => {
//!             assert_eq!((token, claim, fence), (1, asked, Fence(5)));
//!         }
//!         Outcome::Lost { reason, .. } => assert_eq!(reason, Loss::Lapsed),
//!         Outcome::NoAnswer { token } => assert_eq!(token, 2),
//!         Outcome::NotGranted { reason: NotGranted::Unreachable, .. } => unreachable!("granted"),
//!         other => unreachable!("{other:?}"),
//!     }
//! }
//! assert!(!link.is_held(asked));
//! # Ok(()) }
//! ```

mod claims;
mod compare;
mod key;
mod lease;
mod outcome;
mod replies;
mod resend;

pub use claims::{Ask, Place, Query};
pub(crate) use key::Key;
pub use outcome::{Loss, NotGranted, Outcome};
pub use replies::ReceiveError;

use claims::{Claim, Pending};
use hashbrown::HashMap;
use lease::PutOff;
use lockring_proto::{Digest, Hello, HoldId, PROTOCOL, SessionId, Time, codec, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Names a claim of a link. A stale one is harmless: it names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimRef {
    slot: u32,
    generation: u32,
}

impl ClaimRef {
    /// Its place among the claims of its link, which another takes when it is over.
    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A seeded bug of the client's side.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkMutant {
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

/// Numbers the requests of a session, over all of its links: an id is never used twice.
#[derive(Clone, Debug, Default)]
pub struct RequestIds(Arc<AtomicU64>);

impl RequestIds {
    /// Those of a session that another process has used before: they begin at a place of their own,
    /// chosen by `random`. A request under an id of that process's would be taken for its copy.
    pub fn of_heir(random: u64) -> Self {
        const FIRST: u64 = 1 << 30;
        const LAST: u64 = limits::REQUEST_ID_MAX / 2;
        Self(Arc::new(AtomicU64::new(FIRST + random % (LAST - FIRST))))
    }

    /// Ids from a number on, for tests that come near the end of one.
    #[cfg(feature = "testing")]
    pub fn from(first: u64) -> Self {
        Self(Arc::new(AtomicU64::new(first)))
    }

    fn next(&self) -> u64 {
        // Only uniqueness matters, and ids of one link ascend as one task takes them.
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What a link is made with.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// The session.
    pub session: SessionId,
    /// Its request ids.
    pub ids: RequestIds,
    /// Who this is, for people.
    pub label: String,
    /// The TTL to ask for.
    pub ttl: Duration,
    /// Claims fail after this long without contact.
    pub unreachable_after: Duration,
}

/// Which cells a worker grants for.
pub type Serves = Arc<dyn Fn(u16) -> bool + Send + Sync>;

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

/// The client's side of one link.
pub struct Link {
    config: LinkConfig,
    #[cfg(feature = "testing")]
    mutant: Option<LinkMutant>,
    /// The node and worker that this link is to; `None`: whoever answers.
    dialled: Option<(u32, u16)>,
    phase: Phase,
    incarnation: u64,
    /// Hellos without an incarnation that were not answered. One may still arrive, and raise the
    /// incarnation in force above that of a later welcome.
    blind_hellos: u64,
    /// The real TTL, from the last welcome.
    ttl: Duration,
    /// The ring version that requests are routed by.
    version: u64,
    /// A newer ring was asked for.
    ring_wanted: u64,
    claims: Vec<Claim>,
    free: Vec<u32>,
    pending: HashMap<u64, Pending, BuildHasherDefault<IdHasher>>,
    /// Requests that wait for a newer ring.
    parked: Vec<u64>,
    /// Which cells are this worker's, by the ring of `version`.
    serves: Serves,
    /// Claims, by slot, that the worker refused for now.
    put_off: BTreeMap<u32, PutOff>,
    /// While there is no connection: when the first caller's patience for an answer is over.
    answer_by: Option<Time>,
    /// Claims with a deadline of their own.
    deadlines: BTreeSet<(Time, u32)>,
    digest: Digest,
    /// What was held when the unanswered renewal was sent, or granted since, and is not held any
    /// more: the worker may have had it when it took the renewal in.
    ended_since_renewal: Digest,
    /// Renewals in a row whose digest was another.
    mismatches: u32,
    /// How far the last compare of this connection looked.
    compared_upto: u64,
    /// When it was sent.
    compared: Time,
    /// Until then the worker keeps what an earlier process of the session may still believe in, if
    /// there was one.
    spared_until: Time,
    /// Told as lost before they were told as granted, and when: the two come on different streams.
    lost_early: BTreeMap<HoldId, Time>,
    /// Holds are believed until then; no later than any hold's own.
    valid_until: Time,
    /// Send time of the hello.
    greeted: Time,
    /// Send time of the newest answered request.
    credited: Time,
    /// Send time of the newest answered renewal.
    renewed: Time,
    /// The last time anything was heard.
    heard: Time,
    /// When the last connection ended.
    fell: Time,
    /// How long an answer took, the slowest of late.
    round_trip: Duration,
    /// Send time of a renewal that is unanswered.
    renewing: Option<Time>,
    /// Unanswered frames of a compare.
    comparing: u32,
    holds_per_frame: usize,
    /// What a worker said that no worker says: the connection is to be closed.
    unexpected: Option<String>,
    out: Vec<u8>,
    outcomes: Vec<Outcome>,
}

impl Link {
    /// A link that is down.
    pub fn new(config: LinkConfig, now: Time) -> Self {
        Self {
            ttl: config.ttl,
            config,
            #[cfg(feature = "testing")]
            mutant: None,
            dialled: None,
            phase: Phase::Down,
            incarnation: 0,
            blind_hellos: 0,
            version: 0,
            ring_wanted: 0,
            claims: Vec::new(),
            free: Vec::new(),
            pending: HashMap::default(),
            parked: Vec::new(),
            serves: Arc::new(|_| true),
            put_off: BTreeMap::new(),
            answer_by: None,
            deadlines: BTreeSet::new(),
            digest: Digest::default(),
            ended_since_renewal: Digest::default(),
            mismatches: 0,
            compared_upto: 0,
            compared: now,
            spared_until: now,
            lost_early: BTreeMap::new(),
            valid_until: now,
            greeted: now,
            credited: now,
            renewed: now,
            heard: now,
            fell: now,
            round_trip: Duration::ZERO,
            unexpected: None,
            renewing: None,
            comparing: 0,
            holds_per_frame: limits::HOLDS_PER_FRAME,
            out: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// The link with a seeded bug.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<LinkMutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// The link with another number of holds in a frame of a compare.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_holds_per_frame(mut self, holds: usize) -> Self {
        self.holds_per_frame = holds;
        self
    }

    /// From now on a welcome of another worker than this one is refused: a port may have become
    /// another's.
    pub fn is_to(&mut self, node: u32, worker: u16) {
        self.dialled = Some((node, worker));
    }

    /// The link, for somebody else to go on with; what is left here has nothing.
    pub(crate) fn take_over(&mut self, now: Time) -> Self {
        let blank = Self::new(self.config.clone(), now);
        std::mem::replace(self, blank)
    }

    /// Whether anything came from the worker of late.
    pub(crate) fn was_heard_within(&self, now: Time, span: Duration) -> bool {
        self.incarnation > 0 && now < self.heard.after(span)
    }

    /// Whether a connection stands.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// The real TTL of the session.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Until when holds are believed.
    pub fn valid_until(&self) -> Time {
        self.valid_until
    }

    /// Count and xor of what is held here.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What is to be sent, to be taken.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What happened since this was last emptied.
    pub fn outcomes(&mut self) -> &mut Vec<Outcome> {
        &mut self.outcomes
    }

    /// The ring version that requests are routed by.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The highest incarnation that our hellos have brought into force, or still may. 0: not known,
    /// as no hello with an incarnation was sent and none without one answered.
    pub fn incarnation(&self) -> u64 {
        if self.incarnation == 0 { 0 } else { self.incarnation.saturating_add(self.blind_hellos) }
    }

    /// Opens a new connection: the hello is the first thing to send on it. `incarnation` is higher
    /// than that of any earlier connection of the session, or 0 to have the worker choose.
    pub fn greet(&mut self, now: Time, incarnation: u64) {
        assert!(self.phase == Phase::Down, "a link greets once a connection");
        self.phase = Phase::Greeting;
        self.incarnation = incarnation;
        self.blind_hellos += u64::from(incarnation == 0);
        self.out.clear();
        let hello = Hello {
            protocol: PROTOCOL,
            session: self.config.session,
            incarnation,
            ttl_ms: self.config.ttl.as_millis() as u64,
            ring_version: self.version,
            label: &self.config.label,
        };
        codec::encode_frame(&hello, &mut self.out);
        self.greeted = now;
    }
}

#[cfg(test)]
mod tests;
