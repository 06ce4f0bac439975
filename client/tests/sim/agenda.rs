//! What happens to the nodes of a run.

use crate::ring::Copy;
use crate::way::Way;
use lockring_ring::{BootId, CellId, Epoch, RingVersion};
use std::time::Duration;

/// Something on the agenda of the nodes.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// The node notices that a connection is gone.
    Notices { way: Way },
    /// A worker may have something to do.
    Work { node: usize, worker: u16 },
    /// A write of a control plane's log has come to its end.
    Written { node: usize, write: u64 },
    /// A control plane may have something to do.
    ControlWakes { node: usize },
    /// A node tells another what the ring is.
    News { from: usize, to: usize, ring: Copy },
    /// A node has stopped in order.
    Stopped { node: usize, boot: BootId, down: Duration },
    /// A node comes back.
    Boot { node: usize },
}

/// What the control plane tells a worker.
#[derive(Clone, Debug)]
pub enum Order {
    /// Sessions up to this TTL may be confirmed.
    LongestTtl(Duration),
    /// A longer TTL cannot be made durable for now, and why.
    TtlFailed(String),
    /// A cell has a new epoch, by the ring of this version.
    Epoch(CellId, Epoch, RingVersion),
    /// It shall state what it has.
    State { round: u64 },
}
