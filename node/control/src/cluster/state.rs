//! What the log's entries make together: the same on every node that has applied as many.

mod apply;
mod stored;

pub use apply::Applied;
pub(super) use stored::StoredState;

use super::cell::Cell;
use super::entry::{Index, NodeSpec, Process, Replicas};
use super::mutant::Mutant;
use lockring_proto::NodeInfo;
use lockring_proto::limits::{TTL_DEFAULT, honoured, inherited};
use lockring_ring::{
    AttachId, BootId, CellBits, CellId, Membership, Node, NodeId, Placement, RingNode, RingTable,
    RingVersion, Run, TableError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Of a state that entries have made, or that was looked through.
const SOUND: &str = "every entry leaves a sound ring";

/// One life of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub boot: BootId,
}

/// Whether a node's process is taken for alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Up,
    /// It is not.
    Down,
}

/// A node as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// What it is for the ring, and its present process.
    pub spec: NodeSpec,
    /// The process by which it joined.
    joined: BootId,
    /// Whether its process is taken for alive.
    pub status: Status,
    /// It gives its cells away.
    pub leaving: bool,
    /// The last entry that changed any of this.
    pub revision: Index,
    /// The last entry that took a part in a cell from it. Its lease is bound to that one.
    pub taken: Index,
}

impl NodeState {
    /// Whether this life of it is taken for alive.
    pub fn is_up(&self, boot: BootId) -> bool {
        self.status == Status::Up && self.spec.process.boot == boot
    }

    /// It may be given cells.
    pub fn is_open(&self) -> bool {
        self.status == Status::Up && !self.leaving && self.spec.weight > 0
    }
}

/// What the longest TTL is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// To this.
    pub ttl: Duration,
    /// By this entry.
    pub at: Index,
}

/// The longest TTL of a session that somebody may believe in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Longest {
    /// The TTL.
    pub ttl: Duration,
    /// Whose session it is, for people; empty if nobody's in particular.
    pub by: String,
    /// It shall fall.
    pub intent: Option<Intent>,
}

impl Longest {
    /// Up to this a worker may confirm sessions unasked.
    pub fn ceiling(&self) -> Duration {
        self.intent.map_or(self.ttl, |intent| intent.ttl.min(self.ttl))
    }
}

/// The state of the cluster after some entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    bits: CellBits,
    applied: Index,
    nodes: BTreeMap<NodeId, NodeState>,
    /// The last entry that changed a node or the policy.
    planned: Index,
    next_node: NodeId,
    /// The processes by which nodes joined that are gone: a late repetition of their entries must
    /// not make them again.
    retired: BTreeSet<BootId>,
    /// Empty before the first node has joined.
    cells: Vec<Cell>,
    next_attach: AttachId,
    version: RingVersion,
    longest: Longest,
    replicas: (Replicas, Index),
    /// There was never a second node.
    alone: bool,
    pub(super) mutant: Option<Mutant>,
}

impl State {
    /// That of a log without entries.
    pub fn new(bits: CellBits) -> Self {
        Self {
            bits,
            applied: Index(0),
            nodes: BTreeMap::new(),
            planned: Index(0),
            next_node: NodeId(1),
            retired: BTreeSet::new(),
            cells: Vec::new(),
            next_attach: AttachId(1),
            version: RingVersion(0),
            longest: Longest { ttl: TTL_DEFAULT, by: String::new(), intent: None },
            replicas: (Replicas::One, Index(0)),
            alone: true,
            mutant: None,
        }
    }

    /// With a seeded bug.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    /// The last entry applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The last entry that changed a node or the policy.
    pub fn planned(&self) -> Index {
        self.planned
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeState> {
        &self.nodes
    }

    /// Whether this life is the node's present one, and taken for alive.
    pub fn is_up(&self, life: Life) -> bool {
        self.nodes.get(&life.node).is_some_and(|node| node.is_up(life.boot))
    }

    /// Every cell, in order; none before a node has joined.
    pub fn cells(&self) -> impl Iterator<Item = (CellId, &Cell)> {
        self.cells.iter().enumerate().map(|(cell, state)| (CellId(cell as u16), state))
    }

    /// A cell.
    pub fn cell(&self, cell: CellId) -> Option<&Cell> {
        self.cells.get(usize::from(cell.0))
    }

    /// The version of the ring that clients see.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    /// The longest TTL.
    pub fn longest(&self) -> &Longest {
        &self.longest
    }

    /// Copies of each cell, and the entry that said so.
    pub fn replicas(&self) -> (Replicas, Index) {
        self.replicas
    }

    /// Whether there was never a second node.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// How long a cell that is taken over now takes only claims of earlier holds.
    pub fn grace(&self) -> Duration {
        match self.alone || self.mutant == Some(Mutant::GraceWithoutLease) {
            true => honoured(self.longest.ttl),
            false => inherited(self.longest.ttl),
        }
    }

    /// Everything that a process has a part in.
    pub fn memberships(&self, life: Life) -> Vec<(CellId, Membership)> {
        let of = |(id, cell): (CellId, &Cell)| Some((id, cell.membership(life.node, life.boot)?));
        self.cells().filter_map(of).collect()
    }

    /// Whether a node has a part in any cell, or is the last to have had one.
    pub fn is_in_use(&self, node: NodeId) -> bool {
        self.cells.iter().any(|cell| cell.members().any(|member| member.node == node))
    }

    /// The ring as the planner takes it.
    pub fn layout(&self) -> Option<RingTable<Node>> {
        let table = self.table(|id, node| Node {
            id,
            weight: node.spec.weight,
            zone: node.spec.zone.clone(),
            host: node.spec.host.clone(),
            workers: node.spec.process.workers,
        });
        table.expect(SOUND)
    }

    /// The ring as clients are told it.
    pub fn ring(&self) -> Option<RingTable<NodeInfo>> {
        self.try_ring().expect(SOUND)
    }

    fn try_ring(&self) -> Result<Option<RingTable<NodeInfo>>, TableError> {
        self.table(|id, node| {
            let Process { boot, workers, addresses } = node.spec.process.clone();
            NodeInfo { id, addresses, workers, boot }
        })
    }

    /// The ring, with this of each node; none before one has joined.
    fn table<N: RingNode>(
        &self,
        of: impl Fn(NodeId, &NodeState) -> N,
    ) -> Result<Option<RingTable<N>>, TableError> {
        if self.cells.is_empty() {
            return Ok(None);
        }
        let nodes = self.nodes.iter().map(|(&id, node)| of(id, node)).collect();
        let run = |cell: &Cell| {
            let (owner, backup, epoch) = cell.face();
            let (since, takeover) = (cell.since, cell.takeover);
            Run { cells: 1, placement: Placement { owner, backup }, epoch, since, takeover }
        };
        let runs: Vec<Run> = self.cells.iter().map(run).collect();
        RingTable::from_runs(self.version, self.bits, nodes, &runs).map(Some)
    }
}

#[cfg(test)]
mod tests;
