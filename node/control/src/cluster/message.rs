//! What the control planes of nodes tell each other. Messages may be lost, late, doubled and out
//! of order.

use super::entry::{Entry, Index};
use super::state::Life;
use lockring_ring::{BootId, CellId, NodeId};
use std::time::Duration;

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To the leader: this process is alive, and asks for its lease to be renewed.
    Heartbeat {
        /// The process.
        boot: BootId,
        /// Counts its renewals.
        renewal: u64,
    },
    /// From the leader: a renewal is acknowledged.
    Renewed {
        /// To this process.
        boot: BootId,
        /// This one.
        renewal: u64,
        /// The last entry that took a part in a cell from the node: the lease grows only if every
        /// worker does by it.
        bound: Index,
    },
    /// To the leader: propose this.
    Propose(Entry),
    /// To the leader: a copy of cells that the sender owns does not acknowledge.
    Silent {
        /// The node with the copy.
        copy: NodeId,
        /// The cells, and the last entry that changed each.
        cells: Vec<(CellId, Index)>,
    },
    /// From the leader: is this process alive?
    Probe(Life, u64),
    /// To that process, on behalf of the leader.
    Ping(NodeId, u64),
    /// Its answer, with its boot id, to whoever has asked.
    Pong(NodeId, u64, BootId),
    /// To the leader: it is.
    Alive(Life, u64),
    /// From the leader: state your longest TTL.
    AskTtl {
        /// Counts the leader's questions.
        round: u64,
        /// Within this long before now.
        window: Duration,
        /// As every worker does by this entry.
        after: Index,
    },
    /// To the leader: this is it.
    TtlStated {
        /// Answers this question.
        round: u64,
        /// The longest; `None` if it cannot be said.
        longest: Option<Duration>,
        /// Whose session that is, for people.
        by: String,
    },
}
