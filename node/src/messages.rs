//! What the threads of a node tell each other: workers, the control thread, and who asks them.

use crate::cluster_view::Changed;
use lockring_control::cluster::{Index, WorkerEvent};
use lockring_core::{SessionRow, Stats};
use lockring_proto::{ListCursor, ListedLock, NodeInfo, Time};
use lockring_ring::{BootId, NodeId, RingTable, RingVersion};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the rest of the node tells a worker.
#[derive(Debug)]
pub enum WorkerCommand {
    /// The longest TTL is durable.
    LongestTtl(Duration),
    /// A longer TTL cannot be made durable for now, and why.
    TtlFailed(String),
    /// Processes of nodes, and how many workers each has.
    Nodes(Vec<(NodeId, BootId, u16)>),
    /// A newer ring.
    Ring(Arc<RingTable<NodeInfo>>),
    /// Who holds what, and the version of the ring with it, which was told before.
    Memberships(Changes),
    /// Until then the node may answer.
    Lease(Time),
    /// Say what the longest TTL was within that time.
    StateTtl {
        /// Of this round.
        round: u64,
        /// The time, from now back.
        window: Duration,
    },
    /// No new claims.
    Drain,
    /// Whether memory is nearly used up: nothing new is admitted then.
    Memory {
        /// It is.
        full: bool,
    },
    /// Close every connection and end.
    Stop,
    /// A page of locks.
    Locks(ListCursor, u32, Vec<u8>, oneshot::Sender<LockPage>),
    /// A page of sessions.
    Sessions {
        /// Where the page begins.
        from: u32,
        /// At most this many.
        rows: usize,
        /// Who asks; with where the next page begins.
        answer: oneshot::Sender<(Vec<SessionRow>, Option<u32>)>,
    },
    /// A peak has passed: tables keep no more memory than they need.
    Shrink,
    /// Say how it is.
    Report(oneshot::Sender<Report>),
    /// Have a task panic.
    #[cfg(test)]
    Panic,
}

/// What an entry of the log has changed for a worker.
#[derive(Debug)]
pub struct Changes {
    /// The entry.
    pub index: Index,
    /// Cells that are not named are not this node's.
    pub whole: bool,
    /// Those that changed, or all; `None`: no part of it is this node's any more.
    pub cells: Changed,
    /// The version of the ring.
    pub version: RingVersion,
}

/// Locks with their namespaces, and where the next page begins.
pub type LockPage = (Vec<(String, ListedLock)>, Option<ListCursor>);

/// How a worker is.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The machine's counters.
    pub stats: Stats,
    /// Open connections.
    pub connections: usize,
    /// Connection attempts since the start.
    pub handshakes: Handshakes,
    /// The longest TTL of any session at the worker.
    pub longest_ttl: Duration,
    /// The worker takes no new claims.
    pub draining: bool,
    /// It answers: the node has not lost contact with its cluster.
    pub answers: bool,
    /// Nothing is granted for this long, as an earlier life of the node may have granted it.
    pub grace_left: Option<Duration>,
}

/// Connection attempts, by what was done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// Let in.
    pub begun: u64,
    /// Of these, those that failed or were not finished in time.
    pub failed: u64,
    /// Sent back to prove their address.
    pub retried: u64,
    /// Not answered, as there were too many.
    pub ignored: u64,
    /// Packets of handshakes that were dropped unread, as there were too many.
    pub dropped: u64,
}

/// What is asked of the control thread.
#[derive(Debug)]
pub enum Order {
    /// A worker says something.
    Said(usize, WorkerEvent),
    /// Every worker has ended.
    Stop {
        /// Holds that each has left; `None` for one that has not said.
        held: Vec<Option<u64>>,
        /// Told whether the next start need not wait.
        done: oneshot::Sender<bool>,
    },
}

/// A session as people know it, with what its client calls itself: to be shown as any such text.
pub(crate) fn who(namespace: &str, name: &str, label: &str) -> String {
    format!("{namespace}/{name} ({label})")
}
