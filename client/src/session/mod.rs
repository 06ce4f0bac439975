//! A session of a client, without I/O: its claims, the links by which they are made, and where each
//! goes. Time and randomness are arguments; the shell's task, the load generator and the simulator
//! drive the very same code: they carry bytes and dial when they are told to.
//!
//! - A claim belongs to the session. Which link its request leaves on is looked up when it leaves,
//!   by the cell of its key; when a newer ring gives the cell to another worker, the claim goes to
//!   the link there, under its own id, and nobody who waits for it has to know.
//! - A link ([`LinkId`]) is the session at one worker: connections come and go there, the lease is
//!   counted there. It is made when something is to be sent to its worker.
//!
//! A claim from its hello to its loss, with the worker's bytes made by hand:
//!
//! ```
//! use lockring_client::proto::{
//!     BootId, Claim, Fence, HelloReply, NodeAddress, NodeId, NodeInfo, Reply, RingChunk,
//!     SessionId, Time, Welcome, codec,
//! };
//! use lockring_client::ring::{CellBits, Epoch, RingTable, RingVersion};
//! use lockring_client::session::{
//!     Ask, ClaimRef, Dial, LinkId, Loss, NotGranted, Outcome, Query, ReceiveError, RequestIds,
//!     Session, SessionConfig,
//! };
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = SessionConfig {
//!     session: SessionId([7; 16]),
//!     ids: RequestIds::default(),
//!     taken_up: false,
//!     label: "example".to_owned(),
//!     ttl: Duration::from_secs(10),
//!     unreachable_after: Duration::from_secs(30),
//! };
//! let mut session = Session::new(config, Time(0), 4); // 4: chosen by a die
//! let Some(Dial { link, worker: None }) = session.next_dial(Time(0)) else { unreachable!() };
//! assert_eq!(link, LinkId::FIRST);
//! session.connected(Time(0), link); // the hello is in `session.outgoing(link)` now
//! let mut bytes = Vec::new();
//! let welcome = Welcome {
//!     protocol: 1, fresh: true, incarnation: 1, ttl_ms: 10_000, ring_version: 1, node: 1, boot: 1,
//!     worker: 0, namespace: "default".to_owned(),
//! };
//! codec::encode_frame(&HelloReply::Welcome(welcome), &mut bytes);
//! let taken: Result<usize, ReceiveError> = session.receive(Time(100), link, &bytes);
//! assert_eq!(taken?, bytes.len());
//!
//! // It has asked for the ring by itself, as its first request.
//! let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
//! let node = NodeInfo { id: NodeId(1), addresses, workers: 1, boot: BootId(1) };
//! let table = RingTable::founded(RingVersion(1), CellBits::new(1)?, node, Epoch(1))?;
//! let chunk = RingChunk::whole(&table).remove(0);
//! bytes.clear();
//! codec::encode_frame(&Reply::Ring { id: 1, chunk: Box::new(chunk) }, &mut bytes);
//! session.receive(Time(200), link, &bytes)?;
//! assert!(session.ring().is_some());
//!
//! let ask = Ask { token: 1, key: b"job", wanted: Claim::EXCLUSIVE, wait: None };
//! let asked: ClaimRef = session.acquire(Time(200), &ask);
//! bytes.clear();
//! let first = Fence::new(Epoch(1), 5);
//! codec::encode_frame(&Reply::Granted { id: 2, version: 1, fence: first }, &mut bytes);
//! session.receive(Time(300), link, &bytes)?;
//! session.query(Time(400), 2, Query::Inspect(b"job".to_vec().into()));
//!
//! // The node falls silent: the lease ends by this side's clock, and the query has no answer.
//! session.down(Time(500), link);
//! session.tick(Time(60_000_000));
//! for outcome in session.outcomes().drain(..) {
//!     match outcome {
//!         Outcome::Up { welcome, .. } => assert!(welcome.fresh),
//!         Outcome::Ring(ring) => assert_eq!(ring.version(), RingVersion(1)),
//!         Outcome::Granted { token, claim, fence, .. } => {
//!             assert_eq!((token, claim, fence), (1, asked, first));
//!         }
//!         Outcome::Lost { reason, .. } => assert_eq!(reason, Loss::Lapsed),
//!         Outcome::NoAnswer { token, .. } => assert_eq!(token, 2),
//!         Outcome::NotGranted { reason: NotGranted::Unreachable, .. } => unreachable!("granted"),
//!         other => unreachable!("{other:?}"),
//!     }
//! }
//! assert!(!session.is_held(asked));
//! # Ok(()) }
//! ```

mod calls;
mod dialling;
mod ending;
mod moves;
mod places;
mod search;

pub use crate::claims::{ClaimRef, LinkId, RequestIds};
#[cfg(feature = "testing")]
pub use crate::link::ClientMutant;
pub use crate::link::{Ask, Loss, NotGranted, Outcome, Place, Query, ReceiveError, SessionConfig};

use crate::link::{Ending, Link, Shared};
use crate::router::{Ring, WorkerId};
use dialling::Dialling;
use ending::Closing;
use lockring_proto::{Digest, RefusalKind, Time};
use lockring_ring::NamespaceSeed;
pub(crate) use places::{NoSuchWorker, Places, Search};
use std::sync::Arc;
use std::time::Duration;

/// A worker that is to be dialled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// For which link.
    pub link: LinkId,
    /// Which worker; `None`: any that the user has named.
    pub worker: Option<WorkerId>,
}

/// A link and how it comes to its connections.
struct Contact {
    link: Link,
    dialling: Dialling,
    /// The ring has no such worker, or it is left to its lease: nobody is dialled.
    gone: bool,
    stage: Stage,
    /// Its last hello had no incarnation, nor had it a worker, and nobody has answered.
    blind: bool,
}

/// What a number of a link is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    InUse,
    /// Its worker is gone, and the shell may not have heard it.
    Over,
    /// Another link may have it.
    Free,
}

impl Contact {
    fn new(id: LinkId, worker: Option<WorkerId>, config: &SessionConfig, now: Time) -> Self {
        let link = Link::new(id, worker, config, now);
        Self { link, dialling: Dialling::new(now), gone: false, stage: Stage::InUse, blind: false }
    }

    /// Nothing is sent or heard on it any more.
    fn is_over(&self) -> bool {
        self.stage != Stage::InUse
    }
}

/// No link goes to the worker of a cell yet.
const UNKNOWN: u16 = u16::MAX;

/// One session.
pub struct Session {
    shared: Shared,
    contacts: Vec<Contact>,
    /// By cell: the number of the link to its worker.
    links: Vec<u16>,
    /// Of the session's namespace, once that is known.
    seed: Option<NamespaceSeed>,
    random: u64,
    /// The highest incarnation of hellos that were sent before the link had a worker, and were not
    /// answered, or of links that are over: any worker may yet have had them.
    astray: u64,
    /// Hellos without an incarnation of links that had no worker yet, of which nobody has said
    /// which one they were given.
    blind: u64,
    /// Since when no link is up, once one was.
    alone_since: Option<Time>,
    closing: Option<Closing>,
    over: bool,
}

impl Session {
    /// A session that is to be begun at any worker. `random` keeps clients apart that would
    /// otherwise do the same at the same time.
    pub fn new(config: SessionConfig, now: Time, random: u64) -> Self {
        let mut session = Self {
            shared: Shared::new(config),
            contacts: Vec::new(),
            links: Vec::new(),
            seed: None,
            random: random | 1,
            astray: 0,
            blind: 0,
            alone_since: None,
            closing: None,
            over: false,
        };
        session.add_link(now, None);
        session
    }

    /// The session with a seeded bug.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<ClientMutant>) -> Self {
        self.shared.mutant = mutant;
        self
    }

    /// The session with another number of holds in a frame of a compare.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_holds_per_frame(mut self, holds: usize) -> Self {
        self.shared.set_holds_per_frame(holds);
        self
    }

    /// The session, which has its holds compared though both sides agree on them.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_needless_compares(mut self, needless: bool) -> Self {
        self.shared.needless_compares = needless;
        self
    }

    /// The session, for somebody else to go on with; what is left here has nothing.
    pub(crate) fn take_over(&mut self, now: Time) -> Self {
        let blank = Self::new(self.shared.config.clone(), now, self.random);
        std::mem::replace(self, blank)
    }

    fn add_link(&mut self, now: Time, worker: Option<WorkerId>) -> LinkId {
        let free = self.contacts.iter().position(|one| one.stage == Stage::Free);
        let number = free.unwrap_or(self.contacts.len());
        assert!(number < usize::from(UNKNOWN), "more links than a ring has workers");
        let id = LinkId::nth(number);
        let contact = Contact::new(id, worker, &self.shared.config, now);
        match self.contacts.get_mut(number) {
            Some(free) => *free = contact,
            None => self.contacts.push(contact),
        }
        id
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The link to a worker. It is made if there is none, and [`Session::next_dial`] says when the
    /// worker is to be dialled.
    pub fn link_to(&mut self, now: Time, worker: WorkerId) -> LinkId {
        let is_it = |one: &Contact| !one.is_over() && one.link.worker() == Some(worker);
        let known = self.contacts.iter().position(is_it);
        known.map_or_else(|| self.add_link(now, Some(worker)), LinkId::nth)
    }

    /// All of its links, in the order of their numbers; those that are over too.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<> {
        (0..self.contacts.len()).map(LinkId::nth)
    }

    /// The first link, for tests of what it does, and what it shares.
    #[cfg(test)]
    pub(crate) fn first(&mut self) -> (&mut Link, &mut Shared) {
        (&mut self.contacts[LinkId::FIRST.index()].link, &mut self.shared)
    }

    fn link(&self, at: LinkId) -> &Link {
        &self.contacts[at.index()].link
    }

    /// The worker of a link, once it is known.
    pub fn worker(&self, at: LinkId) -> Option<WorkerId> {
        self.link(at).worker()
    }

    /// Whether a connection of a link stands, and its worker has welcomed it.
    pub fn is_up(&self, at: LinkId) -> bool {
        self.link(at).is_up()
    }

    /// Whether the ring has no worker at the end of a link any more.
    pub fn is_retired(&self, at: LinkId) -> bool {
        self.contacts[at.index()].gone
    }

    /// The real TTL of the session, by a link's last welcome.
    pub fn ttl(&self, at: LinkId) -> Duration {
        self.link(at).ttl()
    }

    /// Until when a hold is believed; `None`: it is not held.
    pub fn believed(&self, claim: ClaimRef) -> Option<Time> {
        let claims = &self.shared.claims;
        let slot = claims.slot_of(claim).filter(|&slot| claims[slot].is_held())?;
        Some(self.link(claims[slot].link).believed(&claims[slot].tenure))
    }

    /// Until when holds are believed that are under the lease of a link.
    pub fn valid_until(&self, at: LinkId) -> Time {
        self.link(at).valid_until()
    }

    /// Count and xor of what is held on a link.
    pub fn digest(&self, at: LinkId) -> Digest {
        self.link(at).digest()
    }

    /// How long an answer took on a link of late, if that is too long to keep a lease of the
    /// session's TTL.
    pub fn slow_round_trip(&self, at: LinkId) -> Option<Duration> {
        let link = self.link(at);
        link.is_too_slow().then(|| link.round_trip())
    }

    /// Whether hellos of a link do not say which of the session's connections they begin, as
    /// another process has begun the session.
    pub fn is_blind(&self, at: LinkId) -> bool {
        self.shared.config.taken_up && self.link(at).incarnation() == 0
    }

    /// What is to be sent on a link, to be taken.
    pub fn outgoing(&mut self, at: LinkId) -> &mut Vec<u8> {
        self.contacts[at.index()].link.outgoing()
    }

    /// What happened since this was last emptied.
    pub fn outcomes(&mut self) -> &mut Vec<Outcome> {
        &mut self.shared.outcomes
    }

    /// The ring by which claims find their workers, once one is known.
    pub fn ring(&self) -> Option<&Arc<Ring>> {
        self.shared.ring.as_ref()
    }

    /// A worker that is to be dialled now; each is named once, until [`Session::connected`] or
    /// [`Session::failed`] says what came of it.
    pub fn next_dial(&mut self, now: Time) -> Option<Dial> {
        let is_due = |one: &Contact| one.dialling.due().is_some_and(|at| at <= now);
        let number = self.contacts.iter().position(|one| is_due(one) && self.needs(one))?;
        let contact = &mut self.contacts[number];
        contact.dialling.begins();
        Some(Dial { link: LinkId::nth(number), worker: contact.link.worker() })
    }

    /// A connection stands where a link was dialled: its hello is to be sent.
    pub fn connected(&mut self, now: Time, at: LinkId) {
        if self.contacts[at.index()].is_over() {
            return;
        }
        let outdone = self.to_outdo(at);
        let Contact { link, dialling, .. } = &mut self.contacts[at.index()];
        let incarnation = dialling.stands(link.incarnation(), outdone, self.shared.config.taken_up);
        link.greet(&mut self.shared, now, incarnation);
        let contact = &mut self.contacts[at.index()];
        contact.blind = incarnation == 0 && contact.is_search();
        self.blind += u64::from(contact.blind);
    }

    /// No connection could be had.
    pub fn failed(&mut self, now: Time, at: LinkId) {
        if self.contacts[at.index()].is_over() {
            return;
        }
        let random = self.draw();
        if self.contacts[at.index()].dialling.failed(now, random) {
            self.ask_around(now);
        }
    }

    /// A worker cannot be reached: the first worker of each node may know a ring without it.
    fn ask_around(&mut self, now: Time) {
        let Some(ring) = self.shared.ring.clone() else { return };
        for node in ring.nodes() {
            self.link_to(now, WorkerId { node: node.id, worker: 0 });
        }
    }

    /// The connection of a link is gone. Its lease runs on; unanswered requests wait for the next.
    pub fn down(&mut self, now: Time, at: LinkId) {
        let random = self.draw();
        let contact = &mut self.contacts[at.index()];
        if contact.is_over() {
            return;
        }
        if contact.link.worker().is_none() {
            self.astray = self.astray.max(contact.dialling.incarnation());
        }
        contact.link.down(&mut self.shared, now);
        contact.dialling.rests(now, random);
        self.note_company(now);
        self.pursue_ring(now);
    }

    /// Takes in what came on the request stream of a link; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub fn receive(&mut self, now: Time, at: LinkId, bytes: &[u8]) -> Result<usize, ReceiveError> {
        let contact = &mut self.contacts[at.index()];
        if contact.is_over() {
            return Ok(bytes.len());
        }
        let was_up = contact.link.is_up();
        let taken = contact.link.receive(&mut self.shared, now, bytes)?;
        if !was_up {
            self.greeted(now, at);
        }
        self.lose_told(now);
        self.take_ring(now);
        self.serve_parked(now, at);
        self.pursue_ring(now);
        Ok(taken)
    }

    /// Takes in what came on the push stream; says how many bytes were whole frames.
    ///
    /// # Errors
    /// When a node does not send such bytes: the connection is to be closed.
    pub fn receive_pushes(
        &mut self,
        now: Time,
        at: LinkId,
        bytes: &[u8],
    ) -> Result<usize, ReceiveError> {
        let contact = &mut self.contacts[at.index()];
        if contact.is_over() {
            return Ok(bytes.len());
        }
        let taken = contact.link.receive_pushes(&mut self.shared, now, bytes)?;
        self.lose_told(now);
        Ok(taken)
    }

    /// What has come of a hello, if it is answered.
    fn greeted(&mut self, now: Time, at: LinkId) {
        let contact = &mut self.contacts[at.index()];
        let is_answered = contact.link.is_up() || contact.link.turned_away().is_some();
        if is_answered && std::mem::take(&mut contact.blind) {
            self.blind = self.blind.saturating_sub(1);
        }
        if let (true, Some(welcome)) = (contact.link.is_up(), contact.link.welcome()) {
            self.seed.get_or_insert_with(|| NamespaceSeed::of(&welcome.namespace));
            contact.dialling.welcomed(now);
            self.met(now, at);
            self.note_company(now);
        } else if let (true, Some(refusal)) = (contact.link.is_down(), contact.link.turned_away()) {
            let refusal = refusal.clone();
            // Who is met while those of the ring are silent may be no node of theirs.
            let is_stranger = contact.is_search() && self.shared.ring.is_some();
            self.down(now, at);
            let passes = match refusal.kind {
                RefusalKind::Draining | RefusalKind::Quota | RefusalKind::Unavailable => true,
                RefusalKind::Superseded => false,
                _ => is_stranger,
            };
            if passes {
                self.shared.outcomes.push(Outcome::TurnedAway { link: at, refusal });
            } else if refusal.kind != RefusalKind::Superseded || !self.is_outdone_by_itself(at) {
                let superseded = refusal.kind == RefusalKind::Superseded;
                let loss = if superseded { Loss::Superseded } else { Loss::Refused };
                self.end_with(now, &Ending { loss, refusal: Some(refusal) });
            }
        }
    }

    /// When [`Session::tick`] or [`Session::next_dial`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let waits = self.shared.deadlines.first().map(|&(at, _)| at);
        let closing = self.closing.as_ref().map(Closing::due);
        let of_links = self.contacts.iter().filter(|one| !one.is_over()).filter_map(|one| {
            let dial = one.dialling.due().filter(|_| self.needs(one));
            [one.link.next_deadline(), dial].into_iter().flatten().min()
        });
        of_links.chain(waits).chain(closing).chain(self.search_due()).min()
    }

    /// Does what is due by itself: renews, times out, lapses, gives up.
    pub fn tick(&mut self, now: Time) {
        let Self { shared, contacts, .. } = self;
        for contact in &mut *contacts {
            contact.link.notice_lapse(shared, now);
        }
        while let Some(&(at, slot)) = shared.deadlines.first() {
            if at > now {
                break;
            }
            contacts[shared.claims[slot].link.index()].link.time_out(shared, now, slot);
        }
        for contact in contacts.iter_mut().filter(|one| !one.is_over()) {
            contact.link.tick(shared, now);
        }
        self.ask_backups(now);
        self.pursue_ring(now);
        self.search(now);
        for at in self.links() {
            if self.link(at).is_silent(now) {
                self.down(now, at);
                self.shared.outcomes.push(Outcome::Silent { link: at });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
