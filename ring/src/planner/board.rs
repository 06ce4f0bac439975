//! What the steps of a plan share: the cells by index of node, and counts of them.

use crate::cell::CellId;
use crate::node::{Node, NodeId, domains};
use crate::table::{Move, Placement, RingTable};

/// In place of a node's index: no backup.
pub(super) const NONE: usize = usize::MAX;

/// Fewest residue classes to balance, unless that leaves a class fewer than [`CLASS_CELLS`] cells.
/// As many as workers would do, but then a node with twice the workers of all others, when it
/// joins, would find classes that nothing ever kept even, and half the ring would move.
const CLASSES: usize = 64;
const CLASS_CELLS: usize = 256;

/// Who holds each cell.
#[derive(Clone)]
pub(super) struct Layout {
    pub owner: Vec<usize>,
    pub backup: Vec<usize>,
}

/// The table in the making. Nodes have indexes: those of the table and those to come, by id; one
/// that leaves counts as a witness.
pub(super) struct Board {
    pub ids: Vec<NodeId>,
    pub weights: Vec<u64>,
    pub domains: Vec<usize>,
    /// Residue classes: a power of two, and no more than there are cells.
    pub classes: usize,
    pub layout: Layout,
}

impl Board {
    /// The cells of a table, for the nodes it shall have.
    pub fn new(table: &RingTable, nodes: &[Node]) -> Self {
        let stays = |old: &&Node| nodes.iter().any(|node| node.id == old.id);
        let leaving = table.nodes().iter().filter(|old| !stays(old));
        let leaving = leaving.map(|old| Node { weight: 0, ..old.clone() });
        let mut all: Vec<Node> = nodes.iter().cloned().chain(leaving).collect();
        all.sort_by_key(|node| node.id);
        let ids: Vec<NodeId> = all.iter().map(|node| node.id).collect();
        let index = |id: NodeId| ids.partition_point(|other| *other < id);
        let places: Vec<Placement> = table.cells().map(|cell| table.placement(cell)).collect();
        let layout = Layout {
            owner: places.iter().map(|at| index(at.owner)).collect(),
            backup: places.iter().map(|at| at.backup.map_or(NONE, index)).collect(),
        };
        let workers = all.iter().filter(|node| node.weight > 0).map(|node| node.workers).max();
        Self {
            weights: all.iter().map(|node| u64::from(node.weight)).collect(),
            domains: domains(&all),
            classes: CLASSES
                .min(places.len() / CLASS_CELLS)
                .max(usize::from(workers.unwrap_or(1)))
                .min(places.len()),
            ids,
            layout,
        }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.layout.owner.len()
    }

    /// The cells of a residue class.
    pub fn class(&self, class: usize) -> impl Iterator<Item = usize> + use<> {
        (class..self.cells()).step_by(self.classes)
    }

    /// Residue class of a cell.
    pub fn class_of(&self, cell: usize) -> usize {
        cell % self.classes
    }

    /// Whether `backup` may back up the cells of `owner`.
    pub fn may_back(&self, owner: usize, backup: usize) -> bool {
        backup != NONE && self.weights[backup] > 0 && self.domains[owner] != self.domains[backup]
    }

    /// Cells per node and class, row by row; `role` names the node of a cell, or [`NONE`].
    pub fn count(&self, role: impl Fn(usize) -> usize) -> Vec<u32> {
        let mut counts = vec![0; self.len() * self.classes];
        for cell in 0..self.cells() {
            let node = role(cell);
            if node != NONE {
                counts[node * self.classes + self.class_of(cell)] += 1;
            }
        }
        counts
    }

    /// Cells whose placement is not the same in two layouts.
    pub fn moves(&self, from: &Layout, to: &Layout) -> Vec<Move> {
        let change = |cell| self.change(cell, from, to);
        (0..self.cells()).map(change).filter(|change| change.from != change.to).collect()
    }

    /// A cell in two layouts.
    pub fn change(&self, cell: usize, from: &Layout, to: &Layout) -> Move {
        let at = |layout: &Layout| Placement {
            owner: self.ids[layout.owner[cell]],
            backup: self.ids.get(layout.backup[cell]).copied(),
        };
        Move { cell: CellId(cell as u16), from: at(from), to: at(to) }
    }
}
