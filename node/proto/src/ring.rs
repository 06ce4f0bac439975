//! The ring on the wire: what clients are told of nodes and cells, whole or as what has changed.
//!
//! A table leaves as parts ([`RingChunk::whole`], [`RingChunk::change`]) and is put together from
//! them by [`RingParts`]: this is the one place that knows both forms. Which of them a client gets
//! a [`RingHistory`] decides.

mod chunks;
mod history;
mod parts;

pub use history::RingHistory;
pub use parts::{RingError, RingNews, RingParts};

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use lockring_ring::{BootId, NodeId, RingNode};

/// A part of a ring, or of what has changed of one. A part tells something, unless it is the only
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RingChunk {
    /// Version of the ring.
    pub version: u64,
    /// The version that it is the change of; none: it is the whole ring.
    pub base: Option<u64>,
    /// log2 of the number of cells.
    pub cell_bits: u8,
    /// Number of this part, from 0.
    pub part: u32,
    /// The nodes, or those that are new or changed, by id over all parts.
    pub nodes: Vec<NodeInfo>,
    /// Ids of nodes that are no longer there, in order over all parts; only in a change.
    pub gone: Vec<u32>,
    /// The cells, in order over all parts.
    pub runs: Vec<RingRun>,
    /// No part follows.
    pub last: bool,
}

/// `cells` consecutive cells with the same placement and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RingRun {
    /// Cells before it, after the run before, that have not changed; 0 in a whole ring.
    pub skip: u32,
    /// How many.
    pub cells: u32,
    /// Node that grants.
    pub owner: u32,
    /// Node with the synchronous copy.
    pub backup: Option<u32>,
    /// Ownership generation.
    pub epoch: u32,
    /// The version in which it began.
    pub since: u64,
    /// The last one that began without a copy of the cell.
    pub takeover: u32,
}

/// A node as clients know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id; never used twice in a cluster.
    pub id: NodeId,
    /// Where clients reach it: one address, from whose port those of all workers are counted up, or
    /// one for each worker.
    pub addresses: Vec<NodeAddress>,
    /// Number of workers, a power of two.
    pub workers: u16,
    /// Process life.
    pub boot: BootId,
}

impl Encode for NodeInfo {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { id, addresses, workers, boot } = self;
        (id.0, addresses, workers, boot.0).encode(encoder)
    }
}

impl<C> Decode<C> for NodeInfo {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (id, addresses, workers, boot) = Decode::decode(decoder)?;
        Ok(Self { id: NodeId(id), addresses, workers, boot: BootId(boot) })
    }
}

bincode::impl_borrow_decode!(NodeInfo);

impl RingNode for NodeInfo {
    fn id(&self) -> NodeId {
        self.id
    }

    fn workers(&self) -> u16 {
        self.workers
    }
}

impl NodeInfo {
    /// Host and port by which clients reach a worker. `None`: there is no such worker, or what is
    /// told of the node names no way to it.
    ///
    /// ```
    /// use lockring_proto::{NodeAddress, NodeInfo};
    /// use lockring_ring::{BootId, NodeId};
    ///
    /// let at = |port| NodeAddress { host: "n4".to_owned(), port };
    /// let (id, boot) = (NodeId(4), BootId(1));
    /// let counted = NodeInfo { id, addresses: vec![at(7400)], workers: 2, boot };
    /// assert_eq!(counted.address(1), Some(("n4", 7401)));
    /// assert_eq!(counted.address(2), None);
    /// let each = NodeInfo { addresses: vec![at(7400), at(65535)], ..counted.clone() };
    /// assert_eq!(each.address(1), Some(("n4", 65535)));
    /// for addresses in [vec![], vec![at(65535)], vec![at(1), at(2), at(3)]] {
    ///     assert_eq!(NodeInfo { addresses, ..counted.clone() }.address(1), None);
    /// }
    /// ```
    pub fn address(&self, worker: u16) -> Option<(&str, u16)> {
        if worker >= self.workers {
            return None;
        }
        let (at, above) = match self.addresses.as_slice() {
            [first] => (first, worker),
            each if each.len() == usize::from(self.workers) => (&each[usize::from(worker)], 0),
            _ => return None,
        };
        Some((&at.host, at.port.checked_add(above)?))
    }
}

/// Where clients reach a node, or one worker of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeAddress {
    /// A name, or an address, of version 6 without brackets; empty: the one they came by, with
    /// the port that they came by or the one below.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}
