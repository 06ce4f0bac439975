//! Spans that nodes agree on, and what is made of them on either side of a lease.

use lockring_proto::limits::honoured;
use std::time::Duration;

/// T: for so long a node may answer without hearing from the control log.
pub const NODE_LEASE: Duration = Duration::from_secs(3);

/// For so long a lease of this TTL may be believed in by a client whose owner is gone: that owner
/// may have answered renewals until its own lease ended.
pub(super) fn inherited(ttl: Duration) -> Duration {
    honoured(ttl + NODE_LEASE)
}
