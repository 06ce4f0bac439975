//! Limits that both sides enforce. A frame's length is checked before anything is allocated.

use std::time::Duration;

/// Longest frame body, in bytes, in either direction.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Bound on what one decode may claim, and so allocate, whatever lengths its bytes pretend. A
/// container claims `len * size_of::<T>()`: for a full frame of holds of two bytes each, 8 times
/// the frame; for every message within the limits below, less.
pub const DECODE_BYTES_MAX: usize = 8 * FRAME_BYTES_MAX;

/// Longest key, in bytes; the shortest is 1.
pub const KEY_BYTES_MAX: usize = 512;

/// Longest namespace name, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 64;

/// Longest label a client may give its session, in bytes.
pub const LABEL_BYTES_MAX: usize = 128;

/// Highest request id: a session that has used them up begins anew. Sixteen bits less than it has
/// on the wire, so that a hold's record keeps it whole.
pub const REQUEST_ID_MAX: u64 = (1 << 48) - 1;

/// Request ids of the process that has begun a session: those of others are above.
pub const FIRST_PROCESS_IDS: u64 = 1 << 47;

/// Request ids that are one process's of a session that it has taken up, from where it begins on.
pub const IDS_PER_PROCESS: u64 = 1 << 34;

/// Highest incarnation that a hello may name. The other half is for those that the worker counts.
pub const INCARNATION_MAX: u64 = (1 << 63) - 1;

/// Largest capacity of a semaphore.
pub const CAPACITY_MAX: u32 = 1 << 30;

/// Most holds in one frame of a compare (12 bytes each at most).
pub const HOLDS_PER_FRAME: usize = 4096;

/// Most rows in one page of a listing: with every key and label at its longest, they fit a frame.
pub const LIST_ROWS_MAX: u32 = 90;

/// Most workers of a node.
pub const WORKERS_MAX: u16 = 256;

/// Most bytes of all hosts by which clients reach a node: with them it fits a part of a ring.
pub const HOSTS_BYTES_MAX: usize = 15 << 10;

/// Shortest session TTL; shorter ones are clamped, and the reply says so.
pub const TTL_MIN: Duration = Duration::from_secs(1);

/// Longest session TTL; longer ones are clamped, and the reply says so.
pub const TTL_MAX: Duration = Duration::from_secs(3600);

/// TTL of a session that does not ask for one.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10);

/// Clock drift allowed between two machines, as a share (1 %): the believer counts
/// `TTL * (1 - DRIFT)` less [`BELIEF_MARGIN`] from its send, the server `TTL * (1 + DRIFT)` from
/// its receipt.
pub const DRIFT_DIVISOR: u32 = 100;

/// What the believer takes off beside the drift, for what no clock counts: the time between reading
/// the clock and sending, and between the end of a lease and its being noticed.
pub const BELIEF_MARGIN: Duration = Duration::from_millis(50);

/// T: how long a node may answer without hearing from the control log.
pub const NODE_LEASE: Duration = Duration::from_secs(3);

/// The TTL as the believer may count it from its send: 1 % and [`BELIEF_MARGIN`] less.
pub fn believed(ttl: Duration) -> Duration {
    (ttl - ttl / DRIFT_DIVISOR).saturating_sub(BELIEF_MARGIN)
}

/// The TTL as the server must honour it: 1 % more.
pub fn honoured(ttl: Duration) -> Duration {
    ttl + ttl / DRIFT_DIVISOR
}

/// How long a lease of this TTL may be believed in by a client whose owner is gone: that owner
/// may have answered renewals until its own lease ended.
pub fn inherited(ttl: Duration) -> Duration {
    honoured(ttl.saturating_add(NODE_LEASE))
}

/// The real TTL a session gets for the one it asks for.
pub fn clamp_ttl(asked: Duration) -> Duration {
    asked.clamp(TTL_MIN, TTL_MAX)
}
