//! Where cells go when nodes join, leave, crash or change weight.
//!
//! A plan is a pure function of the table and the changes. It is made in this order:
//!
//! 1. *Failover*: of each cell of a crashed node, the remaining copy is the owner from now on. A
//!    cell without one is taken over by whoever has least; its locks come from the clients.
//! 2. *Targets*: how many cells each node owns, by largest remainder of the weights, and how many
//!    of them fall into each residue class `cell % classes` (`targets`). There are as many classes
//!    as the most workers of a node, or more; and the targets are even over every coarser modulus
//!    too. So the workers of a node, however many, have equally many cells to within one.
//! 3. *Owners*: cells go from nodes above their targets to nodes below them, and no others move.
//! 4. *Backups*: each owner's cells are backed up by all nodes of other failure domains, in
//!    proportion to their weights, so that a crash spreads over all survivors. A backup stays
//!    where it is as long as these counts allow.
//!
//! Counts of owners are exact. Counts of backups are kept where rounding leaves room for it: they
//! are found greedily, and repaired along augmenting paths.

mod backups;
mod board;
mod crash;
mod exchange;
mod owners;
mod split;
mod targets;

use crate::cell::RingVersion;
use crate::node::{Node, NodeError, NodeId, sorted};
use crate::table::{Move, RingTable, TableError};
use board::Board;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Something that happens to the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node joins.
    Join(Node),
    /// A node leaves in order: it holds its cells until each has moved.
    Leave(NodeId),
    /// A node gets another weight; 0 makes it a witness.
    Weight(NodeId, u32),
    /// A node is gone, or has come back with an empty memory (then its `Join` follows).
    Crash(NodeId),
}

/// What to do about changes, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The nodes once all is done.
    pub nodes: Vec<Node>,
    /// Roles that follow from crashes alone, with no copying: backups promoted, copies dropped.
    pub failover: Vec<Move>,
    /// Cells of which no copy is left, and who opens them anew: under a new epoch even if that is
    /// the same node, come back without its memory.
    pub takeover: Vec<Move>,
    /// What restores copies and balance. At most one move a cell; they may be done in any order.
    pub moves: Vec<Move>,
}

impl Plan {
    /// The table after all of it.
    ///
    /// # Errors
    /// When it was made for another table, or the version does not grow.
    pub fn apply(&self, old: &RingTable, version: RingVersion) -> Result<RingTable, TableError> {
        let mut table = old.clone();
        let leaving = old.nodes().iter().filter(|old| !self.nodes.iter().any(|n| n.id == old.id));
        table.set_nodes(self.nodes.iter().chain(leaving).cloned().collect())?;
        self.failover.iter().try_for_each(|change| table.apply(change))?;
        self.takeover.iter().try_for_each(|change| table.take_over(change))?;
        self.moves.iter().try_for_each(|change| table.apply(change))?;
        table.set_nodes(self.nodes.clone())?;
        table.advance(version)?;
        Ok(table)
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The nodes would not fit together.
    Nodes(NodeError),
    /// No such node.
    Unknown(NodeId),
    /// The node is there already.
    Known(NodeId),
    /// No node of any weight would be left to own cells.
    NoOwner,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(error) => error.fmt(f),
            Self::Unknown(node) => write!(f, "there is no node {node}"),
            Self::Known(node) => write!(f, "node {node} is in the ring already"),
            Self::NoOwner => write!(f, "no node with a weight would be left"),
        }
    }
}

impl std::error::Error for PlanError {}

/// What leads from a table, through these changes, to a balanced one. Without changes: what is
/// left to do, for instance after half of an earlier plan.
///
/// # Errors
/// When the changes do not fit the table.
pub fn plan(table: &RingTable, changes: &[Change]) -> Result<Plan, PlanError> {
    let (nodes, crashed) = members(table, changes)?;
    if nodes.iter().all(|node| node.weight == 0) {
        return Err(PlanError::NoOwner);
    }
    let mut board = Board::new(table, &nodes);
    let start = board.layout.clone();
    crash::promote(&mut board, &crashed);
    let promoted = board.layout.clone();
    let lost = crash::take_over(&mut board, &crashed);
    let opened = board.layout.clone();
    let targets = targets::Targets::new(&board);
    owners::place(&mut board, &targets);
    backups::place(&mut board, &opened);
    let moves = board.moves(&opened, &board.layout);
    let takeover = lost.iter().map(|&cell| board.change(cell, &promoted, &opened)).collect();
    Ok(Plan { failover: board.moves(&start, &promoted), takeover, moves, nodes })
}

/// The nodes after the changes, and those of the table that crashed.
fn members(
    table: &RingTable,
    changes: &[Change],
) -> Result<(Vec<Node>, BTreeSet<NodeId>), PlanError> {
    let mut nodes: BTreeMap<NodeId, Node> =
        table.nodes().iter().map(|node| (node.id, node.clone())).collect();
    let mut crashed = BTreeSet::new();
    for change in changes {
        match change {
            Change::Join(node) => {
                if nodes.insert(node.id, node.clone()).is_some() {
                    return Err(PlanError::Known(node.id));
                }
            }
            Change::Leave(id) => {
                nodes.remove(id).ok_or(PlanError::Unknown(*id))?;
            }
            Change::Weight(id, weight) => {
                nodes.get_mut(id).ok_or(PlanError::Unknown(*id))?.weight = *weight;
            }
            Change::Crash(id) => {
                nodes.remove(id).ok_or(PlanError::Unknown(*id))?;
                crashed.insert(*id);
            }
        }
    }
    Ok((sorted(nodes.into_values().collect()).map_err(PlanError::Nodes)?, crashed))
}
