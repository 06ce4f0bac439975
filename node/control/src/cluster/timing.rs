//! Spans that nodes agree on, and what is made of them on either side of a lease.

use lockring_proto::limits::{DRIFT_DIVISOR, NODE_LEASE, honoured};
use std::time::Duration;

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
