//! Our cells beside three other ways to place keys: `cargo bench -p lockring-ring`.
//!
//! Each scheme starts with N nodes; one joins and leaves again. Lookups start from a hash that is
//! ready, which is what a router has. *Dependent* lookups wait for one another, *independent* ones
//! overlap. The token ring hashes node and token number with the hash of the keys; a key belongs
//! to the next token. Jump hash and modulo number their nodes, so a node that leaves from the
//! middle swaps numbers with the last.

#![allow(clippy::print_stdout, reason = "a benchmark of its own program prints its figures")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures time")]

use lockring_ring::{
    CellBits, Change, Epoch, NamespaceSeed, Node, NodeId, RingTable, RingVersion, hash_key, plan,
};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

/// Lookups per timing: every cell some four times, in well under a slice of the scheduler. The best
/// of many timings counts, as whatever else runs only ever adds.
const LOOKUPS: usize = 1 << 16;
const TIMINGS: usize = 80;
/// Keys to count by where they go.
const KEYS: u64 = 1 << 20;

trait Scheme {
    /// Number of the owner of a ring position.
    fn owner(&self, position: u64) -> u32;

    /// The largest part of the ring that one node has, by the mean; equal parts unless told.
    fn peak(&self) -> f64 {
        1.0
    }
}

#[derive(Clone)]
struct Cells(RingTable);

impl Scheme for Cells {
    fn owner(&self, position: u64) -> u32 {
        self.0.owner_at(position).0
    }

    fn peak(&self) -> f64 {
        let shares = self.0.shares();
        let peak = shares.iter().map(|share| share.owned).max().unwrap_or(0);
        f64::from(peak) * shares.len() as f64 / f64::from(self.0.bits().cells())
    }
}

/// The same, up to the index of the owner: what a router needs.
struct CellIndex(Cells);

impl Scheme for CellIndex {
    fn owner(&self, position: u64) -> u32 {
        self.0.0.owner_index(position) as u32
    }

    fn peak(&self) -> f64 {
        self.0.peak()
    }
}

struct Tokens(Vec<(u64, u32)>);

impl Tokens {
    fn new(nodes: &[u32], virtual_nodes: u32) -> Self {
        let seed = NamespaceSeed::of("tokens");
        let token = |node: u32, number: u32| {
            let bytes = [node.to_le_bytes(), number.to_le_bytes()].concat();
            (hash_key(seed, &bytes).position, node)
        };
        let all = nodes.iter().flat_map(|&node| (0..virtual_nodes).map(move |v| token(node, v)));
        let mut tokens: Vec<_> = all.collect();
        tokens.sort_unstable();
        Self(tokens)
    }
}

impl Scheme for Tokens {
    fn owner(&self, position: u64) -> u32 {
        let next = self.0.partition_point(|token| token.0 < position);
        self.0[if next == self.0.len() { 0 } else { next }].1
    }

    fn peak(&self) -> f64 {
        let mut parts: BTreeMap<u32, f64> = BTreeMap::new();
        let mut last = self.0.last().map_or(0, |token| token.0);
        for &(at, node) in &self.0 {
            *parts.entry(node).or_default() += at.wrapping_sub(last) as f64;
            last = at;
        }
        parts.values().copied().fold(0.0, f64::max) * parts.len() as f64 / 2f64.powi(64)
    }
}

struct Jump(Vec<u32>);

impl Scheme for Jump {
    fn owner(&self, mut position: u64) -> u32 {
        let (mut bucket, mut next) = (0, 0);
        while next < self.0.len() as u64 {
            bucket = next;
            position = position.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
            let step = (1u64 << 31) as f64 / ((position >> 33) + 1) as f64;
            next = ((bucket + 1) as f64 * step) as u64;
        }
        self.0[bucket as usize]
    }
}

struct Modulo(Vec<u32>);

impl Scheme for Modulo {
    fn owner(&self, position: u64) -> u32 {
        self.0[(position % self.0.len() as u64) as usize]
    }
}

/// What a scheme did.
struct Row {
    name: String,
    nodes: u32,
    dependent: f64,
    independent: f64,
    peak: f64,
    joined: f64,
    left: f64,
}

/// Measures a scheme with N nodes, with one more, and with one in the middle gone.
fn measure<S: Scheme>(name: &str, nodes: u32, now: &S, more: &S, less: &S) -> Row {
    let seed = NamespaceSeed::of("bench");
    let positions: Vec<u64> =
        (0..KEYS).map(|key| hash_key(seed, &key.to_le_bytes()).position).collect();
    let share = |to: &S| {
        let moved = positions.iter().filter(|&&at| now.owner(at) != to.owner(at)).count();
        moved as f64 / KEYS as f64
    };
    Row {
        name: name.to_owned(),
        nodes,
        dependent: best(|| dependent(now)) - best(steps),
        independent: best(|| independent(now)),
        peak: now.peak(),
        joined: share(more),
        left: share(less),
    }
}

/// Best time of a lookup, in ns.
fn best(run: impl Fn() -> u64) -> f64 {
    let time = |_| {
        let start = Instant::now();
        black_box(run());
        start.elapsed().as_nanos() as f64 / LOOKUPS as f64
    };
    (0..TIMINGS).map(time).fold(f64::INFINITY, f64::min)
}

/// A cheap step through positions.
fn step(position: u64) -> u64 {
    position.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// The next position depends on the owner found.
fn dependent(scheme: &impl Scheme) -> u64 {
    let mut position = black_box(1);
    for _ in 0..LOOKUPS {
        position = step(position ^ u64::from(scheme.owner(position)));
    }
    position
}

/// The steps alone, to subtract.
fn steps() -> u64 {
    let mut position = black_box(1);
    for _ in 0..LOOKUPS {
        position = step(position ^ 1);
    }
    position
}

/// The next position does not depend on the owner.
fn independent(scheme: &impl Scheme) -> u64 {
    let mut sum = 0;
    let mut position = black_box(1u64);
    for _ in 0..LOOKUPS {
        position = position.wrapping_add(0x9e37_79b9_7f4a_7c15);
        sum += u64::from(scheme.owner(position));
    }
    sum
}

impl Cells {
    fn new(nodes: u32) -> Self {
        let (version, epoch) = (RingVersion(1), Epoch(1));
        let first = RingTable::founded(version, CellBits::DEFAULT, node(0), epoch);
        let mut cells = Self(first.expect("one node is a ring"));
        for id in 1..nodes {
            cells = cells.after(Change::Join(node(id)));
        }
        cells
    }

    fn after(&self, change: Change) -> Self {
        let plan = plan(&self.0, &[change]).expect("the change fits");
        let version = RingVersion(self.0.version().0 + 1);
        Self(plan.apply(&self.0, version).expect("the plan fits"))
    }
}

fn node(id: u32) -> Node {
    Node { id: NodeId(id), weight: 1, zone: None, host: format!("h{id}"), workers: 8 }
}

/// Every scheme with this many nodes.
fn rows(nodes: u32) -> Vec<Row> {
    let middle = nodes / 2;
    let now: Vec<u32> = (0..nodes).collect();
    let more: Vec<u32> = (0..=nodes).collect();
    let mut less = now.clone();
    less.swap_remove(middle as usize);

    let cells = Cells::new(nodes);
    let joined = cells.after(Change::Join(node(nodes)));
    let left = cells.after(Change::Leave(NodeId(middle)));
    let mut rows = vec![measure("cells, to the id", nodes, &cells, &joined, &left)];
    let [cells, joined, left] = [cells, joined, left].map(CellIndex);
    let index = measure("cells, to the index", nodes, &cells, &joined, &left);
    // Indexes shift when a node leaves; the keys that move are those of the line above.
    rows.push(Row { joined: rows[0].joined, left: rows[0].left, ..index });
    for count in [64, 128, 256] {
        let tokens = |nodes: &[u32]| Tokens::new(nodes, count);
        let name = format!("tokens, {count} a node");
        rows.push(measure(&name, nodes, &tokens(&now), &tokens(&more), &tokens(&less)));
    }
    let jump = |nodes: &[u32]| Jump(nodes.to_vec());
    rows.push(measure("jump hash", nodes, &jump(&now), &jump(&more), &jump(&less)));
    let modulo = |nodes: &[u32]| Modulo(nodes.to_vec());
    rows.push(measure("modulo", nodes, &modulo(&now), &modulo(&more), &modulo(&less)));
    rows
}

fn main() {
    println!("lookup in ns, hash ready; moved: part of the keys, and by the least possible\n");
    println!(
        "{:>5}  {:<20} {:>10} {:>12} {:>10}  {:>16}  {:>16}",
        "nodes", "scheme", "dependent", "independent", "peak/mean", "moved on join", "on leave"
    );
    let (mut index, mut id): (f64, f64) = (0.0, 0.0);
    for nodes in [3, 10, 50, 100] {
        for row in rows(nodes) {
            let least = (1.0 / f64::from(row.nodes + 1), 1.0 / f64::from(row.nodes));
            println!(
                "{:>5}  {:<20} {:>10.2} {:>12.2} {:>10.4}  \
                 {:>7.4} ({:>5.2} x)  {:>7.4} ({:>5.2} x)",
                row.nodes,
                row.name,
                row.dependent,
                row.independent,
                row.peak,
                row.joined,
                row.joined / least.0,
                row.left,
                row.left / least.1,
            );
            let slowest = row.dependent.max(row.independent);
            match row.name.as_str() {
                "cells, to the index" => index = index.max(slowest),
                "cells, to the id" => id = id.max(slowest),
                _ => {}
            }
        }
        println!();
    }
    let met = |slowest: f64| if slowest <= 3.0 { "met" } else { "missed" };
    println!("Q = 16384, and the slowest lookup of ours, by the target of <= 3 ns:");
    println!(
        "  {index:.2} ns to the owner's index, one array load, all that a router needs: {}",
        met(index)
    );
    println!("  {id:.2} ns to the owner's id, a second load: {}", met(id));
    println!("other targets: peak/mean <= 1.002 to 50 nodes, moved 1.00 x");
}
