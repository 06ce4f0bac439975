//! Spans that nodes agree on, and what is made of them on either side of a lease.

use lockring_proto::limits::{DRIFT_DIVISOR, honoured};
use std::time::Duration;

/// T: how long a node may answer without hearing from the control log.
pub const NODE_LEASE: Duration = Duration::from_secs(3);

/// d: what no clock counts, between a lease's end and a node's noticing it.
const UNCOUNTED: Duration = Duration::from_millis(50);

/// How long from the send of a renewal the node believes in its lease: T (1 - r).
pub(super) fn lease_believed() -> Duration {
    NODE_LEASE - NODE_LEASE / DRIFT_DIVISOR
}

/// How long after the receipt of the last renewal it acknowledged the leader knows that the lease
/// is over: T (1 + r) + d.
pub(super) fn lease_over() -> Duration {
    honoured(NODE_LEASE) + UNCOUNTED
}

/// How long a lease of this TTL may be believed in by a client whose owner is gone: that owner
/// may have answered renewals until its own lease ended.
pub(super) fn inherited(ttl: Duration) -> Duration {
    honoured(ttl + NODE_LEASE)
}
