//! What the threads of a node tell each other: workers, the control thread, and who asks them.

use lockring_control::WorkerEnd;
use lockring_core::{SessionRow, Stats};
use lockring_proto::{ListCursor, ListedLock};
use lockring_ring::{CellId, Epoch, RingVersion};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the rest of the node tells a worker.
#[derive(Debug)]
pub enum WorkerCommand {
    /// The longest TTL is durable.
    LongestTtl(Duration),
    /// A longer TTL cannot be made durable for now, and why.
    TtlFailed(String),
    /// A cell has a new epoch.
    Epoch(CellId, Epoch, RingVersion),
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
    /// Make the longest TTL durable; a session of this worker waits for it.
    RaiseLongestTtl {
        /// The worker.
        worker: usize,
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people.
        by: String,
    },
    /// Raise the epoch of a cell.
    RaiseEpoch(CellId),
    /// Every worker has ended.
    Stop {
        /// How each did; `None` for one that has not said.
        ends: Vec<Option<WorkerEnd>>,
        /// Told whether the next start need not wait.
        done: oneshot::Sender<bool>,
    },
}

/// A session as people know it, with what its client calls itself: to be shown as any such text.
pub(crate) fn who(namespace: &str, name: &str, label: &str) -> String {
    format!("{namespace}/{name} ({label})")
}
