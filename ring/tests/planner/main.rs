//! What the planner promises, over random histories of joins, leaves, crashes and weight changes.
//!
//! The oracle below knows nothing of how the planner works: it recounts every table by cell.
//! Histories are the same in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` give others.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod oracle;

use lockring_ring::{
    CellBits, Change, Diff, Epoch, Move, Node, NodeId, Plan, RingTable, RingVersion, plan,
};
use oracle::{Count, domain_of};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::collections::BTreeSet;

/// One step of a history; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(u8),
    Crash(u8),
    CrashZone,
    Restart,
    Weight(u32),
    All,
}

/// What the nodes of a history are like.
#[derive(Clone, Debug)]
struct Fleet {
    bits: u8,
    zones: u32,
    hosts: u32,
    weights: u32,
    workers: u32,
    most: usize,
}

struct History {
    fleet: Fleet,
    table: RingTable,
    dice: u64,
    next: u32,
}

fn config(cases: u32) -> Config {
    let fixed = std::env::var_os("PROPTEST_RNG_SEED").is_none();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    config.max_shrink_iters = 200;
    if !asked {
        config.cases = cases;
    }
    if fixed {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..=4u8).prop_map(Step::Join),
        1 => (5..=40u8).prop_map(Step::Join),
        2 => (1..=3u8).prop_map(Step::Leave),
        2 => (1..=1u8).prop_map(Step::Crash),
        1 => (2..=4u8).prop_map(Step::Crash),
        1 => Just(Step::CrashZone),
        1 => Just(Step::Restart),
        2 => (0..=7u32).prop_map(Step::Weight),
        1 => Just(Step::All),
    ]
}

fn fleet() -> impl Strategy<Value = Fleet> {
    let bits = prop_oneof![3 => Just(14u8), 1 => 1..=13u8];
    let zones = prop_oneof![3 => Just(0u32), 2 => 1..=5u32];
    let hosts = prop_oneof![3 => Just(u32::MAX), 1 => 1..=6u32];
    let weights = prop_oneof![Just(1u32), Just(4), Just(100)];
    let most = prop_oneof![Just(6usize), Just(30), Just(100)];
    (bits, zones, hosts, weights, 0..=5u32, most).prop_map(
        |(bits, zones, hosts, weights, workers, most)| Fleet {
            bits,
            zones,
            hosts,
            weights,
            workers,
            most,
        },
    )
}

impl History {
    fn new(fleet: Fleet, dice: u64) -> Self {
        let first = Node {
            id: NodeId(1),
            weight: 1,
            zone: (fleet.zones > 0).then(|| "z0".to_owned()),
            host: "h1".to_owned(),
            workers: 1 << (fleet.workers / 2),
        };
        let bits = CellBits::new(fleet.bits).unwrap();
        let table = RingTable::founded(RingVersion(1), bits, first, Epoch(1)).unwrap();
        Self { fleet, table, dice, next: 2 }
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: u32) -> u32 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.dice >> 33) as u32) % sides.max(1)
    }

    fn newcomer(&mut self) -> Node {
        let id = self.next;
        self.next += 1 + self.roll(2);
        let most = self.fleet.weights;
        let weight = match self.roll(20) {
            0 if most > 1 => most * self.roll(2) * 10,
            _ => 1 + self.roll(most),
        };
        Node {
            id: NodeId(id),
            weight,
            zone: (self.fleet.zones > 0).then(|| format!("z{}", self.roll(self.fleet.zones))),
            host: match self.fleet.hosts {
                u32::MAX => format!("h{id}"),
                hosts => format!("h{}", self.roll(hosts)),
            },
            workers: 1 << (self.fleet.workers / 2 + self.roll(self.fleet.workers.div_ceil(2) + 1)),
        }
    }

    fn pick(&mut self, gone: &mut BTreeSet<NodeId>) -> Option<NodeId> {
        let weighty = |node: &&Node| node.weight > 0 && !gone.contains(&node.id);
        if self.table.nodes().iter().filter(weighty).count() < 2 {
            return None;
        }
        let left = self.table.nodes().iter().map(|n| n.id).filter(|id| !gone.contains(id));
        let left: Vec<NodeId> = left.collect();
        let id = left[self.roll(left.len() as u32) as usize];
        gone.insert(id);
        Some(id)
    }

    fn changes(&mut self, step: &Step) -> Vec<Change> {
        let mut gone = BTreeSet::new();
        match step {
            Step::Join(count) => {
                let room = self.fleet.most.saturating_sub(self.table.nodes().len());
                (0..usize::from(*count).min(room)).map(|_| Change::Join(self.newcomer())).collect()
            }
            Step::Leave(count) => {
                (0..*count).filter_map(|_| self.pick(&mut gone).map(Change::Leave)).collect()
            }
            Step::Crash(count) => {
                (0..*count).filter_map(|_| self.pick(&mut gone).map(Change::Crash)).collect()
            }
            Step::CrashZone => {
                let Some(one) = self.pick(&mut gone) else { return Vec::new() };
                let nodes = self.table.nodes();
                let domain = domain_of(nodes, one);
                let with = nodes.iter().filter(|node| domain_of(nodes, node.id) == domain);
                let with: Vec<NodeId> = with.map(|node| node.id).collect();
                let survivors = nodes.iter().any(|n| n.weight > 0 && !with.contains(&n.id));
                if survivors { with.into_iter().map(Change::Crash).collect() } else { Vec::new() }
            }
            Step::Restart => {
                let nodes = self.table.nodes();
                let node = nodes[self.dice as usize % nodes.len()].clone();
                vec![Change::Crash(node.id), Change::Join(node)]
            }
            Step::Weight(weight) => {
                let id = self.pick(&mut gone);
                let weight = if self.fleet.weights == 1 { weight % 2 } else { *weight };
                id.map(|id| Change::Weight(id, weight)).into_iter().collect()
            }
            Step::All => {
                let steps = [Step::Leave(1), Step::Crash(1), Step::Join(2), Step::Weight(3)];
                let all: Vec<Change> = steps.iter().flat_map(|step| self.changes(step)).collect();
                let mut named = BTreeSet::new();
                let id = |change: &Change| match change {
                    Change::Join(node) => node.id,
                    Change::Leave(id) | Change::Weight(id, _) | Change::Crash(id) => *id,
                };
                let all: Vec<Change> =
                    all.into_iter().filter(|change| named.insert(id(change))).collect();
                // Leave and crash were drawn apart: see that someone stays.
                if plan(&self.table, &all).is_ok() { all } else { Vec::new() }
            }
        }
    }

    fn go(&mut self, step: &Step) {
        let changes = self.changes(step);
        if changes.is_empty() {
            return;
        }
        let old = self.table.clone();
        let made = plan(&old, &changes).unwrap();
        let version = RingVersion(old.version().0 + 1);
        let new = made.apply(&old, version).unwrap();
        check_failover(&old, &made, &changes);
        check_epochs(&old, &new, &made);
        let settled = settle(&old, &made);
        let count = Count::new(&new);
        count.check_roles();
        count.check_owned();
        count.check_backups();
        count.check_moved(&settled, &made);
        self.check_again(&made, &changes, &new);
        let diff = Diff::between(&old, &new).unwrap();
        assert!(diff.apply(&old).unwrap() == new, "the change leads elsewhere");
        self.table = new;
    }

    /// The same question has the same answer, whatever the order of newcomers; what is done needs
    /// nothing more; and from the middle of a plan there is a way on.
    fn check_again(&mut self, made: &Plan, changes: &[Change], new: &RingTable) {
        let (mut joins, mut order): (Vec<Change>, Vec<Change>) =
            changes.iter().cloned().partition(|change| matches!(change, Change::Join(_)));
        joins.reverse();
        order.append(&mut joins);
        assert!(plan(&self.table, &order).unwrap() == *made, "another plan");
        let more = plan(new, &[]).unwrap();
        assert!(more.failover.is_empty() && more.takeover.is_empty());
        assert_eq!(more.moves.len(), 0, "of {}", made.moves.len());

        let mut middle = settle(&self.table, made);
        let mut done = BTreeSet::new();
        for change in &made.moves {
            if self.roll(3) == 0 {
                middle.apply(change).unwrap();
                done.insert(change.cell);
            }
        }
        let gone = |node: &&Node| !made.nodes.iter().any(|left| left.id == node.id);
        let leave: Vec<Change> =
            middle.nodes().iter().filter(gone).map(|node| Change::Leave(node.id)).collect();
        let rest = plan(&middle, &leave).unwrap();
        let end = rest.apply(&middle, RingVersion(new.version().0 + 1)).unwrap();
        let count = Count::new(&end);
        count.check_roles();
        count.check_owned();
        count.check_backups();
    }
}

/// The table once what cannot wait is done.
fn settle(old: &RingTable, made: &Plan) -> RingTable {
    let mut table = old.clone();
    let gone = |node: &&Node| !made.nodes.iter().any(|left| left.id == node.id);
    let leaving = old.nodes().iter().filter(gone);
    table.set_nodes(made.nodes.iter().chain(leaving).cloned().collect()).unwrap();
    made.failover.iter().for_each(|change| table.apply(change).unwrap());
    made.takeover.iter().for_each(|change| table.take_over(change).unwrap());
    table
}

/// A crash makes the remaining copy the owner, and only cells without one are taken over.
fn check_failover(old: &RingTable, made: &Plan, changes: &[Change]) {
    let crashed = |id: &NodeId| changes.contains(&Change::Crash(*id));
    let mut expected = Vec::new();
    let mut lost = Vec::new();
    for cell in old.cells() {
        let at = old.placement(cell);
        let left: Vec<NodeId> =
            [Some(at.owner), at.backup].into_iter().flatten().filter(|id| !crashed(id)).collect();
        match left[..] {
            [] => lost.push(cell),
            [owner] if at.backup.is_some() => expected.push((cell, owner)),
            _ => {}
        }
    }
    let alone = |change: &Move| {
        assert_eq!(change.to.backup, None);
        (change.cell, change.to.owner)
    };
    assert!(made.failover.iter().map(alone).eq(expected), "not the remaining copies");
    assert!(
        made.takeover.iter().map(|change| change.cell).eq(lost.iter().copied()),
        "not the lost"
    );
    let domains: BTreeSet<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Crash(id) => Some(domain_of(old.nodes(), *id)),
            Change::Join(_) | Change::Leave(_) | Change::Weight(..) => None,
        })
        .collect();
    let copied = old.cells().all(|cell| old.placement(cell).backup.is_some());
    assert!(domains.len() != 1 || !copied || lost.is_empty(), "one domain took both copies");
}

/// Every change of owner is one epoch, and so is a takeover; nothing else is.
fn check_epochs(old: &RingTable, new: &RingTable, made: &Plan) {
    let mut epochs: Vec<u32> = old.cells().map(|cell| old.epoch(cell).0).collect();
    for change in made.failover.iter().chain(&made.moves) {
        epochs[usize::from(change.cell.0)] += u32::from(change.from.owner != change.to.owner);
    }
    for change in &made.takeover {
        epochs[usize::from(change.cell.0)] += 1;
    }
    assert!(epochs.into_iter().eq(new.cells().map(|cell| new.epoch(cell).0)), "other epochs");
}

proptest! {
    #![proptest_config(config(40))]
    #[test]
    fn histories(
        fleet in fleet(),
        dice in any::<u64>(),
        steps in prop::collection::vec(step(), 4..24),
    ) {
        let mut history = History::new(fleet, dice);
        let first = history.table.clone();
        let mut whole: Option<Diff> = None;
        for step in &steps {
            let before = history.table.clone();
            history.go(step);
            let diff = Diff::between(&before, &history.table).unwrap();
            whole = Some(whole.map_or(diff.clone(), |whole| whole.then(&diff).unwrap()));
        }
        let table = history.table;
        prop_assert!(whole.unwrap().apply(&first).unwrap() == table);
        let runs = table.runs();
        let nodes = table.nodes().to_vec();
        let again = RingTable::from_runs(table.version(), table.bits(), nodes, &runs).unwrap();
        prop_assert!(again == table);
    }
}

/// A node of a plain fleet: equal weights, every host a domain.
fn plain(id: u32, workers: u16) -> Node {
    Node { id: NodeId(id), weight: 1, zone: None, host: format!("h{id}"), workers }
}

/// From one node to a hundred and back, one at a time: the figures the design promises.
#[test]
fn targets_of_a_plain_fleet() {
    for workers in [1, 8] {
        let first = plain(0, workers);
        let mut table =
            RingTable::founded(RingVersion(1), CellBits::DEFAULT, first, Epoch(1)).unwrap();
        let joins = (1..100).map(|id| Change::Join(plain(id, workers)));
        let leaves = (0..98).map(|id| match id % 2 {
            0 => Change::Leave(NodeId(id)),
            _ => Change::Crash(NodeId(id)),
        });
        for change in joins.chain(leaves) {
            let made = plan(&table, std::slice::from_ref(&change)).unwrap();
            let settled = settle(&table, &made);
            let new = made.apply(&table, RingVersion(table.version().0 + 1)).unwrap();
            let count = Count::new(&new);
            count.check_roles();
            count.check_owned();
            count.check_backups();
            count.check_moved(&settled, &made);
            count.check_plain_targets();
            if let Change::Join(node) = &change {
                count.check_join(&table, node.id);
            }
            table = new;
        }
    }
}
