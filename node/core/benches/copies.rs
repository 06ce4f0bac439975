//! What a copy costs the core: acquires and releases at an owner whose cells have one copy, with
//! that copy, over a lane without a network; and cells sent whole. `cargo bench -p lockring-core
//! --bench copies`. Ratios are to the same owner without copies, measured in turns.

#![allow(clippy::print_stdout, reason = "a benchmark of its own program prints its figures")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures time")]

use lockring_core::{
    Access, Action, ClusterEvent, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine,
    PeerWorker,
};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Reply, Request, SessionId, Time, Wait,
    limits,
};
use lockring_ring::{
    AttachId, BootId, CellBits, CellId, Epoch, Member, Membership, NodeId, RingVersion,
};
use std::time::{Duration, Instant};

const BATCH: usize = 64;
const NOW: Time = Time(1_000_000);
const OWNER: PeerWorker = PeerWorker { node: NodeId(1), boot: BootId(1), worker: 0 };
const COPY: PeerWorker = PeerWorker { node: NodeId(2), boot: BootId(2), worker: 0 };

fn key(number: u64) -> [u8; 17] {
    let mut key = *b"k0000000000000000";
    let mut left = number;
    for digit in key[1..].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    key
}

fn machine(its: PeerWorker, bits: CellBits) -> Machine {
    let config = Config {
        cell_bits: bits,
        worker: 0,
        workers: 1,
        node: its.node.0,
        boot: its.boot.0,
        others: cells(bits).collect(),
        epoch: Epoch(1),
        ring_version: RingVersion(1),
        longest_ttl: limits::TTL_DEFAULT,
        opens_at: None,
        tag_secret: [1, 2, 3, 4],
        grace_for: String::new(),
        limits: Limits::default(),
    };
    let mut machine = Machine::new(config, NOW);
    let mut out = Vec::new();
    for peer in [OWNER, COPY] {
        let node = ClusterEvent::Node { node: peer.node, boot: peer.boot, workers: 1 };
        machine.handle(NOW, Event::Cluster(node), &mut out);
    }
    let peer = if its == OWNER { COPY } else { OWNER };
    machine.handle(NOW, Event::Cluster(ClusterEvent::PeerConnected(peer)), &mut out);
    machine
}

fn cells(bits: CellBits) -> impl Iterator<Item = CellId> {
    (0..bits.cells()).map(|cell| CellId(cell as u16))
}

fn member(peer: PeerWorker) -> Member {
    Member { node: peer.node, boot: peer.boot, attach: AttachId(u64::from(peer.node.0)) }
}

/// An owner of all cells, with a copy of them or none.
struct Pair {
    owner: Machine,
    copy: Option<Machine>,
    link: LinkIndex,
    actions: Vec<Action>,
    id: u64,
}

impl Pair {
    fn new(bits: CellBits, copied: bool) -> Self {
        let copy = copied.then(|| machine(COPY, bits));
        let mut owner = machine(OWNER, bits);
        let mut actions = Vec::new();
        let identity = Identity {
            namespace: Namespace::default(),
            name: "bench".to_owned(),
            access: Access::User,
            ttl_max: limits::TTL_MAX,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId([1; 16]),
            incarnation: 1,
            ttl_ms: 10_000,
            ring_version: 1,
            ids_after: 0,
            label: "bench",
        };
        owner.handle(
            NOW,
            Event::Opened { conn: ConnId(1), identity: &identity, hello },
            &mut actions,
        );
        let Some(&Action::Welcome { link, .. }) = actions.first() else { panic!("{actions:?}") };
        let mut it = Self { owner, copy, link, actions: Vec::new(), id: 0 };
        it.become_all(bits, if copied { vec![member(COPY)] } else { Vec::new() });
        while it.exchange() {}
        it
    }

    fn become_all(&mut self, bits: CellBits, backups: Vec<Member>) {
        let its = Membership {
            epoch: Epoch(2),
            since: RingVersion(2),
            owner: member(OWNER),
            backups,
            learner: None,
            grace: None,
        };
        let changed: Vec<_> = cells(bits).map(|cell| (cell, Some(its.clone()))).collect();
        for machine in [Some(&mut self.owner), self.copy.as_mut()].into_iter().flatten() {
            let mut rest = &changed[..];
            while !rest.is_empty() {
                let part = ClusterEvent::Memberships { changed: rest, version: RingVersion(2) };
                let taken = machine.handle(NOW, Event::Cluster(part), &mut self.actions);
                rest = &rest[taken..];
            }
        }
    }

    /// Lets both say what they have to; whether they had anything.
    fn exchange(&mut self) -> bool {
        self.owner.handle(NOW, Event::Cluster(ClusterEvent::Flush), &mut self.actions);
        let Some(copy) = &mut self.copy else { return false };
        let is_message = |action: &mut Action| matches!(action, Action::Peer { .. });
        let frames: Vec<Action> = self.actions.extract_if(.., is_message).collect();
        let mut acks = Vec::new();
        for action in &frames {
            let Action::Peer { bytes, .. } = action else { unreachable!("it is a message") };
            let event = ClusterEvent::Peer { peer: OWNER, bytes };
            copy.handle(NOW, Event::Cluster(event), &mut acks);
        }
        for action in &acks {
            let Action::Peer { bytes, .. } = action else { panic!("{action:?}") };
            let event = ClusterEvent::Peer { peer: COPY, bytes };
            self.owner.handle(NOW, Event::Cluster(event), &mut self.actions);
        }
        !frames.is_empty()
    }

    /// A batch with all that follows; how long it took.
    fn run(&mut self, requests: &[Request<'_>]) -> Duration {
        self.actions.clear();
        let begun = Instant::now();
        let event = Event::Requests { conn: ConnId(1), link: self.link, requests };
        self.owner.handle(NOW, event, &mut self.actions);
        self.exchange();
        begun.elapsed()
    }

    fn pairs(&mut self, keys: &[[u8; 17]]) -> Duration {
        let (claim, wait) = (Claim::EXCLUSIVE, Wait::No);
        let acquire = |id, key| {
            let operation = Operation::Acquire { claim, wait };
            Request::Keyed { id, version: 2, operation, key }
        };
        let first = self.id + 1;
        let requests: Vec<_> = (first..).zip(keys).map(|(id, key)| acquire(id, &key[..])).collect();
        self.id += keys.len() as u64;
        let took = self.run(&requests);
        let fences: Vec<Fence> = self
            .actions
            .iter()
            .map(|action| match action {
                Action::Reply { reply: Reply::Granted { fence, .. }, .. } => *fence,
                other => panic!("not granted: {other:?}"),
            })
            .collect();
        assert_eq!(fences.len(), keys.len());
        let first = self.id + 1;
        let release = |(id, (key, &fence)): (u64, (&[u8; 17], &Fence))| (id, *key, fence);
        let asked: Vec<_> = (first..).zip(keys.iter().zip(&fences)).map(release).collect();
        let requests: Vec<_> = asked
            .iter()
            .map(|&(id, ref key, fence)| {
                let operation = Operation::Release { fence };
                Request::Keyed { id, version: 2, operation, key: &key[..] }
            })
            .collect();
        self.id += keys.len() as u64;
        let took = took + self.run(&requests);
        assert_eq!(self.actions.len(), keys.len(), "{:?}", self.actions);
        took
    }

    /// Nanoseconds a pair of so many batches.
    fn round(&mut self, batches: u64) -> f64 {
        let mut spent = Duration::ZERO;
        for batch in 0..batches {
            let keys: Vec<_> = (0..BATCH as u64).map(|at| key(batch * 977 + at * 131)).collect();
            spent += self.pairs(&keys);
        }
        spent.as_nanos() as f64 / (batches * BATCH as u64) as f64
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Micros to take a cell of so many locks whole, and to apply that.
fn whole(locks: u64) -> (f64, f64) {
    let bits = CellBits::new(1).expect("a ring of two cells");
    let mut pair = Pair::new(bits, false);
    let mut of_one = Vec::new();
    let mut number = 0;
    while (of_one.len() as u64) < locks {
        let its = key(number);
        number += 1;
        let hash = lockring_ring::hash_key(lockring_ring::NamespaceSeed::of("default"), &its);
        if bits.cell(hash.position) == CellId(0) {
            of_one.push(its);
        }
    }
    let (claim, wait) = (Claim::EXCLUSIVE, Wait::No);
    for (id, key) in (1..).zip(&of_one) {
        let operation = Operation::Acquire { claim, wait };
        pair.run(&[Request::Keyed { id, version: 2, operation, key }]);
    }
    pair.copy = Some(machine(COPY, bits));
    let its = Membership {
        epoch: Epoch(2),
        since: RingVersion(2),
        owner: member(OWNER),
        backups: vec![member(COPY)],
        learner: None,
        grace: None,
    };
    pair.actions.clear();
    let changed = [(CellId(0), Some(its))];
    let event = ClusterEvent::Memberships { changed: &changed, version: RingVersion(2) };
    pair.owner.handle(NOW, Event::Cluster(event), &mut pair.actions);
    let copy = pair.copy.as_mut().expect("it was made");
    copy.handle(NOW, Event::Cluster(event), &mut pair.actions);
    pair.exchange();
    let begun = Instant::now();
    pair.owner.handle(NOW, Event::Cluster(ClusterEvent::Flush), &mut pair.actions);
    let taken = begun.elapsed();
    let Some(Action::Peer { bytes, .. }) = pair.actions.pop() else { panic!("no whole cell") };
    assert!(bytes.len() as u64 > locks * 20, "{} bytes are no whole cell", bytes.len());
    let copy = pair.copy.as_mut().expect("it was made");
    let begun = Instant::now();
    let event = ClusterEvent::Peer { peer: OWNER, bytes: &bytes };
    copy.handle(NOW, Event::Cluster(event), &mut pair.actions);
    (taken.as_nanos() as f64 / 1000.0, begun.elapsed().as_nanos() as f64 / 1000.0)
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let (rounds, batches) = if quick { (1, 200) } else { (15, 4000) };
    let mut alone = Pair::new(CellBits::DEFAULT, false);
    let mut copied = Pair::new(CellBits::DEFAULT, true);
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(alone.round(batches));
        with.push(copied.round(batches));
        ratios.push(with[with.len() - 1] / without[without.len() - 1]);
    }
    println!("an acquire and its release, batches of {BATCH}, both sides added");
    println!("{:>24}  {:>9.1} ns", "no copy", median(without));
    println!("{:>24}  {:>9.1} ns", "one copy", median(with));
    println!("{:>24}  {:>9.2} x, budget 2.1 x", "ratio", median(ratios));
    let (taken, applied): (Vec<f64>, Vec<f64>) = (0..rounds).map(|_| whole(1000)).unzip();
    println!("a whole cell of 1000 locks, budget 100 us each");
    println!("{:>24}  {:>9.1} us", "taken", median(taken));
    println!("{:>24}  {:>9.1} us", "applied", median(applied));
}
