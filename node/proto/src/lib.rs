//! The wire between clients and nodes: frames, limits, versions.
//!
//! [`codec`] is the only user of the codec library. Requests are decoded in place: their keys
//! borrow from the received bytes. The byte-by-byte format is below, from `wire.md` beside this
//! file; tests and golden bytes hold it and the code together.
//!
#![doc = include_str!("wire.md")]

#[cfg(feature = "clock")]
pub mod clock;
pub mod codec;
mod common;
mod fence;
mod hello;
pub mod limits;
mod mode;
mod reply;
mod request;
mod ring;
mod shown;
mod time;
#[cfg(feature = "transport")]
pub mod transport;

pub use common::{Head, Message};
pub use fence::{Fence, Namespace, NamespaceError, SessionId};
pub use hello::{Hello, HelloReply, Refusal, RefusalKind, Welcome};
pub use lockring_ring::{BootId, NamespaceSeed, NodeId};
pub use mode::Mode;
pub use reply::{
    BlockedReason, Holder, Inspection, ListedLock, Listing, LostReason, Push, Reply, WaiterInfo,
};
pub use request::{Claim, Digest, HoldId, ListCursor, Operation, Request, Wait};
pub use ring::{
    NodeAddress, NodeInfo, RingChunk, RingError, RingHistory, RingNews, RingParts, RingRun,
};
pub use shown::{Shown, ShownError, exact, read_shown, visible_json};
pub use time::Time;

/// The ALPN protocol name; the number is the wire version.
pub const ALPN: &[u8] = b"lockring/1";

/// The name every node certificate carries and every client asks for: nodes are told apart by
/// their identity, not by host names.
pub const SERVER_NAME: &str = "node.lockring";

/// Protocol version spoken by this build, sent in [`Hello`].
pub const PROTOCOL: u16 = 1;
