//! The ring of the cluster as its log would have it: which node has which cell is fixed, and every
//! start of a node and every new epoch of a cell takes the next version.

use lockring_core::testing::Rng;
use lockring_proto::{NodeAddress, NodeInfo};
use lockring_ring::{
    BootId, CellBits, CellId, Epoch, NodeId, Placement, RingTable, RingVersion, Run,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A copy of the ring.
pub type Copy = Arc<RingTable<NodeInfo>>;

/// The newest ring there is.
pub struct ClusterRing(Copy);

/// The id of a node of the run.
pub fn id_of(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}

/// The node of the run that has an id.
pub fn node_of(id: NodeId) -> usize {
    id.0 as usize - 1
}

fn info(node: usize, workers: u16, boot: BootId) -> NodeInfo {
    let addresses = vec![NodeAddress { host: String::new(), port: 7420 }];
    NodeInfo { id: id_of(node), addresses, workers, boot }
}

impl ClusterRing {
    /// The ring of nodes that never started, with these numbers of workers. Chance gives out the
    /// cells, but for one of each node.
    pub fn drawn(rng: &mut Rng, workers: &[u16]) -> Self {
        let bits = CellBits::new(rng.range(3, 6) as u8).expect("cell bits");
        let nodes = workers.len();
        let runs: Vec<Run> = (0..bits.cells() as usize)
            .map(|cell| {
                let other = rng.range(0, nodes as u64) as usize;
                let owner = id_of(if cell < nodes { cell } else { other });
                let (placement, since) = (Placement { owner, backup: None }, RingVersion(0));
                Run { cells: 1, placement, epoch: Epoch(0), since, takeover: Epoch(0) }
            })
            .collect();
        let nodes = workers.iter().enumerate().map(|(at, &of)| info(at, of, BootId(0))).collect();
        let table = RingTable::from_runs(RingVersion(0), bits, nodes, &runs);
        Self(Arc::new(table.expect("sound nodes")))
    }

    /// The newest ring.
    pub fn newest(&self) -> &Copy {
        &self.0
    }

    pub fn nodes(&self) -> usize {
        self.0.nodes().len()
    }

    /// Any of the nodes.
    pub fn any_node(&self, rng: &mut Rng) -> usize {
        rng.range(0, self.nodes() as u64) as usize
    }

    /// The node of a cell.
    pub fn owner(&self, cell: CellId) -> usize {
        node_of(self.0.placement(cell).owner)
    }

    /// The cells that other nodes have.
    pub fn others(&self, node: usize) -> BTreeSet<CellId> {
        self.0.cells().filter(|&cell| self.owner(cell) != node).collect()
    }

    /// The next version. In a cluster of one it is that of the node's own log.
    fn next(&self, own: RingVersion) -> RingVersion {
        own.max(RingVersion(self.0.version().0 + 1))
    }

    /// A node starts, and all of its cells have this epoch.
    pub fn booted(&mut self, node: usize, life: (u16, BootId), epoch: Epoch, own: RingVersion) {
        let version = self.next(own);
        let cells: Vec<_> = self.0.cells().filter(|&cell| self.owner(cell) == node).collect();
        let table = Arc::make_mut(&mut self.0);
        let mut nodes = table.nodes().to_vec();
        nodes[node] = info(node, life.0, life.1);
        table.set_nodes(nodes).expect("the same nodes");
        for cell in cells {
            table.begin_anew(cell, epoch).expect("the floor only grows");
        }
        table.advance(version).expect("it grows");
    }

    /// A cell has a new epoch.
    pub fn renewed(&mut self, cell: CellId, epoch: Epoch, own: RingVersion) -> RingVersion {
        let version = self.next(own);
        Arc::make_mut(&mut self.0).renew(cell, epoch, version).expect("the floor only grows");
        version
    }
}
