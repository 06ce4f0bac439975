//! Small values that name things on the wire.

use crate::Shown;
use bincode::{Decode, Encode};
use lockring_ring::Epoch;
use std::fmt;

/// Fencing token: epoch (23 bits) then the cell's operation counter (40 bits). It grows with every
/// grant of a key, whoever grants it. The top bit is clear, so it fits a signed 64-bit column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Fence(pub u64);

impl Fence {
    const COUNTER_BITS: u32 = 40;
    /// The highest counter of an epoch; nothing is granted past it.
    pub const COUNTER_LAST: u64 = (1 << Self::COUNTER_BITS) - 1;
    /// From here on a cell asks for its next epoch: half of the counter's range is the margin.
    pub const COUNTER_BUMP: u64 = 1 << (Self::COUNTER_BITS - 1);

    /// Puts a fence together. Both parts must be in range: a broken counter is our own bug.
    #[inline]
    pub fn new(epoch: Epoch, counter: u64) -> Self {
        assert!(
            epoch < Epoch::LAST && counter <= Self::COUNTER_LAST,
            "fence out of range: epoch {epoch:?} counter {counter}"
        );
        Self(u64::from(epoch.0) << Self::COUNTER_BITS | counter)
    }

    /// The epoch it was granted under.
    #[inline]
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> Self::COUNTER_BITS) as u32)
    }

    /// The cell's operation counter at the grant.
    #[inline]
    pub fn counter(self) -> u64 {
        self.0 & Self::COUNTER_LAST
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One client's liveness: 16 random bytes made by the client, a secret between it and the nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    /// Only a prefix: the whole id is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, ..] = self.0;
        write!(f, "s{a:02x}{b:02x}{c:02x}")
    }
}

/// A namespace name: 1..=64 of `a-z A-Z 0-9 . _ -`. Comes from a client's certificate alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(String);

/// A name that cannot be a namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a namespace: use 1 to 64 of a-z A-Z 0-9 . _ -", Shown(.0))]
pub struct NamespaceError(pub String);

impl Namespace {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is empty, too long or has another character.
    pub fn new(name: &str) -> Result<Self, NamespaceError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=crate::limits::NAMESPACE_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal)
        {
            Ok(Self(name.to_owned()))
        } else {
            Err(NamespaceError(name.to_owned()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
