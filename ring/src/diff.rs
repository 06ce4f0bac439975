//! What changed between two versions of the table.

use crate::cell::{CellBits, CellId, RingVersion};
use crate::node::{Node, NodeId, RingNode};
use crate::table::{RingTable, Run, TableError};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A run of changed cells, after `skip` unchanged ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Cells unchanged since the last patch.
    pub skip: u32,
    /// What the next ones are now.
    pub run: Run,
}

/// The way from one version of a ring to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff<N = Node> {
    /// The version it starts from.
    pub from: RingVersion,
    /// The version it leads to.
    pub to: RingVersion,
    /// log2 of the number of cells of both.
    pub bits: CellBits,
    /// Nodes that are new or not what they were, by id.
    pub nodes: Vec<N>,
    /// Nodes that are no longer there, by id.
    pub gone: Vec<NodeId>,
    /// Cells that changed, in order.
    pub patches: Vec<Patch>,
}

/// Why a diff does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffError {
    /// It starts from another version than the one at hand: fetch the whole ring.
    Gap {
        /// The version at hand.
        at: RingVersion,
        /// The version it starts from.
        from: RingVersion,
    },
    /// The number of cells is another.
    Bits(CellBits),
    /// A patch reaches past the last cell.
    PastEnd(u64),
    /// A patch without cells.
    Empty,
    /// What it leads to is not a ring table.
    Table(TableError),
}

impl fmt::Display for DiffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gap { at, from } => {
                write!(f, "the change starts from version {}, not {}", from.0, at.0)
            }
            Self::Bits(bits) => write!(f, "the change is for a ring of {} cells", bits.cells()),
            Self::PastEnd(cell) => write!(f, "the change reaches to cell {cell}"),
            Self::Empty => write!(f, "the change has a run of no cells"),
            Self::Table(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DiffError {}

impl From<TableError> for DiffError {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl<N: RingNode + Clone + PartialEq> Diff<N> {
    /// What leads from `old` to `new`.
    ///
    /// # Errors
    /// When the two are not versions of one ring, the older first.
    pub fn between(old: &RingTable<N>, new: &RingTable<N>) -> Result<Self, DiffError> {
        if old.bits() != new.bits() {
            return Err(DiffError::Bits(old.bits()));
        }
        if old.version() > new.version() {
            return Err(DiffError::Gap { at: new.version(), from: old.version() });
        }
        let mut changed = BTreeMap::new();
        for cell in new.cells() {
            if old.run(cell) != new.run(cell) {
                changed.insert(cell, new.run(cell));
            }
        }
        let is_new = |node: &&N| old.node(node.id()) != Some(*node);
        let is_gone = |node: &&N| new.node(node.id()).is_none();
        Ok(Self {
            from: old.version(),
            to: new.version(),
            bits: new.bits(),
            nodes: new.nodes().iter().filter(is_new).cloned().collect(),
            gone: old.nodes().iter().filter(is_gone).map(RingNode::id).collect(),
            patches: patches(&changed),
        })
    }

    /// The newer table.
    ///
    /// # Errors
    /// When it does not start from `old`, or is malformed.
    pub fn apply(&self, old: &RingTable<N>) -> Result<RingTable<N>, DiffError> {
        if self.bits != old.bits() {
            return Err(DiffError::Bits(self.bits));
        }
        if self.from != old.version() || self.to < self.from {
            return Err(DiffError::Gap { at: old.version(), from: self.from });
        }
        let mut nodes: BTreeMap<NodeId, N> =
            old.nodes().iter().chain(&self.nodes).map(|node| (node.id(), node.clone())).collect();
        let mut table = old.clone();
        if self.to > self.from {
            // First: the epochs of the change have begun in versions of their own.
            table.advance(self.to)?;
        }
        table.set_nodes(nodes.values().cloned().collect())?;
        for (cells, run) in self.places()? {
            let grows = |cell: &u32| run.epoch >= table.epoch(CellId(*cell as u16));
            if let Some(cell) = cells.clone().find(|cell| !grows(cell)) {
                return Err(TableError::Epoch(CellId(cell as u16), run.epoch).into());
            }
            table.fill(cells.start as usize, self.to, run)?;
        }
        nodes.retain(|id, _| !self.gone.contains(id));
        table.set_nodes(nodes.into_values().collect())?;
        Ok(table)
    }

    /// This change and then a later one, as one.
    ///
    /// # Errors
    /// When the later one does not start where this one ends, or either is malformed.
    pub fn then(&self, later: &Self) -> Result<Self, DiffError> {
        if self.bits != later.bits {
            return Err(DiffError::Bits(later.bits));
        }
        if self.to != later.from {
            return Err(DiffError::Gap { at: self.to, from: later.from });
        }
        let mut changed = BTreeMap::new();
        for (cells, run) in self.places()?.into_iter().chain(later.places()?) {
            let one = Run { cells: 1, ..*run };
            changed.extend(cells.map(|cell| (CellId(cell as u16), one)));
        }
        let mut nodes: BTreeMap<NodeId, &N> =
            self.nodes.iter().chain(&later.nodes).map(|node| (node.id(), node)).collect();
        nodes.retain(|id, _| !later.gone.contains(id));
        let mut gone: Vec<NodeId> = self.gone.iter().chain(&later.gone).copied().collect();
        gone.retain(|id| !nodes.contains_key(id));
        gone.sort();
        gone.dedup();
        Ok(Self {
            from: self.from,
            to: later.to,
            bits: self.bits,
            nodes: nodes.into_values().cloned().collect(),
            gone,
            patches: patches(&changed),
        })
    }

    /// The cells that each run is for.
    fn places(&self) -> Result<Vec<(Range<u32>, &Run)>, DiffError> {
        let mut next = 0;
        let mut places = Vec::with_capacity(self.patches.len());
        for Patch { skip, run } in &self.patches {
            if run.cells == 0 {
                return Err(DiffError::Empty);
            }
            let first = u64::from(next) + u64::from(*skip);
            let end = first + u64::from(run.cells);
            if end > u64::from(self.bits.cells()) {
                return Err(DiffError::PastEnd(end));
            }
            next = end as u32;
            places.push((first as u32..next, run));
        }
        Ok(places)
    }
}

/// Joins changed cells to runs.
fn patches(changed: &BTreeMap<CellId, Run>) -> Vec<Patch> {
    let mut patches: Vec<Patch> = Vec::new();
    let mut next = 0;
    for (cell, one) in changed {
        let cell = u32::from(cell.0);
        match patches.last_mut() {
            Some(Patch { run, .. })
                if cell == next && *run == (Run { cells: run.cells, ..*one }) =>
            {
                run.cells += 1;
            }
            _ => patches.push(Patch { skip: cell - next, run: *one }),
        }
        next = cell + 1;
    }
    patches
}
