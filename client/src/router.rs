//! The client's copy of the ring: which worker of which node grants for a key. A node sends it in
//! parts; [`crate::Client::ring`] gives the one that a client routes by.
//!
//! ```
//! use lockring_client::proto::{NamespaceSeed, NodeAddress, NodeInfo, RingChunk, RingRun};
//! use lockring_client::router::{Ring, RingError, Route, WorkerId};
//!
//! # fn main() -> Result<(), RingError> {
//! // One node with four workers owns all of 2^8 cells.
//! let addresses = vec![NodeAddress { host: "10.0.0.7".to_owned(), port: 7420 }];
//! let node = NodeInfo { id: 1, addresses, workers: 4, boot: 1 };
//! let all = RingRun { cells: 256, owner: 1, backup: None, epoch: 1 };
//! let part = RingChunk {
//!     version: 3, cell_bits: 8, nodes: vec![node.clone()], first: 0, runs: vec![all], last: true,
//! };
//! let ring = Ring::assemble(std::slice::from_ref(&part))?;
//! assert_eq!((ring.version(), ring.bits().cells()), (3, 256));
//! assert_eq!((ring.node(1), ring.nodes().count(), ring.cells_of(1)), (Some(&node), 1, 256));
//!
//! let Route { cell, worker, .. } = ring.route(NamespaceSeed::of("default"), b"orders/42");
//! assert_eq!(worker, WorkerId { node: 1, worker: cell.0 % 4 });
//!
//! // A ring with a hole is none.
//! let hole = RingChunk { first: 1, ..part };
//! let error: RingError = Ring::assemble(&[hole]).unwrap_err();
//! assert!(error.to_string().contains("does not add up"));
//! # Ok(()) }
//! ```

use crate::target::Host;
use lockring_proto::{NodeInfo, RingChunk, Shown};
use lockring_ring::{CellBits, CellId, KeyHash, NamespaceSeed, hash_key};
use std::collections::BTreeMap;

/// One worker of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    /// The node.
    pub node: u32,
    /// Its worker.
    pub worker: u16,
}

/// Where a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its cell.
    pub cell: CellId,
    /// The worker that grants for it.
    pub worker: WorkerId,
    /// Its hash.
    pub hash: KeyHash,
}

/// A whole ring at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    version: u64,
    bits: CellBits,
    /// By cell: where its owner stands in `nodes`.
    owners: Vec<u16>,
    /// By id.
    nodes: Vec<NodeInfo>,
}

/// Parts of a ring that do not make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node sent a ring that does not add up: {}", Shown(.0))]
pub struct RingError(String);

fn worker_at(owner: &NodeInfo, cell: u16) -> WorkerId {
    WorkerId { node: owner.id, worker: cell & (owner.workers - 1) }
}

/// Whether every worker has an address that one could connect to.
fn has_addresses(node: &NodeInfo) -> bool {
    (0..node.workers).all(|worker| {
        let at = node.address(worker);
        at.is_some_and(|(host, port)| {
            port != 0 && (host.is_empty() || Host::of_ring(host).is_some())
        })
    })
}

impl Ring {
    /// Puts a ring together from its parts, in order.
    ///
    /// # Errors
    /// When parts are of different versions, leave cells out, or name unknown nodes.
    pub fn assemble(parts: &[RingChunk]) -> Result<Self, RingError> {
        let wrong = |what: String| Err(RingError(what));
        let Some(first) = parts.first() else {
            return wrong("no parts".to_owned());
        };
        let bits = CellBits::new(first.cell_bits).map_err(|error| RingError(error.to_string()))?;
        let mut nodes = BTreeMap::new();
        let mut owners = Vec::with_capacity(bits.cells() as usize);
        for part in parts {
            if part.version != first.version || part.first as usize != owners.len() {
                return wrong(format!("part from cell {} of version {}", part.first, part.version));
            }
            nodes.extend(part.nodes.iter().map(|node| (node.id, node.clone())));
            for run in &part.runs {
                let room = bits.cells() as usize - owners.len();
                if run.cells as usize > room {
                    return wrong(format!("more than {} cells", bits.cells()));
                }
                owners.extend(std::iter::repeat_n(run.owner, run.cells as usize));
            }
        }
        if owners.len() != bits.cells() as usize {
            return wrong(format!("{} of {} cells", owners.len(), bits.cells()));
        }
        let nodes: Vec<NodeInfo> = nodes.into_values().collect();
        if let Some(node) = nodes.iter().find(|node| !node.workers.is_power_of_two()) {
            return wrong(format!("node {} with {} workers", node.id, node.workers));
        }
        if let Some(node) = nodes.iter().find(|node| !has_addresses(node)) {
            return wrong(format!("node {} without an address for each worker", node.id));
        }
        let place = |owner: u32| {
            let at = nodes.binary_search_by_key(&owner, |node| node.id).ok();
            let at = at.and_then(|at| u16::try_from(at).ok());
            at.ok_or_else(|| RingError(format!("unknown owner {owner}")))
        };
        let owners = owners.into_iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { version: first.version, bits, owners, nodes })
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Where a key of a namespace goes.
    #[inline]
    pub fn route(&self, seed: NamespaceSeed, key: &[u8]) -> Route {
        let hash = hash_key(seed, key);
        let cell = self.bits.cell(hash.position);
        let owner = &self.nodes[usize::from(self.owners[usize::from(cell.0)])];
        Route { cell, worker: worker_at(owner, cell.0), hash }
    }

    /// The worker that grants for a cell; `None` for a cell that the ring does not have.
    pub(crate) fn worker_of(&self, cell: u16) -> Option<WorkerId> {
        let owner = &self.nodes[usize::from(*self.owners.get(usize::from(cell))?)];
        Some(worker_at(owner, cell))
    }

    /// A node of the ring.
    pub fn node(&self, id: u32) -> Option<&NodeInfo> {
        self.nodes.get(self.position(id)?)
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter()
    }

    /// Number of cells that a node owns.
    pub fn cells_of(&self, node: u32) -> usize {
        let Some(at) = self.position(node) else { return 0 };
        self.owners.iter().filter(|&&owner| usize::from(owner) == at).count()
    }

    /// log2 of the number of cells.
    pub fn bits(&self) -> CellBits {
        self.bits
    }
}
