//! The end of a process of a node.

use lockring_control::cluster::{Loss, State};
use lockring_proto::Time;
use lockring_ring::NodeId;
use std::time::Duration;
use tokio::sync::oneshot;

/// So long the log may take to have it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A stop whose workers have ended.
pub(super) struct Stop {
    until: Time,
    waits: bool,
    done: oneshot::Sender<bool>,
}

impl Stop {
    /// The workers have so many holds left; `None` is one that does not say.
    pub fn new(now: Time, held: &[Option<u64>], done: oneshot::Sender<bool>) -> Self {
        let waits = held.iter().all(|held| *held == Some(0));
        Self { until: now.after(PATIENCE), waits, done }
    }

    /// Whether the log is to have it that nothing was held.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Until when.
    pub fn until(&self) -> Time {
        self.until
    }

    /// It is over; whether it was clean.
    pub fn done(self, clean: bool) {
        let _whoever_asked_may_be_gone = self.done.send(clean);
    }
}

/// Whether nobody has to wait for anything that a node had.
pub(super) fn owes_nothing(state: &State, node: NodeId) -> bool {
    let mut own = state.cells().filter(|(_, cell)| cell.owner.node == node);
    own.all(|(_, cell)| cell.loss == Some(Loss::Empty))
}
