//! How many cells of each residue class each node shall own and back up.

use super::board::{Board, NONE};
use super::split::split;
use std::cmp::Reverse;

/// Bits after the point of a share of cells.
pub(super) const POINT: u32 = 16;

/// A pair may exceed its share by this part of what the backup has after a crash, so by under 1 %.
/// Without it most counts would have no freedom left, and cells would be copied for one too many.
const LEEWAY: u64 = 128;

/// What a plan works towards.
pub(super) struct Targets {
    /// Cells to own, per node.
    totals: Vec<u32>,
    /// Cells to own, per node and class, row by row.
    pub own: Vec<u32>,
    /// Cells to back up, likewise.
    pub back: Vec<u32>,
    /// Cells of one node that another should back up, row by row, with [`POINT`] bits after the
    /// point. 0 where it must not.
    pub pairs: Vec<u64>,
    classes: usize,
}

impl Targets {
    /// The targets nearest to how the board is.
    pub fn new(board: &Board) -> Self {
        let (nodes, classes, cells) = (board.len(), board.classes, board.cells() as u64);
        let sum = |row: &[u32]| row.iter().sum::<u32>();
        let owned = board.count(|cell| board.layout.owner[cell]);
        let weight: u64 = board.weights.iter().sum();
        let shares = board.weights.iter().map(|w| (cells * w / weight, cells * w % weight));
        let held: Vec<u32> = owned.chunks(classes).map(sum).collect();
        let own = largest_remainder(&shares.collect::<Vec<_>>(), cells, &held);

        let mut pairs = vec![0; nodes * nodes];
        for owner in 0..nodes {
            let may = |&backup: &usize| board.may_back(owner, backup);
            let others: u64 = (0..nodes).filter(may).map(|backup| board.weights[backup]).sum();
            for backup in (0..nodes).filter(may) {
                let part = u128::from(own[owner]) << POINT;
                let part = part * u128::from(board.weights[backup]) / u128::from(others);
                pairs[owner * nodes + backup] = part as u64;
            }
        }
        let backed = board.count(|cell| {
            let backup = board.layout.backup[cell];
            if board.may_back(board.layout.owner[cell], backup) { backup } else { NONE }
        });
        let back = if pairs.iter().all(|part| *part == 0) {
            vec![0; nodes]
        } else {
            let share = |backup| pairs.iter().skip(backup).step_by(nodes).sum::<u64>();
            let shares = (0..nodes).map(share).map(|s| (s >> POINT, s & ((1 << POINT) - 1)));
            let held: Vec<u32> = backed.chunks(classes).map(sum).collect();
            largest_remainder(&shares.collect::<Vec<_>>(), cells, &held)
        };
        Self {
            own: split(&own, classes, &owned),
            totals: own,
            back: split(&back, classes, &backed),
            pairs,
            classes,
        }
    }

    /// How far a pair of nodes with `here` cells in a class and `all` in all is above its share: in
    /// cells of the class, then as a ratio of the whole. Pairs with a greater excess give first.
    pub fn excess(&self, pair: usize, here: usize, all: u32) -> (i64, i64) {
        let share = self.pairs[pair];
        let in_class = (share >> POINT) / self.classes as u64;
        (here as i64 - in_class as i64, ratio(all, share) as i64)
    }

    /// Most cells that a node should back up of another's, in a residue class and in all. Half a
    /// cell more in a class keeps the rounded limit off the mean: else, as nodes join, the day it
    /// falls to one less would move every other cell.
    pub fn limits(&self, owner: usize, backup: usize) -> (u64, u64) {
        let nodes = self.totals.len();
        let classes = self.classes as u64;
        let share = self.pairs[owner * nodes + backup].div_ceil(1 << POINT);
        let after = u64::from(self.totals[backup]) + share;
        ((share + classes / 2).div_ceil(classes), share + after / LEEWAY)
    }

    /// Most cells that a node should back up.
    pub fn backed(&self, node: usize) -> u64 {
        let column = self.pairs.iter().skip(node).step_by(self.totals.len());
        column.sum::<u64>().div_ceil(1 << POINT)
    }
}

/// Rounds shares, each a whole part and a remainder, so that they add up to `total`. Equal
/// remainders: who holds more above its whole part is rounded up, as that moves less.
fn largest_remainder(shares: &[(u64, u64)], total: u64, held: &[u32]) -> Vec<u32> {
    let mut whole: Vec<u32> = shares.iter().map(|share| share.0 as u32).collect();
    let rest = total - shares.iter().map(|share| share.0).sum::<u64>();
    let mut order: Vec<usize> = (0..shares.len()).filter(|&node| shares[node].1 > 0).collect();
    order.sort_by_key(|&node| {
        let above = i64::from(held[node]) - i64::from(whole[node]);
        (Reverse(shares[node].1), Reverse(above), node)
    });
    debug_assert!(rest <= order.len() as u64);
    for &node in order.iter().take(rest as usize) {
        whole[node] += 1;
    }
    whole
}

/// How full something is that holds `count` cells and should hold `share`; for comparing.
pub(super) fn ratio(count: u32, share: u64) -> u64 {
    (u64::from(count) << 32) / share.max(1)
}
