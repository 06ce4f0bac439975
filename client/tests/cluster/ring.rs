//! The nodes of a run by their numbers, as clients dial them.

use lockring_core::testing::Rng;
use lockring_ring::NodeId;
use std::collections::BTreeSet;

/// The nodes there are.
#[derive(Default)]
pub struct ClusterRing {
    nodes: BTreeSet<usize>,
}

/// The id of a node of the run.
pub fn id_of(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}

/// The node of the run that has an id.
pub fn node_of(id: NodeId) -> usize {
    id.0 as usize - 1
}

impl ClusterRing {
    /// A node is there, or is none any more.
    pub fn knows(&mut self, node: NodeId, is_there: bool) {
        if is_there {
            self.nodes.insert(node_of(node));
        } else {
            self.nodes.remove(&node_of(node));
        }
    }

    /// All of the nodes.
    pub fn all(&self) -> Vec<usize> {
        self.nodes.iter().copied().collect()
    }

    /// Any of the nodes.
    pub fn any_node(&self, rng: &mut Rng) -> usize {
        *rng.pick(&self.all())
    }
}
