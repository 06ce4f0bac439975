//! The border of the control plane: what may happen to it, and what it may ask of the world.

use super::state::{Entry, State, WorkerEnd};
use lockring_ring::{CellId, Epoch, RingVersion};
use std::time::Duration;

/// What a worker says of its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The longest TTL of a session that it has.
    pub longest_ttl: Duration,
    /// Whose that is, for people, if it was asked for.
    pub whose: String,
    /// It still waits for leases of earlier lives, which no worker knows of.
    pub in_grace: bool,
}

/// What happens to the control plane.
#[derive(Clone, Debug)]
pub enum Event {
    /// A proposal is in the log for good, and this is the state with it.
    Committed(State),
    /// A proposal failed, for this reason. It may have taken effect all the same.
    Failed(String),
    /// A session of a worker waits for a longer TTL to be confirmed.
    TtlAsked {
        /// The worker.
        worker: usize,
        /// The TTL.
        ttl: Duration,
        /// Whose session it is, for people.
        by: String,
    },
    /// The counter of a cell is half used up.
    EpochAsked(CellId),
    /// A worker answers [`Action::AskStatements`].
    Stated {
        /// Of this round.
        round: u64,
        /// The worker.
        worker: usize,
        /// What it has.
        statement: Statement,
    },
    /// Every worker has ended, so.
    Stopped(Vec<Option<WorkerEnd>>),
    /// Time has passed.
    Tick,
}

/// What the control plane asks of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Propose an entry to the log. One at a time is under way.
    Propose(Entry),
    /// A worker may confirm sessions up to this TTL, and none above it without asking.
    Confirm {
        /// The worker.
        worker: usize,
        /// The TTL.
        ttl: Duration,
    },
    /// The sessions of a worker that wait for a longer TTL get none for now.
    Refuse {
        /// The worker.
        worker: usize,
        /// Why, for people.
        why: String,
    },
    /// A cell has a new epoch: every worker is told.
    NewEpoch {
        /// The cell.
        cell: CellId,
        /// Its epoch.
        epoch: Epoch,
        /// The ring that says so.
        version: RingVersion,
    },
    /// Have every worker state what it has, after all that it was told before.
    AskStatements {
        /// The round.
        round: u64,
        /// Say also whose session it is.
        whose: bool,
    },
    /// The stop is over; nothing follows.
    Stopped {
        /// The next life owes nothing to this one, which is durable.
        clean: bool,
    },
}
