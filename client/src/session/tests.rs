//! Sessions of one and of several links, against workers made by hand.

use super::*;
use crate::router::Ring;
use lockring_proto::{
    BlockedReason, BootId, Claim, Fence, Hello, HelloReply, NodeAddress, NodeInfo, Operation,
    Reply, Request, RingChunk, SessionId, Welcome, codec,
};
use lockring_ring::{CellBits, Epoch, NodeId, RingTable, RingVersion};

mod answers;
mod ending;
mod moving;
mod retries;
mod rings;
mod searching;
mod world;

/// The node of these tests.
const NODE: NodeId = NodeId(1);
const CELLS: u32 = 16;

fn at(millis: u64) -> Time {
    Time(millis * 1000)
}

pub(crate) fn config(ttl: u64, patience: u64) -> SessionConfig {
    SessionConfig {
        session: SessionId([7; 16]),
        ids: RequestIds::default(),
        taken_up: false,
        label: "test".to_owned(),
        ttl: Duration::from_millis(ttl),
        unreachable_after: Duration::from_millis(patience),
    }
}

/// A ring of one node, which was started as often as `boot` says.
pub(crate) fn ring(version: u64, boot: u64, workers: u16) -> Arc<Ring> {
    let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
    let node = NodeInfo { id: NODE, addresses, workers, boot: BootId(boot) };
    let bits = CellBits::new(CELLS.ilog2() as u8).unwrap();
    let epoch = Epoch(boot as u32);
    let table = RingTable::founded(RingVersion(version), bits, node, epoch).unwrap();
    Arc::new(Ring::new(table).unwrap())
}

/// The key is held.
fn busy() -> BlockedReason {
    BlockedReason::Queue { waiters: 1 }
}

pub(crate) fn worker(worker: u16) -> WorkerId {
    WorkerId { node: NODE, worker }
}

/// A session that has met a node of this many workers before, and its first.
pub(crate) fn met(config: SessionConfig, workers: u16) -> Session {
    let mut session = Session::new(config, Time(0), 1);
    let link = Link::new(LinkId::FIRST, Some(worker(0)), &session.shared.config, Time(0));
    session.contacts[0].link = link;
    session.seed = Some(NamespaceSeed::of("default"));
    session.ring_is(Time(0), ring(1, 1, workers));
    session
}

pub(crate) fn welcome_of(session: &Session, at: LinkId, boot: u64, fresh: bool) -> Welcome {
    let contact = &session.contacts[at.index()];
    let met = contact.link.worker().unwrap_or(worker(0));
    Welcome {
        protocol: 1,
        fresh,
        incarnation: contact.link.incarnation().max(1),
        ttl_ms: session.shared.config.ttl.as_millis() as u64,
        // A life is known from the version of its number on.
        ring_version: session.shared.version.max(boot),
        node: met.node.0,
        boot,
        worker: met.worker,
        namespace: "default".to_owned(),
    }
}

pub(crate) fn hears(session: &mut Session, now: Time, at: LinkId, welcome: Welcome) {
    let mut bytes = Vec::new();
    codec::encode_frame(&HelloReply::Welcome(welcome), &mut bytes);
    session.receive(now, at, &bytes).unwrap();
}

/// The name of a claim that is held.
pub(crate) fn held_claim() -> ClaimRef {
    let mut session = met(config(10_000, 30_000), 1);
    session.acquire(Time(0), &Ask { token: 1, key: b"k", wanted: Claim::EXCLUSIVE, wait: None })
}

/// A node whose workers answer as they are told, one life after the other.
struct Lives {
    session: Session,
    now: Time,
    boot: u64,
    workers: u16,
    /// What came while something else was looked for.
    unread: Vec<Got>,
}

/// A keyed request, as a worker has got it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    link: LinkId,
    id: u64,
    version: u64,
    key: Vec<u8>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Acquire,
    Release(Fence),
    Cancel(u64),
    Confirm(Fence),
    /// Of what request has made.
    Reclaim(Fence, u64),
    Other,
}

const KEYS: [&[u8]; 12] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"j", b"k", b"l"];

impl Lives {
    fn begin(workers: u16) -> Self {
        let session = met(config(10_000, 30_000), workers);
        let (now, unread) = (at(1), Vec::new());
        let mut lives = Self { session, now, boot: 1, workers, unread };
        lives.connect_all(true);
        lives
    }

    /// Dials whoever is to be dialled, and has each welcome the session.
    fn connect_all(&mut self, fresh: bool) {
        while let Some(Dial { link, worker: met }) = self.session.next_dial(self.now) {
            assert!(met.is_none_or(|met| met.worker < self.workers), "{met:?} is no more");
            self.session.connected(self.now, link);
            self.session.outgoing(link).clear();
            let welcome = welcome_of(&self.session, link, self.boot, fresh);
            hears(&mut self.session, self.now, link, welcome);
        }
    }

    /// The node is killed, and comes back with this many workers.
    fn restart(&mut self, workers: u16) {
        for link in self.session.links() {
            self.session.down(self.now, link);
        }
        (self.boot, self.workers) = (self.boot + 1, workers);
        // The first worker is met first, and has the newer ring.
        self.now = self.now.after(Duration::from_secs(1));
        self.session.connected(self.now, LinkId::FIRST);
        self.session.outgoing(LinkId::FIRST).clear();
        let welcome = welcome_of(&self.session, LinkId::FIRST, self.boot, true);
        hears(&mut self.session, self.now, LinkId::FIRST, welcome);
        // What is sent to it by the older ring it does not carry out.
        for got in self.got() {
            self.says(got.link, &Reply::Moved { id: got.id, version: self.boot });
        }
        self.session.outgoing(LinkId::FIRST).clear();
        self.session.ring_is(self.now, ring(self.boot, self.boot, workers));
        self.connect_all(true);
        let is_claim = |got: &Got| matches!(got.what, What::Reclaim(..));
        let (reclaims, others): (Vec<_>, Vec<_>) = self.got().into_iter().partition(is_claim);
        for got in reclaims {
            self.says(got.link, &Reply::NotHeld { id: got.id, version: self.boot });
        }
        self.unread = others;
    }

    fn acquire(&mut self, token: u64, key: &[u8]) -> ClaimRef {
        let ask = Ask { token, key, wanted: Claim::EXCLUSIVE, wait: None };
        let claim = self.session.acquire(self.now, &ask);
        self.connect_all(true);
        claim
    }

    /// What has come to the workers.
    fn got(&mut self) -> Vec<Got> {
        let mut got = std::mem::take(&mut self.unread);
        for link in self.session.links() {
            let bytes = std::mem::take(self.session.outgoing(link));
            codec::decode_frames(&bytes, |request: Request<'_>| {
                let Request::Keyed { id, version, operation, key } = request else { return };
                let what = match operation {
                    Operation::Acquire { .. } => What::Acquire,
                    Operation::Release { fence } => What::Release(fence),
                    Operation::Cancel { target } => What::Cancel(target),
                    Operation::Confirm { fence } => What::Confirm(fence),
                    Operation::Reclaim { fence, request, .. } => What::Reclaim(fence, request),
                    _ => What::Other,
                };
                got.push(Got { link, id, version, key: key.to_vec(), what });
            })
            .unwrap();
        }
        got
    }

    fn says(&mut self, link: LinkId, reply: &Reply) {
        let mut bytes = Vec::new();
        codec::encode_frame(reply, &mut bytes);
        self.session.receive(self.now, link, &bytes).unwrap();
    }

    /// Grants a claim, under its id as the counter of its fence.
    fn grants(&mut self, got: &Got) {
        let (id, version) = (got.id, self.session.shared.version);
        self.says(got.link, &Reply::Granted { id, version, fence: self.fence(id) });
    }

    fn fence(&self, id: u64) -> Fence {
        Fence::new(Epoch(self.boot as u32), id)
    }

    fn told(&mut self) -> Vec<Outcome> {
        let told = std::mem::take(self.session.outcomes()).into_iter();
        let of_links = |told: &Outcome| {
            matches!(
                told,
                Outcome::Up { .. }
                    | Outcome::Ring(_)
                    | Outcome::Follows { .. }
                    | Outcome::Settled { .. }
                    | Outcome::LinkOver { .. }
            )
        };
        told.filter(|told| !of_links(told)).collect()
    }

    /// What waits is granted and given back.
    fn ends_well(&mut self, waiting: &[Got], claims: Vec<(u64, ClaimRef)>) {
        for got in waiting {
            self.grants(got);
        }
        for (token, claim) in claims {
            if self.session.is_held(claim) {
                assert!(self.session.release(self.now, claim, token));
            }
        }
        let given = self.got();
        self.is_routed(&given);
        assert_eq!(given.len(), waiting.len());
        for got in given {
            assert!(matches!(got.what, What::Release(_)));
            self.says(got.link, &Reply::Released { id: got.id, version: self.boot });
        }
        let released = self.told();
        let ended = |told: &&Outcome| matches!(told, Outcome::Released { .. });
        assert_eq!(released.iter().filter(ended).count(), waiting.len(), "{released:?}");
        for link in self.session.links() {
            assert_eq!(self.session.digest(link), Digest::default());
        }
    }

    /// Every claim is at the worker that grants for its cell.
    fn is_routed(&self, got: &[Got]) {
        for Got { link, key, .. } in got {
            let route = self.session.ring().unwrap().route(NamespaceSeed::of("default"), key);
            assert_eq!(self.session.worker(*link), Some(route.worker), "{key:?}");
        }
    }
}

/// Waiting claims are queued where their cells are now, each once and in the order in which they
/// were asked for; holds are lost, as a node that has restarted has no memory; and what follows,
/// goes by the same names.
#[test]
fn a_restart_with_other_workers_strands_no_claim() {
    let mut lives = Lives::begin(1);
    let mut token = 0;
    for workers in [2, 4, 1, 4, 2, 1, 1] {
        let claims: Vec<(u64, ClaimRef)> = KEYS
            .iter()
            .map(|key| {
                token += 1;
                (token, lives.acquire(token, key))
            })
            .collect();
        let asked = lives.got();
        lives.is_routed(&asked);
        assert_eq!(asked.len(), KEYS.len());
        // A half of them are held when the node is killed.
        let (held, waiting): (Vec<_>, Vec<_>) =
            asked.iter().cloned().partition(|got| got.key[0] % 2 == 0);
        for got in &held {
            lives.grants(got);
        }
        assert_eq!(lives.told().len(), held.len());
        let before = lives.workers;
        lives.restart(workers);
        let lost = lives.told();
        assert!(
            lost.iter()
                .all(|told| matches!(told, Outcome::Lost { reason: Loss::SessionEnded, .. })),
            "{lost:?}"
        );
        assert_eq!(lost.len(), held.len());
        let again = lives.got();
        lives.is_routed(&again);
        let mut names: Vec<&[u8]> = again.iter().map(|got| got.key.as_slice()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), again.len()), (waiting.len(), waiting.len()), "each once");
        assert!(again.iter().all(|got| got.version == lives.boot && got.what == What::Acquire));
        for link in lives.session.links() {
            let ids: Vec<u64> =
                again.iter().filter(|got| got.link == link).map(|got| got.id).collect();
            assert!(ids.is_sorted(), "in their order: {ids:?}");
        }
        if workers < before {
            // What was asked of workers that are gone keeps its id.
            for got in waiting.iter().filter(|got| got.link.index() >= usize::from(workers)) {
                assert!(again.iter().any(|now| (now.id, &now.key) == (got.id, &got.key)));
            }
        }
        lives.ends_well(&again, claims);
    }
}

/// What was being ended or shown when the node went is asked of the new worker, which knows.
#[test]
fn ends_and_tokens_follow_their_cells() {
    let mut lives = Lives::begin(4);
    let of_last = |lives: &Lives, key: &[u8]| {
        let route = lives.session.ring().unwrap().route(NamespaceSeed::of("default"), key);
        route.worker.worker == 3
    };
    let keys: Vec<&[u8]> = KEYS.into_iter().filter(|key| of_last(&lives, key)).collect();
    let [released, cancelled, shown] = keys[..3] else { panic!("{keys:?}") };
    let first = lives.acquire(1, released);
    let second = lives.acquire(2, cancelled);
    let got = lives.got();
    lives.grants(&got[0]);
    lives.told();
    assert!(lives.session.release(lives.now, first, 1));
    assert!(lives.session.cancel(lives.now, second));
    lives.session.adopt(lives.now, 3, shown, Fence(5));
    let before = lives.got();
    lives.restart(1);
    let after = lives.got();
    let of = |got: &[Got]| got.iter().map(|got| (got.id, got.what)).collect::<Vec<_>>();
    assert_eq!(of(&after), of(&before));
    assert_eq!(
        after.iter().map(|got| got.what).collect::<Vec<_>>(),
        [
            What::Release(Fence::new(Epoch(1), got[0].id)),
            What::Cancel(got[1].id),
            What::Confirm(Fence(5))
        ]
    );
    let version = lives.boot;
    lives.says(LinkId::FIRST, &Reply::NotHeld { id: after[0].id, version });
    lives.says(LinkId::FIRST, &Reply::Cancelled { id: after[1].id, version });
    lives.says(LinkId::FIRST, &Reply::NotHeld { id: after[2].id, version });
    let told = lives.told();
    let not_held = Outcome::NotHeld { token: 1, maybe_released: true };
    assert_eq!(told[..2], [not_held, Outcome::Cancelled { token: 2 }]);
    assert!(matches!(told[2], Outcome::NotGranted { token: 3, reason: NotGranted::NotHeld, .. }));
    // The worker that is gone is not dialled any more, and what it would still say means nothing.
    assert!(lives.session.is_retired(LinkId::nth(1)) || lives.session.links().count() == 2);
    assert_eq!(lives.session.next_dial(lives.now.after(Duration::from_secs(60))), None);
}

/// A cell that goes to another worker of a process that lives takes its holds along.
#[test]
fn a_hold_moves_with_its_cell_and_is_believed_no_longer_for_that() {
    let mut lives = Lives::begin(1);
    let claims: Vec<ClaimRef> = KEYS.iter().map(|key| lives.acquire(1, key)).collect();
    for got in lives.got() {
        lives.grants(&got);
    }
    lives.told();
    let (digest, valid) = (lives.session.digest(LinkId::FIRST), at(9000));
    lives.workers = 2;
    lives.session.ring_is(lives.now, ring(2, 1, 2));
    assert!(lives.told().is_empty());
    lives.connect_all(false);
    let other = LinkId::nth(1);
    let (one, two) = (lives.session.digest(LinkId::FIRST), lives.session.digest(other));
    assert_eq!(one.and(two), digest);
    assert!(one.count > 0 && two.count > 0);
    assert!(lives.session.valid_until(LinkId::FIRST) > valid, "as its last answer has it");
    for claim in claims {
        assert!(lives.session.release(lives.now, claim, 1));
    }
    let given = lives.got();
    lives.is_routed(&given);
    assert!(given.iter().any(|got| got.link == other));
}

/// A compare names how far it looks: no further than the first claim that is unanswered there, be
/// it older than all that the link has sent before.
#[test]
fn a_compare_looks_no_further_than_a_claim_that_has_come_from_another_link() {
    let mut lives = Lives::begin(2);
    let worker_of = |lives: &Lives, key: &[u8]| {
        lives.session.ring().unwrap().route(NamespaceSeed::of("default"), key).worker.worker
    };
    let first = *KEYS.iter().find(|key| worker_of(&lives, key) == 1).unwrap();
    let later = *KEYS.iter().find(|key| worker_of(&lives, key) == 0).unwrap();
    lives.acquire(1, first);
    lives.acquire(2, later);
    let old = lives.got().iter().map(|got| got.id).min().unwrap();
    lives.workers = 1;
    lives.session.ring_is(lives.now, ring(2, 1, 1));
    let moved = lives.got();
    assert_eq!((moved[0].id, moved[0].link), (old, LinkId::FIRST));
    let (link, shared) = lives.session.first();
    assert_eq!(link.settled_upto(shared), old - 1);
}

/// A ring of another cluster, or of a peer's making, changes nothing.
#[test]
fn a_ring_with_other_cells_is_refused() {
    let mut lives = Lives::begin(1);
    lives.acquire(1, b"k");
    let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
    let node = NodeInfo { id: NODE, addresses, workers: 1, boot: BootId(1) };
    let (version, bits) = (9, CellBits::new(1).unwrap());
    let table = RingTable::founded(RingVersion(version), bits, node, Epoch(1)).unwrap();
    let chunk = RingChunk::whole(&table).remove(0);
    let id = lives.got()[0].id;
    lives.says(LinkId::FIRST, &Reply::Moved { id, version });
    lives.says(LinkId::FIRST, &Reply::Ring { id: id + 1, chunk: Box::new(chunk) });
    let told = lives.told();
    assert!(matches!(told[..], [Outcome::BadRing(_)]), "{told:?}");
    assert_eq!(lives.session.ring().unwrap().version(), RingVersion(1));
}

#[test]
fn a_hello_that_came_to_whomever_is_older_than_any_that_follows() {
    let mut session = Session::new(config(10_000, 30_000), at(0), 1);
    let hello = |session: &mut Session, link: LinkId| {
        session.connected(at(1), link);
        let bytes = std::mem::take(session.outgoing(link));
        let (body, _) = codec::split_frame(&bytes).unwrap().unwrap();
        codec::decode_frame::<Hello<'_>>(body).unwrap().incarnation
    };
    // The second worker of those that the user has named may yet hear the first hello.
    assert_eq!(hello(&mut session, LinkId::FIRST), 1);
    session.down(at(1), LinkId::FIRST);
    assert_eq!(hello(&mut session, LinkId::FIRST), 2);
    let welcome = Welcome { incarnation: 2, ..welcome_of(&session, LinkId::FIRST, 1, true) };
    hears(&mut session, at(1), LinkId::FIRST, welcome);
    let second = session.link_to(at(1), worker(1));
    assert_eq!(hello(&mut session, second), 2);
    // Once the worker of a link is known, its hellos come to nobody else.
    session.down(at(1), LinkId::FIRST);
    let third = session.link_to(at(1), worker(2));
    assert_eq!((hello(&mut session, third), hello(&mut session, LinkId::FIRST)), (2, 3));
}

/// Asks for a ring that are to be sent.
fn ring_requests(lives: &mut Lives) -> Vec<u64> {
    let bytes = std::mem::take(lives.session.outgoing(LinkId::FIRST));
    let mut found = Vec::new();
    codec::decode_frames(&bytes, |request: Request<'_>| {
        if let Request::GetRing { id, .. } = request {
            found.push(id);
        }
    })
    .unwrap();
    found
}

/// A put-off claim is tried again, and the worker queues it now.
fn tried_again_and_queued(lives: &mut Lives, id: u64) {
    lives.now = lives.now.after(Duration::from_millis(200));
    lives.session.tick(lives.now);
    assert_eq!(lives.got().len(), 1, "it is tried again");
    lives.says(LinkId::FIRST, &Reply::Queued { id, ahead: 1, version: 1 });
    lives.told();
}

/// Worker and client do not know of the same ring for a moment; then the worker queues the claim.
#[test]
fn a_claim_that_is_queued_after_all_is_not_tried_again_or_given_up() {
    let mut lives = Lives::begin(1);
    lives.acquire(1, b"k");
    let id = lives.got()[0].id;
    lives.says(LinkId::FIRST, &Reply::Moved { id, version: 1 });
    tried_again_and_queued(&mut lives, id);
    lives.now = lives.now.after(Duration::from_millis(2100));
    lives.session.tick(lives.now);
    let (got, told) = (lives.got(), lives.told());
    assert!(got.is_empty() && told.is_empty(), "{got:?}, {told:?}");
}

/// The same where it was refused for the moment.
#[test]
fn a_claim_that_was_refused_and_is_queued_waits_on() {
    let mut lives = Lives::begin(1);
    lives.acquire(1, b"k");
    let id = lives.got()[0].id;
    let (kind, message) = (RefusalKind::Unavailable, "not now".to_owned());
    let refusal = Box::new(lockring_proto::Refusal { kind, message });
    lives.says(LinkId::FIRST, &Reply::Refused { id, refusal });
    tried_again_and_queued(&mut lives, id);
    lives.now = lives.now.after(Duration::from_secs(30));
    lives.session.tick(lives.now);
    let told = lives.told();
    assert!(!told.iter().any(|told| matches!(told, Outcome::NotGranted { .. })), "{told:?}");
}

/// A node that has restarted tells each of a thousand claims so.
#[test]
fn a_ring_is_asked_for_once_however_many_claims_wait_for_it() {
    let mut lives = Lives::begin(1);
    for key in 0..1000_u32 {
        lives.acquire(1, &key.to_le_bytes());
    }
    for got in lives.got() {
        lives.says(got.link, &Reply::Moved { id: got.id, version: 2 });
    }
    assert_eq!(ring_requests(&mut lives).len(), 1);
}

/// A node that answers a claim with what is none of its answers is found out.
#[test]
fn a_claim_that_is_answered_as_a_query_is_an_error() {
    let mut lives = Lives::begin(1);
    lives.acquire(1, b"k");
    let id = lives.got()[0].id;
    let mut bytes = Vec::new();
    codec::encode_frame(&Reply::Forced { id, version: 1, ended: 1 }, &mut bytes);
    let told = lives.session.receive(lives.now, LinkId::FIRST, &bytes);
    assert!(matches!(told, Err(ReceiveError::Unexpected(_))), "{told:?}");
}
