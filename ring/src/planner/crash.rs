//! The part of a crash that cannot wait: who has each cell now.

use super::board::{Board, NONE};
use crate::node::NodeId;
use std::collections::BTreeSet;

/// Drops the copies that crashed nodes had, and makes the remaining copy of each cell its owner.
pub(super) fn promote(board: &mut Board, crashed: &BTreeSet<NodeId>) {
    let dead: Vec<bool> = board.ids.iter().map(|id| crashed.contains(id)).collect();
    let layout = &mut board.layout;
    for (owner, backup) in layout.owner.iter_mut().zip(&mut layout.backup) {
        if *backup == NONE {
            continue;
        }
        match (dead[*owner], dead[*backup]) {
            (true, false) => *owner = std::mem::replace(backup, NONE),
            (false, true) => *backup = NONE,
            (false, false) | (true, true) => {}
        }
    }
}

/// Gives every cell that is still a crashed node's to the node with the least of its class, for
/// its weight. Returns these cells.
pub(super) fn take_over(board: &mut Board, crashed: &BTreeSet<NodeId>) -> Vec<usize> {
    let lost: Vec<usize> = (0..board.cells())
        .filter(|&cell| crashed.contains(&board.ids[board.layout.owner[cell]]))
        .collect();
    let survivors: Vec<usize> = (0..board.len()).filter(|&node| board.weights[node] > 0).collect();
    let mut by_class = board.count(|cell| board.layout.owner[cell]);
    let mut total: Vec<u64> = by_class
        .chunks(board.classes)
        .map(|row| row.iter().copied().map(u64::from).sum())
        .collect();
    for &cell in &lost {
        let class = board.class_of(cell);
        let load = |&node: &usize| {
            let here = u64::from(by_class[node * board.classes + class]);
            let per_weight = |cells: u64| (cells << 32) / board.weights[node];
            (per_weight(here), per_weight(total[node]), node)
        };
        if let Some(survivor) = survivors.iter().copied().min_by_key(load) {
            board.layout.owner[cell] = survivor;
            board.layout.backup[cell] = NONE;
            by_class[survivor * board.classes + class] += 1;
            total[survivor] += 1;
        }
    }
    lost
}
