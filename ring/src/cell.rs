//! Cells, epochs and versions: the coordinates of ownership.

use std::fmt;

/// One of Q equal arcs of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(pub u16);

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Ownership generation of one cell; grows by one with each change of owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The last epoch that fits the 23 bits of a fence. It is refused, never granted under.
    pub const LAST: Self = Self((1 << 23) - 1);
}

/// Version of the whole ring: it grows with each change that a client has to know of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingVersion(pub u64);

/// log2 of the number of cells Q; fixed when a cluster is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellBits(u8);

/// Why a number cannot be log2 Q.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellBitsError(pub u8);

impl fmt::Display for CellBitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a number of cell bits: use 1 to 16", self.0)
    }
}

impl std::error::Error for CellBitsError {}

impl CellBits {
    /// Q = 16384: exact balance to 50 nodes, one cell of 10 M locks holds about 610.
    pub const DEFAULT: Self = Self(14);

    /// Q = 2^`bits`, with `bits` in 1..=16.
    ///
    /// # Errors
    /// When `bits` is outside that range.
    pub fn new(bits: u8) -> Result<Self, CellBitsError> {
        if (1..=16).contains(&bits) { Ok(Self(bits)) } else { Err(CellBitsError(bits)) }
    }

    /// log2 Q.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Q.
    pub fn cells(self) -> u32 {
        1 << self.0
    }

    /// The cell that holds a ring position.
    #[inline]
    pub fn cell(self, position: u64) -> CellId {
        CellId((position >> (64 - u32::from(self.0))) as u16)
    }
}
