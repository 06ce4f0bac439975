//! Fingerprints: blind to where state is kept, not to what it is.

use crate::{
    Access, Action, Config, ConnId, Event, Identity, Limits, LinkIndex, Machine, Mutant, Time,
};
use lockring_proto::{
    Claim, Fence, Hello, Namespace, Operation, PROTOCOL, Request, SessionId, Wait, limits,
};
use lockring_ring::{CellBits, Epoch, NamespaceSeed, RingVersion, hash_key};
use std::collections::BTreeMap;
use std::time::Duration;

/// The smallest ring there is: two cells.
const BITS: u8 = 1;

/// A machine of two cells with a few connections.
pub(super) struct World {
    pub(super) machine: Machine,
    links: BTreeMap<u64, LinkIndex>,
    pub(super) now: Time,
    id: u64,
}

/// One worker that has all cells and grants at once.
pub(super) fn config(limits: Limits) -> Config {
    Config {
        cell_bits: CellBits::new(BITS).unwrap(),
        worker: 0,
        workers: 1,
        node: 1,
        boot: 1,
        others: std::collections::BTreeSet::new(),
        epoch: Epoch(1),
        ring_version: RingVersion(1),
        longest_ttl: Duration::from_secs(10),
        opens_at: None,
        tag_secret: [1, 2, 3, 4],
        grace_for: String::new(),
        limits,
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_mutant(None)
    }

    pub(super) fn with_mutant(mutant: Option<Mutant>) -> Self {
        let machine = Machine::new(config(Limits::default()), Time(0)).with_mutant(mutant);
        Self { machine, links: BTreeMap::new(), now: Time(0), id: 0 }
    }

    pub(super) fn run(&mut self, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.run_into(event, &mut actions);
        actions
    }

    /// Says how many requests were taken.
    fn run_into(&mut self, event: Event<'_>, actions: &mut Vec<Action>) -> usize {
        let before = actions.len();
        let taken = self.machine.handle(self.now, event, actions);
        for action in &actions[before..] {
            if let Action::Welcome { conn, link, .. } = action {
                self.links.insert(conn.0, *link);
            }
        }
        taken
    }

    /// One turn of requests: what came of it, and how many were taken.
    pub(super) fn turn(&mut self, conn: u64, requests: &[Request<'_>]) -> (Vec<Action>, usize) {
        let (conn, link) = (ConnId(conn), self.links[&conn]);
        let mut actions = Vec::new();
        let taken = self.run_into(Event::Requests { conn, link, requests }, &mut actions);
        (actions, taken)
    }

    pub(super) fn open(&mut self, conn: u64) {
        self.open_in(conn, Namespace::default());
    }

    pub(super) fn open_in(&mut self, conn: u64, namespace: Namespace) {
        self.greet(conn, conn, namespace, 1);
    }

    /// Another process takes the session of connection `before` up.
    pub(super) fn take_up(&mut self, before: u64, conn: u64) {
        self.greet(before, conn, Namespace::default(), 0);
    }

    fn greet(&mut self, session: u64, conn: u64, namespace: Namespace, incarnation: u64) {
        let (access, ttl_max) = (Access::Operator, limits::TTL_MAX);
        let identity = Identity { namespace, name: format!("c{session}"), access, ttl_max };
        let hello = Hello {
            protocol: PROTOCOL,
            session: SessionId(u128::from(session).to_be_bytes()),
            incarnation,
            ttl_ms: 10_000,
            ring_version: 1,
            ids_after: 0,
            label: "",
        };
        self.run(Event::Opened { conn: ConnId(conn), identity: &identity, hello });
    }

    /// As many turns as it takes.
    pub(super) fn ask(&mut self, conn: u64, request: &Request<'_>) -> Vec<Action> {
        let mut all = Vec::new();
        loop {
            let (mut actions, taken) = self.turn(conn, std::slice::from_ref(request));
            all.append(&mut actions);
            if taken == 1 {
                return all;
            }
        }
    }

    /// Lets time pass, tick by tick.
    pub(super) fn walk_to(&mut self, then: Time) {
        while self.now < then {
            self.now = self.now.after(Duration::from_millis(20)).min(then);
            self.run(Event::Tick);
        }
    }

    /// Lets the leases of all connections end but that of `conn`, which takes a lock meanwhile.
    pub(super) fn outlive(&mut self, conn: u64) {
        self.walk_to(Time(5_000_000));
        self.acquire(conn, 1 << 30, "other", Claim::EXCLUSIVE);
        self.walk_to(Time(10_090_000));
        self.now = Time(10_110_000);
    }

    pub(super) fn acquire(&mut self, conn: u64, id: u64, key: &str, claim: Claim) -> Vec<Action> {
        self.acquire_bytes(conn, id, key.as_bytes(), claim)
    }

    pub(super) fn acquire_bytes(
        &mut self,
        conn: u64,
        id: u64,
        key: &[u8],
        claim: Claim,
    ) -> Vec<Action> {
        let (version, wait) = (1, Wait::Forever);
        self.ask(
            conn,
            &Request::Keyed { id, version, operation: Operation::Acquire { claim, wait }, key },
        )
    }

    fn release(&mut self, conn: u64, key: &str, counter: u64) {
        self.id += 1;
        let (id, fence) = (1000 + self.id, Fence::new(Epoch(1), counter));
        self.ask(
            conn,
            &Request::Keyed {
                id,
                version: 1,
                operation: Operation::Release { fence },
                key: key.as_bytes(),
            },
        );
    }
}

/// A key of each of the two cells.
fn keys() -> [String; 2] {
    let bits = CellBits::new(BITS).unwrap();
    let in_cell = |cell: u16| {
        (0..)
            .map(|i| format!("key{i}"))
            .find(|key| {
                let hash = hash_key(NamespaceSeed::of("default"), key.as_bytes());
                bits.cell(hash.position).0 == cell
            })
            .unwrap()
    };
    [in_cell(0), in_cell(1)]
}

#[test]
fn one_state_reached_by_two_ways_has_one_fingerprint() {
    let [left, right] = keys();
    let mut one = World::new();
    one.open(1);
    one.open(2);
    one.acquire(1, 1, &left, Claim::EXCLUSIVE);
    one.acquire(2, 2, &left, Claim::SHARED);
    one.acquire(2, 3, &right, Claim::SHARED);
    one.acquire(1, 4, &right, Claim::SHARED);
    // The other way round, over slots that others have used before.
    let mut two = World::new();
    two.open(2);
    two.open(1);
    two.acquire(2, 3, &right, Claim::SHARED);
    two.acquire(1, 4, &right, Claim::SHARED);
    two.acquire(1, 1, &left, Claim::EXCLUSIVE);
    two.acquire(2, 2, &left, Claim::SHARED);
    assert_eq!(one.machine.view(), two.machine.view());
    assert_eq!(one.machine.fingerprint(), two.machine.fingerprint());
    // They behave alike, too; and the clone is no part of the original.
    let before = one.machine.clone();
    one.release(1, &left, 1);
    two.release(1, &left, 1);
    assert_eq!(one.machine.fingerprint(), two.machine.fingerprint());
    assert_ne!(one.machine.fingerprint(), before.fingerprint());
}

#[test]
fn slots_used_before_leave_no_trace() {
    let [left, right] = keys();
    let (mut one, mut two) = (World::new(), World::new());
    for (world, first, second) in [(&mut one, &left, &right), (&mut two, &right, &left)] {
        world.open(1);
        world.open(2);
        for key in [first, second] {
            world.acquire(1, if *key == left { 1 } else { 2 }, key, Claim::EXCLUSIVE);
            world.release(1, key, 1);
        }
        for key in [second, first] {
            world.acquire(2, if *key == left { 3 } else { 4 }, key, Claim::EXCLUSIVE);
        }
    }
    assert_eq!(one.machine.fingerprint(), two.machine.fingerprint());
}

#[test]
fn every_part_of_the_state_counts() {
    let [left, _] = keys();
    let mut seen = Vec::new();
    let mut world = World::new();
    let steps: [&dyn Fn(&mut World); 8] = [
        &|world| world.open(1),
        &|world| world.open(2),
        &|world| drop(world.acquire(1, 1, &left, Claim::SHARED)),
        &|world| drop(world.acquire(2, 1, &left, Claim::EXCLUSIVE)),
        &|world| drop(world.run(Event::Drain)),
        &|world| drop(world.run(Event::LongestTtl(Duration::from_secs(60)))),
        &|world| drop(world.run(Event::Closed { conn: ConnId(1), link: world.links[&1] })),
        &|world| world.now = Time(20_000_000),
    ];
    for step in steps {
        step(&mut world);
        world.run(Event::Tick);
        let print = world.machine.fingerprint();
        assert!(!seen.contains(&print), "a step left no trace");
        seen.push(print);
    }
}

#[test]
fn two_cells_serve_as_any_number() {
    let [left, right] = keys();
    let mut world = World::new();
    world.open(1);
    for key in [&left, &right] {
        let actions = world.acquire(1, u64::from(key == &right) + 1, key, Claim::EXCLUSIVE);
        assert!(format!("{actions:?}").contains("Granted"), "{actions:?}");
    }
    assert_eq!(world.machine.view().cells.len(), 2);
    assert_eq!(world.machine.view().keys.len(), 2);
}
