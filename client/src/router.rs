//! The client's copy of the ring: which worker of which node grants for a key. A node sends it in
//! parts; [`crate::admin::Admin::ring`] shows the one that a client routes by.
//!
//! ```
//! use lockring_client::proto::{BootId, NamespaceSeed, NodeAddress, NodeId, NodeInfo, RingChunk};
//! use lockring_client::ring::{CellBits, Epoch, RingTable, RingVersion};
//! use lockring_client::router::{Ring, RingError, RingUnderWay, Route, WorkerId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One node with four workers owns all of 2^8 cells.
//! let addresses = vec![NodeAddress { host: "10.0.0.7".to_owned(), port: 7420 }];
//! let node = NodeInfo { id: NodeId(1), addresses, workers: 4, boot: BootId(1) };
//! let table = RingTable::founded(RingVersion(3), CellBits::new(8)?, node.clone(), Epoch(1))?;
//! let mut parts = RingChunk::whole(&table);
//!
//! let ring = RingUnderWay::default().take(parts[0].clone(), None)?.expect("it has one part");
//! assert_eq!((ring.version(), ring.bits().cells()), (RingVersion(3), 256));
//! assert_eq!((ring.node(NodeId(1)), ring.nodes().len()), (Some(&node), 1));
//! assert_eq!(ring.cells_of(NodeId(1)), 256);
//!
//! let Route { cell, worker, .. } = ring.route(NamespaceSeed::of("default"), b"orders/42");
//! assert_eq!(worker, WorkerId { node: NodeId(1), worker: cell.0 % 4 });
//! assert_eq!(ring.worker_of(cell), Some(worker));
//! assert_eq!((ring.epoch(cell), ring.since(cell)), (Some(Epoch(1)), Some(RingVersion(3))));
//! assert!(ring.takeover(cell) <= ring.epoch(cell) && ring.backup_of(cell).is_none());
//!
//! // A ring with a hole is none.
//! parts[0].runs[0].cells = 255;
//! let error: RingError = RingUnderWay::default().take(parts[0].clone(), None).unwrap_err();
//! assert!(error.to_string().contains("does not add up"));
//! # Ok(()) }
//! ```

use crate::target::Host;
use lockring_proto::{NodeInfo, RingChunk, RingNews, RingParts, Shown};
use lockring_ring::{
    CellBits, CellId, Diff, DiffError, Epoch, KeyHash, NamespaceSeed, NodeId, RingTable,
    RingVersion, hash_key,
};

/// One worker of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    /// The node.
    pub node: NodeId,
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
pub struct Ring(RingTable<NodeInfo>);

/// Parts of a ring that do not make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node sent a ring that does not add up: {}", Shown(.0))]
pub struct RingError(String);

/// A ring on its way from one node.
#[derive(Debug, Default)]
pub struct RingUnderWay(RingParts);

impl RingUnderWay {
    /// Takes the next part of a ring, or of what has changed of the one that is `known`; gives the
    /// ring once it was the last. `None` then: the change is of another than is known by now.
    ///
    /// # Errors
    /// When the parts do not make a ring of nodes that one could connect to. They are forgotten.
    pub fn take(
        &mut self,
        part: RingChunk,
        known: Option<&Ring>,
    ) -> Result<Option<Ring>, RingError> {
        match self.0.take(part) {
            Ok(None) => Ok(None),
            Ok(Some(RingNews::Whole(table))) => Ring::new(table).map(Some),
            Ok(Some(RingNews::Change(change))) => match known {
                Some(known) => known.changed(&change),
                None => {
                    Err(RingError("it is what has changed of a ring, and none is known".into()))
                }
            },
            Err(error) => Err(RingError(error.to_string())),
        }
    }
}

impl Ring {
    /// The ring of a table.
    ///
    /// # Errors
    /// When a node has a host that is neither an address nor a name.
    pub fn new(table: RingTable<NodeInfo>) -> Result<Self, RingError> {
        let is_host = |host: &str| host.is_empty() || Host::of_ring(host).is_some();
        let has_hosts = |node: &&NodeInfo| node.addresses.iter().all(|at| is_host(&at.host));
        match table.nodes().iter().find(|node| !has_hosts(node)) {
            Some(NodeInfo { id, .. }) => {
                Err(RingError(format!("node {id} without an address for each worker")))
            }
            None => Ok(Self(table)),
        }
    }

    /// This ring with what has changed of it. `None`: the change is of another version.
    fn changed(&self, change: &Diff<NodeInfo>) -> Result<Option<Self>, RingError> {
        match change.apply(&self.0) {
            Ok(table) => Self::new(table).map(Some),
            Err(DiffError::Gap { .. }) => Ok(None),
            Err(error) => Err(RingError(error.to_string())),
        }
    }

    /// This ring, unless one of the same cluster is known by which keys are in other cells: their
    /// number never changes.
    pub(crate) fn fits(self, known: Option<&Self>) -> Result<Self, RingError> {
        match known.filter(|known| known.bits() != self.bits()) {
            Some(known) => {
                let (now, before) = (self.bits().cells(), known.bits().cells());
                Err(RingError(format!("{now} cells, where there were {before}")))
            }
            None => Ok(self),
        }
    }

    /// Its version.
    pub fn version(&self) -> RingVersion {
        self.0.version()
    }

    /// Where a key of a namespace goes.
    #[inline]
    pub fn route(&self, seed: NamespaceSeed, key: &[u8]) -> Route {
        let hash = hash_key(seed, key);
        let cell = self.0.bits().cell(hash.position);
        let owner = &self.0.nodes()[self.0.owner_index(hash.position)];
        Route { cell, worker: worker_at(owner, cell), hash }
    }

    /// The worker that grants for a cell; `None` for a cell that the ring does not have.
    pub fn worker_of(&self, cell: CellId) -> Option<WorkerId> {
        self.0.owner(cell).map(|owner| worker_at(owner, cell))
    }

    /// The worker with the synchronous copy of a cell, if there is one.
    pub fn backup_of(&self, cell: CellId) -> Option<WorkerId> {
        let backup = self.0.placement(self.known(cell)?).backup?;
        self.0.node(backup).map(|node| worker_at(node, cell))
    }

    /// The epoch of a cell; `None` for a cell that the ring does not have.
    pub fn epoch(&self, cell: CellId) -> Option<Epoch> {
        self.known(cell).map(|cell| self.0.epoch(cell))
    }

    /// The version in which it began.
    pub fn since(&self, cell: CellId) -> Option<RingVersion> {
        self.known(cell).map(|cell| self.0.since(cell))
    }

    /// The last epoch of a cell that began without a copy: what was granted before is in nobody's
    /// memory, unless it was reclaimed.
    pub fn takeover(&self, cell: CellId) -> Option<Epoch> {
        self.known(cell).map(|cell| self.0.takeover(cell))
    }

    #[inline]
    fn known(&self, cell: CellId) -> Option<CellId> {
        (u32::from(cell.0) < self.bits().cells()).then_some(cell)
    }

    /// A node of the ring.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.0.node(id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &[NodeInfo] {
        self.0.nodes()
    }

    /// Number of cells that a node owns.
    pub fn cells_of(&self, node: NodeId) -> u32 {
        let shares = self.0.shares();
        shares.iter().find(|share| share.node == node).map_or(0, |share| share.owned)
    }

    /// log2 of the number of cells.
    pub fn bits(&self) -> CellBits {
        self.0.bits()
    }
}

fn worker_at(owner: &NodeInfo, cell: CellId) -> WorkerId {
    WorkerId { node: owner.id, worker: cell.0 & (owner.workers - 1) }
}
