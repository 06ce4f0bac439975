//! What the parts of the model call processes and what goes between them.

use crate::cluster::Life;
use lockring_core::PeerWorker;
use lockring_proto::{Fence, Time};
use lockring_ring::{BootId, CellId, NodeId};

/// S, B and T.
pub const NODES: u8 = 3;
pub const CLIENTS: u8 = 2;
/// Time stands still: what ends by the clock is an event of its own.
pub const NOW: Time = Time(1_000_000);
/// The cell of [`KEY`]; a ring has two at least, and nobody asks for anything in the other.
pub const CELL: CellId = CellId(0);
pub const KEY: &[u8] = b"key";

/// One life of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub node: u8,
    pub life: u8,
}

impl Process {
    pub fn id(self) -> NodeId {
        NodeId(u32::from(self.node) + 1)
    }

    pub fn boot(self) -> BootId {
        BootId(u64::from(self.node) * 16 + u64::from(self.life) + 1)
    }

    pub fn life(self) -> Life {
        Life { node: self.id(), boot: self.boot() }
    }

    pub fn peer(self) -> PeerWorker {
        PeerWorker { node: self.id(), boot: self.boot(), worker: 0 }
    }

    pub fn of(node: NodeId, boot: BootId) -> Self {
        Self { node: (node.0 - 1) as u8, life: ((boot.0 - 1) % 16) as u8 }
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wish {
    Acquire,
    Release(Fence),
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    pub id: u64,
    /// The version of the ring by which its client found the owner.
    pub version: u64,
    pub wish: Wish,
}

/// What a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Told {
    Granted(Fence),
    /// It is released, or was not held.
    Ended,
    Moved,
}

/// An answer under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    pub id: u64,
    pub told: Told,
}

/// What a node is asked to do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message(pub u32);
