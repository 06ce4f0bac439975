//! Nodes as the ring knows them, and the failure domains they stand in.

use std::collections::BTreeSet;
use std::fmt;

/// Name of a node; handed out by the control log and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// One life of a node's process: a node that starts anew has another, and an empty memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u64);

/// What every ring table knows of a node. What else it knows is its user's: the planner's nodes
/// have weights and failure domains, a client's have addresses.
pub trait RingNode {
    /// Its name.
    fn id(&self) -> NodeId;

    /// Workers it runs, a power of two: cell `c` belongs to its worker `c % workers`.
    fn workers(&self) -> u16;
}

/// What the placement of cells depends on, and nothing else of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its part of the cells, relative to the other nodes. 0: a witness, which holds no cell.
    pub weight: u32,
    /// Data centre, rack row or the like. Give it to every node or to none: a node without one is
    /// taken to share its zone with the nodes of its host only.
    pub zone: Option<String>,
    /// Machine it runs on.
    pub host: String,
    /// Workers it runs, a power of two: cell `c` belongs to its worker `c % workers`.
    pub workers: u16,
}

impl RingNode for Node {
    fn id(&self) -> NodeId {
        self.id
    }

    fn workers(&self) -> u16 {
        self.workers
    }
}

/// Why a set of nodes cannot carry a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeError {
    /// The id is there twice.
    Twice(NodeId),
    /// The number of workers is not a power of two.
    Workers(NodeId, u16),
    /// More nodes than [`MAX_NODES`].
    TooMany(usize),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice(id) => write!(f, "node {id} is there twice"),
            Self::Workers(id, workers) => {
                write!(f, "node {id} has {workers} workers, which is not a power of two")
            }
            Self::TooMany(count) => write!(f, "{count} nodes are more than {MAX_NODES}"),
        }
    }
}

impl std::error::Error for NodeError {}

/// Most nodes of one ring. The planner keeps a count per pair of nodes.
pub const MAX_NODES: usize = 1024;

/// Sorts nodes by id and checks them.
pub(crate) fn sorted<N: RingNode>(mut nodes: Vec<N>) -> Result<Vec<N>, NodeError> {
    nodes.sort_by_key(RingNode::id);
    if let Some(twins) = nodes.windows(2).find(|twins| twins[0].id() == twins[1].id()) {
        return Err(NodeError::Twice(twins[0].id()));
    }
    if let Some(node) = nodes.iter().find(|node| !node.workers().is_power_of_two()) {
        return Err(NodeError::Workers(node.id(), node.workers()));
    }
    if nodes.len() > MAX_NODES {
        return Err(NodeError::TooMany(nodes.len()));
    }
    Ok(nodes)
}

/// Number of the failure domain of each node; equal numbers fail together.
///
/// The widest division in which the nodes that hold cells stand in at least two domains: zones,
/// else hosts, else the nodes themselves. So every one of them has another domain to turn to.
pub(crate) fn domains(nodes: &[Node]) -> Vec<usize> {
    let zone = |node: &Node| match &node.zone {
        Some(zone) => (0, zone.clone()),
        None => (1, node.host.clone()),
    };
    let host = |node: &Node| (2, node.host.clone());
    number(nodes, zone)
        .or_else(|| number(nodes, host))
        .unwrap_or_else(|| (0..nodes.len()).collect())
}

/// Numbers the nodes by label; `None` when those that hold cells all have the same.
fn number(nodes: &[Node], label: impl Fn(&Node) -> (u8, String)) -> Option<Vec<usize>> {
    let holders = nodes.iter().filter(|node| node.weight > 0);
    if holders.map(&label).collect::<BTreeSet<_>>().len() < 2 {
        return None;
    }
    let labels: Vec<_> = nodes.iter().map(&label).collect::<BTreeSet<_>>().into_iter().collect();
    Some(nodes.iter().map(|node| labels.partition_point(|l| *l < label(node))).collect())
}
