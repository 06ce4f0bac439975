//! Plain counters. What happens to holds and waiters is counted from the ops that say so.

use crate::locks::{Change, Ending, Leaving, Source};

/// Plain counters since the start, and gauges of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Claims granted at once or from the queue.
    pub grants: u64,
    /// Of these, from the queue.
    pub grants_queued: u64,
    /// Holds of an earlier epoch that their clients have reclaimed.
    pub reclaimed: u64,
    /// Of these, ended as another was reclaimed under a higher fence.
    pub outranked: u64,
    /// Holds ended by their client, by a release or a cancel.
    pub releases: u64,
    /// Holds ended with their link.
    pub expired_holds: u64,
    /// Holds ended by force.
    pub forced: u64,
    /// Holds ended by a compare, as no client knew them.
    pub orphans: u64,
    /// Holds that a compare found lost.
    pub lost: u64,
    /// Claims that were queued.
    pub enqueued: u64,
    /// Waiters that were cancelled.
    pub cancelled_waiters: u64,
    /// Waiters whose deadline passed.
    pub timeouts: u64,
    /// Waiters gone with their link.
    pub dead_waiters: u64,
    /// Waiters turned away, as their key was reclaimed as another kind.
    pub refused_waiters: u64,
    /// Copies of a request that found the hold or waiter of the first.
    pub retries: u64,
    /// Holds that came with a cell of another owner.
    pub holds_moved_in: u64,
    /// Waiters that came so.
    pub waiters_moved_in: u64,
    /// Holds that went with a cell to another owner.
    pub holds_moved_out: u64,
    /// Waiters that went so.
    pub waiters_moved_out: u64,
    /// Requests for a cell owned elsewhere, or anew.
    pub moved: u64,
    /// Claims that did not want to wait.
    pub busy: u64,
    /// Requests refused.
    pub refused: u64,
    /// Of these, for want of a role.
    pub denied: u64,
    /// Requests and hellos refused for a quota, or for want of memory.
    pub over_quota: u64,
    /// Requests of connections that a newer one had replaced.
    pub stale: u64,
    /// Links that ended with their lease.
    pub expired_links: u64,
    /// Links taken over by a newer connection.
    pub resumed_links: u64,
    /// Links that began.
    pub fresh_links: u64,
    /// Stalls of the worker.
    pub stalls: u64,
    /// Requests of every kind.
    pub requests: u64,
    /// Gauge: holds.
    pub holds: u64,
    /// Gauge: waiters.
    pub waiters: u64,
    /// Gauge: links.
    pub links: u64,
    /// Gauge: keys in use.
    pub keys: u64,
    /// Gauge: bytes of all that sessions have, as quotas count them.
    pub bytes: u64,
}

impl Stats {
    /// What came with a cell of another owner.
    pub(crate) fn moved_in(&mut self, change: &Change<'_>) {
        match change {
            Change::Queued { .. } => {
                self.waiters += 1;
                self.waiters_moved_in += 1;
            }
            _ => {
                self.holds += 1;
                self.holds_moved_in += 1;
            }
        }
    }

    /// What a change of a cell means for the counters.
    #[inline(always)]
    pub(crate) fn count(&mut self, change: &Change<'_>) {
        match *change {
            Change::Granted { source: Source::Reclaimed { .. }, .. } => {
                self.reclaimed += 1;
                self.holds += 1;
            }
            Change::Granted { source, .. } => {
                self.grants += 1;
                self.holds += 1;
                if matches!(source, Source::Queue) {
                    self.grants_queued += 1;
                    self.waiters -= 1;
                }
            }
            Change::Ended { cause, .. } => {
                self.holds -= 1;
                match cause {
                    Ending::Released => self.releases += 1,
                    Ending::Expired => self.expired_holds += 1,
                    Ending::Forced => self.forced += 1,
                    Ending::Orphan => {
                        self.orphans += 1;
                        self.releases += 1;
                    }
                    Ending::CellLeft => self.holds_moved_out += 1,
                    Ending::Outranked => self.outranked += 1,
                }
            }
            Change::Queued { .. } => {
                self.enqueued += 1;
                self.waiters += 1;
            }
            Change::Left { cause, .. } => {
                self.waiters -= 1;
                match cause {
                    Leaving::Cancelled => self.cancelled_waiters += 1,
                    Leaving::TimedOut => self.timeouts += 1,
                    Leaving::Dead => self.dead_waiters += 1,
                    Leaving::CellLeft => self.waiters_moved_out += 1,
                    Leaving::Refused => self.refused_waiters += 1,
                }
            }
        }
    }
}
