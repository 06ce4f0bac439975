//! What a group asks of the connection it drives.

use crate::keys::Key;
use crate::time::Time;
use lockring_client::proto::Shown;

/// One caller of a group, `0..callers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u32);

/// What the server said about one caller's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The acquire succeeded.
    Granted {
        /// Whose.
        slot: Slot,
        /// The fence, where the server gives any.
        fence: Option<u64>,
    },
    /// The key is taken and the server keeps no queue: the group asks again later.
    Busy {
        /// Whose acquire.
        slot: Slot,
    },
    /// The release is done.
    Released {
        /// Whose.
        slot: Slot,
    },
    /// The operation failed and left nothing held; [`Protocol::failure`] may say why.
    Failed {
        /// Whose.
        slot: Slot,
    },
}

/// The peer said something that is not the protocol. The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke the protocol: {}", Shown(.0))]
pub struct Broken(pub String);

/// The sans-IO half of one connection: commands out, answers in, no I/O and no clock of its own.
///
/// A slot has at most one operation under way. In a fill (see [`crate::Work::Fill`]) a slot
/// acquires key after key and releases none, so a grant must not depend on its slot afterwards.
/// Nothing here may allocate per operation: buffers grow once and stay.
pub trait Protocol: Send + 'static {
    /// Appends an acquire of `key` for the caller in `slot` to `out`.
    fn acquire(&mut self, now: Time, slot: Slot, key: &Key, out: &mut Vec<u8>);

    /// Appends the release of what the caller in `slot` was granted last, under `fence`, to `out`.
    fn release(&mut self, now: Time, slot: Slot, key: &Key, fence: Option<u64>, out: &mut Vec<u8>);

    /// Takes received bytes, cut anywhere, and appends what they answer, in order.
    ///
    /// # Errors
    /// When the bytes are not the protocol.
    fn receive(&mut self, now: Time, bytes: &[u8], answers: &mut Vec<Answer>)
    -> Result<(), Broken>;

    /// Called at the end of every turn, and at the latest at the moment it returned last: room
    /// for what the connection itself has to say (keepalives). Returns when to be called again.
    fn tick(&mut self, _now: Time, _out: &mut Vec<u8>) -> Option<Time> {
        None
    }

    /// What the server said of the first failed operation.
    fn failure(&self) -> Option<&str> {
        None
    }
}
