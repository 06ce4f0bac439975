//! From the parts that a peer has sent to a table, or to what has changed of one. A peer may send
//! anything: what does not fit together is an error, and nothing is kept beyond what a ring may be.

use super::{NodeInfo, RingChunk, RingRun};
use crate::limits;
use lockring_ring::{
    CellBits, CellBitsError, Diff, DiffError, Epoch, MAX_NODES, NodeId, Patch, Placement,
    RingTable, RingVersion, Run, TableError,
};

/// Why parts do not make a ring, or a change of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A part is missing, or came twice.
    #[error("part {0} of it is not the next one")]
    Order(u32),
    /// Two parts are of different rings.
    #[error("part {0} of it is of version {1}, and not of that of the parts before")]
    Mixed(u32, u64),
    /// A part tells nothing, and is not the only one.
    #[error("part {0} of it tells nothing")]
    Empty(u32),
    /// It has an impossible number of cells.
    #[error(transparent)]
    Bits(#[from] CellBitsError),
    /// More nodes than a ring may have.
    #[error("it has more than {MAX_NODES} nodes")]
    Nodes,
    /// Nodes are not in the order of their ids, or one is there twice.
    #[error("node {0} is not where its id would stand")]
    NodeOrder(NodeId),
    /// The number of workers of a node is not a power of two, or above the limit.
    #[error("node {0} with {1} workers")]
    Workers(NodeId, u16),
    /// A worker of a node could not be connected to.
    #[error("node {0} without an address for each worker")]
    Addresses(NodeId),
    /// The hosts of a node are longer than the limit.
    #[error("node {0} with hosts of {1} bytes together")]
    Hosts(NodeId, usize),
    /// A run has no cells.
    #[error("a run has no cells")]
    NoCells,
    /// The runs reach past the last cell.
    #[error("the runs reach to cell {0}, of {1}")]
    PastEnd(u64, u32),
    /// The whole ring skips cells, or names nodes that are gone.
    #[error("it is the whole ring, and yet has what only a change has")]
    NotWhole,
    /// A change leads to no later version.
    #[error("it is the change from version {0} to version {1}, which is not a later one")]
    Backwards(u64, u64),
    /// The parts fit together, but what they make is none.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The change does not fit the ring at hand.
    #[error(transparent)]
    Change(#[from] DiffError),
}

/// What the parts have told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingNews {
    /// The ring.
    Whole(RingTable<NodeInfo>),
    /// What has changed of one: it fits the ring of the version that it starts from.
    Change(Diff<NodeInfo>),
}

/// A ring on its way, part by part.
#[derive(Debug, Default)]
pub struct RingParts {
    begun: Option<Begun>,
}

/// The parts that have come.
#[derive(Debug)]
struct Begun {
    version: u64,
    base: Option<u64>,
    bits: CellBits,
    parts: u32,
    nodes: Vec<NodeInfo>,
    gone: Vec<NodeId>,
    patches: Vec<Patch>,
    /// The cells that the runs have reached.
    cells: u64,
}

impl RingParts {
    /// Takes the next part, and gives what they make together once it is the last. A part 0 begins
    /// anew, whatever has come before.
    ///
    /// # Errors
    /// When it does not go with those before it, or with the limits. They are forgotten then.
    pub fn take(&mut self, part: RingChunk) -> Result<Option<RingNews>, RingError> {
        let mut begun = match self.begun.take() {
            _ if part.part == 0 => Begun::new(&part)?,
            Some(begun) => begun,
            None => return Err(RingError::Order(part.part)),
        };
        let last = part.last;
        begun.add(part)?;
        if last {
            return begun.finish().map(Some);
        }
        self.begun = Some(begun);
        Ok(None)
    }
}

impl Begun {
    fn new(first: &RingChunk) -> Result<Self, RingError> {
        let &RingChunk { version, base, cell_bits, .. } = first;
        if let Some(base) = base.filter(|base| *base >= version) {
            return Err(RingError::Backwards(base, version));
        }
        Ok(Self {
            version,
            base,
            bits: CellBits::new(cell_bits)?,
            parts: 0,
            nodes: Vec::new(),
            gone: Vec::new(),
            patches: Vec::new(),
            cells: 0,
        })
    }

    fn add(&mut self, part: RingChunk) -> Result<(), RingError> {
        if part.part != self.parts {
            return Err(RingError::Order(part.part));
        }
        let of = (part.version, part.base, part.cell_bits);
        if of != (self.version, self.base, self.bits.bits()) {
            return Err(RingError::Mixed(part.part, part.version));
        }
        let is_empty = part.nodes.is_empty() && part.gone.is_empty() && part.runs.is_empty();
        let is_alone = part.part == 0 && part.last;
        if is_empty && !is_alone {
            return Err(RingError::Empty(part.part));
        }
        self.parts += 1;
        part.nodes.into_iter().try_for_each(|node| self.node(node))?;
        part.gone.into_iter().try_for_each(|id| self.gone(NodeId(id)))?;
        part.runs.iter().try_for_each(|run| self.run(run))
    }

    fn node(&mut self, node: NodeInfo) -> Result<(), RingError> {
        if self.nodes.len() == MAX_NODES {
            return Err(RingError::Nodes);
        }
        if self.nodes.last().is_some_and(|before| before.id >= node.id) {
            return Err(RingError::NodeOrder(node.id));
        }
        check(&node)?;
        self.nodes.push(node);
        Ok(())
    }

    fn gone(&mut self, id: NodeId) -> Result<(), RingError> {
        if self.gone.len() == MAX_NODES {
            return Err(RingError::Nodes);
        }
        if self.gone.last().is_some_and(|before| *before >= id) {
            return Err(RingError::NodeOrder(id));
        }
        self.gone.push(id);
        Ok(())
    }

    fn run(&mut self, run: &RingRun) -> Result<(), RingError> {
        let &RingRun { skip, cells, owner, backup, epoch, since, takeover } = run;
        if cells == 0 {
            return Err(RingError::NoCells);
        }
        self.cells += u64::from(skip) + u64::from(cells);
        if self.cells > u64::from(self.bits.cells()) {
            return Err(RingError::PastEnd(self.cells, self.bits.cells()));
        }
        let placement = Placement { owner: NodeId(owner), backup: backup.map(NodeId) };
        let (epoch, since, takeover) = (Epoch(epoch), RingVersion(since), Epoch(takeover));
        self.patches.push(Patch { skip, run: Run { cells, placement, epoch, since, takeover } });
        Ok(())
    }

    fn finish(self) -> Result<RingNews, RingError> {
        let Self { bits, nodes, gone, patches, .. } = self;
        let to = RingVersion(self.version);
        if let Some(base) = self.base {
            let from = RingVersion(base);
            return Ok(RingNews::Change(Diff { from, to, bits, nodes, gone, patches }));
        }
        if !gone.is_empty() || patches.iter().any(|patch| patch.skip > 0) {
            return Err(RingError::NotWhole);
        }
        let runs: Vec<Run> = patches.iter().map(|patch| patch.run).collect();
        Ok(RingNews::Whole(RingTable::from_runs(to, bits, nodes, &runs)?))
    }
}

/// Whether a node is one whose every worker could be connected to, as far as can be seen from here.
fn check(node: &NodeInfo) -> Result<(), RingError> {
    if !node.workers.is_power_of_two() || node.workers > limits::WORKERS_MAX {
        return Err(RingError::Workers(node.id, node.workers));
    }
    let reachable = |worker| node.address(worker).is_some_and(|(_, port)| port != 0);
    if !(0..node.workers).all(reachable) {
        return Err(RingError::Addresses(node.id));
    }
    let hosts: usize = node.addresses.iter().map(|at| at.host.len()).sum();
    if hosts > limits::HOSTS_BYTES_MAX {
        return Err(RingError::Hosts(node.id, hosts));
    }
    Ok(())
}
