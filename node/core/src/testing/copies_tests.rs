//! Workers of several nodes with copies of each other's cells, over connections that break, under a
//! log whose entries each of them applies in its own time: no key is held twice, nothing that was
//! answered is lost, and copies come to equal their owners. Where all who have a cell are gone,
//! another takes it over, and what clients reclaim in time is theirs.

mod clients;

use super::Rng;
use super::copies_log::Log;
use super::view_tests::config;
use crate::{
    Action, ClusterEvent, Config, ConnId, Event, Limits, LinkIndex, Machine, Mutant, PeerWorker,
};
use clients::Clients;
use lockring_proto::{HelloReply, SessionId, Time, limits};
use lockring_ring::{AttachId, BootId, CellId, Epoch, Member, Membership, NodeId, RingVersion};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const NODES: u32 = 4;
const CLIENTS: u8 = 4;
const KEYS: u64 = 10;
const CELLS: u16 = 2;

/// Of a takeover: long enough for most claims, and not for all.
const GRACE: Duration = Duration::from_millis(40);

/// A node with one worker.
struct Node {
    machine: Machine,
    boot: u64,
    applied: usize,
    /// Its clients' connections, with their links.
    links: BTreeMap<ConnId, Option<LinkIndex>>,
}

/// What goes from one process to another, in order; and what may still come of what was sent before
/// the connection broke.
#[derive(Default)]
struct Way {
    sent: VecDeque<Vec<u8>>,
    late: VecDeque<Vec<u8>>,
}

struct Cluster {
    rng: Rng,
    now: Time,
    log: Log,
    nodes: BTreeMap<u32, Node>,
    boots: u64,
    conns: u64,
    ways: BTreeMap<(PeerWorker, PeerWorker), Way>,
    up: BTreeSet<(PeerWorker, PeerWorker)>,
    clients: Clients,
    mutant: Option<Mutant>,
    reached: BTreeMap<&'static str, u64>,
}

fn key(number: u64) -> Vec<u8> {
    format!("key {number}").into_bytes()
}

impl Cluster {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let log = Log { entries: Vec::new(), cells: BTreeMap::new(), version: 1, attachments: 0 };
        let mut it = Self {
            rng: Rng::new(seed),
            now: Time(1_000_000),
            log,
            nodes: BTreeMap::new(),
            boots: 0,
            conns: 0,
            ways: BTreeMap::new(),
            up: BTreeSet::new(),
            clients: Clients::default(),
            mutant,
            reached: BTreeMap::new(),
        };
        (1..=NODES).for_each(|node| it.boot(node));
        for cell in (0..CELLS).map(CellId) {
            it.log.attachments += 1;
            let owner = it.member(1 + u32::from(cell.0) % NODES, it.log.attachments);
            let first = Membership {
                epoch: Epoch(1),
                since: RingVersion(1),
                owner,
                backups: Vec::new(),
                learner: None,
                grace: None,
            };
            it.log.commit(cell, first);
        }
        it
    }

    fn member(&self, node: u32, attach: u64) -> Member {
        let boot = BootId(self.nodes[&node].boot);
        Member { node: NodeId(node), boot, attach: AttachId(attach) }
    }

    fn peer(&self, node: u32) -> PeerWorker {
        PeerWorker { node: NodeId(node), boot: BootId(self.nodes[&node].boot), worker: 0 }
    }

    fn count(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// A node's process begins, with an empty memory.
    fn boot(&mut self, node: u32) {
        self.boots += 1;
        let boot = 100 + self.boots;
        let config = Config {
            node,
            boot,
            others: (0..CELLS).map(CellId).collect(),
            longest_ttl: limits::TTL_MAX,
            ..config(Limits::default())
        };
        let machine = Machine::new(config, self.now).with_mutant(self.mutant);
        self.nodes.insert(node, Node { machine, boot, applied: 0, links: BTreeMap::new() });
        let all: Vec<(u32, u64)> = self.nodes.iter().map(|(&of, it)| (of, it.boot)).collect();
        for (of, its) in all {
            self.tell_node(node, of, its);
            self.tell_node(of, node, boot);
            self.connect(node, of);
        }
    }

    fn tell_node(&mut self, to: u32, node: u32, boot: u64) {
        let (node, boot) = (NodeId(node), BootId(boot));
        self.cluster(to, ClusterEvent::Node { node, boot, workers: 1 });
    }

    fn cluster(&mut self, node: u32, event: ClusterEvent<'_>) {
        self.run(node, Event::Cluster(event));
    }

    fn connect(&mut self, one: u32, other: u32) {
        let (a, b) = (self.peer(one), self.peer(other));
        if one == other || !self.up.insert((a.min(b), a.max(b))) {
            return;
        }
        self.cluster(one, ClusterEvent::PeerConnected(b));
        self.cluster(other, ClusterEvent::PeerConnected(a));
    }

    /// A connection breaks: of each way a part is lost, and the rest may come at any time.
    fn cut(&mut self, one: u32, other: u32) {
        let (a, b) = (self.peer(one), self.peer(other));
        if !self.up.remove(&(a.min(b), a.max(b))) {
            return;
        }
        self.count("broken connections");
        for way in [(a, b), (b, a)] {
            let way = self.ways.entry(way).or_default();
            let kept = self.rng.range(0, way.sent.len() as u64 + 1) as usize;
            way.late.extend(way.sent.drain(..).take(kept));
        }
        self.cluster(one, ClusterEvent::PeerLost(b));
        self.cluster(other, ClusterEvent::PeerLost(a));
    }

    /// All who have a cell are gone, one after the other.
    fn lose(&mut self, cell: CellId) {
        for _ in 0..NODES {
            let its = &self.log.cells[&cell];
            if its.grace.is_some() && its.backups.is_empty() && self.rng.percent(80) {
                return;
            }
            self.kill(its.owner.node.0);
        }
    }

    /// A process is gone, and the log gets to know.
    fn kill(&mut self, node: u32) {
        self.count("kills");
        let dead = self.peer(node);
        self.ways.retain(|(from, to), _| *from != dead && *to != dead);
        let lost: Vec<_> =
            self.up.iter().filter(|(a, b)| *a == dead || *b == dead).copied().collect();
        for (a, b) in lost {
            self.up.remove(&(a, b));
            let left = if a == dead { b } else { a };
            self.cluster(left.node.0, ClusterEvent::PeerLost(dead));
        }
        self.nodes.remove(&node);
        let living: Vec<(u32, u64)> = self.nodes.iter().map(|(&of, it)| (of, it.boot)).collect();
        let next_owner = *self.rng.pick(&living);
        for cell in self.log.down(node, next_owner, GRACE) {
            self.count("takeovers");
            self.is_taken_over(cell);
        }
        self.is_gone(node);
        self.boot(node);
    }

    fn run(&mut self, node: u32, event: Event<'_>) -> usize {
        let mut actions = Vec::new();
        let from = self.peer(node);
        let machine = &mut self.nodes.get_mut(&node).unwrap().machine;
        let taken = machine.handle(self.now, event, &mut actions);
        for action in actions {
            self.act(from, action);
        }
        taken
    }

    fn act(&mut self, from: PeerWorker, action: Action) {
        match action {
            Action::Peer { peer, bytes } => {
                if self.up.contains(&(from.min(peer), from.max(peer))) {
                    self.ways.entry((from, peer)).or_default().sent.push_back(bytes.to_vec());
                }
            }
            Action::Synced { cell, epoch, attach } => {
                if self.log.synced(cell, epoch, attach) {
                    self.count("copies synced");
                }
            }
            Action::Welcome { conn, link, reply } => {
                assert!(matches!(*reply, HelloReply::Welcome(_)), "{reply:?}");
                let node = self.nodes.get_mut(&from.node.0).unwrap();
                node.links.insert(conn, Some(link));
            }
            Action::Reply { conn, reply } => self.answered(from.node.0, conn, &reply),
            Action::Push { .. } => {}
            Action::Pause(conn) => drop(self.clients.paused.insert(conn)),
            Action::Resume(conn) => drop(self.clients.paused.remove(&conn)),
            Action::Recovered { cell, epoch } => {
                if self.log.recovered(cell, epoch) {
                    self.count("recovered cells");
                }
            }
            Action::Silent { .. } => self.count("silent copies"),
            Action::Refuse { conn, .. } => {
                self.count("hellos past a lease");
                self.nodes.get_mut(&from.node.0).unwrap().links.remove(&conn);
            }
            other => panic!("{other:?}"),
        }
    }

    fn deliver(&mut self) {
        let ways: Vec<_> = self
            .ways
            .iter()
            .filter(|(_, way)| !way.sent.is_empty() || !way.late.is_empty())
            .map(|(&ends, _)| ends)
            .collect();
        if ways.is_empty() {
            return;
        }
        let (from, to) = *self.rng.pick(&ways);
        let way = self.ways.get_mut(&(from, to)).unwrap();
        let late = !way.late.is_empty() && (way.sent.is_empty() || self.rng.percent(50));
        let bytes = if late { way.late.pop_front() } else { way.sent.pop_front() };
        let bytes = bytes.expect("there is something");
        self.count(if late { "late messages" } else { "messages" });
        self.cluster(to.node.0, ClusterEvent::Peer { peer: from, bytes: &bytes });
    }

    fn apply_one(&mut self, node: u32) {
        let at = &mut self.nodes.get_mut(&node).unwrap().applied;
        let Some(entry) = self.log.entries.get(*at).cloned() else { return };
        *at += 1;
        let version = entry.1.since;
        // A node is told of what it has a part in, and when it has none any more.
        let (boot, its) = (BootId(self.nodes[&node].boot), entry.1);
        let is_me = |member: &Member| (member.node, member.boot) == (NodeId(node), boot);
        let has_part = is_me(&its.owner) || its.copies().any(is_me);
        let changed = [(entry.0, Some(its).filter(|_| has_part))];
        self.cluster(node, ClusterEvent::Memberships { changed: &changed, version });
    }

    /// Something happens.
    fn step(&mut self, faults: bool) {
        self.now = self.now.after(Duration::from_micros(100));
        let node = self.rng.range(1, u64::from(NODES) + 1) as u32;
        let other = self.rng.range(1, u64::from(NODES) + 1) as u32;
        match self.rng.range(0, 100) {
            0..40 => self.deliver(),
            40..60 => self.apply_one(node),
            60..75 => self.cluster(node, ClusterEvent::Flush),
            75..90 => self.client(faults),
            90..93 => drop(self.run(node, Event::Tick)),
            93..95 => self.connect(node, other),
            _ if !faults => {}
            95 => self.cut(node, other),
            96 if self.rng.percent(30) && self.log.can_lose(node) => self.kill(node),
            96 if self.rng.percent(10) => {
                let cell = CellId(self.rng.range(0, u64::from(CELLS)) as u16);
                self.lose(cell);
            }
            97 => {
                let boot = self.nodes[&node].boot;
                let cell = CellId(self.rng.range(0, u64::from(CELLS)) as u16);
                self.log.attach(cell, node, boot);
            }
            98 => self.change(node),
            99 => {
                let until = if self.rng.percent(50) { self.now } else { Time::NEVER };
                self.count("leases that ended or began");
                self.cluster(node, ClusterEvent::Lease(until));
            }
            _ => {}
        }
        if self.rng.percent(3) {
            for node in self.nodes.values() {
                node.machine.audit().unwrap();
            }
        }
    }

    /// An entry of the log that no fault is the reason of.
    fn change(&mut self, node: u32) {
        let cell = CellId(self.rng.range(0, u64::from(CELLS)) as u16);
        let its = self.log.cells[&cell].clone();
        match self.rng.range(0, 4) {
            0 => self.log.next_epoch(cell, its.owner, false),
            1 | 2 => {
                if let Some(&to) = its.backups.iter().find(|it| it.node == NodeId(node)) {
                    self.count("switches");
                    let keeps = self.rng.percent(50);
                    self.log.next_epoch(cell, to, keeps);
                }
            }
            _ => {
                let mut next = its;
                if next.backups.len() == 2 {
                    next.backups.remove(self.rng.range(0, 2) as usize);
                    self.count("copies dropped");
                    self.log.commit(cell, next);
                }
            }
        }
    }

    /// Everything comes to rest: all copies equal their owners, who have what clients hold.
    fn settle(&mut self) {
        let mut calm = 0;
        for _ in 0..3000 {
            for node in 1..=NODES {
                for other in 1..=NODES {
                    self.connect(node, other);
                }
                while self.nodes[&node].applied < self.log.entries.len() {
                    self.apply_one(node);
                }
                self.cluster(node, ClusterEvent::Lease(Time::NEVER));
                self.cluster(node, ClusterEvent::Flush);
                self.run(node, Event::Tick);
            }
            for _ in 0..20 {
                self.deliver();
            }
            let none = self.all_ask();
            let quiet = self.ways.values().all(|way| way.sent.is_empty() && way.late.is_empty());
            let open = self.log.cells.values().all(|its| its.grace.is_none());
            calm = if quiet && none && open { calm + 1 } else { 0 };
            if calm > 20 {
                return self.compare();
            }
            self.now = self.now.after(Duration::from_millis(1));
        }
        panic!("it does not come to rest: {:?}", self.clients);
    }

    fn compare(&mut self) {
        let mut all = BTreeMap::new();
        for (cell, its) in self.log.cells.clone() {
            let owner = &self.nodes[&its.owner.node.0].machine;
            let (last, has) = owner.contents(cell, false);
            for copy in &its.backups {
                let machine = &self.nodes[&copy.node.0].machine;
                let (copied, copied_has) = machine.contents(cell, true);
                assert_eq!((last, &has), (copied, &copied_has), "{cell:?} at {copy:?}: {its:?}");
                *self.reached.entry("equal copies").or_default() += 1;
            }
            all.extend(has);
        }
        for (&number, hold) in &self.clients.held {
            let holders = all.get(&key(number)).map(|(holders, _)| holders.clone());
            let hold = (SessionId([hold.client; 16]), hold.fence);
            assert_eq!(holders, Some(vec![hold]), "key {number}");
        }
        let held = all.values().filter(|(holders, _)| !holders.is_empty()).count();
        let counted = self.clients.held.len();
        assert_eq!(held, counted, "{all:?}, {:?} {:?}", self.clients, self.log.cells);
    }
}

fn run(seed: u64, mutant: Option<Mutant>) -> BTreeMap<&'static str, u64> {
    let mut cluster = Cluster::new(seed, mutant);
    for _ in 0..4 {
        (0..1500).for_each(|_| cluster.step(true));
        (0..300).for_each(|_| cluster.step(false));
        cluster.settle();
    }
    cluster.reached
}

/// What 40 seeds must have reached, and how often.
const MUST_REACH: [(&str, u64); 21] = [
    ("takeovers", 40),
    ("recovered cells", 40),
    ("reclaims", 40),
    ("lapses", 10),
    ("releases in grace", 5),
    ("requests that wait", 100),
    ("broken connections", 400),
    ("copies dropped", 10),
    ("copies synced", 200),
    ("equal copies", 100),
    ("grants", 2000),
    ("kills", 200),
    ("late messages", 10),
    ("leases that ended or began", 400),
    ("hellos past a lease", 5),
    ("requests not taken", 5),
    ("messages", 4000),
    ("moved", 300),
    ("queued", 2000),
    ("releases", 2000),
    ("switches", 50),
];

#[test]
fn nothing_that_was_answered_is_lost() {
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    let first = std::env::var("COPIES_SEED").map_or(0, |seed| seed.parse().unwrap());
    let count = std::env::var("COPIES_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    for seed in first..first + count {
        let its = std::panic::catch_unwind(|| run(seed, None));
        let its = its.unwrap_or_else(|_| panic!("seed {seed}"));
        its.into_iter().for_each(|(what, n)| *reached.entry(what).or_default() += n);
    }
    for (what, least) in MUST_REACH {
        let n = reached.get(what).copied().unwrap_or_default();
        assert!(n >= least * count / 40, "{what}: {n} times in {count} seeds");
    }
}

/// The bugs, each with a seed that notices it: the first, as of when it was written down.
const KILLERS: [(Mutant, u64); 7] = [
    (Mutant::GraceCutShort, 5),
    (Mutant::AnswerBeforeRound, 1),
    (Mutant::OneOfTwoCopies, 23),
    (Mutant::AcksOldEpoch, 22394),
    (Mutant::CountersCompared, 185),
    (Mutant::OpTwice, 250),
    (Mutant::DeposedForgets, 6),
];

/// `COPIES_SEEDS=20000 cargo test -p lockring-core copies` looks for the first seed of each.
#[test]
fn seeded_bugs_of_the_copies_are_noticed() {
    let seeds = std::env::var("COPIES_SEEDS").map_or(0, |seeds| seeds.parse().unwrap());
    let is_noticed = |mutant, seed| std::panic::catch_unwind(|| run(seed, Some(mutant))).is_err();
    let mut changed = Vec::new();
    for (mutant, known) in KILLERS {
        let first = (0..seeds).find(|&seed| is_noticed(mutant, seed));
        changed.extend(first.filter(|&first| first != known).map(|first| (mutant, first)));
        let noticed = first.is_some() || seeds == 0 && is_noticed(mutant, known);
        assert!(noticed, "{mutant:?} is alive, also at seed {known}");
    }
    assert!(changed.is_empty(), "other seeds are the first: {changed:?}");
}
