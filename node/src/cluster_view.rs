//! What a worker knows of its cluster, beside what its machine does by.

use crate::ttls::Ttls;
use lockring_proto::{NodeInfo, Reply, RingHistory};
use lockring_ring::{CellId, Epoch, Membership, RingTable};
use std::collections::{BTreeMap, BTreeSet};

/// What entries of the log have changed of cells; `None`: no part of it is this node's any more.
pub type Changed = Vec<(CellId, Option<Membership>)>;

/// The cluster as a worker sees it.
#[derive(Default)]
pub struct ClusterView {
    /// None before the node has heard of its cluster.
    ring: Option<RingHistory>,
    /// The epochs of the cells that the worker has a part in, as far as it does by them.
    epochs: BTreeMap<CellId, Epoch>,
    /// The longest TTLs that it had.
    pub ttls: Ttls,
}

impl ClusterView {
    /// There is a newer ring to tell clients of.
    ///
    /// # Panics
    /// When it is none of this cluster's, or not newer.
    pub fn learns(&mut self, ring: &RingTable<NodeInfo>) {
        match &mut self.ring {
            Some(known) => assert!(known.learns(ring.clone()), "{:?} follows on", ring.version()),
            None => self.ring = Some(RingHistory::new(ring.clone())),
        }
    }

    /// The answers to a request for a ring that is newer than the one of this version.
    ///
    /// # Panics
    /// When there is no ring.
    pub fn answers(&self, id: u64, known: u64) -> Vec<Reply> {
        let ring = self.ring.as_ref();
        ring.expect("nothing is taken on before the node has a lease").answers(id, known)
    }

    /// What an entry has changed; of one that names all there is, also what it does not name.
    pub fn all_named(&self, whole: bool, mut cells: Changed) -> Changed {
        if whole {
            let named: BTreeSet<CellId> = cells.iter().map(|(cell, _)| *cell).collect();
            let gone = self.epochs.keys().filter(|cell| !named.contains(cell));
            cells.extend(gone.map(|&cell| (cell, None)));
        }
        cells
    }

    /// The worker does by this.
    pub fn does_by(&mut self, cells: &[(CellId, Option<Membership>)]) {
        for (cell, is) in cells {
            match is {
                Some(is) => self.epochs.insert(*cell, is.epoch),
                None => self.epochs.remove(cell),
            };
        }
    }

    /// The epoch of a cell by which the worker does, if it has a part in it.
    pub fn epoch(&self, cell: CellId) -> Option<Epoch> {
        self.epochs.get(&cell).copied()
    }
}
