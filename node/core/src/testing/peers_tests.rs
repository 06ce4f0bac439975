//! What a peer may say, and what a node does without a lease: one owner and one copy, by hand.

mod answers;
mod awaiting;
mod cases;
mod costs;
mod late;
mod promoted;
mod recovery;
mod silent;
mod successors;
mod takeovers;

use super::Rng;
use super::view_tests::config;
use crate::{
    Access, Action, ClusterEvent, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine,
    Mutant, PeerWorker,
};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Reply, Request, SessionId, Time, Wait,
    limits,
};
use lockring_ring::{
    AttachId, BootId, CellBits, CellId, Epoch, Member, Membership, NamespaceSeed, NodeId,
    RingVersion,
};
use std::collections::BTreeMap;
use std::time::Duration;

const OWNER: PeerWorker = PeerWorker { node: NodeId(1), boot: BootId(1), worker: 0 };
const COPY: PeerWorker = PeerWorker { node: NodeId(2), boot: BootId(2), worker: 0 };
const THIRD: PeerWorker = PeerWorker { node: NodeId(3), boot: BootId(3), worker: 0 };
const CELLS: [CellId; 2] = [CellId(0), CellId(1)];

fn member(peer: PeerWorker) -> Member {
    Member { node: peer.node, boot: peer.boot, attach: AttachId(u64::from(peer.node.0)) }
}

fn membership(epoch: u32, owner: PeerWorker, backups: &[PeerWorker]) -> Membership {
    Membership {
        epoch: Epoch(epoch),
        since: RingVersion(u64::from(epoch)),
        owner: member(owner),
        backups: backups.iter().map(|&peer| member(peer)).collect(),
        learner: None,
        grace: None,
    }
}

fn client() -> Identity {
    Identity {
        namespace: Namespace::default(),
        name: "client".to_owned(),
        access: Access::User,
        ttl_max: limits::TTL_MAX,
    }
}

fn operator() -> Identity {
    Identity { name: "operator".to_owned(), access: Access::Operator, ..client() }
}

fn config_of(its: PeerWorker) -> Config {
    Config { node: its.node.0, boot: its.boot.0, ..config(Limits::default()) }
}

/// A worker of a node, and what it has said and not been asked for yet.
struct Worker {
    machine: Machine,
    now: Time,
    said: Vec<Action>,
    links: BTreeMap<ConnId, LinkIndex>,
    id: u64,
}

impl Worker {
    fn new(its: PeerWorker, mutant: Option<Mutant>) -> Self {
        Self::made(its, mutant, Limits::default())
    }

    fn with_limits(its: PeerWorker, limits: Limits) -> Self {
        Self::made(its, None, limits)
    }

    fn made(its: PeerWorker, mutant: Option<Mutant>, limits: Limits) -> Self {
        let others = CELLS.into_iter().collect();
        Self::of(its, mutant, Config { others, limits, ..config_of(its) })
    }

    fn of(its: PeerWorker, mutant: Option<Mutant>, config: Config) -> Self {
        let machine = Machine::new(config, Time(0)).with_mutant(mutant);
        let mut it =
            Self { machine, now: Time(0), said: Vec::new(), links: BTreeMap::new(), id: 0 };
        for peer in [OWNER, COPY] {
            it.cluster(ClusterEvent::Node { node: peer.node, boot: peer.boot, workers: 1 });
        }
        it.cluster(ClusterEvent::PeerConnected(if its == OWNER { COPY } else { OWNER }));
        it
    }

    fn run(&mut self, event: Event<'_>) -> usize {
        let taken = self.machine.handle(self.now, event, &mut self.said);
        for action in &self.said {
            if let Action::Welcome { conn, link, .. } = action {
                self.links.insert(*conn, *link);
            }
        }
        taken
    }

    fn cluster(&mut self, event: ClusterEvent<'_>) {
        self.run(Event::Cluster(event));
    }

    fn become_one(&mut self, cell: CellId, its: &Membership) {
        self.become_of(&[cell], its);
    }

    fn become_all(&mut self, its: &Membership) {
        self.become_of(&CELLS, its);
    }

    /// All slices at once.
    fn become_of(&mut self, cells: &[CellId], its: &Membership) {
        let changed: Vec<_> = cells.iter().map(|&cell| (cell, Some(its.clone()))).collect();
        let mut rest = &changed[..];
        while !rest.is_empty() {
            let part = ClusterEvent::Memberships { changed: rest, version: its.since };
            rest = &rest[self.run(Event::Cluster(part))..];
        }
    }

    fn hello(&mut self, session: u8, incarnation: u64) {
        self.open(session, incarnation, &client());
    }

    fn open(&mut self, session: u8, incarnation: u64, identity: &Identity) {
        self.open_with(session, (incarnation, 0), identity);
    }

    /// A hello of a process that numbers its requests from above this.
    fn open_with(&mut self, session: u8, process: (u64, u64), identity: &Identity) {
        self.open_on(u64::from(session), session, process, identity);
    }

    /// The same, on a connection of its own.
    fn open_on(
        &mut self,
        conn: u64,
        session: u8,
        (incarnation, ids_after): (u64, u64),
        identity: &Identity,
    ) {
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([session; 16]),
            incarnation,
            ttl_ms: 10_000,
            ring_version: 1,
            ids_after,
            label: "",
        };
        self.run(Event::Opened { conn: ConnId(conn), identity, hello });
    }

    fn ask(&mut self, session: u8, key: &[u8], operation: Operation<'_>) -> u64 {
        self.id += 1;
        let version = self.machine.version().0;
        let requests = [Request::Keyed { id: self.id, version, operation, key }];
        self.give(session, &requests);
        self.id
    }

    /// A turn with requests of a session.
    fn give(&mut self, session: u8, requests: &[Request<'_>]) -> usize {
        let conn = ConnId(u64::from(session));
        self.run(Event::Requests { conn, link: self.links[&conn], requests })
    }

    /// Ticks as it wants to be, until then.
    fn walk(&mut self, until: Time) {
        while let Some(at) = self.machine.next_deadline().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.run(Event::Tick);
            self.flush();
        }
        self.now = until;
    }

    /// Takes out what it has said of a kind.
    fn take<T>(&mut self, of: impl Fn(&Action) -> Option<T>) -> Vec<T> {
        self.said.extract_if(.., |said| of(said).is_some()).filter_map(|said| of(&said)).collect()
    }

    fn acquire(&mut self, session: u8, key: &[u8], wait: Wait) -> u64 {
        self.ask(session, key, Operation::Acquire { claim: Claim::EXCLUSIVE, wait })
    }

    fn flush(&mut self) {
        self.cluster(ClusterEvent::Flush);
    }

    /// The messages for peers since this was last asked.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        self.flush();
        let is_message = |action: &mut Action| matches!(action, Action::Peer { .. });
        let messages = self.said.extract_if(.., is_message);
        let bytes = |action| match action {
            Action::Peer { bytes, .. } => bytes.to_vec(),
            other => panic!("{other:?}"),
        };
        messages.map(bytes).collect()
    }

    /// The messages for one of several peers since this was last asked.
    fn messages_for(&mut self, peer: PeerWorker) -> Vec<Vec<u8>> {
        self.flush();
        self.take(|said| match said {
            Action::Peer { peer: to, bytes } if *to == peer => Some(bytes.to_vec()),
            _ => None,
        })
    }

    fn hears(&mut self, peer: PeerWorker, messages: &[Vec<u8>]) {
        for bytes in messages {
            self.cluster(ClusterEvent::Peer { peer, bytes });
        }
    }

    /// The answers since this was last asked.
    fn answers(&mut self) -> Vec<Reply> {
        let is_reply = |action: &mut Action| matches!(action, Action::Reply { .. });
        let replies = self.said.extract_if(.., is_reply);
        let reply = |action| match action {
            Action::Reply { reply, .. } => reply,
            other => panic!("{other:?}"),
        };
        replies.map(reply).collect()
    }
}

fn key_in(worker: &Worker, cell: CellId, n: usize) -> Vec<u8> {
    let keys = (0..10_000).map(|i| format!("k{i}").into_bytes());
    keys.filter(|key| worker.machine.cell_of("default", key) == cell).nth(n).unwrap()
}

/// Both, at rest.
fn pair(mutant: Option<Mutant>) -> (Worker, Worker) {
    let (mut owner, mut copy) = (Worker::new(OWNER, mutant), Worker::new(COPY, mutant));
    let its = membership(2, OWNER, &[COPY]);
    owner.become_all(&its);
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    owner.hello(7, 1);
    (owner, copy)
}

fn settle(owner: &mut Worker, copy: &mut Worker) {
    for _ in 0..10 {
        let frames = owner.messages();
        copy.hears(OWNER, &frames);
        let acks = copy.messages();
        owner.hears(COPY, &acks);
    }
}

/// The connection breaks, and another stands: all that is under way is lost, unless it is late.
fn reconnect(owner: &mut Worker, copy: &mut Worker) {
    owner.cluster(ClusterEvent::PeerLost(COPY));
    copy.cluster(ClusterEvent::PeerLost(OWNER));
    owner.cluster(ClusterEvent::PeerConnected(COPY));
    copy.cluster(ClusterEvent::PeerConnected(OWNER));
}

/// An owner and both of its copies, which have heard nothing yet.
fn three() -> (Worker, Worker, Worker) {
    let mut owner = Worker::new(OWNER, None);
    owner.cluster(ClusterEvent::Node { node: THIRD.node, boot: THIRD.boot, workers: 1 });
    owner.cluster(ClusterEvent::PeerConnected(THIRD));
    owner.hello(7, 1);
    (owner, Worker::new(COPY, None), Worker::new(THIRD, None))
}

/// What an owner has for one of its copies comes, and so does what that says to it.
fn goes_round(owner: &mut Worker, copy: &mut Worker, peer: PeerWorker) {
    copy.hears(OWNER, &owner.messages_for(peer));
    owner.hears(peer, &copy.messages());
}

fn settle_three(owner: &mut Worker, copy: &mut Worker, third: &mut Worker) {
    for _ in 0..5 {
        goes_round(owner, copy, COPY);
        goes_round(owner, third, THIRD);
    }
}

fn is_granted(replies: &[Reply], of: u64) -> bool {
    matches!(replies, [Reply::Granted { id, .. }] if *id == of)
}

#[test]
fn an_answer_waits_for_the_copy_and_a_lease() {
    let (mut owner, mut copy) = pair(None);
    let id = owner.acquire(7, b"key", Wait::No);
    assert_eq!(owner.answers(), []);
    let frames = owner.messages();
    assert_eq!((frames.len(), owner.answers()), (1, vec![]));
    copy.hears(OWNER, &frames);
    let acks = copy.messages();
    owner.hears(COPY, &acks);
    assert!(is_granted(&owner.answers(), id));
    // A read waits for a frame of its own, though nothing has changed.
    let busy = owner.acquire(7, b"key", Wait::No);
    assert_eq!((busy, owner.answers()), (2, vec![]));
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers().len(), 1);
    // Past the lease nothing leaves, whatever is acknowledged; and then it does.
    owner.cluster(ClusterEvent::Lease(Time(0).after(Duration::from_secs(3))));
    let late = owner.acquire(7, b"late", Wait::No);
    owner.now = Time(0).after(Duration::from_secs(3));
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers(), []);
    assert!(owner.machine.takes_nothing_on());
    owner.hello(8, 1);
    assert!(matches!(owner.said.pop(), Some(Action::Refuse { .. })));
    owner.acquire(7, b"later", Wait::No);
    owner.cluster(ClusterEvent::Lease(Time(0).after(Duration::from_secs(6))));
    assert!(is_granted(&owner.answers(), late), "what was not taken leaves no trace");
    assert!(!owner.machine.takes_nothing_on());
}

#[test]
fn a_former_owner_that_asks_last_does_not_keep_the_owner_waiting() {
    const FORMER: PeerWorker = PeerWorker { node: NodeId(3), boot: BootId(3), worker: 0 };
    let (mut former, mut owner) = (Worker::new(FORMER, None), Worker::new(OWNER, None));
    let mut copy = Worker::new(COPY, None);
    former.cluster(ClusterEvent::PeerConnected(COPY));
    former.become_all(&membership(2, FORMER, &[COPY]));
    let its = membership(3, OWNER, &[COPY]);
    owner.become_all(&its);
    owner.hello(7, 1);
    // The copy knows of neither yet.
    let id = owner.acquire(7, b"key", Wait::No);
    copy.hears(OWNER, &owner.messages());
    owner.hears(COPY, &copy.messages());
    copy.hears(FORMER, &former.messages());
    assert_eq!(copy.messages().len(), 1, "the former owner is refused, too");
    copy.become_all(&its);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
}

#[test]
fn a_copy_forgets_links_of_which_it_has_nothing() {
    let (mut owner, mut copy) = pair(None);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    copy.machine.audit().unwrap();
    // The owner hears at once that the copy had left and come back.
    copy.become_all(&membership(2, OWNER, &[]));
    copy.machine.audit().unwrap();
    copy.become_all(&membership(3, OWNER, &[COPY]));
    owner.become_all(&membership(3, OWNER, &[COPY]));
    owner.answers();
    let id = owner.acquire(7, b"other", Wait::No);
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id), "a link that is named is told again");
    copy.machine.audit().unwrap();
}

#[test]
fn a_copy_without_a_lease_takes_nothing_until_it_has_one() {
    let (mut owner, mut copy) = pair(None);
    copy.cluster(ClusterEvent::Lease(Time(0)));
    let id = owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    assert_eq!(owner.answers(), []);
    copy.cluster(ClusterEvent::Lease(Time::NEVER));
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
    assert_eq!(owner.machine.contents(CELLS[0], false), copy.machine.contents(CELLS[0], true));
    assert_eq!(owner.machine.contents(CELLS[1], false), copy.machine.contents(CELLS[1], true));
}

#[test]
fn without_a_lease_an_answer_would_leave() {
    let (mut owner, mut copy) = pair(Some(Mutant::AnswerPastLease));
    let id = owner.acquire(7, b"key", Wait::No);
    owner.cluster(ClusterEvent::Lease(Time(0)));
    settle(&mut owner, &mut copy);
    assert!(is_granted(&owner.answers(), id));
}

/// What was answered to an owner's client is honoured by the next owner for as long as the client
/// may believe in it: its TTL, and a node lease of the owner before, who may still answer renewals.
fn honoured_after_promotion(mutant: Option<Mutant>) -> Duration {
    let (mut owner, mut copy) = pair(mutant);
    owner.acquire(7, b"key", Wait::No);
    settle(&mut owner, &mut copy);
    copy.become_all(&membership(3, COPY, &[]));
    copy.hello(8, 1);
    copy.acquire(8, b"key", Wait::Forever);
    assert!(matches!(copy.answers()[..], [Reply::Queued { .. }]));
    loop {
        copy.now = copy.now.after(Duration::from_millis(20));
        if copy.now.0 % 1_000_000 == 0 {
            // The second session renews.
            copy.ask(8, b"other", Operation::Inspect { namespace: "" });
            copy.answers();
        }
        copy.run(Event::Tick);
        if copy.answers().iter().any(|reply| matches!(reply, Reply::Granted { .. })) {
            return copy.now.since(Time(0));
        }
    }
}

#[test]
fn an_inherited_hold_has_a_node_lease_more() {
    let least = limits::honoured(limits::TTL_DEFAULT + limits::NODE_LEASE);
    let took = honoured_after_promotion(None);
    assert!(took >= least && took < least + Duration::from_secs(1), "{took:?} of {least:?}");
    assert!(honoured_after_promotion(Some(Mutant::InheritedWithoutNodeLease)) < least);
}

#[test]
fn deposed_with_answers_withheld_the_owner_sends_clients_on() {
    let (mut owner, mut copy) = pair(None);
    let granted = owner.acquire(7, b"key", Wait::No);
    let frames = owner.messages();
    owner.become_all(&membership(3, COPY, &[]));
    assert!(matches!(owner.answers()[..], [Reply::Moved { id, .. }] if id == granted));
    // The frame came all the same: the hold went with the cell, and a retry finds it.
    copy.hears(OWNER, &frames);
    copy.become_all(&membership(3, COPY, &[]));
    copy.hello(7, 1);
    copy.id = granted - 1;
    copy.acquire(7, b"key", Wait::No);
    assert!(is_granted(&copy.answers(), granted));
    let fence = Fence(1);
    copy.ask(7, b"key", Operation::Release { fence });
    assert!(matches!(copy.answers()[..], [Reply::NotHeld { .. }]));
}

#[test]
fn no_bytes_of_a_peer_break_a_worker() {
    let (mut owner, mut copy) = pair(None);
    let mut rng = Rng::new(7);
    let mut said: Vec<Vec<u8>> = Vec::new();
    for number in 0..60_u64 {
        let key = format!("key {}", rng.range(0, 12));
        let wait = if rng.percent(50) { Wait::No } else { Wait::Forever };
        owner.acquire(7, key.as_bytes(), wait);
        if number % 10 == 9 {
            owner.become_all(&membership(2 + number as u32, OWNER, &[COPY]));
            copy.become_all(&membership(2 + number as u32, OWNER, &[COPY]));
        }
        let frames = owner.messages();
        copy.hears(OWNER, &frames);
        let acks = copy.messages();
        owner.hears(COPY, &acks);
        said.extend(frames.into_iter().chain(acks));
    }
    let mut broken = 0;
    for round in 0..40_000 {
        let mut bytes = rng.pick(&said).clone();
        for _ in 0..rng.range(0, 4) {
            let at = rng.range(0, bytes.len() as u64) as usize;
            match rng.range(0, 4) {
                0 => bytes[at] = rng.draw() as u8,
                1 => bytes[at] ^= 1 << rng.range(0, 8),
                2 => bytes.truncate(at + 1),
                _ => bytes.insert(at, rng.draw() as u8),
            }
        }
        if let [0, connection, ..] = &mut bytes[..] {
            // After a frame of a later one nobody would look at any other.
            *connection = 0;
        }
        for worker in [&mut copy, &mut owner] {
            worker.hears(if round % 2 == 0 { OWNER } else { COPY }, &[bytes.clone()]);
            broken += worker.said.iter().filter(|it| matches!(it, Action::PeerBroken(_))).count();
            worker.said.clear();
        }
        if round % 1000 == 0 {
            copy.machine.audit().unwrap();
            owner.machine.audit().unwrap();
        }
    }
    assert!(broken > 1000, "{broken} messages were refused");
}
