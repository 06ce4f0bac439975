//! The ring table: who owns each cell, who backs it up, and under which epoch.

use crate::cell::{CellBits, CellId, Epoch, RingVersion};
use crate::node::{Node, NodeError, NodeId, RingNode, sorted};
use std::fmt;

/// The nodes that hold a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placement {
    /// The node that grants for it.
    pub owner: NodeId,
    /// The node with a synchronous copy.
    pub backup: Option<NodeId>,
}

/// A change of one cell's placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The cell.
    pub cell: CellId,
    /// Where it is; the move is void if it is no longer there.
    pub from: Placement,
    /// Where it shall be.
    pub to: Placement,
}

/// `cells` consecutive cells with equal placement and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many; never 0.
    pub cells: u32,
    /// Where they are.
    pub placement: Placement,
    /// Their epoch.
    pub epoch: Epoch,
    /// The version in which that epoch began.
    pub since: RingVersion,
    /// The last epoch that began without a copy: what was granted in an earlier one is in nobody's
    /// memory, unless its client has reclaimed it.
    pub takeover: Epoch,
}

/// What one node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node.
    pub node: NodeId,
    /// Cells it owns.
    pub owned: u32,
    /// Cells it backs up.
    pub backed: u32,
}

/// Why something is not a ring table, or not a step from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The nodes do not fit together.
    Nodes(NodeError),
    /// The runs cover this many cells, which is not Q.
    Cells(u64),
    /// A cell names a node that is not in the table.
    UnknownNode(CellId, NodeId),
    /// Owner and backup of a cell are one node.
    SelfBackup(CellId),
    /// The cell does not exist.
    NoSuchCell(CellId),
    /// The cell's epoch would not grow, or would go past the last one.
    Epoch(CellId, Epoch),
    /// The cell's epoch began in a version that is later than the table's.
    Since(CellId, RingVersion),
    /// The cell was taken over in an epoch that is yet to come.
    Takeover(CellId, Epoch),
    /// The cell is not where the move says; here is where it is.
    Elsewhere(CellId, Placement),
    /// The node still holds cells.
    InUse(NodeId),
    /// The version does not grow.
    Version(RingVersion),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(error) => error.fmt(f),
            Self::Cells(cells) => write!(f, "the runs cover {cells} cells, not the ring"),
            Self::UnknownNode(cell, node) => write!(f, "cell {cell} is at unknown node {node}"),
            Self::SelfBackup(cell) => write!(f, "cell {cell} has its owner for a backup"),
            Self::NoSuchCell(cell) => write!(f, "there is no cell {cell}"),
            Self::Epoch(cell, epoch) => {
                write!(f, "cell {cell} cannot go to epoch {}", epoch.0)
            }
            Self::Since(cell, since) => {
                write!(f, "the epoch of cell {cell} begins in version {} only", since.0)
            }
            Self::Takeover(cell, epoch) => {
                write!(f, "cell {cell} was taken over in epoch {}, after its own", epoch.0)
            }
            Self::Elsewhere(cell, at) => match at.backup {
                Some(backup) => write!(f, "cell {cell} is at {} and {backup}", at.owner),
                None => write!(f, "cell {cell} is at {} alone", at.owner),
            },
            Self::InUse(node) => write!(f, "node {node} still holds cells"),
            Self::Version(version) => write!(f, "version {} does not grow", version.0),
        }
    }
}

impl std::error::Error for TableError {}

impl From<NodeError> for TableError {
    fn from(error: NodeError) -> Self {
        Self::Nodes(error)
    }
}

/// How a change of placement begins an epoch, if it does.
#[derive(Clone, Copy)]
enum Start {
    None,
    WithCopy,
    Anew,
}

/// In place of a node's index: no backup.
const NONE: u16 = u16::MAX;

/// The whole ring at one version, with whatever its user knows of a node ([`RingNode`]).
///
/// Nodes are held once, sorted by id; a cell has the index of its owner. Two bytes a cell keep the
/// 16384 cells of the usual ring in 32 KiB, the first-level cache of most processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingTable<N = Node> {
    version: RingVersion,
    bits: CellBits,
    nodes: Vec<N>,
    owners: Vec<u16>,
    backups: Vec<u16>,
    epochs: Vec<Epoch>,
    sinces: Vec<RingVersion>,
    takeovers: Vec<Epoch>,
}

impl<N: RingNode> RingTable<N> {
    /// The ring of a cluster's first node: it owns every cell.
    ///
    /// # Errors
    /// When the node is not a sound one.
    pub fn founded(
        version: RingVersion,
        bits: CellBits,
        node: N,
        epoch: Epoch,
    ) -> Result<Self, TableError> {
        let placement = Placement { owner: node.id(), backup: None };
        let all = Run { cells: bits.cells(), placement, epoch, since: version, takeover: epoch };
        Self::from_runs(version, bits, vec![node], &[all])
    }

    /// The ring that these runs spell out.
    ///
    /// # Errors
    /// When they do not: see [`TableError`].
    pub fn from_runs(
        version: RingVersion,
        bits: CellBits,
        nodes: Vec<N>,
        runs: &[Run],
    ) -> Result<Self, TableError> {
        let cells = runs.iter().map(|run| u64::from(run.cells)).sum();
        if cells != u64::from(bits.cells()) {
            return Err(TableError::Cells(cells));
        }
        let mut table = Self {
            version,
            bits,
            nodes: sorted(nodes)?,
            owners: vec![NONE; bits.cells() as usize],
            backups: vec![NONE; bits.cells() as usize],
            epochs: vec![Epoch(0); bits.cells() as usize],
            sinces: vec![RingVersion(0); bits.cells() as usize],
            takeovers: vec![Epoch(0); bits.cells() as usize],
        };
        let mut first = 0;
        for run in runs {
            table.fill(first, version, run)?;
            first += run.cells as usize;
        }
        Ok(table)
    }

    /// Puts a run at the cells from `first` on, which must exist, for a table of this version.
    pub(crate) fn fill(
        &mut self,
        first: usize,
        version: RingVersion,
        run: &Run,
    ) -> Result<(), TableError> {
        let cell = CellId(first as u16);
        let (owner, backup) = self.indexes(cell, run.placement)?;
        if run.epoch >= Epoch::LAST {
            return Err(TableError::Epoch(cell, run.epoch));
        }
        if run.since > version {
            return Err(TableError::Since(cell, run.since));
        }
        if run.takeover > run.epoch {
            return Err(TableError::Takeover(cell, run.takeover));
        }
        let cells = first..first + run.cells as usize;
        self.owners[cells.clone()].fill(owner);
        self.backups[cells.clone()].fill(backup);
        self.epochs[cells.clone()].fill(run.epoch);
        self.sinces[cells.clone()].fill(run.since);
        self.takeovers[cells].fill(run.takeover);
        Ok(())
    }

    /// A placement as indexes of nodes.
    fn indexes(&self, cell: CellId, at: Placement) -> Result<(u16, u16), TableError> {
        if at.backup == Some(at.owner) {
            return Err(TableError::SelfBackup(cell));
        }
        let index = |id| self.node_index(id).ok_or(TableError::UnknownNode(cell, id));
        let backup = at.backup.map_or(Ok(NONE), |id| index(id).map(|index| index as u16))?;
        Ok((index(at.owner)? as u16, backup))
    }

    /// Its version.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    /// log2 of the number of cells.
    pub fn bits(&self) -> CellBits {
        self.bits
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &[N] {
        &self.nodes
    }

    /// Place of a node among [`nodes`](Self::nodes).
    pub fn node_index(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, RingNode::id).ok()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&N> {
        self.node_index(id).map(|index| &self.nodes[index])
    }

    /// Index, among [`nodes`](Self::nodes), of the owner of a ring position: one array load.
    /// Whoever routes keeps what it has of each node, such as its connection, in the same order.
    #[inline]
    pub fn owner_index(&self, position: u64) -> usize {
        usize::from(self.owners[usize::from(self.bits.cell(position).0)])
    }

    /// Owner of a ring position.
    #[inline]
    pub fn owner_at(&self, position: u64) -> NodeId {
        self.nodes[self.owner_index(position)].id()
    }

    /// The node that grants for a cell; `None` if there is no such cell.
    pub fn owner(&self, cell: CellId) -> Option<&N> {
        self.owners.get(usize::from(cell.0)).map(|&index| &self.nodes[usize::from(index)])
    }

    /// All cells.
    pub fn cells(&self) -> impl Iterator<Item = CellId> + use<N> {
        (0..self.bits.cells()).map(|cell| CellId(cell as u16))
    }

    /// Where a cell is.
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn placement(&self, cell: CellId) -> Placement {
        let cell = usize::from(cell.0);
        let id = |index: u16| self.nodes[usize::from(index)].id();
        let backup = self.backups[cell];
        Placement { owner: id(self.owners[cell]), backup: (backup != NONE).then(|| id(backup)) }
    }

    /// Epoch of a cell.
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn epoch(&self, cell: CellId) -> Epoch {
        self.epochs[usize::from(cell.0)]
    }

    /// The version in which the epoch of a cell began.
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn since(&self, cell: CellId) -> RingVersion {
        self.sinces[usize::from(cell.0)]
    }

    /// The last epoch of a cell that began without a copy.
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn takeover(&self, cell: CellId) -> Epoch {
        self.takeovers[usize::from(cell.0)]
    }

    /// A cell as a run of one.
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn run(&self, cell: CellId) -> Run {
        let (placement, epoch) = (self.placement(cell), self.epoch(cell));
        Run { cells: 1, placement, epoch, since: self.since(cell), takeover: self.takeover(cell) }
    }

    /// What each node holds, in the order of [`nodes`](Self::nodes).
    pub fn shares(&self) -> Vec<Share> {
        let nothing = |node: &N| Share { node: node.id(), owned: 0, backed: 0 };
        let mut shares: Vec<Share> = self.nodes.iter().map(nothing).collect();
        for (&owner, &backup) in self.owners.iter().zip(&self.backups) {
            shares[usize::from(owner)].owned += 1;
            if backup != NONE {
                shares[usize::from(backup)].backed += 1;
            }
        }
        shares
    }

    /// The whole table as runs.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for cell in self.cells() {
            let one = self.run(cell);
            match runs.last_mut() {
                Some(run) if *run == (Run { cells: run.cells, ..one }) => run.cells += 1,
                _ => runs.push(one),
            }
        }
        runs
    }

    /// Moves one cell, if it still is where the move says. A new owner has a new epoch.
    ///
    /// # Errors
    /// When the move does not fit the table, which is then unchanged.
    pub fn apply(&mut self, change: &Move) -> Result<(), TableError> {
        let renew = change.to.owner != change.from.owner;
        self.change(change, if renew { Start::WithCopy } else { Start::None })
    }

    /// Like [`apply`](Self::apply) for a cell of which no copy is left: always a new epoch.
    ///
    /// # Errors
    /// When the move does not fit the table, which is then unchanged.
    pub fn take_over(&mut self, change: &Move) -> Result<(), TableError> {
        self.change(change, Start::Anew)
    }

    fn change(&mut self, change: &Move, start: Start) -> Result<(), TableError> {
        let Move { cell, from, to } = *change;
        if u32::from(cell.0) >= self.bits.cells() {
            return Err(TableError::NoSuchCell(cell));
        }
        let at = self.placement(cell);
        if at != from {
            return Err(TableError::Elsewhere(cell, at));
        }
        let (owner, backup) = self.indexes(cell, to)?;
        let next = Epoch(self.epoch(cell).0.saturating_add(1));
        match start {
            Start::None => {}
            Start::WithCopy => self.raise(cell, next)?,
            Start::Anew => self.begin_anew(cell, next)?,
        }
        self.owners[usize::from(cell.0)] = owner;
        self.backups[usize::from(cell.0)] = backup;
        Ok(())
    }

    /// Gives a cell a new epoch, from the next version on: another owner goes on with its state, or
    /// its counter is used up.
    ///
    /// # Errors
    /// When there is no such cell, the epoch does not grow, or is the last one.
    pub fn raise(&mut self, cell: CellId, epoch: Epoch) -> Result<(), TableError> {
        let Some(at) = self.epochs.get_mut(usize::from(cell.0)) else {
            return Err(TableError::NoSuchCell(cell));
        };
        if epoch <= *at || epoch >= Epoch::LAST {
            return Err(TableError::Epoch(cell, epoch));
        }
        *at = epoch;
        // Later than this version: `advance` says in which.
        self.sinces[usize::from(cell.0)] = RingVersion(self.version.0.saturating_add(1));
        Ok(())
    }

    /// Gives a cell a new epoch that begins without a copy of its state.
    ///
    /// # Errors
    /// As [`raise`](Self::raise).
    pub fn begin_anew(&mut self, cell: CellId, epoch: Epoch) -> Result<(), TableError> {
        self.raise(cell, epoch)?;
        self.takeovers[usize::from(cell.0)] = epoch;
        Ok(())
    }

    /// The next version, in which a cell has a new epoch under the same owner.
    ///
    /// # Errors
    /// As [`raise`](Self::raise) and [`advance`](Self::advance); the table is then unchanged.
    pub fn renew(
        &mut self,
        cell: CellId,
        epoch: Epoch,
        version: RingVersion,
    ) -> Result<(), TableError> {
        if version <= self.version {
            return Err(TableError::Version(version));
        }
        self.raise(cell, epoch)?;
        self.advance(version)
    }

    /// Gives the table a new version.
    ///
    /// # Errors
    /// When it does not grow.
    pub fn advance(&mut self, version: RingVersion) -> Result<(), TableError> {
        if version <= self.version {
            return Err(TableError::Version(version));
        }
        for since in self.sinces.iter_mut().filter(|since| **since > self.version) {
            *since = version;
        }
        self.version = version;
        Ok(())
    }

    /// Puts other nodes in the place of these; no cell moves.
    ///
    /// # Errors
    /// When they do not fit together, or a node with cells is not among them. The table is then
    /// unchanged.
    pub fn set_nodes(&mut self, nodes: Vec<N>) -> Result<(), TableError> {
        let nodes = sorted(nodes)?;
        let place = |id| nodes.binary_search_by_key(&id, RingNode::id).ok();
        let mut to: Vec<u16> = Vec::with_capacity(self.nodes.len());
        for share in self.shares() {
            match place(share.node) {
                Some(index) => to.push(index as u16),
                None if share.owned + share.backed == 0 => to.push(NONE),
                None => return Err(TableError::InUse(share.node)),
            }
        }
        for index in self.owners.iter_mut().chain(&mut self.backups) {
            *index = to.get(usize::from(*index)).copied().unwrap_or(NONE);
        }
        self.nodes = nodes;
        Ok(())
    }
}
